"""A folder that fills: each new file is scored once, its row appended, and a monitor told."""

import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skjepa.data.folders import IMAGE_SUFFIXES, files_below
from skjepa.data.images import ImageReadError, path_as_text, read_image
from skjepa.data.sources import as_source
from skjepa.deployment.drift_alarm import SCORE, DriftAlarm
from skjepa.deployment.score_monitor import ScoreMonitor
from skjepa.deployment.stream_values import normal_values, stream_values
from skjepa.deployment.watch_table import Row, WatchTable, one_line
from skjepa.detectors.jepa_score import JEPAScoreDetector
from skjepa.reporting.scored_groups import reasons_of

BATCH = 32
"""Files scored together: a signal is heard after so many."""


@dataclass(frozen=True)
class NewFile:
    """A file as it is now; one of this name that has changed is another.

    Attributes
    ----------
    id : str
        Path relative to the folder, with forward slashes.
    size, modified : int
        Bytes; time stamp in nanoseconds.
    """

    path: Path
    id: str
    size: int
    modified: int

    @property
    def key(self) -> tuple[str, int, int]:
        return self.id, self.size, self.modified

    def is_unchanged(self) -> bool:
        try:
            now = os.stat(self.path)
        except OSError:
            return False
        return (now.st_size, now.st_mtime_ns) == (self.size, self.modified)

    def is_young(self, seconds: float) -> bool:
        """Whether it may still be in the making."""
        return 0 <= time.time() - self.modified / 1e9 < seconds


class FolderWatch:
    """What of a folder is scored, and what a monitor says of it.

    Parameters
    ----------
    folder : Path
    detector : JEPAScoreDetector
        With ``on_error="skip"``.
    table : WatchTable
        Its rows are taken.
    monitor_file : Path
        JSON, beside the table. A monitor that lies there goes on; rows of the table that it has not seen, because the
        process was killed between the two, are told to it again.
    level : float
        Of the monitor.
    patience : float
        A file that cannot be read is tried again until it has not changed for so many seconds.
    normal : callable, optional
        Called only where there is no monitor yet: normal images that the detector has not learned from.

    Raises
    ------
    ValueError
        The monitor is of another detector or level.
    """

    def __init__(
        self,
        folder: Path,
        detector: JEPAScoreDetector,
        table: WatchTable,
        monitor_file: Path,
        *,
        level: float = 0.01,
        patience: float = 10.0,
        normal: Callable[[], Any] | None = None,
    ) -> None:
        self.folder, self.detector, self.table, self.patience = folder, detector, table, patience
        self._monitor_file = monitor_file
        self.ids = [row["id"] for row in table.rows]
        self.alarms: list[DriftAlarm] = []
        self.n_unreadable = 0
        self._known = {(row["id"], row["size"], row["modified"]) for row in table.rows}
        if monitor_file.exists():
            self.monitor = self._kept_monitor(level)
        else:
            self.monitor = ScoreMonitor.of(detector, None if normal is None else normal(), level)
        self._tell_missed(table.rows)
        table.rows.clear()  # a stream has no end, memory has

    def look(self, should_stop: Callable[[], bool] = lambda: False) -> int:
        """Score what is new, the oldest first, until `should_stop` says so; returns how many rows that made."""
        new, before = self.new_files(), len(self.ids)
        for begin in range(0, len(new), BATCH):
            if should_stop():
                break
            self._take(new[begin : begin + BATCH])
        return len(self.ids) - before

    def new_files(self) -> list[NewFile]:
        """Image files below the folder that have no row, the oldest first."""
        found = (_new_file(path, self.folder) for path in files_below(self.folder))
        new = [file for file in found if file is not None and file.key not in self._known]
        return sorted(new, key=lambda file: (file.modified, file.id))

    def _take(self, files: list[NewFile]) -> None:
        rows = [row for row in self._rows(files) if row is not None]
        if not rows:
            return
        for row in rows:
            alarms = self.monitor.update(self._values([row]))
            row["drift"] = "; ".join(map(str, alarms)) or None
            self.alarms += alarms
        self.table.append(rows)
        self.monitor.save(self._monitor_file)
        self.ids += [row["id"] for row in rows]
        self._known |= {(row["id"], row["size"], row["modified"]) for row in rows}
        self.n_unreadable += sum(row["error"] is not None for row in rows)

    def _rows(self, files: list[NewFile]) -> Iterator[Row | None]:
        """A row a file; None where the file is to be tried again."""
        found = scored(self.detector, files)
        for i, file in enumerate(files):
            error = found.errors.get(i)
            if not file.is_unchanged() or (error is not None and file.is_young(self.patience)):
                yield None
                continue
            numbers = {
                name: None if np.isnan(column[i]) else float(column[i]) for name, column in found.numbers.items()
            }
            yield {
                **numbers,
                "id": file.id,
                "label": 1 if (numbers["decision"] or 0.0) >= 0 and error is None else -1,
                "error": error,
                "reason": found.reasons[i] or None,
                "size": file.size,
                "modified": file.modified,
            }

    def _values(self, rows: Sequence[Row]) -> dict[str, NDArray[np.float64]]:
        """What the monitor is told of rows."""
        return {
            name: np.array([np.nan if row[name] is None else row[name] for row in rows], dtype=np.float64)
            for name in self.monitor.monitor.streams
        }

    def _kept_monitor(self, level: float) -> ScoreMonitor:
        monitor = ScoreMonitor.load(self._monitor_file)
        fresh = normal_values(self.detector)
        if set(monitor.monitor.streams) != set(fresh) or monitor.monitor.n > len(self.ids):
            raise ValueError(f"{self._monitor_file} is the monitor of another detector or table: give another --out")
        if monitor.monitor.level != level:
            raise ValueError(
                f"{self._monitor_file} has level {monitor.monitor.level:g}; got {level:g}. Give that one, or remove "
                "the file: a new monitor is told the rows of the table"
            )
        return monitor

    def _tell_missed(self, rows: Sequence[Row]) -> None:
        missed = rows[self.monitor.monitor.n :]
        if missed:
            self.alarms += self.monitor.update(self._values(missed))
            self.monitor.save(self._monitor_file)


