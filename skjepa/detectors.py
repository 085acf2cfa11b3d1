"""`JEPAScoreDetector`: the scikit-learn face. Contracts and thresholds here; the mathematics lives below."""

import math
import os
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import train_test_split
from sklearn.utils.validation import check_is_fitted
from torch import nn

from skjepa._validation import check_number, seed_from
from skjepa.calibration import conformal_offset, conformal_p_values, contamination_offset
from skjepa.diagnostics import diagnose
from skjepa.encoders import Encoder, FingerprintError, load_encoder
from skjepa.engine import extract
from skjepa.extraction import SETTINGS, Extraction, require_same_settings
from skjepa.findings import Diagnosis
from skjepa.scores import check_score_settings, fit_score_model
from skjepa.sources import Source, as_source
from skjepa.vector import VectorJEPA
from skjepa.views import Transform


class JEPAScoreDetector(OutlierMixin, BaseEstimator):
    """Anomaly detector on the embeddings and the Jacobian spectrum of an encoder.

    Parameters
    ----------
    encoder : str, Encoder or VectorJEPA
        "auto" (images: the bundled encoder; vectors: a `VectorJEPA`), a name that `load_encoder` knows, an `Encoder`,
        or a `VectorJEPA`, which `fit` clones and trains on the rows that it learns from, not on those held out.
    score : {"joint", "density", "jepa"}
        "jepa": log-volume alone (arXiv 2510.05949, Eq. 5). "density": log-volume + log q(z), the whole change of
        variables. "joint": the sum of log-volume s, log q(z) and log q(s | z), each standardised on the fit samples.
    reference : {"knn", "gaussian"} or estimator
        Model of log q(z).
    floor : float or "auto"
        Floor of the singular values, one for all samples.
    rank : int, optional
        Number of singular values that count, in every sample.
    method, views, transform
        Of the expensive pass, see `skjepa.engine.extract`.
    contamination : float in (0, 0.5]
        Share of the training samples that `predict` flags. A promise about the training set only: of new normal samples
        more may be flagged. For a promise about new samples give `target_fpr` and `calibration`.
    target_fpr : float in (0, 1), optional
        Flag at most this share of new normal samples, in expectation over calibration sets; overrides `contamination`.
    calibration : float in (0, 1), optional
        Share of the fit samples held out to calibrate `target_fpr` and `p_values`; the detector learns from the rest.
    device, memory_budget, n_jobs, on_error
        Of the expensive pass. With ``on_error="skip"`` unreadable images are left out of `fit`; afterwards they score
        NaN and are labelled -1.
    random_state : int, RandomState or Generator, optional
        Seeds views, the calibration split and the training of a `VectorJEPA` that has no seed of its own; None means 0.
    verbose : int
        Above 0 shows a progress bar.

    Attributes
    ----------
    encoder_ : Encoder or None
        The one in use, trained where `encoder` was a `VectorJEPA`. None after a fit on an Extraction.
    model_ : skjepa.scores.ScoreModel
    floor_, rank_
        Learned for all samples, see `skjepa.scores.fit_score_model`.
    offset_ : float
        ``decision_function = score_samples - offset_``.
    calibration_scores_ : array or None
        Scores of the held-out samples.
    numerical_rank_ : array of shape (n_fit, n_views)
        Singular values above the noise of the arithmetic, per fit sample: a diagnostic.
    n_samples_fit_ : int

    Examples
    --------
    >>> import numpy as np
    >>> from skjepa import JEPAScoreDetector
    >>> rng = np.random.default_rng(0)
    >>> normal = rng.integers(100, 156, size=(20, 32, 32, 3), dtype=np.uint8)
    >>> detector = JEPAScoreDetector(contamination=0.1).fit(normal)
    >>> detector.predict(normal).tolist().count(-1)
    2
    """

    def __init__(
        self,
        encoder: str | Encoder | VectorJEPA = "auto",
        *,
        score: str = "joint",
        reference: Any = "knn",
        floor: float | str = "auto",
        rank: int | None = None,
        method: str = "exact",
        views: int = 1,
        transform: Transform | None = None,
        contamination: float = 0.1,
        target_fpr: float | None = None,
        calibration: float | None = None,
        device: str = "auto",
        memory_budget: int | None = None,
        n_jobs: int | None = None,
        on_error: str = "raise",
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.encoder = encoder
        self.score = score
        self.reference = reference
        self.floor = floor
        self.rank = rank
        self.method = method
        self.views = views
        self.transform = transform
        self.contamination = contamination
        self.target_fpr = target_fpr
        self.calibration = calibration
        self.device = device
        self.memory_budget = memory_budget
        self.n_jobs = n_jobs
        self.on_error = on_error
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: object = None) -> "JEPAScoreDetector":
        """Learn from normal samples.

        Parameters
        ----------
        X : images, vectors or Extraction
            See `skjepa.sources.as_source`; or what `skjepa.extract` returned, then no encoder runs.
        y : ignored

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            Bad data, parameters or encoder. A failed `fit` leaves an earlier one as it was.
        """
        seed = seed_from(self.random_state)
        encoder, extraction = self._pass_for_fit(X, seed)
        held_out_mask = self._held_out(extraction.ids, seed)
        learn, held_out = extraction[~held_out_mask], extraction[held_out_mask]
        model = fit_score_model(learn, score=self.score, reference=self.reference, floor=self.floor, rank=self.rank)
        scores = model.score_samples(learn)
        _warn_if_collapsed(scores, learn)
        diagnosis = diagnose(model, learn)
        calibration_scores = None if self.calibration is None else model.score_samples(held_out)
        if self.target_fpr is None or calibration_scores is None:
            offset = contamination_offset(scores, self.contamination)
        else:
            offset = conformal_offset(calibration_scores, self.target_fpr)

        shape = extraction.meta.get("input_shape") or []
        self.encoder_ = encoder
        self.model_, self.floor_, self.rank_ = model, model.floor, model.rank
        self.offset_ = offset
        self.calibration_scores_ = calibration_scores
        self.numerical_rank_ = learn.numerical_rank
        self._diagnosis = diagnosis
        self.n_samples_fit_ = len(learn)
        self._settings = {key: extraction.meta.get(key) for key in ("encoder", *SETTINGS)}
        self._seed = extraction.meta.get("seed")
        self.__dict__.pop("n_features_in_", None)
        if len(shape) == 1:
            self.n_features_in_ = shape[0]
        return self

    def extract(self, X: Any, *, store: str | os.PathLike | None = None) -> Extraction:
        """The expensive pass alone, with this detector's settings: `fit` and `score_samples` take what it returns.

        Before a fit, X is taken for what will be fitted on, and the settings are checked as `fit` checks them. Where
        `fit` has yet to train the encoder, there is nothing to extract with.

        Parameters
        ----------
        X : images or vectors
        store : path, optional
            Folder that keeps finished samples, and from which the run resumes.
        """
        source = as_source(X)
        if not hasattr(self, "model_"):
            if self._trains(source):
                raise NotFittedError("the encoder is not trained yet: call fit first")
            return self._pass_for_fit(source, seed_from(self.random_state), store=store)[1]
        expected = getattr(self, "n_features_in_", None)
        if source.is_vector and expected is not None and (found := len(source.load(0))) != expected:
            raise ValueError(
                f"X has {found} features, but {type(self).__name__} is expecting {expected} features as input"
            )
        # The seed of the fitted views: a RandomState would give another one at each call.
        return self._extract(self._fitted_encoder(source), source, store=store, seed=self._seed)

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """Score of each sample: the higher, the more normal; the lower, the more abnormal.

        Parameters
        ----------
        X : images, vectors or Extraction

        Returns
        -------
        array of shape (n_samples,), float64
            Nats for "jepa" and "density", standard deviations for "joint". NaN for a skipped image; an Extraction has
            none, so its scores are as many as its samples.
        """
        check_is_fitted(self)
        extraction = X if isinstance(X, Extraction) else self.extract(X)
        require_same_settings(self._settings, extraction.meta, "the detector's fit and these samples")
        scores = self.model_.score_samples(extraction)
        return scores if extraction is X else extraction.aligned(scores)

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """``score_samples(X) - offset_``: negative where a sample is flagged; (n_samples,)."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> NDArray[np.int64]:
        """+1 for normal, -1 for anomalous samples (and for images that could not be read); (n_samples,)."""
        return np.where(self.decision_function(X) >= 0, 1, -1)

    def p_values(self, X: Any) -> NDArray[np.float64]:
        """Conformal p-values against the held-out samples: small = unlike normal data; (n_samples,).

        Raises
        ------
        ValueError
            Fitted without `calibration`.
        """
        check_is_fitted(self)
        if self.calibration_scores_ is None:
            raise ValueError("p-values need held-out normal samples: fit with calibration=0.2, say")
        return conformal_p_values(self.calibration_scores_, self.score_samples(X))

    def diagnose(self, X: Any = None) -> Diagnosis:
        """What may be wrong with the encoder or its scores, with advice; needs no labels. Prints readably.

        Parameters
        ----------
        X : images, vectors or Extraction, optional
            New samples, at least two: what is wrong on them that was not at fit, and where they are unlike the fit
            samples. By default what `fit` learned from.

        Returns
        -------
        skjepa.findings.Diagnosis
            Its `findings` are empty where nothing is wrong.

        Examples
        --------
        >>> import numpy as np, torch
        >>> from skjepa import JEPAScoreDetector, load_encoder
        >>> X, _ = np.random.default_rng(0).normal(size=(200, 6)), torch.manual_seed(0)
        >>> flat = load_encoder(torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.ReLU()))
        >>> diagnosis = JEPAScoreDetector(flat).fit(X).diagnose()
        >>> [finding.name for finding in diagnosis.findings]
        ['rank deficiency']
        """
        check_is_fitted(self)
        if X is None:
            return self._diagnosis
        extraction = X if isinstance(X, Extraction) else self.extract(X)
        require_same_settings(self._settings, extraction.meta, "the detector's fit and these samples")
        return diagnose(self.model_, extraction, self._diagnosis)

    def _pass_for_fit(
        self, X: Any, seed: int, *, store: str | os.PathLike | None = None
    ) -> tuple[Encoder | None, Extraction]:
        """The extraction of X, and the encoder if one had to run."""
        if isinstance(X, Extraction):
            self._check_settings(X.ids)
            return None, X
        source = as_source(X)
        self._check_settings(source.ids)
        encoder = self._train(source, seed) if self._trains(source) else self._resolve_encoder()
        return encoder, self._extract(encoder, source, store=store, seed=seed)

    def _check_settings(self, ids: NDArray[np.str_]) -> None:
        """Whatever can be refused without the expensive pass is refused before it."""
        if len(ids) < 2:
            raise ValueError(f"fit needs at least 2 samples; got {len(ids)} sample")
        check_score_settings(self.score, self.reference, self.floor, self.rank)
        check_number("contamination", self.contamination, above=0.0, below=0.5, closed=">")
        if self.calibration is not None:
            check_number("calibration", self.calibration, above=0.0, below=1.0)
        if self.target_fpr is not None:
            check_number("target_fpr", self.target_fpr, above=0.0, below=1.0)
            if self.calibration is None:
                raise ValueError("target_fpr needs held-out normal samples: give calibration, the share to hold out")
        if self.calibration is None:
            return
        groups = len(np.unique(ids))
        if groups < 3:
            raise ValueError(f"calibration needs at least 3 different samples; got {groups}")
        held_out = math.ceil(groups * self.calibration)
        if groups - held_out < 2:
            raise ValueError(
                f"calibration={self.calibration:g} leaves {groups - held_out} of {groups} samples to fit on"
            )
        if self.target_fpr is not None and groups == len(ids):
            conformal_offset(np.zeros(held_out), self.target_fpr)

    def _trains(self, source: Source) -> bool:
        return isinstance(self.encoder, VectorJEPA) or (source.is_vector and _is_auto(self.encoder))

    def _train(self, source: Source, seed: int) -> Encoder:
        """An encoder of the vectors that `fit` learns from: those held out must be as new to it as any later ones."""
        jepa = VectorJEPA() if _is_auto(self.encoder) else clone(self.encoder)
        if jepa.random_state is None:
            jepa.set_params(random_state=seed)
        learned = np.flatnonzero(~self._held_out(source.ids, seed)).tolist()
        return jepa.fit(np.stack([source.load(i) for i in learned])).encoder_

    def _resolve_encoder(self) -> Encoder:
        if isinstance(self.encoder, nn.Module):
            raise TypeError("encoder is a bare module, which sklearn.clone would copy: wrap it in load_encoder(module)")
        if not isinstance(self.encoder, str | Encoder):
            raise TypeError(
                f"encoder must be a name, an Encoder from load_encoder or a VectorJEPA; got {self.encoder!r}"
            )
        return load_encoder("bundled" if _is_auto(self.encoder) else self.encoder)

    def _fitted_encoder(self, source: Source) -> Encoder:
        if self.encoder_ is None and self._trains(source):
            raise ValueError(
                "fitted on an Extraction, this detector does not know the trained encoder it came from: score an "
                "Extraction, or fit with that Encoder as encoder"
            )
        encoder = self._resolve_encoder() if self.encoder_ is None else self.encoder_
        if encoder.fingerprint != self._settings["fingerprint"]:
            raise FingerprintError(
                f"encoder {encoder.name!r} is not the one this detector was fitted with: fingerprint "
                f"{encoder.fingerprint[:12]}, expected {str(self._settings['fingerprint'])[:12]}"
            )
        return encoder

    def _extract(self, encoder: Encoder, X: Any, *, store: str | os.PathLike | None, seed: int | None) -> Extraction:
        return extract(
            encoder,
            X,
            store=store,
            method=self.method,
            views=self.views,
            transform=self.transform,
            memory_budget=self.memory_budget,
            device=self.device,
            n_jobs=self.n_jobs,
            on_error=self.on_error,
            random_state=seed,
            progress=self.verbose > 0,
        )

    def _held_out(self, ids: NDArray[np.str_], seed: int) -> NDArray[np.bool_]:
        """Which samples `calibration` keeps from what is learned, (n_samples,); copies of one go to the same side."""
        if self.calibration is None:
            return np.zeros(len(ids), dtype=bool)
        share = float(self.calibration)
        return np.isin(ids, train_test_split(np.unique(ids), test_size=share, random_state=seed)[1])


def _is_auto(encoder: Any) -> bool:
    return isinstance(encoder, str) and encoder == "auto"


def _warn_if_collapsed(scores: NDArray[np.float64], extraction: Extraction) -> None:
    if np.ptp(scores) > 1e-9 * (1 + np.abs(scores).max()):
        return
    z = extraction.embeddings
    rank = int(np.linalg.matrix_rank(z - z.mean(axis=0), tol=1e-6 * (np.abs(z).max() + np.finfo(float).tiny) * len(z)))
    warnings.warn(
        f"all {len(scores)} scores are equal: the encoder is collapsed or linear on these samples, or they are copies "
        f"of one another (rank of the embeddings: {rank} of {z.shape[1]}; "
        f"median numerical rank of the Jacobian: {int(np.median(extraction.numerical_rank))})",
        stacklevel=3,
    )
