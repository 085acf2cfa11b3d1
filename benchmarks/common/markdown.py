"""Measured files and the cells of Markdown tables, for the modules of benchmarks/render."""

import json

from benchmarks.common.record import RESULTS


def number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())