@dataclass(frozen=True)
class Scored:
    """What a detector says of files.

    Attributes
    ----------
    numbers : dict of name -> array of shape (n_files,)
        score, p_value, decision and the terms; NaN for a file that could not be read.
    errors : dict of position -> reason
    reasons : list of str
        Which terms are unusual.
    """

    numbers: dict[str, NDArray[np.float64]]
    errors: dict[int, str]
    reasons: list[str]


def scored(detector: JEPAScoreDetector, files: Sequence[NewFile]) -> Scored:
    """One pass over files; the detector has ``on_error="skip"``."""
    source = as_source([file.path for file in files], ids=[file.id for file in files])
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="skipped: ")  # each has a row with the reason
            samples = detector.extract(source)
    except ImageReadError:  # not one of them could be read
        names = ("p_value", "decision", *normal_values(detector))
        return Scored(
            dict.fromkeys(names, np.full(len(files), np.nan)),
            {i: _reason(file) for i, file in enumerate(files)},
            [""] * len(files),
        )
    numbers = stream_values(detector, samples)
    numbers["decision"] = numbers[SCORE] - detector.offset_
    if detector.calibration_scores_ is not None:
        numbers["p_value"] = detector.p_values(samples)
    aligned = {name: samples.aligned(column) for name, column in numbers.items()}
    return Scored(aligned, samples.errors, reasons_of(detector, samples))


def _reason(file: NewFile) -> str:
    try:
        read_image(file.path)
    except ImageReadError as error:
        return str(error)
    return "could be read only after the others were scored"


def _new_file(path: Path, folder: Path) -> NewFile | None:
    """None for what is no image, or has gone."""
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        return None
    try:
        seen = os.stat(path)
    except OSError:
        return None
    name = one_line(path_as_text(path.relative_to(folder).as_posix()))
    return NewFile(path, name, seen.st_size, seen.st_mtime_ns)
