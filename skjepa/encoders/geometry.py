"""Where the pixels that an encoder receives lie in the picture as it was given: resize and crop undone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from skjepa.encoders.preprocessing import Preprocessing


@dataclass(frozen=True)
class Axis:
    """Places along one side: pixel i of the encoder's input shows what lies at ``start + step * i`` in the picture.

    Both count pixels from the centre of the first one.
    """

    start: float
    step: float

    def weights(self, n_cells: int, n_input: int, n_picture: int) -> NDArray[np.float32]:
        """Linear interpolation from cells that divide the input evenly to pixels of the picture, (n_picture, n_cells).

        Rows of NaN where the encoder saw nothing. Beyond the centre of the outermost cell its value goes on.
        """
        in_input = (np.arange(n_picture) - self.start) / self.step
        place = np.clip((in_input + 0.5) * n_cells / n_input - 0.5, 0, n_cells - 1)
        below = np.minimum(place.astype(int), max(n_cells - 2, 0))
        found = np.zeros((n_picture, n_cells), dtype=np.float32)
        rows = np.arange(n_picture)
        share = (place - below).astype(np.float32)
        found[rows, below] = 1 - share
        found[rows, np.minimum(below + 1, n_cells - 1)] += share
        found[(in_input < -0.5) | (in_input > n_input - 0.5)] = np.nan
        return found


@dataclass(frozen=True)
class Placement:
    """The encoder's input in one picture.

    Attributes
    ----------
    input_size, picture_size : (int, int)
        Height and width.
    vertical, horizontal : Axis
    """

    input_size: tuple[int, int]
    picture_size: tuple[int, int]
    vertical: Axis
    horizontal: Axis

    def to_picture(self, values: NDArray) -> NDArray[np.float32]:
        """A grid of values over the input, (rows, columns), at every pixel of the picture; NaN outside the crop."""
        rows, columns = values.shape
        down = self.vertical.weights(rows, self.input_size[0], self.picture_size[0])
        across = self.horizontal.weights(columns, self.input_size[1], self.picture_size[1])
        return down @ np.asarray(values, dtype=np.float32) @ across.T

    def box(self, cells: tuple[slice, ...], grid: tuple[int, ...]) -> tuple[int, int, int, int]:
        """Left, top, right and bottom, in whole pixels of the picture, of a range of cells of a grid over the input."""
        sides = []
        for axis, own, n_cells, n_input, n in zip(
            (self.vertical, self.horizontal), cells, grid, self.input_size, self.picture_size, strict=True
        ):
            edges = [axis.start + axis.step * (edge * n_input / n_cells - 0.5) + 0.5 for edge in (own.start, own.stop)]
            low, high = max(0, int(np.floor(edges[0] + 1e-3))), min(n, int(np.ceil(edges[1] - 1e-3)))
            sides.append((min(low, n - 1), max(high, low + 1)))
        (top, bottom), (left, right) = sides
        return left, top, right, bottom


def placement(preprocessing: Preprocessing, picture_size: tuple[int, int]) -> Placement:
    """Where the input lies in a picture of this height and width, found by a look at pictures of coordinates.

    Any preprocessing that enlarges, crops, pads or shifts by the same law for all pictures of one size is undone, a
    function of the user's as well: a ramp along each side goes through it, and a line through what comes out in the
    middle of the input tells start and step. One that mirrors or turns pictures is not.

    Raises
    ------
    ValueError
        The ramps come out flat: the preprocessing does not keep places.
    """
    height, width = picture_size
    ends = [_seen(preprocessing, np.full((height, width), level, dtype=np.uint8)) for level in (0, 255)]
    axes = []
    for axis, n in enumerate((height, width)):
        levels = np.round(np.linspace(0, 255, n)).astype(np.uint8)
        ramp = np.broadcast_to(levels[:, None] if axis == 0 else levels, (height, width))
        share = (_seen(preprocessing, ramp) - ends[0]) / np.where(ends[1] == ends[0], np.inf, ends[1] - ends[0])
        axes.append(_axis(share.mean(axis=1 - axis) * (n - 1), n))
    return Placement(preprocessing.size, (height, width), axes[0], axes[1])


def _seen(preprocessing: Preprocessing, levels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """One channel of what the encoder receives of a grey picture, (height, width) of its input."""
    picture = Image.fromarray(np.ascontiguousarray(levels)).convert("RGB")
    return preprocessing.load(picture, torch.float64)[0].numpy().astype(np.float64)


def _axis(places: NDArray[np.float64], n: int) -> Axis:
    """The line through places in the picture, by pixel of the input, of those that lie well inside the picture."""
    i = np.arange(len(places))
    inside = (places > 0.05 * n) & (places < 0.95 * n - 1)
    if n == 1 or inside.sum() < 2:
        return Axis(0.0, max(n / len(places), 1e-9))
    step, start = np.polyfit(i[inside], places[inside], 1)
    if not step > 0:
        raise ValueError(
            "the preprocessing does not keep places: left and right, or top and bottom, of a picture come out alike or "
            "mirrored, so that no map can be laid over the picture"
        )
    return Axis(float(start), float(step))


def picture_size(sample: object) -> tuple[int, int]:
    """Height and width of a loaded sample: PIL image, array (H, W, 3) or tensor (3, H, W)."""
    if isinstance(sample, Image.Image):
        return sample.height, sample.width
    shape: Sequence[int] = sample.shape  # type: ignore[attr-defined]
    return (shape[1], shape[2]) if isinstance(sample, torch.Tensor) else (shape[0], shape[1])
