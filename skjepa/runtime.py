"""`OnnxDetector`: a detector that `skjepa.export_onnx` wrote, without torch: NumPy, Pillow and onnxruntime alone."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from skjepa.data.images import read_image, to_rgb
from skjepa.detectors.conformal import conformal_offset, conformal_p_values, cross_conformal_p_values

_METADATA, _FORMAT = "skjepa", 1
_BATCH = 64


class OnnxDetector:
    """A detector exported by `skjepa.export_onnx`: the same scores, decisions and p-values, from onnxruntime.

    Parameters
    ----------
    path : path-like
        The ``.onnx`` file.
    threshold : float, optional
        In the place of the one in the file; moved later by assigning to `threshold`.
    providers : sequence of str, optional
        Of onnxruntime, such as ``["CUDAExecutionProvider"]``; by default its CPU.
    n_threads : int, optional
        Of onnxruntime; by default one a core.

    Attributes
    ----------
    threshold : float
        ``decision_function = score_samples - threshold``.
    calibration_scores : array or None
    shape : tuple of int
        Of one input: (3, H, W) or (d,).
    about : dict
        What the file says of itself: version, fingerprint of the encoder, how pictures are prepared.

    Raises
    ------
    ValueError
        No file of `skjepa.export_onnx`, or one of another format.
    ImportError
        onnxruntime is missing.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        threshold: float | None = None,
        providers: Sequence[str] | None = None,
        n_threads: int | None = None,
    ) -> None:
        self._session = _session(Path(path), providers, n_threads)
        text = self._session.get_modelmeta().custom_metadata_map.get(_METADATA)
        if text is None:
            raise ValueError(f"{path} was not written by skjepa.export_onnx: it says nothing of a detector")
        self.about: dict[str, Any] = json.loads(text)
        if self.about.get("format") != _FORMAT:
            raise ValueError(f"{path} has format {self.about.get('format')}; this version of skjepa reads {_FORMAT}")
        self.threshold = float(self.about["threshold"] if threshold is None else threshold)
        self.shape = tuple(self.about["shape"])
        scores = self.about["calibration_scores"]
        self.calibration_scores = None if scores is None else np.array(scores, dtype=np.float64)

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """Score of each sample: the higher, the more normal; (n_samples,).

        Parameters
        ----------
        X : array, list of PIL images or paths, or rows
            Images: uint8 (n_samples, height, width, 3), PIL images or paths, resized as at the fit; or float32
            (n_samples, 3, H, W) in [0, 1] of the size that the encoder takes. Rows: (n_samples, d).

        Raises
        ------
        ValueError
            Samples of another kind or shape; or pictures, where the fit prepared them by what Pillow does not have.
        skjepa.data.ImageReadError
            A path that cannot be read.
        """
        return self._run(X, "score")

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """``score_samples(X) - threshold``: negative where a sample is flagged; (n_samples,)."""
        return self._run(X, "decision")

    def predict(self, X: Any) -> NDArray[np.int64]:
        """+1 for normal, -1 for anomalous samples; (n_samples,)."""
        return self._run(X, "label")

    def p_values(self, X: Any) -> NDArray[np.float64]:
        """Conformal p-values: small = unlike normal data; (n_samples,), in (0, 1].

        Raises
        ------
        ValueError
            The detector was exported without calibration samples.
        """
        if self.calibration_scores is None:
            raise ValueError(
                "p-values need normal samples that were not learned from: fit with calibration=0.2, say, or call "
                "calibrate(X_normal), and export again"
            )
        folds = self.about["fold_scores"]
        if folds is not None:
            return cross_conformal_p_values(list(map(np.array, folds)), self._run(X, "scores_by_model"))
        return conformal_p_values(self.calibration_scores, self.score_samples(X))

    def calibrate(self, X: Any, target_fpr: float | None = None) -> "OnnxDetector":
        """Take threshold and p-values from fresh normal samples; the file keeps its own.

        Parameters
        ----------
        X : as for `score_samples`
        target_fpr : float in (0, 1), optional
            By default that of the fit. Where neither is given, the threshold stays and only p-values change.

        Raises
        ------
        ValueError
            Too few samples for `target_fpr`; names the number needed.
        """
        scores = self.score_samples(X)
        target = self.about["target_fpr"] if target_fpr is None else target_fpr
        if target is not None:
            self.threshold = conformal_offset(scores, target)
        self.calibration_scores, self.about["fold_scores"] = scores, None
        return self

    def _run(self, X: Any, output: str) -> NDArray:
        samples = X if isinstance(X, np.ndarray) or not _holds_pictures(X) else list(X)
        parts = []
        for start in range(0, max(1, len(samples)), _BATCH):
            inputs = {self.about["input"]: self._inputs(samples[start : start + _BATCH])}
            parts.append(self._session.run([output], inputs | {"threshold": np.array(self.threshold)})[0])
        return np.concatenate(parts, axis=-1)

    def _inputs(self, samples: Any) -> NDArray:
        dtype = np.dtype(self.about["dtype"])
        if self.about["input"] == "rows":
            return self._checked(np.asarray(samples, dtype=dtype))
        if isinstance(samples, np.ndarray) and samples.dtype.kind == "f":
            return self._checked(self._pixels(samples).astype(dtype))
        if isinstance(samples, np.ndarray) and samples.dtype != np.uint8:
            raise ValueError(f"an array of images must be of uint8 or of a float type; got {samples.dtype}")
        return self._checked(np.stack([self._prepared(sample, dtype) for sample in samples]))

    def _pixels(self, pixels: NDArray) -> NDArray:
        if pixels.size and not (pixels.min() >= 0 and pixels.max() <= 1) and self.about["pictures"] is not None:
            raise ValueError(f"pixels of a float type must lie in [0, 1]; got {pixels.min():.3g} to {pixels.max():.3g}")
        return pixels

    def _checked(self, batch: NDArray) -> NDArray:
        if batch.shape[1:] != self.shape:
            sides = ", ".join(map(str, self.shape))
            raise ValueError(f"X must have shape (n_samples, {sides}); got {batch.shape}")
        if not np.isfinite(batch).all():
            raise ValueError("X must be finite; it holds NaN or infinity")
        return np.ascontiguousarray(batch)

    def _prepared(self, sample: Any, dtype: np.dtype) -> NDArray:
        """One picture to pixels (3, H, W) in [0, 1]."""
        steps = self.about["pictures"]
        if steps is None:
            raise ValueError(
                "this detector prepares pictures by what Pillow does not have: give the float tensors (n_samples, 3, "
                "H, W) that its encoder receives"
            )
        if isinstance(sample, Image.Image):
            picture = to_rgb(sample)
        else:
            picture = Image.fromarray(sample) if isinstance(sample, np.ndarray) else read_image(sample)
        for step in steps:
            picture = _resized(picture, step) if "resize" in step else _cropped(picture, step["crop"])
        return np.asarray(picture, dtype=np.uint8).transpose(2, 0, 1).astype(dtype) / np.asarray(255, dtype=dtype)


