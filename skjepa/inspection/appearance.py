"""Describe in everyday words how an image looks different from normal ones: sharper, darker, redder, new colours.

Each word stands for one simple statistic of the pixels, compared with the same statistic of normal images. It does not
depend on the encoder and is not part of the score.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skjepa.persistence.folder import portable

LONGEST_SIDE = 512
"""Largest side in pixels at which an image is measured; larger images are scaled down."""
MOST = 500
"""Largest number of normal images that are measured; from more, so many are drawn at random."""

_MARGIN = 0.1  # share of the normal range by which a value must lie outside it, since chance puts values just outside
_CONSTANT = 0.01  # if most images share a value: share of it that counts as the distance between quartiles
_FAR_OUT = 3.0  # times the distance between the quartiles
_FEWEST = 10  # normal images: with fewer, their range means nothing
_NEW_COLOURS = 0.05  # smallest share of the pixels that is reported
_GREY = 24  # smallest difference between channels at which the hue of a pixel is used
_BLACK = 8.0  # grey levels, added to the mean, since the tint of a nearly black image means little
_RATIOS = ("sharpness", "brightness", "contrast", "colourfulness", "width", "height")
_TINY = 1e-3
_HUES, _SATURATIONS = 12, 3
_N_COLOURS = _HUES * _SATURATIONS + 1

WORDS = {
    "sharpness": ("blurrier or smoother", "sharper or noisier"),
    "brightness": ("darker", "brighter"),
    "contrast": ("flatter in contrast", "richer in contrast"),
    "colourfulness": ("paler", "more colourful"),
    "red or green": ("greener", "redder"),
    "yellow or blue": ("bluer", "yellower"),
    "width": ("narrower", "wider"),
    "height": ("lower", "taller"),
}
"""For each statistic, the words for a value below and for a value above the values of all normal images."""

MEASURES = {
    "sharpness": "mean squared Laplacian over variance of the grey levels",
    "brightness": "mean grey level of 0 to 255",
    "contrast": "standard deviation of the grey levels, over their mean",
    "colourfulness": "colourfulness (Hasler and Suesstrunk), over the mean grey level",
    "red or green": "mean of red minus green, over the mean grey level",
    "yellow or blue": "mean of (red + green) / 2 minus blue, over the mean grey level",
    "width": "width in pixels",
    "height": "height in pixels",
}


@dataclass(frozen=True)
class Remark:
    """One way in which an image looks different from the images that it is compared with.

    Attributes
    ----------
    statistic : str
        A key of `WORDS`, or "colours".
    words : str
    value : float
        Value of the statistic for the image.
    low, high : float
        Smallest and largest value among the images that it is compared with.
    beside : str
        Name of the images that it is compared with.
    """

    statistic: str
    words: str
    value: float
    low: float
    high: float
    beside: str = "normal images"

    @property
    def numbers(self) -> str:
        """Statistic, its value for the image, and the range of the other images, as text."""
        if self.statistic == "colours":
            return f"{self.value:.1%} of the pixels; at most {self.high:.1%} in a normal image compared with the others"
        return f"{MEASURES[self.statistic]}: {self.value:.3g}, {self.beside} {self.low:.3g} to {self.high:.3g}"


@portable
@dataclass(frozen=True)
class NormalAppearance:
    """Statistics of the pixels of normal images, which other images are compared with.

    Attributes
    ----------
    values : array of shape (n, 8)
        One row for each image, one column for each key of `WORDS`.
    colours : array of shape (37,)
        Largest share of one normal image that has a colour of each kind: twelve hues by three saturations, then grey.
    new_share : float
        Largest share of a normal image whose colours no other normal image has.
    """

    values: Annotated[NDArray[np.float64], "n s"]
    colours: Annotated[NDArray[np.float64], "c"]
    new_share: float

    def portable_check(self) -> None:
        if self.values.shape[1] != len(WORDS) or len(self.colours) != _N_COLOURS:
            raise ValueError(
                f"normal images need {len(WORDS)} statistics and {_N_COLOURS} colours; got {self.values.shape[1]} and "
                f"{len(self.colours)}: the saved detector is damaged, so fit it again"
            )

    @property
    def n_images(self) -> int:
        return len(self.values)

    def remarks(self, image: Image.Image) -> list[Remark]:
        """Return how an image differs from every normal image, the largest difference first; empty if it does not.

        A value must lie outside the range of the normal images by a tenth of that range. With fewer
        than ten normal images there are no remarks, because their range means nothing.
        """
        if self.n_images < _FEWEST:
            return []
        values, colours = statistics_of(image)
        low, high = self.values.min(axis=0), self.values.max(axis=0)
        own, least, most = _scaled(values), _scaled(low), _scaled(high)
        beyond = np.maximum(least - own, own - most) / np.maximum(most - least, 1e-6 * (1 + np.abs(most)))
        found = []
        for j, (name, words) in enumerate(WORDS.items()):
            if beyond[j] > _MARGIN:
                said = f"{words[int(values[j] > high[j])]} than any normal image"
                found.append((float(beyond[j]), Remark(name, said, float(values[j]), float(low[j]), float(high[j]))))
        share = float(colours[self.colours == 0].sum())
        if share > max(_NEW_COLOURS, 2 * self.new_share):
            found.append(
                (share / _NEW_COLOURS, Remark("colours", _colours_in_words(share), share, 0.0, self.new_share))
            )
        return [remark for _, remark in sorted(found, key=lambda pair: -pair[0])]


def learn_appearance(images: Iterable[Image.Image]) -> NormalAppearance:
    """Measure normal images; `remarks` then compares others with them."""
    measured = [statistics_of(image) for image in images]
    if not measured:
        raise ValueError("none of the normal images can be read: give a folder with readable images")
    colours = np.stack([own for _, own in measured])
    has_colour = colours > 0
    is_alone = has_colour & (has_colour.sum(axis=0) == 1)
    new_share = float((colours * is_alone).sum(axis=1).max())
    return NormalAppearance(np.stack([values for values, _ in measured]), colours.max(axis=0), new_share)


def standing_out(values: NDArray[np.float64]) -> list[list[Remark]]:
    """Find the images of one collection that look unlike the rest, without normal images to compare with.

    Parameters
    ----------
    values : array of shape (n, 8)
        One row per image, see `statistics_of`.

    Returns
    -------
    list of list of Remark
        One list per image, the largest difference first. A value stands out if it lies beyond the quartiles by more
        than three times the distance between them (Tukey's "far out"). With fewer than ten images nothing stands out.
    """
    found: list[list[tuple[float, Remark]]] = [[] for _ in values]
    if len(values) < _FEWEST:
        return [[] for _ in values]
    quartiles = np.quantile(values, [0.25, 0.75], axis=0)
    low, high = map(_scaled, quartiles)
    own = np.stack([_scaled(row) for row in values])
    spread = np.where(high > low, high - low, _CONSTANT * (1 + np.abs(high)))
    beyond = np.maximum(low - own, own - high) / spread
    for j, (name, words) in enumerate(WORDS.items()):
        for i in np.flatnonzero(beyond[:, j] > _FAR_OUT).tolist():
            said = f"far {words[int(own[i, j] > high[j])]} than most of the others"
            lower, upper = quartiles[:, j].tolist()
            remark = Remark(name, said, float(values[i, j]), lower, upper, "the middle half of the images")
            found[i].append((float(beyond[i, j]), remark))
    return [[remark for _, remark in sorted(own, key=lambda pair: -pair[0])] for own in found]


def statistics_of(image: Image.Image) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the statistics of an RGB image, one per key of `WORDS`, and the share of its pixels per colour."""
    width, height = image.size
    if max(image.size) > LONGEST_SIDE:
        image = image.copy()
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BOX, reducing_gap=None)
    pixels = np.asarray(image, dtype=np.float32)
    red, green, blue = np.moveaxis(pixels, -1, 0)
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    first, second = red - green, (red + green) / 2 - blue
    colourfulness = np.hypot(first.std(), second.std()) + 0.3 * np.hypot(first.mean(), second.mean())
    brightness = grey.mean()
    relative = np.array([grey.std(), colourfulness, first.mean(), second.mean()]) / (brightness + _BLACK)
    values = [_sharpness(grey), brightness, *relative, width, height]
    return np.array(values, dtype=np.float64), _colour_shares(image)


