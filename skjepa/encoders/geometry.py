"""Find where the pixels that an encoder receives lie in the original image, undoing resize and crop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from skjepa.data.source import Source
from skjepa.encoders.preprocessing import Preprocessing


@dataclass(frozen=True)
class Axis:
    """Positions along one side: pixel i of the encoder's input lies at ``start + step * i`` in the image.

    Positions in the input and in the image are counted in pixels from the centre of the first pixel.
    """

    start: float
    step: float

    def weights(self, pixels: NDArray, n_cells: int, n_input: int) -> NDArray[np.float32]:
        """Return weights, (n_pixels, n_cells), that interpolate linearly from grid cells to pixels of the image.

        The cells divide the encoder's input evenly. Between the centre of an outermost cell and the border of the
        input, the value of that cell is used. Rows are NaN for pixels outside the input.

        Parameters
        ----------
        pixels : array of shape (n_pixels,)
            Positions along the side of the image; fractions are allowed.
        n_cells, n_input : int
        """
        in_input = (pixels - self.start) / self.step
        place = np.clip((in_input + 0.5) * n_cells / n_input - 0.5, 0, n_cells - 1)
        below = np.minimum(place.astype(int), max(n_cells - 2, 0))
        found = np.zeros((len(pixels), n_cells), dtype=np.float32)
        rows = np.arange(len(pixels))
        share = (place - below).astype(np.float32)
        found[rows, below] = 1 - share
        found[rows, np.minimum(below + 1, n_cells - 1)] += share
        found[(in_input < -0.5) | (in_input > n_input - 0.5)] = np.nan
        return found


@dataclass(frozen=True)
class Placement:
    """Position of the encoder's input in one image.

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
        """Interpolate a grid of values over the input at every pixel of the image; NaN outside the crop."""
        height, width = self.picture_size
        return self.at(values, np.arange(height), np.arange(width))

    def at(self, values: NDArray, rows: NDArray, columns: NDArray) -> NDArray[np.float32]:
        """Interpolate a grid of values over the input at rows and columns of the image; NaN outside the crop."""
        down = self.vertical.weights(rows, values.shape[0], self.input_size[0])
        across = self.horizontal.weights(columns, values.shape[1], self.input_size[1])
        return down @ np.asarray(values, dtype=np.float32) @ across.T

    def box(self, cells: tuple[slice, ...], grid: tuple[int, ...]) -> tuple[int, int, int, int]:
        """Return left, top, right and bottom of a range of grid cells, in whole pixels of the image."""
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
    """Find where the input lies in an image of this height and width.

    Works for any preprocessing that scales, crops, pads or shifts all images of one size in the same way, including a
    user's function, but not for one that mirrors or rotates. A brightness ramp along each side is preprocessed, and a
    line fitted to the middle of the result gives start and step.

    Raises
    ------
    ValueError
        If the preprocessed ramps do not rise, so that pixels cannot be located.
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
    """Return one channel of a preprocessed grey image, (height, width) of the encoder's input."""
    picture = Image.fromarray(np.ascontiguousarray(levels)).convert("RGB")
    return preprocessing.load(picture, torch.float64)[0].numpy().astype(np.float64)


def _axis(places: NDArray[np.float64], n: int) -> Axis:
    """Fit a line to places in the image by pixel of the input, using pixels well inside the image."""
    i = np.arange(len(places))
    inside = (places > 0.05 * n) & (places < 0.95 * n - 1)
    if n == 1 or inside.sum() < 2:
        return Axis(0.0, max(n / len(places), 1e-9))
    step, start = np.polyfit(i[inside], places[inside], 1)
    if not step > 0:
        raise ValueError(
            "the preprocessing does not keep places: left and right, or top and bottom, of an image come out alike or "
            "mirrored, so no map can be drawn over it. Give a preprocess that only scales, crops or pads"
        )
    return Axis(float(start), float(step))


def noting_sizes(source: Source) -> tuple[Source, Callable[[int], tuple[int, int]]]:
    """Return the source, and the height and width of each image that was loaded from it; others are loaded for that."""
    noted: dict[int, tuple[int, int]] = {}

    def load(i: int) -> Any:
        sample = source.load(i)
        noted[i] = picture_size(sample)
        return sample

    return replace(source, load=load), lambda i: noted[i] if i in noted else picture_size(source.load(i))


def picture_size(sample: object) -> tuple[int, int]:
    """Return height and width of a loaded sample: PIL image, array (H, W, 3) or tensor (3, H, W)."""
    if isinstance(sample, Image.Image):
        return sample.height, sample.width
    shape: Sequence[int] = sample.shape  # type: ignore[attr-defined]
    return (shape[1], shape[2]) if isinstance(sample, torch.Tensor) else (shape[0], shape[1])
