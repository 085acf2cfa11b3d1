"""Draw score histograms with the most and the least typical images, ROC curves, and ranks of detectors."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image
from sklearn.metrics import roc_curve

from skjepa._utils.figures import ShownFigure
from skjepa._utils.files import written_whole
from skjepa.data.images import as_picture
from skjepa.data.sources import Source

_FLAGGED = "#c0392b"
_THUMBNAIL = 128
# Safe for colour-blind readers (Okabe and Ito).
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_LINES = ("-", "--", ":", "-.")
_ROW = 0.7  # inches per histogram
_GALLERY = 10  # images per row


@dataclass(frozen=True)
class Thumbnail:
    """Hold one image of a gallery, with its score and its decision."""

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
    """Draw histograms of scores by group with the threshold, above two rows of images.

    Parameters
    ----------
    groups : mapping of name -> scores (n,)
        Scores of each group, drawn in order; NaN is left out.
    threshold : float
        Scores below it are flagged.
    most_typical, least_typical : sequence of Thumbnail
        Images in the order shown.
    title : str

    Returns
    -------
    matplotlib.figure.Figure
        A figure without pyplot, which need not be closed. A notebook shows it.
    """
    rows = [row for row in (most_typical, least_typical) if row]
    height = 1.2 + _ROW * len(groups)
    figure = ShownFigure(figsize=(11, height + 1.5 * len(rows)), layout="constrained")
    top, *strips = figure.subfigures(1 + len(rows), 1, height_ratios=[height] + [1.5] * len(rows), squeeze=False)[:, 0]
    _draw_histograms(top, groups, threshold, title)
    names = [name for name, row in (("most typical", most_typical), ("least typical", least_typical)) if row]
    for strip, name, row in zip(strips, names, rows, strict=True):
        _draw_gallery(strip, name, row)
    return figure


def gallery_figure(
    scores: Mapping[str, ArrayLike],
    images: Mapping[str, Source],
    caption: Callable[[str, int], str],
    *,
    threshold: float,
    title: str,
) -> Figure:
    """Draw histograms of scores by group above the most and the least typical images of all groups.

    Parameters
    ----------
    scores : mapping of name -> scores (n,)
        Scores of each group, drawn in order. Groups without images appear in the histograms alone.
    images : mapping of name -> Source
        The images of each group; vectors are not drawn.
    caption : callable
        Returns the caption of an image for the name of its group and its position in the group.
    threshold : float
        Scores below it are flagged.
    title : str
    """
    ranked = sorted(
        (float(score), name, i)
        for name, source in images.items()
        if not source.is_vector
        for i, score in enumerate(np.asarray(scores[name]))
        if np.isfinite(score)
    )

    def thumbnails(places: Sequence[tuple[float, str, int]]) -> list[Thumbnail]:
        return [
            Thumbnail(as_picture(images[name].load(i)), score, score < threshold, caption(name, i))
            for score, name, i in places
        ]

    n = min(_GALLERY, max(1, len(ranked) // 2))
    return score_figure(
        scores,
        threshold=threshold,
        most_typical=thumbnails(ranked[::-1][:n]),
        least_typical=thumbnails(ranked[:n]),
        title=title,
    )


def roc_figure(sets: Mapping[str, Mapping[str, tuple[ArrayLike, ArrayLike]]]) -> Figure:
    """Draw ROC curves, with one panel per set of outliers and one line per detector.

    Parameters
    ----------
    sets : mapping of set -> detector -> (scores of normal samples, scores of outliers)
        Every set needs the same detectors. Outliers are the positive class.

    Returns
    -------
    matplotlib.figure.Figure
    """
    columns = min(4, len(sets))
    rows = -(-len(sets) // columns)
    n_names = len(next(iter(sets.values())))
    width = max(3.2 * columns, 6.6)  # a legend in two columns needs 6.6
    across = 2 if width < 12 else 4
    figure = ShownFigure(figsize=(width, 3.2 * rows + 0.4 + 0.2 * -(-n_names // across)), layout="constrained")
    squares = figure.subplots(rows, columns, squeeze=False).ravel()
    names = list(next(iter(sets.values())))
    for axes, (title, detectors) in zip(squares, sets.items(), strict=False):
        for i, (normal, outlier) in enumerate(detectors.values()):
            is_outlier = np.repeat([0, 1], [np.size(normal), np.size(outlier)])
            flagged, caught, _ = roc_curve(is_outlier, -np.concatenate([np.ravel(normal), np.ravel(outlier)]))
            style = _LINES[i // len(_COLOURS) % len(_LINES)]
            axes.plot(flagged, caught, color=_COLOURS[i % len(_COLOURS)], linestyle=style, linewidth=1.4)
        axes.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=0.8, zorder=0)
        axes.set(title=title, xlim=(0, 1), ylim=(0, 1.01), aspect="equal")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in squares[len(sets) :]:
        axes.set_axis_off()
    figure.supxlabel("normal samples flagged", fontsize=10)
    figure.supylabel("outliers caught", fontsize=10)
    figure.legend(
        squares[0].lines[: len(names)], names, loc="outside upper center", ncols=across, frameon=False, fontsize=8
    )
    return figure


def ranks_figure(ranks: Mapping[str, float], critical_difference: float) -> Figure:
    """Draw mean ranks over sets on one axis, with bars that join detectors without a significant difference.

    1 = best (Demsar, 2006).

    Parameters
    ----------
    ranks : mapping of detector -> mean rank
    critical_difference : float
        See `skjepa.evaluation.critical_difference`.

    Returns
    -------
    matplotlib.figure.Figure
    """
    names = sorted(ranks, key=lambda name: ranks[name])
    values = [ranks[name] for name in names]
    figure = ShownFigure(figsize=(8, 1.2 + 0.28 * len(names)), layout="constrained")
    axes = figure.subplots()
    right = max(len(names), 1 + critical_difference)
    for height, (name, value) in enumerate(zip(names, values, strict=True), start=1):
        axes.plot([value, value, right], [0, -height, -height], color="#999999", linewidth=0.8)
        axes.annotate(f"{value:.2f}  {name}", (right, -height), (4, 0), textcoords="offset points", va="center")
    for level, (first, last) in enumerate(_not_told_apart(values, critical_difference)):
        axes.plot([values[first], values[last]], [-0.25 - 0.22 * level] * 2, color=_COLOURS[0], linewidth=3)
    axes.plot([1, 1 + critical_difference], [0.8, 0.8], color="#000000", linewidth=1.5)
    axes.annotate(f"critical difference {critical_difference:.2f}", (1, 0.8), (0, 4), textcoords="offset points")
    axes.set(xlim=(0.9, 1.35 * right), ylim=(-len(names) - 0.6, 1.5), yticks=[])
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xticks(range(1, len(names) + 1))
    axes.set_xlabel("mean rank over sets (1 = best)")
    axes.spines[["left", "right", "bottom"]].set_visible(False)
    return figure


def _not_told_apart(values: Sequence[float], critical_difference: float) -> list[tuple[int, int]]:
    """Return first and last position of each longest run of ascending values within the critical difference."""
    runs: list[tuple[int, int]] = []
    for first in range(len(values)):
        last = max(i for i in range(first, len(values)) if values[i] - values[first] <= critical_difference)
        if last > first and (not runs or last > runs[-1][1]):
            runs.append((first, last))
    return runs


def save_figure(figure: Figure, path: str | os.PathLike) -> Path:
    """Write a figure to a file, whole or not at all, in the format that the suffix names."""
    path = Path(path)
    with written_whole(path) as partial:
        figure.savefig(partial, dpi=110, format=path.suffix[1:])
    return path


def _draw_histograms(strip: Any, groups: Mapping[str, ArrayLike], threshold: float, title: str) -> None:
    """One row per group, so that no histogram hides another, and the threshold through all of them."""
    finite = {name: np.asarray(scores)[np.isfinite(scores)] for name, scores in groups.items()}
    # A few extreme outliers would squeeze everybody else into one bar: they are counted in the outermost one.
    low, high = np.percentile(np.concatenate(list(finite.values())), [0.5, 99.5])
    margin = 0.05 * (high - low) or 1.0
    low, high = min(low, threshold) - margin, max(high, threshold) + margin
    bins = np.linspace(low, high, 61).tolist()
    rows = strip.subplots(len(finite), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, scores), colour in zip(rows, finite.items(), _cycle(len(finite)), strict=True):
        axes.hist(np.clip(scores, low, high), bins, density=True, color=colour)
        axes.axvline(threshold, color=_FLAGGED, linestyle="--", linewidth=1.5)
        flagged = int((scores < threshold).sum())
        axes.set_ylabel(f"{name}\n{flagged} of {len(scores)} flagged", rotation=0, ha="right", va="center", fontsize=9)
        axes.set(yticks=[], xlim=(low, high))
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(bottom=axes is rows[-1])
    rows[0].set_title(title)
    rows[-1].set_xlabel("score: right of the dashed threshold = normal, left = flagged")


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
