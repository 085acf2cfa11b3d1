"""Pictures for people: score histograms above, the most and the least typical images below."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image

from skjepa._files import written_whole

_FLAGGED = "#c0392b"
_THUMBNAIL = 128
# Colour-blind safe (Okabe and Ito).
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")


@dataclass(frozen=True)
class Thumbnail:
    """One image of a gallery: the picture, its score, its decision."""

    image: Image.Image
    score: float
    flagged: bool
    caption: str = ""


def score_figure(
    groups: Mapping[str, ArrayLike],
    *,
    threshold: float,
    most_typical: Sequence[Thumbnail] = (),
    least_typical: Sequence[Thumbnail] = (),
    title: str = "",
) -> Figure:
    """Histograms of scores by group, the threshold, and two rows of images.

    Parameters
    ----------
    groups : mapping of name -> scores (n,)
        Drawn in order; NaN is left out.
    threshold : float
        Scores below it are flagged.
    most_typical, least_typical : sequence of Thumbnail
        In the order to be shown.

    Returns
    -------
    matplotlib.figure.Figure
        Free of pyplot: nothing to close.
    """
    rows = [row for row in (most_typical, least_typical) if row]
    figure = Figure(figsize=(11, 4.2 + 1.5 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    top, *strips = figure.subfigures(1 + len(rows), 1, height_ratios=[4.2] + [1.5] * len(rows), squeeze=False)[:, 0]
    _draw_histograms(top.subplots(), groups, threshold, title)
    names = [name for name, row in (("most typical", most_typical), ("least typical", least_typical)) if row]
    for strip, name, row in zip(strips, names, rows, strict=True):
        _draw_gallery(strip, name, row)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike) -> Path:
    """Write the figure, whole or not at all, in the format that the suffix names."""
    path = Path(path)
    with written_whole(path) as partial:
        figure.savefig(partial, dpi=110, format=path.suffix[1:])
    return path


def _draw_histograms(axes: Axes, groups: Mapping[str, ArrayLike], threshold: float, title: str) -> None:
    finite = {name: np.asarray(scores)[np.isfinite(scores)] for name, scores in groups.items()}
    everything = np.concatenate(list(finite.values()))
    # A few extreme outliers would squeeze everybody else into one bar: they are counted in the outermost one.
    low, high = np.percentile(everything, [0.5, 99.5])
    margin = 0.05 * (high - low) or 1.0
    low, high = min(low, threshold) - margin, max(high, threshold) + margin
    bins = np.linspace(low, high, 61).tolist()
    for (name, scores), colour in zip(finite.items(), _cycle(len(finite)), strict=True):
        flagged = int((scores < threshold).sum())
        label = f"{name}: {flagged} of {len(scores)} flagged"
        axes.hist(np.clip(scores, low, high), bins, density=True, alpha=0.5, color=colour, label=label)
    axes.axvline(threshold, color=_FLAGGED, linestyle="--", linewidth=1.5, label="threshold")
    axes.set(
        xlabel="score (right = more normal, left = flagged)", ylabel="share of images", title=title, xlim=(low, high)
    )
    axes.yaxis.set_ticks([])
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left")


def _draw_gallery(strip, name: str, row: Sequence[Thumbnail]) -> None:
    strip.suptitle(name, x=0.01, ha="left", fontsize=11)
    for axes, item in zip(strip.subplots(1, len(row), squeeze=False)[0], row, strict=True):
        image = item.image.copy()
        image.thumbnail((_THUMBNAIL, _THUMBNAIL))
        axes.imshow(image, interpolation="nearest" if max(image.size) < _THUMBNAIL else "antialiased")
        axes.set_xticks([])
        axes.set_yticks([])
        colour = _FLAGGED if item.flagged else "#444444"
        for spine in axes.spines.values():
            spine.set(color=colour, linewidth=2 if item.flagged else 0.8)
        axes.set_title(f"{item.score:.1f}", fontsize=9, color=colour, pad=2)
        axes.set_xlabel(item.caption, fontsize=7, labelpad=1)


def _cycle(n: int) -> list[str]:
    return [_COLOURS[i % len(_COLOURS)] for i in range(n)]
