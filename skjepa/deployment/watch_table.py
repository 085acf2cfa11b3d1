"""Append to a table of one row per file, which keeps all complete lines even if the process is killed."""

import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

SUFFIXES = (".csv", ".jsonl")
COLUMNS = ("id", "score", "p_value", "decision", "label", "error", "reason", "size", "modified", "drift")
"""The columns of `skjepa score`, then bytes and time stamp (ns) of the file, and the alarms of a monitor at its row."""

_TEXT = frozenset(("id", "error", "reason", "drift"))
_WHOLE = frozenset(("label", "size", "modified"))
Row = dict[str, Any]


class WatchTable:
    """Append rows to a CSV or JSONL file, for which this process holds a lock.

    Parameters
    ----------
    path : Path
        A `.csv` or `.jsonl` file, which is created where it is missing.
    terms : sequence of str
        Names of the columns of numbers after `COLUMNS`.

    Attributes
    ----------
    columns : tuple of str
    rows : list of dict
        The rows that the file held at the start, with None for an empty cell.

    Raises
    ------
    ValueError
        Another process appends to the file, or it is another table.
    """

    def __init__(self, path: Path, terms: Sequence[str]) -> None:
        self.path, self.columns = path, (*COLUMNS, *terms)
        self._lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise ValueError(f"another process appends to {path}: watch with another --out") from None
        try:
            self.rows = self._whole_rows()
        except ValueError as error:
            self.close()
            raise ValueError(f"rows cannot be appended to {path}: {error}. Give another --out") from error
        except BaseException:
            self.close()
            raise

    def append(self, rows: Sequence[Row]) -> None:
        """Append rows and flush them to the disk."""
        self._write("".join(self._line(row) for row in rows))

    def close(self) -> None:
        self._lock.release()

    def __enter__(self) -> "WatchTable":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    @property
    def _is_csv(self) -> bool:
        return self.path.suffix.lower() == ".csv"

    def _whole_rows(self) -> list[Row]:
        """Read the rows; afterwards the file ends in a whole line."""
        text = _cut_to_lines(self.path)
        if not self._is_csv:
            rows = [json.loads(line) for line in text.splitlines()]
            self._check(rows[0] if rows else self.columns)
            return rows
        if not text:
            self._write(_csv_line(self.columns))
            return []
        header, *cells = csv.reader(io.StringIO(text))
        self._check(header)
        return [dict(zip(header, map(_cell, header, row), strict=True)) for row in cells]

    def _check(self, columns: Iterable[str]) -> None:
        if tuple(columns) != self.columns:
            raise ValueError("it is another kind of table, or the table of another detector")

    def _line(self, row: Row) -> str:
        cells = {name: _one_line(row.get(name)) for name in self.columns}
        if self._is_csv:
            return _csv_line(["" if cell is None else cell for cell in cells.values()])
        return json.dumps(cells, allow_nan=False) + "\n"

    def _write(self, text: str) -> None:
        with open(self.path, "ab") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())


def one_line(text: str) -> str:
    """Escape line breaks, because a line of the table is a row."""
    return text.replace("\r", "\\r").replace("\n", "\\n")


def _one_line(cell: Any) -> Any:
    return one_line(cell) if isinstance(cell, str) else cell


def _cut_to_lines(path: Path) -> str:
    """Return the whole lines of a file, and cut off half a line at the end, which a killed process leaves."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return ""
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    return whole.decode("utf-8")


def _csv_line(cells: Sequence[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


def _cell(name: str, text: str) -> Any:
    if not text:
        return None
    if name in _TEXT:
        return text
    return int(text) if name in _WHOLE else float(text)
