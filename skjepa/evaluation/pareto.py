"""Compare accuracy with cost: find and draw the Pareto front of detectors."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox
from numpy.typing import ArrayLike, NDArray

from skjepa._utils.figures import ShownFigure

CHANCE = 0.5
SAME_COST = 0.1
"""Share up to which costs count as equal, because the seconds of two runs differ by as much."""

_ON_FRONT, _DOMINATED, _TEXT = "#0072B2", "#9a9a9a", "#6b6b6b"  # they differ in lightness and marker as well
_GAP = 6.0  # points between a marker and its label
_LINE = 10.0  # points from one place of a label to the next
_PLACES = 14


def pareto_front(seconds: ArrayLike, auroc: ArrayLike) -> NDArray[np.bool_]:
    """Return which detectors are on the Pareto front of AUROC and seconds per sample.

    A detector is on the front where no detector of the same cost or less has a higher AUROC, and its own AUROC is above
    chance.

    Parameters
    ----------
    seconds : array of shape (n_detectors,)
        Seconds per sample. Costs within a tenth count as equal, because the costs of two runs differ by as much.
    auroc : array of shape (n_detectors,)
        AUROC of each detector. At .5 or below it is never on the front.

    Returns
    -------
    array of shape (n_detectors,), bool
        True on the front.

    Examples
    --------
    >>> pareto_front([0.001, 0.01, 0.02, 0.021], [0.4, 0.8, 0.7, 0.9]).tolist()
    [False, True, False, True]
    """
    cost, value = np.asarray(seconds, dtype=np.float64), np.asarray(auroc, dtype=np.float64)
    is_better = (value[None] > value[:, None]) & (cost[None] <= (1 + SAME_COST) * cost[:, None])
    is_cheaper = (value[None] == value[:, None]) & (cost[None] < cost[:, None])
    return (value > CHANCE) & ~(is_better | is_cheaper).any(axis=1)


def pareto_figure(seconds: Mapping[str, float], auroc: Mapping[str, float], *, n_sets: int) -> Figure:
    """Draw mean AUROC against milliseconds per sample, with a step line through the Pareto front.

    Parameters
    ----------
    seconds, auroc : mapping of detector -> number
        See `skjepa.evaluation.pareto_front`; seconds must be above 0.
    n_sets : int
        Number of sets over which `auroc` is averaged, for the label of the axis.

    Returns
    -------
    matplotlib.figure.Figure
    """
    names = list(seconds)
    x, y = 1000 * np.array([seconds[name] for name in names]), np.array([auroc[name] for name in names])
    front = pareto_front(x, y)
    figure = ShownFigure(figsize=(9, 5.4), layout="constrained")
    axes = figure.subplots()
    _prepare(axes, x, y, n_sets)
    corners = _corners(x[front], y[front], axes.get_xlim()[1])
    axes.plot(*corners.T, color=_ON_FRONT, linewidth=1.4, zorder=2)
    axes.plot(x[~front], y[~front], "o", color="white", markeredgecolor=_DOMINATED, markersize=5, zorder=3)
    axes.plot(x[front], y[front], "D", color=_ON_FRONT, markersize=7, zorder=4)
    figure.draw_without_rendering()  # labels are placed in pixels, which depend on the layout
    _label(axes, names, np.column_stack([x, y]), front, corners, figure.dpi)
    return figure


def _corners(x: NDArray, y: NDArray, end: float) -> NDArray[np.float64]:
    """Return the corners, (n, 2), of the step line through a front, flat from each point to the next and to `end`."""
    order = np.argsort(x)
    across = np.repeat(np.append(x[order], end), 2)
    return np.column_stack([across[1:-1], np.repeat(y[order], 2)])


def _prepare(axes: Axes, x: NDArray, y: NDArray, n_sets: int) -> None:
    axes.set_xscale("log")
    room = max(np.log10(x.max() / x.min()), 0.6)
    axes.set_xlim(x.min() / 10 ** (0.15 * room), x.max() * 10 ** (0.25 * room))
    axes.set_ylim(y.min() - 0.04, min(y.max() + 0.08, 1.06))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.axhline(CHANCE, color="#cccccc", linewidth=0.8, linestyle=":", zorder=0)
    sets = "one set" if n_sets == 1 else f"{n_sets} sets"
    axes.set(xlabel="milliseconds per sample (encoder and detector)", ylabel=f"AUROC, mean over {sets}")
    axes.set_title("Blue: no detector of the same cost or less has a higher AUROC", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def _label(
    axes: Axes, names: Sequence[str], points: NDArray, front: NDArray[np.bool_], corners: NDArray, dpi: float
) -> None:
    """Write names beside the points, each in the first place where it hides no marker, line or other name."""
    pixels, line = (axes.transData.transform(rows) if len(rows) else rows for rows in (points, corners))
    marker = 4 * dpi / 72
    taken = [Bbox.from_extents(*(point - marker), *(point + marker)) for point in pixels]
    taken += [Bbox([start - 1, end + 1]) for start, end in pairwise(line)]
    for i in sorted(range(len(names)), key=lambda i: (not front[i], points[i, 0] if front[i] else -points[i, 1])):
        colour, weight = (_ON_FRONT, "bold") if front[i] else (_TEXT, "normal")
        text = axes.annotate(
            names[i],
            points[i],
            (0, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=colour,
            weight=weight,
        )
        for offset, alignment in _places(is_above=bool(front[i])):
            text.set(position=offset, ha=alignment)
            box = text.get_window_extent().padded(1)
            if axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 and not box.count_overlaps(taken):
                break
        taken.append(box)
        if abs(offset[0]) > _GAP:
            arrow = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 2, "shrinkB": 3}
            axes.annotate("", points[i], offset, textcoords="offset points", arrowprops=arrow)


def _places(*, is_above: bool) -> Iterator[tuple[tuple[float, float], str]]:
    """Yield offsets in points with the text alignment, the nearest first."""
    for step in range(_PLACES):
        for sign in (1, -1) if is_above else (-1, 1):
            height = sign * step * _LINE + (_LINE if is_above else 0.0)
            sides = [(_GAP, "left"), (-_GAP, "right")]
            for side, alignment in reversed(sides) if is_above else sides:
                yield (side * (1 + 2 * (step > 0)), height), alignment
