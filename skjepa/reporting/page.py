"""Render results as one self-contained HTML page, which fetches nothing and trusts no name or text of the data."""

import base64
import hashlib
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from skjepa import __version__
from skjepa.reporting.results import Results
from skjepa.reporting.words import (
    diagnosis_in_words,
    p_in_words,
    reason_in_words,
    result_in_words,
    size_in_words,
    status_of,
    threshold_in_words,
)

LARGE, SMALL = 144, 64
"""Longest side in pixels of a picture in a gallery, and of a neighbour or a picture in the table."""
IN_TABLE = 400
"""Largest number of pictures in the table, of the most atypical images, in addition to those of the galleries."""
MAX_POINTS = 20_000
_GROUPS_SHOWN, _PICTURES_OF_GROUP, _BINS = 24, 6, 48
_SIZE_MARK = "@SIZE@"
_UNREADABLE = (OSError, ValueError, RuntimeError)


@dataclass(frozen=True)
class Card:
    """One image of a gallery."""

    place: int
    name: str
    picture: str
    score: str
    p: str
    status: str
    reason: str = ""
    neighbours: list[tuple[str, str]] = field(default_factory=list)
    overlay: str = ""


@dataclass(frozen=True)
class Gallery:
    """A section of the page with a heading, a sentence, and images."""

    key: str
    title: str
    text: str
    cards: list[Card]


def render(
    results: Results,
    *,
    title: str = "Report",
    groups: Sequence[Sequence[int]] | None = None,
    known: Sequence[tuple[int, str]] = (),
    gallery: int = 24,
    thumbnails: int = IN_TABLE,
) -> str:
    """Return the HTML text of the page.

    Parameters
    ----------
    results : Results
    title : str
    groups : lists of positions, optional
        Groups of near-duplicate images, see `skjepa.data.near_duplicates.alike`; None where they were not searched.
    known : list of (position, name)
        Samples that are near-duplicates of a normal image, with the name of that image.
    gallery : int
        Largest number of images in each of the three galleries.
    thumbnails : int
        Largest number of pictures in the table, in addition to those of the galleries.
    """
    if results.reasons is not None:
        terms = [] if results.about.diagnosed is None else list(results.about.diagnosed.terms)
        results = replace(results, reasons=[reason_in_words(reason, terms) for reason in results.reasons])
    pictures = _Pictures(results)
    galleries = _galleries(results, pictures, gallery)
    shown = {card.place for part in galleries for card in part.cards}
    text = _template("report.html.j2").render(
        title=title,
        version=__version__,
        results=results,
        result=result_in_words(results),
        threshold=threshold_in_words(results),
        histogram=_histogram(results),
        galleries=galleries,
        has_overlays=any(card.overlay for part in galleries for card in part.cards),
        maps=[found.name for found in results.maps],
        diagnosis=results.about.diagnosed,
        verdicts=list(diagnosis_in_words(results.about.diagnosed)) if results.about.diagnosed else [],
        groups=None if groups is None else [_alike(results, pictures, group) for group in groups[:_GROUPS_SHOWN]],
        n_groups=len(groups or ()),
        known=[_with_twin(results, pictures, i, name) for i, name in known[:_GROUPS_SHOWN]],
        n_known=len(known),
        errors=[(str(results.ids[i]), reason) for i, reason in list(results.errors.items())[:50]],
        data=_data(results, pictures, shown, thumbnails),
        style=Markup(_asset("report.css")),
        script=Markup(_asset("report.js")),
        script_hash=_hash_of(_asset("report.js")),
        size=_SIZE_MARK,
    )
    size = size_in_words(len(text.encode("utf-8", "replace")))
    return text.replace(_SIZE_MARK, size, 1)


class _Pictures:
    """Return pictures as data URIs; "" where there is no picture or it cannot be read."""

    def __init__(self, results: Results) -> None:
        self._results = results
        self._known: dict[Any, str] = {}

    def of(self, i: int, side: int) -> str:
        return self._get((int(i), side), lambda: self._results.image(int(i)), side)

    def with_map(self, i: int, side: int) -> str:
        return self._get((int(i), "map"), lambda: self._results.map_picture(int(i)), side)

    def of_normal(self, name: str) -> str:
        return self._get((name, SMALL), lambda: self._results.normal_image(name), SMALL)

    def _get(self, key: tuple[Any, Any], load: Callable[[], Image.Image | None], side: int) -> str:
        if key not in self._known:
            try:
                image = load()
            except _UNREADABLE:
                image = None
            self._known[key] = "" if image is None else data_uri(image, side)
        return self._known[key]