def _session(path: Path, providers: Sequence[str] | None, n_threads: int | None) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("OnnxDetector needs onnxruntime: pip install onnxruntime, or 'skjepa[export]'") from error
    if not path.is_file():
        raise FileNotFoundError(f"no exported detector at {path}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # else it warns of an input that has a default
    options.intra_op_num_threads = n_threads or 0
    chosen = list(providers or ["CPUExecutionProvider"])
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=chosen)
    except Exception as error:  # onnxruntime's errors have no base class but this
        raise ValueError(f"{path} cannot be read as an ONNX model: {error}") from error


def _holds_pictures(X: Any) -> bool:
    if isinstance(X, str | os.PathLike | Image.Image):
        raise ValueError(f"X must hold several samples; of one give a list, [{X!r}]")
    return len(X) > 0 and isinstance(X[0], str | os.PathLike | Image.Image | np.ndarray)


def _resized(picture: Image.Image, step: dict[str, Any]) -> Image.Image:
    """As torchvision resizes a PIL image: to both sides, or the shorter one to a size."""
    size = step["resize"]
    if len(size) == 2:
        height, width = size
    elif picture.width <= picture.height:
        width, height = size[0], int(size[0] * picture.height / picture.width)
    else:
        width, height = int(size[0] * picture.width / picture.height), size[0]
    if (width, height) == picture.size:
        return picture
    return picture.resize((width, height), Image.Resampling[step["filter"]])


def _cropped(picture: Image.Image, size: ArrayLike) -> Image.Image:
    """The centre, as torchvision cuts it; black beyond the edges."""
    height, width = np.asarray(size).tolist()
    left, top = round((picture.width - width) / 2.0), round((picture.height - height) / 2.0)
    return picture.crop((left, top, left + width, top + height))
