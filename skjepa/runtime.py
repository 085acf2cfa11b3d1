"""Run a detector that `skjepa.export_onnx` wrote, without PyTorch: NumPy, Pillow and onnxruntime are enough."""

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
    """Run a detector that `skjepa.export_onnx` wrote, with onnxruntime and without PyTorch.

    Scores, decisions and p-values equal those of the exported detector.

    Parameters
    ----------
    path : path-like
        The ``.onnx`` file.
    threshold : float, optional
        Threshold in place of the one in the file. To change it later, assign to the attribute `threshold`.
    providers : sequence of str, optional
        Execution providers of onnxruntime, such as ``["CUDAExecutionProvider"]``; by default the CPU.
    n_threads : int, optional
        Number of threads of onnxruntime; by default one per core.

    Attributes
    ----------
    threshold : float
        ``decision_function = score_samples - threshold``.
    calibration_scores : array or None
        Scores of normal samples that the detector was not fitted on.
    shape : tuple of int
        Shape of one input: (3, H, W) or (d,).
    about : dict
        Facts in the file: version, fingerprint of the encoder, how images are prepared.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file was not written by `skjepa.export_onnx`, or has another format.
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
            raise ValueError(f"{path} holds no detector: give a file that skjepa.export_onnx wrote")
        self.about: dict[str, Any] = json.loads(text)
        if self.about.get("format") != _FORMAT:
            raise ValueError(
                f"{path} has format {self.about.get('format')}, and this version of skjepa reads {_FORMAT}: export the "
                "detector again with this version"
            )
        self.threshold = float(self.about["threshold"] if threshold is None else threshold)
        self.shape = tuple(self.about["shape"])
        scores = self.about["calibration_scores"]
        self.calibration_scores = None if scores is None else np.array(scores, dtype=np.float64)

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """Return one score per sample, (n_samples,); higher = more normal.

        Parameters
        ----------
        X : array, list of PIL images or paths, or rows
            Images: uint8 (n_samples, height, width, 3), PIL images or paths, all resized as at the fit; or float32
            (n_samples, 3, H, W) in [0, 1] of the size that the encoder takes. Rows: (n_samples, d).

        Raises
        ------
        ValueError
            The samples have another kind or shape, or they are images that Pillow alone cannot prepare as the fit did.
        skjepa.data.ImageReadError
            A path cannot be read.
        """
        return self._run(X, "score")

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Return ``score_samples(X) - threshold``, (n_samples,): negative where a sample is flagged."""
        return self._run(X, "decision")

    def predict(self, X: Any) -> NDArray[np.int64]:
        """Return +1 for normal and -1 for anomalous samples, (n_samples,)."""
        return self._run(X, "label")

    def p_values(self, X: Any) -> NDArray[np.float64]:
        """Return conformal p-values, (n_samples,), in (0, 1]; small = unlike normal data.

        Raises
        ------
        ValueError
            The detector was exported without calibration samples.
        """
        if self.calibration_scores is None:
            raise ValueError(
                "p-values need normal samples that the detector did not learn from, and this file holds none: call "
                "calibrate(X_normal), or fit with target_fpr=0.05 and export again"
            )
        folds = self.about["fold_scores"]
        if folds is not None:
            return cross_conformal_p_values(list(map(np.array, folds)), self._run(X, "scores_by_model"))
        return conformal_p_values(self.calibration_scores, self.score_samples(X))

    def calibrate(self, X: Any, target_fpr: float | None = None) -> "OnnxDetector":
        """Reset the threshold and the p-values with fresh normal samples, without changing the file.

        Parameters
        ----------
        X : as for `score_samples`
            Normal samples that the detector was not fitted on.
        target_fpr : float in (0, 1), optional
            Largest share of new normal samples to flag; by default the value of the fit. Where neither is given, the
            threshold stays and only the p-values change.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            Too few samples for `target_fpr`; the message names the number needed.
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
            raise ValueError(f"an array of images must have dtype uint8 or a float type; got {samples.dtype}")
        return self._checked(np.stack([self._prepared(sample, dtype) for sample in samples]))

    def _pixels(self, pixels: NDArray) -> NDArray:
        if pixels.size and not (pixels.min() >= 0 and pixels.max() <= 1) and self.about["pictures"] is not None:
            raise ValueError(
                f"float pixels must lie in [0, 1]; got {pixels.min():.3g} to {pixels.max():.3g}: divide by 255 or give "
                "uint8"
            )
        return pixels

    def _checked(self, batch: NDArray) -> NDArray:
        if batch.shape[1:] != self.shape:
            sides = ", ".join(map(str, self.shape))
            raise ValueError(f"X must have shape (n_samples, {sides}); got {batch.shape}")
        if not np.isfinite(batch).all():
            raise ValueError("X holds NaN or infinity: give finite values")
        return np.ascontiguousarray(batch)

    def _prepared(self, sample: Any, dtype: np.dtype) -> NDArray:
        """Return the pixels of one image, (3, H, W), in [0, 1]."""
        steps = self.about["pictures"]
        if steps is None:
            raise ValueError(
                "this detector prepares images in a way that Pillow alone cannot: give the float arrays (n_samples, 3, "
                "H, W) that its encoder takes"
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
        raise FileNotFoundError(f"there is no exported detector at {path}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # below 3 it warns about an input that has a default
    options.intra_op_num_threads = n_threads or 0
    chosen = list(providers or ["CPUExecutionProvider"])
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=chosen)
    except Exception as error:  # onnxruntime's errors have no common base class but this
        raise ValueError(f"{path} cannot be read as an ONNX model: {error}") from error


def _holds_pictures(X: Any) -> bool:
    if isinstance(X, str | os.PathLike | Image.Image):
        raise ValueError(f"X must be a list or array of samples; got a single one: give [{X!r}]")
    return len(X) > 0 and isinstance(X[0], str | os.PathLike | Image.Image | np.ndarray)


def _resized(picture: Image.Image, step: dict[str, Any]) -> Image.Image:
    """Resize as torchvision resizes a PIL image: both sides, or the shorter side to a size."""
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
    """Crop the centre as torchvision does; pixels beyond the edges are black."""
    height, width = np.asarray(size).tolist()
    left, top = round((picture.width - width) / 2.0), round((picture.height - height) / 2.0)
    return picture.crop((left, top, left + width, top + height))
