"""The pages read well: rates are "per image", and sentences end."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("docs/*/*.md")),
]
PAGES = [page for page in PAGES if "gallery" not in page.parts]
LONGEST = 45  # words


def prose(page: Path) -> str:
    """Without code, tables, formulas, links' addresses and marks."""
    text = re.sub(r"```.*?```|~~~.*?~~~|\$\$.*?\$\$|<!--.*?-->|:::+\{.*?\n", "", page.read_text(), flags=re.DOTALL)
    lines = [line for line in text.splitlines() if not re.match(r" {4}| *\||[#:!]", line)]
    text = re.sub(r"\]\([^)]*\)", "]", "\n".join(lines))
    return re.sub(r"`[^`]*`|\$[^$]*\$", "x", text)


def sentences(page: Path) -> list[str]:
    """An item of a list, and what ends in a full stop, is a sentence."""
    parts = re.split(r"\n\s*\n|\n\s*(?:[-*]|\d+\.) ", prose(page))
    return [sentence for part in parts for sentence in re.split(r"(?<=[.!?:;])\s", part)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_sentence_is_longer_than_a_breath(page):
    long = [sentence for sentence in sentences(page) if len(sentence.split()) > LONGEST]
    assert not long, f"{page.name}: split {long[0]!r}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_rates_are_per_image(page):
    """ "12 ms an image" makes a reader stop; "12 ms per image" does not."""
    found = re.search(r"\b(ms|GFLOP|seconds|bytes|MB|KiB|passes) an? (image|sample|pass|row|step)\b", prose(page))
    assert not found, f"{page.name}: {found[0]!r}"
