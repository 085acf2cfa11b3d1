"""Score images by their compressed size, as a control for any score of images.

JEPA-SCORE falls with the complexity of an image, as likelihoods of generative models do (Serra et al., Input complexity
and out-of-distribution detection, ICLR 2020). A detector that does no better than file size has learned nothing about
the content of the images.
"""

import io
from typing import Annotated, Any

import joblib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skjepa._utils.validation import check_integer
from skjepa.data.images import as_picture
from skjepa.data.sources import Source, as_source
from skjepa.detectors.base import CalibratedDetector, Samples
from skjepa.extraction.extraction import Extraction
from skjepa.persistence.folder import portable
from skjepa.persistence.schema import Above


def bits_per_pixel(X: Any, *, image_size: int = 32, n_jobs: int | None = None) -> NDArray[np.float64]:
    """Return the PNG size of each image in bits, divided by its number of pixels.

    Parameters
    ----------
    X : images
        See `skjepa.data.as_source`.
    image_size : int
        Side in pixels to which all images are resized first, because larger images of the same object take fewer bits
        per pixel.
    n_jobs : int, optional
        Number of threads.

    Returns
    -------
    array of shape (n_samples,), float64
        Bits per pixel.

    Raises
    ------
    ValueError
        X holds vectors, or an image that cannot be read.

    Examples
    --------
    >>> import numpy as np
    >>> noise = np.random.default_rng(0).integers(0, 256, size=(32, 32, 3), dtype=np.uint8)
    >>> flat, busy = bits_per_pixel([np.zeros_like(noise), noise])
    >>> bool(flat < 1 < 20 < busy)
    True
    """
    check_integer("image_size", image_size, minimum=1)
    source = as_source(X)
    if source.is_vector:
        raise ValueError("X holds vectors, and complexity is defined for images alone: give images or paths of images")
    sizes = joblib.Parallel(n_jobs, prefer="threads")(
        joblib.delayed(_compressed_size)(source, i, image_size) for i in range(len(source))
    )
    return 8.0 * np.array(sizes, dtype=np.float64) / image_size**2


def _compressed_size(source: Source, position: int, image_size: int) -> int:
    image = as_picture(source.load(position)).resize((image_size, image_size), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=9)
    return file.tell()


@portable
class ComplexityDetector(CalibratedDetector):
    """Detect anomalies by the compressed size of an image alone, as a control.

    The score is minus the bits per pixel: higher = simpler. JEPA-SCORE ranks simple images as more typical, and so does
    this detector, without reading their content. A useful detector has to do better.

    Parameters
    ----------
    image_size : int
        See `skjepa.detectors.bits_per_pixel`.
    contamination, target_fpr, calibration, random_state
        As for `skjepa.JEPAScoreDetector`.

    Attributes
    ----------
    models_, offset_, calibration_scores_, n_samples_fit_, calibration_
        See `skjepa.detectors.CalibratedDetector`.
    """

    image_size: Annotated[int, Above(0, below=1 << 16)]
    models_: list[None]

    def __init__(
        self,
        *,
        image_size: int = 32,
        contamination: float = 0.1,
        target_fpr: float | None = None,
        calibration: float | int | None = None,
        random_state: Any = None,
    ) -> None:
        self.image_size = image_size
        self.contamination = contamination
        self.target_fpr = target_fpr
        self.calibration = calibration
        self.random_state = random_state

    @property
    def reads(self) -> str:
        return "samples"

    def _read_for_fit(self, X: Any, seed: int) -> Samples:
        self._check_thresholds()
        samples = self._read(X)
        self._check_size(samples.ids, seed)
        return samples

    def _read(self, X: Any) -> Samples:
        if isinstance(X, Extraction):
            raise TypeError(
                "ComplexityDetector reads images, which an Extraction does not hold: give the images or their paths"
            )
        source = as_source(X)
        bits = bits_per_pixel(source, image_size=self.image_size)
        return Source(source.ids, lambda i: bits[i : i + 1], is_vector=True)

    def _learn(self, samples: Samples, y: NDArray | None, seed: int) -> tuple[None, NDArray[np.float64]]:
        return None, self._score(None, samples)

    def _score(self, model: None, samples: Samples) -> NDArray[np.float64]:
        assert isinstance(samples, Source)
        return -samples.rows()[:, 0]
