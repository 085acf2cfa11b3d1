"""Measured files and the cells of Markdown tables, for the modules render_*.py."""

import json
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"


def markdown(heading: list[str], rows: list[list[str]]) -> str:
    align = ["---", *["--:"] * (len(heading) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [heading, align, *rows])


def number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())
