"""The map of one picture, the spots in it, and how both are shown over the picture."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import find_objects, label

from skjepa.data.images import as_picture
from skjepa.encoders.geometry import Placement

LEVEL = 0.05
"""Of spots: the share of normal pictures that have one."""

NEEDS_LOCAL = (
    "p-values and spots need the local model, which knows how odd the positions of normal pictures are: fit with "
    "local=True"
)
P_STEPS = (0.05, 0.01, 0.001, 0.0001)
"""Of the colours: each p-value is shown by a deeper one, larger p-values by none."""

_COLOUR = np.array([214, 39, 40])
_STRONGEST = 0.7  # of the colour over the picture
_REACH = 0.5  # of the surprise of its hottest position: so far a spot reaches
_EVERYWHERE = np.ones((3, 3))
_SMALLEST = 256  # pixels: smaller pictures are enlarged, so that the map can be seen
_STRIP = 18  # height of the legend


@dataclass(frozen=True)
class Spot:
    """A place in a picture that is odder than the oddest place of nearly all normal pictures.

    Attributes
    ----------
    box : (int, int, int, int)
        Left, top, right, bottom in pixels of the picture as it was given; right and bottom are exclusive.
    p_value : float
        Share of normal pictures, and this one, whose oddest position is as odd or odder: of the whole picture, however
        many positions it has.
    surprise : float
        Of its oddest position, in nats.
    """

    box: tuple[int, int, int, int]
    p_value: float
    surprise: float


@dataclass(frozen=True, eq=False)
class PictureMap:
    """Where one picture is odd.

    Attributes
    ----------
    id : str
    values : array of shape (rows, columns)
        Of a local model the surprise of each position in nats; else the shares of hidden layers, see `AnomalyMaps`.
        Higher = more anomalous.
    placement : Placement
        Where the encoder's input lies in the picture.
    p_values : array of shape (rows, columns), or None
        Of each position among positions of normal pictures that were left out; None without a local model.
    spots : sequence of Spot
        The oddest first; empty without a local model.
    """

    id: str
    values: NDArray[np.float64]
    placement: Placement
    p_values: NDArray[np.float64] | None = None
    spots: Sequence[Spot] = ()

    def pixels(self) -> NDArray[np.float32]:
        """The values at each pixel of the picture, (H, W); NaN where the encoder saw nothing."""
        return self.placement.to_picture(self.values)

    def pixel_p_values(self) -> NDArray[np.float32]:
        """The p-values at each pixel, (H, W), interpolated as logarithms; NaN where the encoder saw nothing."""
        if self.p_values is None:
            raise ValueError(NEEDS_LOCAL)
        return np.exp(self.placement.to_picture(np.log(self.p_values)))

    def overlay(self, image: object, *, legend: bool = True) -> Image.Image:
        """The picture with its map in red and its spots in boxes, above a legend of what the colours mean.

        With a local model a colour means a p-value, the same in all pictures: none above 0.05, the deepest at 0.0001.
        Without one it means a share of the oddest place of this picture.

        Parameters
        ----------
        image : PIL image, array (H, W, 3) or tensor (3, H, W)
            The picture that the map is of.
        legend : bool
        """
        picture = as_picture(image).convert("RGB")
        times = max(1, -(-_SMALLEST // max(picture.size)))
        picture = picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
        depth = np.kron(self._depth(), np.ones((times, times), dtype=np.float32))[..., None] * _STRONGEST
        mixed = (1 - depth) * np.asarray(picture) + depth * _COLOUR
        shown = Image.new("RGB", (picture.width, picture.height + (_STRIP if legend else 0)), "white")
        shown.paste(Image.fromarray(mixed.round().astype(np.uint8)))
        pen = ImageDraw.Draw(shown)
        for spot in self.spots:
            left, top, right, bottom = (times * side for side in spot.box)
            pen.rectangle((left, top, right - 1, bottom - 1), outline=(255, 221, 0), width=2)
        if legend:
            self._draw_legend(pen, picture.width, picture.height)
        return shown

    def _depth(self) -> NDArray[np.float32]:
        """From 0, no colour, to 1, the deepest, at each pixel."""
        if self.p_values is None:
            values = np.nan_to_num(self.pixels(), nan=0.0)
            return np.clip(values / max(float(values.max()), 1e-12), 0, 1)
        p = np.nan_to_num(self.pixel_p_values(), nan=1.0)
        return np.mean([p <= step * (1 + 1e-6) for step in P_STEPS], axis=0, dtype=np.float32)

    def _draw_legend(self, pen: ImageDraw.ImageDraw, width: int, top: int) -> None:
        if self.p_values is None:
            pen.text((3, top + 3), "share of the oddest place", fill="black")
            return
        for i, step in enumerate(P_STEPS):
            fill = depth_colour((i + 1) / len(P_STEPS))
            left = i * width // len(P_STEPS)
            pen.rectangle((left, top, (i + 1) * width // len(P_STEPS), top + _STRIP), fill=fill)
            pen.text((left + 3, top + 3), f"p {step:g}", fill="black")


def depth_colour(depth: float) -> tuple[int, ...]:
    """Return the colour of a depth between 0 and 1 over white, as red, green and blue from 0 to 255."""
    share = depth * _STRONGEST
    return tuple(int(level) for level in np.round((1 - share) * 255 + share * _COLOUR))


def spots_of(surprises: NDArray, hottest: NDArray, place: Placement, level: float) -> list[Spot]:
    """Connected positions hotter than most normal pictures get, as far as they are half as surprising as the hottest.

    Beyond, positions are odd because the encoder sees the spot from there as well.

    Parameters
    ----------
    surprises : array of shape (rows, columns)
    hottest : array of shape (n,)
        Of each normal picture the surprise of its hottest position, ascending.
    place : Placement
    level : float in (0, 1)
        Image-wide p-value that a spot does not exceed.
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
