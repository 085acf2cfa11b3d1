"""Hold the anomaly map and the spots of one image, and draw both over the image."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import find_objects, label

from skjepa._utils.shown import png
from skjepa.data.images import as_picture
from skjepa.encoders.geometry import Placement

LEVEL = 0.05
"""Default share of normal images in which a spot is found."""

NEEDS_LOCAL = (
    "p-values and spots need a model of the positions of normal images, and this detector has none: fit with local=True"
)
P_STEPS = (0.01, 0.001, 0.0001)
"""The p-values at which the colour of an overlay gets deeper; larger p-values have no colour."""

_COLOUR = np.array([214, 39, 40])
_STRONGEST = 0.5  # largest opacity of the colour: the image must stay visible through it
_REACH = 0.5  # share of the surprise of its most anomalous position down to which a spot extends
_EVERYWHERE = np.ones((3, 3))
_SMALLEST, _LARGEST = 256, 1600  # pixels: images are enlarged or reduced to this range to be legible
_STRIP, _LEGEND = 18, 270  # height of the legend, and its least width


@dataclass(frozen=True)
class Spot:
    """Region of an image that is more anomalous than every position of nearly all normal images.

    Attributes
    ----------
    box : (int, int, int, int)
        Left, top, right, bottom in pixels of the original image; right and bottom are exclusive.
    p_value : float
        Share of images, among the normal images and this one, whose most anomalous position is at least as anomalous.
        It holds for the whole image, however many positions it has.
    surprise : float
        Surprise of its most anomalous position, in nats.
    """

    box: tuple[int, int, int, int]
    p_value: float
    surprise: float


@dataclass(frozen=True, eq=False, repr=False)
class PictureMap:
    """Anomaly map of one image on the encoder's grid of positions, with its spots.

    Attributes
    ----------
    id : str
    values : array of shape (rows, columns)
        With ``local=True`` the surprise of each position in nats, otherwise the shares of hidden layers (see
        `skjepa.inspection.AnomalyMaps`). Higher = more anomalous.
    placement : Placement
        Where the encoder's input lies in the image.
    p_values : array of shape (rows, columns), or None
        The p-value of each position among positions of left-out normal images; None without ``local=True``.
    spots : sequence of Spot
        The most anomalous spot first; empty without ``local=True``.
    """

    id: str
    values: NDArray[np.float64]
    placement: Placement
    p_values: NDArray[np.float64] | None = None
    spots: Sequence[Spot] = ()

    def pixels(self) -> NDArray[np.float32]:
        """Return the value at each pixel of the image, (H, W); NaN outside the part that the encoder reads."""
        return self.placement.to_picture(self.values)

    def pixel_p_values(self) -> NDArray[np.float32]:
        """Return the p-value at each pixel, (H, W), interpolated as logarithms; NaN where the encoder does not read."""
        if self.p_values is None:
            raise ValueError(NEEDS_LOCAL)
        return np.exp(self.placement.to_picture(np.log(self.p_values)))

    def overlay(self, image: object, *, legend: bool = True) -> Image.Image:
        """Draw the map in red and the spots as yellow boxes over the image, above a legend of the colours.

        With a local model a colour stands for the p-value of a place, on the same scale in all images: no colour above
        0.01, the deepest at 0.0001. Without a local model it stands for the value of a place relative to the largest
        value in this image. Images smaller than 256 pixels are enlarged, and images larger than 1600 are reduced.

        Parameters
        ----------
        image : PIL image, array (H, W, 3) or tensor (3, H, W)
            The image that the map belongs to.
        legend : bool
            Whether a legend of the colours is drawn below the image.

        Returns
        -------
        PIL.Image.Image
        """
        picture = as_picture(image).convert("RGB")
        scale = max(1, -(-_SMALLEST // max(picture.size))) * min(1.0, _LARGEST / max(picture.size))
        width, height = (max(1, round(scale * side)) for side in picture.size)
        depth = self._depth(height, width)[..., None] * _STRONGEST
        resampling = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
        mixed = (1 - depth) * np.asarray(picture.resize((width, height), resampling)) + depth * _COLOUR
        strip = (max(width, _LEGEND), height + _STRIP) if legend else (width, height)
        shown = Image.new("RGB", strip, "white")
        shown.paste(Image.fromarray(mixed.round().astype(np.uint8)))
        pen = ImageDraw.Draw(shown)
        for spot in self.spots:
            left, top, right, bottom = (round(scale * side) for side in spot.box)
            pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=(255, 221, 0), width=2)
        if legend:
            self._draw_legend(pen, strip[0], height)
        return shown

    def __repr__(self) -> str:
        rows, columns = self.values.shape
        height, width = self.placement.picture_size
        spots = "" if self.p_values is None else f", {len(self.spots)} spots"
        return f"PictureMap({self.id!r}, {rows} x {columns} positions of {width} x {height} pixels{spots})"

    def _repr_png_(self) -> bytes:
        """Return the map over white as PNG, for notebooks; `overlay` draws it over the image."""
        height, width = self.placement.picture_size
        return png(self.overlay(Image.new("RGB", (width, height), "white")))

    def _depth(self, height: int, width: int) -> NDArray[np.float32]:
        """Return the depth of the colour at each pixel of the resized image: 0 is no colour, 1 the deepest."""
        rows, columns = (
            (np.arange(n) + 0.5) * length / n - 0.5
            for n, length in zip((height, width), self.placement.picture_size, strict=True)
        )
        if self.p_values is None:
            values = np.nan_to_num(self.placement.at(self.values, rows, columns), nan=0.0)
            return np.clip(values / max(float(values.max()), 1e-12), 0, 1)
        p = np.exp(np.nan_to_num(self.placement.at(np.log(self.p_values), rows, columns), nan=0.0))
        return np.mean([p <= step * (1 + 1e-6) for step in P_STEPS], axis=0, dtype=np.float32)

    def _draw_legend(self, pen: ImageDraw.ImageDraw, width: int, top: int) -> None:
        if self.p_values is None:
            pen.text((3, top + 3), "share of the largest value", fill="black")
            return
        for i, step in enumerate(P_STEPS):
            fill = depth_colour((i + 1) / len(P_STEPS))
            left = i * width // len(P_STEPS)
            pen.rectangle((left, top, (i + 1) * width // len(P_STEPS), top + _STRIP), fill=fill)
            pen.text((left + 3, top + 3), f"p <= {step:g}", fill="black")


def depth_colour(depth: float) -> tuple[int, ...]:
    """Return the colour of a depth between 0 and 1 over white, as red, green and blue from 0 to 255."""
    share = depth * _STRONGEST
    return tuple(int(level) for level in np.round((1 - share) * 255 + share * _COLOUR))


def spots_of(surprises: NDArray, hottest: NDArray, place: Placement, level: float) -> list[Spot]:
    """Return the spots of an image, the most anomalous first.

    A spot is a connected region of positions whose image-wide p-value is at most `level`, cut off where the surprise
    falls below half of its largest value. Farther positions look anomalous because their receptive field contains the
    spot.

    Parameters
    ----------
    surprises : array of shape (rows, columns)
    hottest : array of shape (n,)
        The largest surprise in each normal image, ascending.
    place : Placement
    level : float in (0, 1)
        Largest image-wide p-value of a spot.
    """
    n = len(hottest)
    p_values = (1 + n - np.searchsorted(hottest, surprises, side="left")) / (n + 1)
    labels, n_found = label(p_values <= level, _EVERYWHERE)
    found = []
    for own in range(1, n_found + 1):
        core, n_cores = label((labels == own) & (surprises >= _REACH * surprises[labels == own].max()), _EVERYWHERE)
        for i, cells in enumerate(find_objects(core, n_cores), start=1):
            inside = core == i
            peak, p = float(surprises[inside].max()), float(p_values[inside].min())
            found.append(Spot(place.box(cells, surprises.shape), p, peak))
    return sorted(found, key=lambda spot: -spot.surprise)