def data_uri(image: Image.Image, side: int) -> str:
    """Return an image, scaled down to at most `side` pixels, as a data URI: JPEG, or PNG where it is tiny."""
    small = image.convert("RGB")
    small.thumbnail((side, side), reducing_gap=2.0)
    tiny = max(image.size) <= 48
    buffer = io.BytesIO()
    if tiny:
        small.save(buffer, "PNG")
    else:
        small.save(buffer, "JPEG", quality=80, optimize=True)
    return f"data:image/{'png' if tiny else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _galleries(results: Results, pictures: _Pictures, n: int) -> list[Gallery]:
    ranked = results.ranked
    n = min(n, max(1, len(ranked) // 2))
    parts = (
        ("atypical", "Most atypical", "The images with the lowest scores, least like the normal images.", ranked[:n]),
        (
            "borderline",
            "Borderline",
            "The images nearest to the threshold, where the decision is closest.",
            results.borderline[:n],
        ),
        (
            "typical",
            "Most typical",
            "The images with the highest scores, most like the normal images.",
            ranked[::-1][:n],
        ),
    )
    return [
        Gallery(key, title, text, [_card(results, pictures, int(i)) for i in places])
        for key, title, text, places in parts
        if len(places)
    ]


def _card(results: Results, pictures: _Pictures, i: int) -> Card:
    names = results.nearest[i] if results.nearest else []
    return Card(
        i,
        str(results.ids[i]),
        pictures.of(i, LARGE),
        f"{results.scores[i]:.4g}",
        p_in_words(results, i),
        status_of(results, i),
        results.reasons[i] if results.reasons else "",
        [(name, pictures.of_normal(name)) for name in names],
        pictures.with_map(i, LARGE),
    )


def _alike(results: Results, pictures: _Pictures, group: Sequence[int]) -> dict[str, Any]:
    shown = group[:_PICTURES_OF_GROUP]
    cards = [(str(results.ids[i]), pictures.of(i, SMALL), status_of(results, i)) for i in shown]
    return {"cards": cards, "more": len(group) - len(shown)}


def _with_twin(results: Results, pictures: _Pictures, i: int, name: str) -> dict[str, Any]:
    status = status_of(results, i)
    twin = (name, pictures.of_normal(name), "a normal image")
    return {"cards": [(str(results.ids[i]), pictures.of(i, SMALL), status), twin], "more": 0}


def _histogram(results: Results) -> dict[str, Any] | None:
    """Return the bars of a drawing 720 wide and 240 high: images stacked by decision, normal ones as an outline."""
    scores = results.scores[results.readable]
    if not len(scores):
        return None
    normal = np.asarray(results.about.normal_scores, dtype=np.float64)
    everything = np.concatenate([scores, normal, [] if results.threshold is None else [results.threshold]])
    # A few extreme outliers would squeeze all other scores into one bar, so they are counted in the outermost bar.
    low, high = np.percentile(everything, [0.5, 99.5])
    if results.threshold is not None:
        low, high = min(low, results.threshold), max(high, results.threshold)
    margin = 0.03 * (high - low) or 1.0
    edges = np.linspace(low - margin, high + margin, _BINS + 1)
    flagged = results.flagged[results.readable]
    red, blue = (_shares(scores[part], edges, len(scores)) for part in (flagged, ~flagged))
    line = _shares(normal, edges, max(len(normal), 1))
    top = max((red + blue).max(), line.max()) or 1.0
    width = 720 / _BINS
    bars = [
        {"x": k * width, "red": 240 * red[k] / top, "blue": 240 * blue[k] / top, "width": width - 1}
        for k in range(_BINS)
    ]
    steps = [f"{x * width:.1f},{240 - 240 * line[k] / top:.1f}" for k in range(_BINS) for x in (k, k + 1)]

    def across(value: float) -> float:
        return 720 * (value - edges[0]) / (edges[-1] - edges[0])

    ticks = [{"x": across(value), "label": f"{value:.4g}"} for value in _round_values(edges[0], edges[-1])]
    return {
        "bars": bars,
        "outline": " ".join(["0,240", *steps, "720,240"]) if len(normal) else "",
        "threshold": None if results.threshold is None else across(results.threshold),
        "ticks": ticks,
        "n_flagged": int(flagged.sum()),
        "n_normal": int((~flagged).sum()),
        "kind": results.about.normal_kind,
    }


def _shares(values: NDArray[np.float64], edges: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    return counts / n


def _round_values(low: float, high: float) -> NDArray[np.float64]:
    """Return about six round numbers between `low` and `high`."""
    raw = (high - low) / 6
    unit = 10.0 ** np.floor(np.log10(raw))
    step = unit * min((1, 2, 5, 10), key=lambda m: abs(m * unit - raw))
    return np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step


def _data(results: Results, pictures: _Pictures, shown: Iterable[int], thumbnails: int) -> dict[str, Any]:
    """Return the data from which the script of the page draws table and maps, rounded to keep 10,000 rows small."""
    shown = set(shown)
    places = [int(i) for i in results.ranked if int(i) not in shown][:thumbnails]
    found = {i: pictures.of(i, SMALL) for i in places}
    p_values = results.p_values
    return {
        "ids": results.ids.tolist(),
        "scores": _short(results.scores, 4),
        "p": None if p_values is None else _short(p_values, 3),
        "status": [status_of(results, i)[0] for i in range(len(results))],
        "reasons": results.reasons,
        "errors": {str(i): reason for i, reason in results.errors.items()},
        "pictures": {str(i): picture for i, picture in found.items() if picture},
        "maps": [_map_data(results, found) for found in results.maps],
    }


def _map_data(results: Results, found: Any) -> dict[str, Any]:
    places = np.flatnonzero(np.isfinite(found.points).all(axis=1) & results.readable)
    if len(places) > MAX_POINTS:  # keep the most atypical images, which readers look for
        places = np.sort(places[np.argsort(results.scores[places], kind="stable")[:MAX_POINTS]])
    return {
        "name": found.name,
        "place": places.tolist(),
        "x": _short(found.points[places, 0]),
        "y": _short(found.points[places, 1]),
        "normal": [_short(found.normal[:, 0]), _short(found.normal[:, 1])] if len(found.normal) else [[], []],
    }


def _short(values: NDArray[np.float64], digits: int = 5) -> list[float | None]:
    return [float(f"{value:.{digits}g}") if np.isfinite(value) else None for value in values]


def _hash_of(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@cache
def _asset(name: str) -> str:
    return (files("skjepa.reporting") / "templates" / name).read_text(encoding="utf-8")


@cache
def _template(name: str) -> Any:
    # File names come from strangers, so they are escaped everywhere, and only the script of the page may run.
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_asset(name))
