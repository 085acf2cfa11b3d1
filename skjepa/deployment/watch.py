"""Watch a folder: score each new file once, append its row to a table, and update a monitor."""

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
from skjepa.deployment.stream_values import normal_values, place_values
from skjepa.deployment.watch_table import Row, WatchTable, one_line
from skjepa.detectors.jepa_score import JEPAScoreDetector
from skjepa.extraction.extraction import Extraction
from skjepa.reporting.scored_groups import aligned_reasons

BATCH = 32
"""Number of files scored together; a signal takes effect after a batch."""


@dataclass(frozen=True)
class NewFile:
    """A file in its current state; a changed file of the same name counts as another one.

    Attributes
    ----------
    id : str
        Path relative to the folder, with forward slashes.
    size, modified : int
        Number of bytes, and time stamp in nanoseconds.
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
        """Whether the file changed so recently that it may not be complete."""
        return 0 <= time.time() - self.modified / 1e9 < seconds


class FolderWatch:
    """Score the new files of a folder and update a monitor.

    Parameters
    ----------
    folder : Path
    detector : JEPAScoreDetector
        Fitted detector with ``on_error="skip"``.
    table : WatchTable
        Table of the results. Its rows are removed from memory.
    monitor_file : Path
        JSON file beside the table. An existing monitor continues. Where the process was killed between table and
        monitor, the monitor gets the missing rows of the table.
    level : float
        Level of the monitor.
    patience : float
        A file that cannot be read is tried again until it has not changed for this number of seconds.
    normal : callable, optional
        Returns normal images that the detector was not fitted on. It is called only where there is no monitor yet.

    Raises
    ------
    ValueError
        The monitor belongs to another detector or has another level.
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
        table.rows.clear()  # a stream may be endless, so rows are not kept in memory

    def look(self, should_stop: Callable[[], bool] = lambda: False) -> int:
        """Score new files, the oldest first, until `should_stop` returns True; return the number of new rows."""
        new, before = self.new_files(), len(self.ids)
        for begin in range(0, len(new), BATCH):
            if should_stop():
                break
            self._take(new[begin : begin + BATCH])
        return len(self.ids) - before

    def new_files(self) -> list[NewFile]:
        """Return the image files below the folder that have no row, the oldest first."""
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
        """Yield one row per file; None where the file is to be tried again."""
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
        """Return the values of rows for the monitor."""
        return {
            name: np.array([np.nan if row[name] is None else row[name] for row in rows], dtype=np.float64)
            for name in self.monitor.monitor.streams
        }

    def _kept_monitor(self, level: float) -> ScoreMonitor:
        monitor = ScoreMonitor.load(self._monitor_file)
        fresh = normal_values(self.detector)
        if set(monitor.monitor.streams) != set(fresh) or monitor.monitor.n > len(self.ids):
            raise ValueError(f"{self._monitor_file} belongs to another detector or table: give another --out")
        if monitor.monitor.level != level:
            raise ValueError(
                f"{self._monitor_file} has level {monitor.monitor.level:g}; got {level:g}. Give the level of the file, "
                "or remove the file: a new monitor then reads the rows of the table"
            )
        return monitor

    def _tell_missed(self, rows: Sequence[Row]) -> None:
        missed = rows[self.monitor.monitor.n :]
        if missed:
            self.alarms += self.monitor.update(self._values(missed))
            self.monitor.save(self._monitor_file)


@dataclass(frozen=True)
class Scored:
    """The results of a detector for some files.

    Attributes
    ----------
    numbers : dict of name -> array of shape (n_files,)
        score, p_value, decision and the terms; NaN for a file that could not be read.
    errors : dict of position -> reason
    reasons : list of str
        Names of the unusual terms.
    """

    numbers: dict[str, NDArray[np.float64]]
    errors: dict[int, str]
    reasons: list[str]


def scored(detector: JEPAScoreDetector, files: Sequence[NewFile]) -> Scored:
    """Score files in one pass, by a detector with ``on_error="skip"``."""
    source = as_source([file.path for file in files], ids=[file.id for file in files])
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="skipped: ")  # the row of each file holds the reason
            samples = source if detector.needs_samples else detector.extract(source)
            judged, told = detector.judge_and_explain(samples)
    except ImageReadError:  # none of the files could be read
        names = ("p_value", "decision", *normal_values(detector))
        return Scored(
            dict.fromkeys(names, np.full(len(files), np.nan)),
            {i: _reason(file) for i, file in enumerate(files)},
            [""] * len(files),
        )
    numbers = {SCORE: judged.scores, "decision": judged.decisions, **told.parts}
    if judged.p_values is not None:
        numbers["p_value"] = judged.p_values
    if not isinstance(samples, Extraction):
        return Scored(numbers, judged.errors, judged.unusual_terms)
    numbers |= place_values(detector, samples)
    aligned = {name: samples.aligned(column) for name, column in numbers.items()}
    return Scored(aligned, samples.errors, aligned_reasons(judged.unusual_terms, samples))


def _reason(file: NewFile) -> str:
    try:
        read_image(file.path)
    except ImageReadError as error:
        return str(error)
    return "the file could not be read when the others were scored, and can be read now"


def _new_file(path: Path, folder: Path) -> NewFile | None:
    """Return the file; None where it is not an image or no longer exists."""
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        return None
    try:
        seen = os.stat(path)
    except OSError:
        return None
    name = one_line(path_as_text(path.relative_to(folder).as_posix()))
    return NewFile(path, name, seen.st_size, seen.st_mtime_ns)
