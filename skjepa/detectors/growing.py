"""Provide `partial_fit` for the detectors for which the result is the same as one `fit` on all samples."""

from abc import abstractmethod
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from skjepa._utils.validation import seed_from
from skjepa.detectors.base import CalibratedDetector, Samples, require_finite_scores, table_of
from skjepa.detectors.conformal import contamination_offset
from skjepa.detectors.fitting import all_or_nothing
from skjepa.detectors.held_out import apart_by_content, first_of_each


class GrowingDetector(CalibratedDetector):
    """Base class of detectors of rows that can learn from normal samples part by part.

    A subclass defines `_grow`, which adds rows to the model, and `_check_can_grow`, which refuses parameters that do
    not allow it. State that further calls need, beside the model, is kept in `_grown`.
    """

    _grown: Any

    @abstractmethod
    def _embeddings(self, samples: Samples) -> NDArray[np.float64]:
        """Return the rows that are compared, (n_samples, d)."""

    @abstractmethod
    def _grow(self, rows: NDArray[np.float64], seed: int) -> tuple[Any, NDArray[np.float64], int, Any]:
        """Return the model of all rows so far, scores of all or a sample of these rows, their number, and `_grown`."""

    @abstractmethod
    def _check_can_grow(self) -> None:
        """Raise ValueError if the parameters or an earlier `fit` make an exact `partial_fit` impossible."""

    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """Learn from more normal samples; the result is the model that `fit` gives on all samples together.

        Scores agree with the scores after `fit` on all samples to rounding. Exact copies count once within a call; a
        copy of a sample from an earlier call counts again.

        No samples are held out, so the threshold comes from `contamination`, and there are no p-values. `calibrate`
        sets p-values and a threshold with a guaranteed false positive rate. The next `partial_fit` discards both,
        because it changes the scores.

        Parameters
        ----------
        X : vectors or Extraction
            More normal samples, of the same width and measured in the same way as in earlier calls. The first call
            starts a new model.
        y : ignored

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            Bad data, or parameters that make an exact result impossible; the message names them. A failed call leaves
            the detector as it was.

        Examples
        --------
        >>> import numpy as np
        >>> from skjepa import MahalanobisDetector
        >>> X = np.random.default_rng(0).normal(size=(500, 3))
        >>> detector = MahalanobisDetector()
        >>> for part in np.split(X, 5):
        ...     detector = detector.partial_fit(part)
        >>> bool(np.allclose(detector.score_samples(X), MahalanobisDetector().fit(X).score_samples(X)))
        True
        """
        self._check_nothing_is_held_out()
        self._check_can_grow()
        seed = seed_from(self.random_state)
        if hasattr(self, "models_"):
            self._check_thresholds()
            self._take(self._read(X), seed)
            return self
        with all_or_nothing(self):
            self._take(self._read_for_fit(X, seed), seed)
        return self

    def _check_nothing_is_held_out(self) -> None:
        if self.calibration is not None or self.target_fpr is not None:
            raise ValueError(
                f"partial_fit holds no samples out, got calibration={self.calibration!r} and "
                f"target_fpr={self.target_fpr!r}: leave both None, and after the last part call "
                "calibrate(X_normal, target_fpr) with normal samples that no part contained"
            )
        if getattr(self, "_fold_scores", None):
            raise ValueError(
                "this detector was fitted with folds, and partial_fit cannot update the models of folds: call "
                "partial_fit on a new detector"
            )

    def _take(self, samples: Samples, seed: int) -> None:
        once = first_of_each(apart_by_content(samples.identities, table_of(samples)))
        rows = self._embeddings(samples if len(once) == 1 else samples[once])
        model, scores, n, grown = self._grow(rows, seed)
        require_finite_scores(scores, "the fit samples")
        offset = contamination_offset(scores, self.contamination)
        self.models_, self.offset_, self.n_samples_fit_, self._grown = [model], offset, n, grown
        self.calibration_scores_, self._fold_scores = None, None
        self._is_exact, self._level, self.calibration_ = False, self.contamination, None