def _sharpness(grey: NDArray[np.float32]) -> float:
    """Return the sharpness, which does not depend on brightness or contrast.

    It is 0 for an image of one tone and for an image less than three pixels wide or high.
    """
    if min(grey.shape) < 3 or (variance := float(grey.var())) < 1.0:
        return 0.0
    middle = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * middle
    return float(np.square(laplacian).mean()) / variance


def _colour_shares(image: Image.Image) -> NDArray[np.float64]:
    """Return the share of pixels of each hue and saturation, which do not change with brightness.

    The hue of dark and pale pixels is mostly noise, so they count as grey.
    """
    pixels = np.asarray(image).reshape(-1, 3)
    chroma = pixels.max(axis=1).astype(np.int16) - pixels.min(axis=1)
    hue, saturation, _ = np.asarray(image.convert("HSV"), dtype=np.int64).reshape(-1, 3).T
    kind = hue * _HUES // 256 * _SATURATIONS + saturation * _SATURATIONS // 256
    kind[chroma < _GREY] = _N_COLOURS - 1
    return np.bincount(kind, minlength=_N_COLOURS) / len(kind)


def _scaled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Take logarithms of sizes and spreads, so that half and twice a value are equally far from it."""
    is_ratio = np.array([name in _RATIOS for name in WORDS])
    return np.where(is_ratio, np.log(np.where(is_ratio, values, 1.0) + _TINY), values)


def _colours_in_words(share: float) -> str:
    return f"colours that no normal image has, on {share:.0%} of it"


def sampled(source: Any, seed: int = 0) -> Iterable[Image.Image]:
    """Yield at most `MOST` images of a source, drawn at random; images that cannot be read are skipped."""
    from skjepa.data.images import as_picture

    for i in range(len(some := source.sample(MOST, seed))):
        try:
            yield as_picture(some.load(i)).convert("RGB")
        except (OSError, ValueError):
            continue
