"""Provide `EmbeddingDetector`, which runs any scikit-learn or PyOD detector on embeddings."""

from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.model_selection import KFold

from skjepa.detectors.on_embeddings import OnEmbeddings
from skjepa.encoders.encoder import Encoder
from skjepa.persistence.folder import portable
from skjepa.persistence.schema import Saved, Unfitted
from skjepa.scores.densities import AnyDensity
from skjepa.scores.known_rows import KnownRows

_KERNELS = ("KernelDensity", "KDE", "OneClassSVM", "OCSVM")  # a kernel sits on each fit sample and raises its score


def _scores_by(detector: Any, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    scores = -detector.decision_function(rows) if _is_pyod(detector) else detector.score_samples(rows)
    return np.asarray(scores, dtype=np.float64)


def _own_scores(detector: Any, n_rows: int) -> NDArray[np.float64] | None:
    """Return a fitted detector's own scores of its fit rows, each left out of its neighbours; None if it has none."""
    for name, sign in (("decision_scores_", -1.0), ("negative_outlier_factor_", 1.0), ("fit_scores_", 1.0)):
        scores = getattr(detector, name, None)
        if scores is not None and np.shape(scores) == (n_rows,):
            return sign * np.asarray(scores, dtype=np.float64)
    return None


@portable
class WithFitScores:
    """Store a fitted detector with the scores of its fit rows, and return these scores when a fit row comes again.

    Parameters
    ----------
    detector : estimator
    rows : array of shape (n_rows, d)
    scores : array of shape (n_rows,)
        Higher = more normal.
    """

    detector: Annotated[Any, Saved(AnyDensity), "K=d"]
    rows: Annotated[NDArray[np.float64], "n d"]
    scores: Annotated[NDArray[np.float64], "n"]

    def __init__(self, detector: Any, rows: NDArray[np.float64], scores: NDArray[np.float64]) -> None:
        self.detector, self.rows, self.scores = detector, rows, scores
        self._known = KnownRows(rows)

    def recall(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the scores of any rows, (n,): the stored score for a fit row, a new one otherwise."""
        places = self._known.places(rows)
        found = self.scores[places]  # an unknown row has place -1 and gets its own score below
        if (places < 0).any():
            found[places < 0] = _scores_by(self.detector, rows[places < 0])
        return found

    def portable_state(self) -> dict[str, Any]:
        return {"detector": self.detector, "rows": self.rows, "scores": self.scores}

    @classmethod
    def from_portable_state(cls, state: dict[str, Any], given: dict[str, Any]) -> "WithFitScores":
        return cls(**state)


@portable
class EmbeddingDetector(OnEmbeddings):
    """Run any scikit-learn or PyOD detector on embeddings, with the thresholds and p-values of this package.

    Parameters
    ----------
    detector : estimator
        A scikit-learn estimator with `fit` and `score_samples` (higher = more normal), or a PyOD detector, whose scores
        get the opposite sign here. It is cloned before fitting.
    normalize : bool
        Divide embeddings by their length first.
    layer : str, optional
        Name of the hidden layer to take in place of the embedding, for images and an Extraction. "concatenated": all
        layers and the embedding side by side.
    encoder : str or Encoder
        What embeds images, one forward pass per image: "auto" takes the encoder of `skjepa.JEPAScoreDetector`. Rows of
        numbers are compared as they are.
    contamination, target_fpr, calibration, random_state
        As for `skjepa.JEPAScoreDetector`. The contamination set in `detector` itself has no effect.
    device, memory_budget, n_jobs, on_error, verbose
        Of the forward pass over images, as for `skjepa.JEPAScoreDetector`.

    Attributes
    ----------
    models_, offset_, calibration_scores_, n_samples_fit_, calibration_
        See `skjepa.detectors.CalibratedDetector`.
    encoder_ : Encoder or None
        The encoder that embedded the images; None after a fit on rows or on an Extraction.

    Examples
    --------
    >>> import numpy as np
    >>> from pyod.models.ecod import ECOD
    >>> from skjepa import EmbeddingDetector
    >>> X = np.random.default_rng(0).normal(size=(200, 3))
    >>> EmbeddingDetector(ECOD(), calibration=0.5, target_fpr=0.05).fit(X).predict([[9.0, 9.0, 9.0]]).tolist()
    [-1]
    """

    detector: Annotated[Any, Saved(Unfitted[AnyDensity])]
    models_: list[Annotated[Any, Saved(AnyDensity | WithFitScores), "K=d"]]

    def __init__(
        self,
        detector: Any,
        *,
        normalize: bool = False,
        layer: str | None = None,
        encoder: str | Encoder = "auto",
        contamination: float = 0.1,
        target_fpr: float | None = None,
        calibration: float | int | None = None,
        device: str = "auto",
        memory_budget: int | None = None,
        n_jobs: int | None = None,
        on_error: str = "raise",
        random_state: Any = None,
        verbose: int | Literal["auto"] = "auto",
    ) -> None:
        self.detector = detector
        self.normalize = normalize
        self.layer = layer
        self.encoder = encoder
        self.contamination = contamination
        self.target_fpr = target_fpr
        self.calibration = calibration
        self.device = device
        self.memory_budget = memory_budget
        self.n_jobs = n_jobs
        self.on_error = on_error
        self.random_state = random_state
        self.verbose = verbose

    def _check_parameters(self) -> None:
        if not hasattr(self.detector, "fit") or not (
            _is_pyod(self.detector) or hasattr(self.detector, "score_samples")
        ):
            raise TypeError(
                "detector must be a PyOD detector or an estimator with fit and score_samples; for LocalOutlierFactor "
                f"give novelty=True; got {self.detector!r}"
            )

    def _fit_rows(self, rows: NDArray[np.float64], y: NDArray | None) -> Any:
        fitted = clone(self.detector).fit(rows)
        own = _own_scores(fitted, len(rows))
        if type(fitted).__name__ in _KERNELS and len(rows) >= 10:
            own = np.empty(len(rows))
            for seen, unseen in KFold(5, shuffle=True, random_state=0).split(rows):
                own[unseen] = _scores_by(clone(self.detector).fit(rows[seen]), rows[unseen])
        return fitted if own is None else WithFitScores(fitted, rows, own)

    def _score_rows(self, model: Any, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        return model.recall(rows) if isinstance(model, WithFitScores) else _scores_by(model, rows)


def _is_pyod(detector: Any) -> bool:
    """Whether this is a PyOD detector, by the name of its base class, because importing PyOD takes seconds."""
    return any(base.__module__ == "pyod.models.base" for base in type(detector).__mro__)
