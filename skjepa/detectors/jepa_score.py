"""`JEPAScoreDetector`: the scikit-learn face. What is read and with which encoder; the mathematics lives below."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from numbers import Real
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from skjepa._utils import hardware
from skjepa._utils.validation import check_choice, seed_from
from skjepa.data.sources import Source, as_source
from skjepa.detectors.base import CalibratedDetector, Samples
from skjepa.detectors.encoder_choice import (
    encoder_of_fit,
    frozen_encoder,
    is_auto,
    is_trained_on,
    require_fingerprint,
    trained_encoder,
)
from skjepa.detectors.fitted_score import FittedScore, warn_if_collapsed
from skjepa.encoders.encoder import Encoder, require_known_source
from skjepa.extraction.batches.loader import reading_threads
from skjepa.extraction.batches.views import Transform
from skjepa.extraction.encoder_pass import METHODS, embed, extract
from skjepa.extraction.extraction import Extraction, require_finite
from skjepa.extraction.learned_directions import learn_directions
from skjepa.extraction.store.settings import require_same_settings
from skjepa.inspection.diagnosis import diagnose
from skjepa.inspection.findings import Diagnosis
from skjepa.inspection.terms import Explanation, explain_terms, sorted_terms
from skjepa.inspection.volume_maps import VolumeExplainer, learn_volume_explainer
from skjepa.jacobian.directions import Correction, Directions, check_number_of_directions
from skjepa.persistence.folder import portable
from skjepa.persistence.schema import Above, Saved, Unfitted
from skjepa.pretraining.tables import VectorJEPA
from skjepa.scores.densities import AnyDensity
from skjepa.scores.model import ScoreModel, check_score_settings, fit_score_model


@portable
class JEPAScoreDetector(CalibratedDetector):
    """Anomaly detector on the embeddings and the Jacobian spectrum of an encoder.

    Parameters
    ----------
    encoder : str, Encoder or VectorJEPA
        "auto" (images: the bundled encoder; vectors: a `VectorJEPA`), a name that `load_encoder` knows, an `Encoder`,
        or a `VectorJEPA`, which `fit` clones and trains on the rows that it learns from, not on those held out.
    formula : {"joint", "density", "jepa"}
        Of the score. "jepa": log-volume alone (arXiv 2510.05949, Eq. 5). "density": log-volume + log q(z), the whole
        change of variables. "joint": log-volume s, log q(z), log q(z / norm z), log q(s | z) and log q(sigma | z),
        weighted as the fit samples teach, see `skjepa.scores.joint_weights`.
    reference : {"knn", "gaussian"} or estimator
        Model of log q(z).
    floor : float or "auto"
        Floor of the singular values, one for all samples.
    rank : int, optional
        Number of singular values that count, in every sample.
    method : {"exact", "subspace", "sketch"} or Directions
        Of the expensive pass, see `skjepa.extract`. "subspace": `fit` learns `Directions` from the samples that
        are not held out, and every sample costs m passes instead of K. `Directions` from `skjepa.learn_directions` are
        frozen: made once, they and the extractions made with them serve many fits.
    n_directions : int, optional
        m of "subspace" and "sketch"; by default K / 4.
    views, view_transform
        Of the expensive pass, see `skjepa.extract`; `view_transform` is its `transform`, a name by which
        scikit-learn would take the detector for a transformer.
    contamination : float in (0, 0.5]
        Share of the training samples that `predict` flags. A promise about the training set only: of new normal samples
        more may be flagged. For a promise about new samples give `target_fpr` and `calibration`.
    target_fpr : float in (0, 1), optional
        Flag at most this share of new normal samples, in expectation over calibration sets; overrides `contamination`.
    calibration : float in (0, 1) or int, optional
        How `target_fpr` and `p_values` are calibrated. A share is held out, and the detector learns from the rest: the
        promise is exact. A number of folds makes a model of each, which has not seen it, and all of them score
        together: every sample is learned from, and the promise is proven for twice the rate only. A `VectorJEPA` is
        trained anew for each fold, unless it is an Extraction that is fitted, and so are the directions of "subspace".
    memory : path or joblib.Memory, optional
        Folder that keeps every sample's embedding and singular values by its content: no image is measured twice, in a
        grid search say. Without effect on a `VectorJEPA`, trained anew by every fit.
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
    models_ : list of FittedScore
        One, or with folds one for each.
    model_, floor_, rank_
        `skjepa.scores.ScoreModel` of the first of them, and what it learned for all samples.
    directions_ : Directions or None
        Of the first model, those learned or those given.
    correction_ : Correction or None
        From their singular values to the exact log-volume, with its out-of-fold error, of the first model.
    intrinsic_dim_ : float
        Of the embeddings, as the "knn" reference estimates it; the slope of its log-density.
    offset_ : float
        ``decision_function = score_samples - offset_``.
    calibration_scores_ : array or None
        Scores of normal samples by a model that has not seen them.
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

    encoder: str | Encoder | Unfitted[VectorJEPA]
    formula: str
    reference: Annotated[Any, Saved(Literal["knn", "gaussian"] | Unfitted[AnyDensity])]
    floor: float | str
    rank: Annotated[int, Above(0)] | None
    method: str | Directions
    n_directions: Annotated[int, Above(0)] | None
    views: Annotated[int, Above(0)]
    view_transform: Annotated[Any, Saved(None)]
    device: str
    memory_budget: Annotated[int, Above(0)] | None
    memory: Annotated[Any, Saved(None)]
    n_jobs: int | None
    on_error: Annotated[str, Saved(Literal["raise", "skip"])]
    verbose: float | bool
    encoder_: Annotated[Encoder, "d"] | None
    models_: list[Annotated[FittedScore, "d"]]

    def __init__(
        self,
        encoder: str | Encoder | VectorJEPA = "auto",
        *,
        formula: str = "joint",
        reference: Any = "knn",
        floor: float | str = "auto",
        rank: int | None = None,
        method: str | Directions = "exact",
        n_directions: int | None = None,
        views: int = 1,
        view_transform: Transform | None = None,
        contamination: float = 0.1,
        target_fpr: float | None = None,
        calibration: float | None = None,
        device: str = "auto",
        memory_budget: int | None = None,
        memory: Any = None,
        n_jobs: int | None = None,
        on_error: str = "raise",
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.encoder = encoder
        self.formula = formula
        self.reference = reference
        self.floor = floor
        self.rank = rank
        self.method = method
        self.n_directions = n_directions
        self.views = views
        self.view_transform = view_transform
        self.contamination = contamination
        self.target_fpr = target_fpr
        self.calibration = calibration
        self.device = device
        self.memory_budget = memory_budget
        self.memory = memory
        self.n_jobs = n_jobs
        self.on_error = on_error
        self.random_state = random_state
        self.verbose = verbose

    def extract(self, X: Any, *, store: str | os.PathLike | None = None) -> Extraction:
        """The expensive pass alone, with this detector's settings: `fit` and `score_samples` take what it returns.

        Before a fit, X is taken for what will be fitted on, and the settings are checked as `fit` checks them. Where
        `fit` has yet to train the encoder, there is nothing to extract with.

        Parameters
        ----------
        X : images or vectors
        store : path, optional
            Folder that keeps finished samples, and from which the run resumes.

        Raises
        ------
        ValueError
            Every fold trained an encoder or learned directions of its own.
        """
        if not hasattr(self, "models_"):
            source = as_source(X)
            if is_trained_on(self.encoder, source):
                raise NotFittedError("the encoder is not trained yet: call fit first")
            if self._learns_directions:
                raise NotFittedError("the directions are not learned yet: call fit first, or give Directions as method")
            own = seed_from(self.random_state)
            self._check_settings(source.ids, own)
            return self._extract(frozen_encoder(self.encoder), source, own, store=store, memory=self.memory)
        if self.measures_per_model:
            raise ValueError(
                "every fold trained an encoder or learned directions of its own, there is no one extraction: score X "
                "itself"
            )
        source, fitted = as_source(self._validated(X, reset=False)), self.models_[0]
        # The seed of the fitted views: a RandomState would give another one at each call.
        seed, directions = fitted.settings["seed"], fitted.directions
        with self._fitted_encoder(source) as encoder:
            return self._extract(encoder, source, seed, directions=directions, store=store, memory=self.memory)

    def fitted_encoder(self, X: Any) -> Encoder:
        """The encoder that measures the samples `X` for this fitted detector.

        Raises
        ------
        ValueError
            Fitted on an Extraction of a trained encoder, which this detector never saw.
        skjepa.encoders.FingerprintError
            The encoder has changed since `fit`.
        """
        check_is_fitted(self)
        with self._fitted_encoder(as_source(X)) as encoder:
            return encoder

    @property
    def measures_per_model(self) -> bool:
        """Whether each fold's model has an encoder or directions of its own, so that no one extraction serves all."""
        return self._is_own and len(self.models_) > 1

    @contextmanager
    def _fitted_encoder(self, source: Source) -> Iterator[Encoder]:
        """The encoder of the fit, compared with what the fit saw; inside, its weights are not looked at again."""
        encoder = encoder_of_fit(self.encoder_, self.encoder, source, estimator="detector", act="score")
        with encoder.unchanging():
            expected = self.models_[0].settings["fingerprint"]
            require_fingerprint(encoder.fingerprint, expected, f"encoder {encoder.name!r}")
            yield encoder

    @property
    def model_(self) -> ScoreModel:
        return self._first.model

    @property
    def floor_(self) -> float:
        return self._first.model.floor

    @property
    def rank_(self) -> int:
        return self._first.model.rank

    @property
    def directions_(self) -> Directions | None:
        return self._first.directions or self._given_directions

    @property
    def _given_directions(self) -> Directions | None:
        return self.method if isinstance(self.method, Directions) else None

    @property
    def correction_(self) -> Correction | None:
        return self._first.model.correction

    @property
    def intrinsic_dim_(self) -> float:
        return self._first.model.reference.intrinsic_dim_

    @property
    def _first(self) -> FittedScore:
        check_is_fitted(self)
        return self.models_[0]

    @property
    def _learns_directions(self) -> bool:
        return isinstance(self.method, str) and self.method == "subspace"

    @property
    def _is_own(self) -> bool:
        """Whether `fit` trained an encoder or learned directions, so that each model measures samples by itself."""
        return self._first.encoder is not None or self._first.directions is not None

    def diagnose(self, X: Any = None) -> Diagnosis:
        """What may be wrong with the encoder or its scores, with advice; needs no labels. Prints readably.

        Parameters
        ----------
        X : images, vectors or Extraction, optional
            New samples, at least two: what is wrong on them that was not at fit, and where they are unlike the fit
            samples. By default what `fit` learned from.

        Returns
        -------
        skjepa.inspection.Diagnosis
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
        fitted = self._first
        if X is None:
            return fitted.diagnosis
        return diagnose(fitted.model, self._measured(fitted, self._read(X)), fitted.diagnosis)

    def explain(self, X: Any) -> Explanation:
        """Why samples score as they do: the terms of the score, which add up to it, beside those of the fit samples.

        Parameters
        ----------
        X : images, vectors or Extraction

        Returns
        -------
        skjepa.inspection.Explanation
            One row a sample; `print` tells it in words. Where in the image the volume term comes from is for
            `volume_explainer`.

        Examples
        --------
        >>> import numpy as np, torch
        >>> from skjepa import JEPAScoreDetector, load_encoder
        >>> X, _ = np.random.default_rng(0).normal(size=(200, 6)), torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))
        >>> detector = JEPAScoreDetector(load_encoder(net)).fit(X)
        >>> odd = detector.explain(X[:1] + 5)
        >>> bool(np.isclose(sum(odd.parts.values()), detector.score_samples(X[:1] + 5)).all())
        True
        >>> odd.least_normal(0)[0]
        'volume given embedding'
        """
        check_is_fitted(self)
        samples = self._read(X)
        terms, ids = [], np.array([])
        for fitted in self.models_:
            measured = self._measured(fitted, samples)
            found, ids = fitted.model.terms(measured), measured.ids
            if measured is not X:
                found = {name: measured.aligned(values) for name, values in found.items()}
                ids = measured.all_ids
            terms.append(found)
        scores = np.stack([np.sum(list(found.values()), axis=0) for found in terms])
        return explain_terms(ids, self._combine(scores) - self.offset_, terms, [m.terms for m in self.models_])

    def volume_explainer(self, X: Any, *, patch_size: int | None = None, **options: Any) -> VolumeExplainer:
        """Learn heat maps of the volume term from normal images: 2 K passes an image, beside and not in `fit`.

        Parameters
        ----------
        X : images or vectors
            Normal samples, those of the fit or others; a hundred are enough.
        patch_size : int, optional
        **options
            Of `skjepa.learn_volume_explainer`: memory_budget, device, n_jobs, on_error, progress.

        Returns
        -------
        VolumeExplainer
            With the encoder, the floor and the rank of this detector. Its maps are of the exact Jacobian at the image
            itself: views, a subspace and its correction change the volume term, not the maps.

        Raises
        ------
        ValueError
            Every fold trained an encoder of its own.
        """
        own = self._first.encoder
        if own is not None and len(self.models_) > 1:
            raise ValueError("every fold trained an encoder of its own, there is no one volume to explain")
        encoder = own or self.fitted_encoder(X)
        given = {"memory_budget": self.memory_budget, "device": self.device, "n_jobs": self.n_jobs} | options
        return learn_volume_explainer(encoder, X, patch_size=patch_size, floor=self.floor_, rank=self.rank_, **given)

    def portable_state(self) -> dict[str, Any]:
        return vars(self) | {"memory": None}  # a folder of this machine

    @classmethod
    def from_portable_state(cls, state: dict[str, Any], given: dict[str, Any]) -> "JEPAScoreDetector":
        made = cls.__new__(cls)
        made.__dict__.update(state)
        if isinstance(made.encoder, str) and not is_auto(made.encoder):
            made.encoder = given.get("encoder", made.encoder)
            require_known_source(made.encoder)
        try:
            hardware.resolve_device(made.device)
        except ValueError:  # saved where there was a GPU
            made.device = "auto"
        return made

    def portable_check(self) -> None:
        super().portable_check()
        check_score_settings(self.formula, self.reference, self.floor, self.rank)
        if not isinstance(self.method, Directions):
            check_choice("method", self.method, (*METHODS, "subspace"))
        reading_threads(self.n_jobs)
        taken = {"exact": None}.get(self.method, self.n_directions) if isinstance(self.method, str) else None
        if self.n_directions not in (taken, self._given_directions and self._given_directions.n_directions):
            raise ValueError(f"n_directions = {self.n_directions} does not go with method {self.method!r}")
        for fitted in self.models_:
            shape = fitted.settings["input_shape"] or ()
            if len(shape) == 1 and getattr(self, "n_features_in_", shape[0]) != shape[0]:
                raise ValueError(f"n_features_in_ is {self.n_features_in_}, the rows learned from have {shape[0]}")
            correction, directions = fitted.model.correction, fitted.directions or self._given_directions
            if correction is None:
                continue
            if directions is None or len(correction.coef) != sum(directions.components.shape):
                raise ValueError("the correction is not one of the directions")

    def _read_for_fit(self, X: Any, seed: int) -> Samples:
        if isinstance(X, Extraction):
            require_finite(X)
            self._check_settings(X.ids, seed)
            if self._learns_directions:
                raise ValueError(
                    "method='subspace' learns directions from samples, X is an Extraction: give what "
                    "skjepa.learn_directions returns as method, and extract with it"
                )
            if X.n_features is not None:
                self.n_features_in_ = X.n_features
            self.encoder_ = None
            return X
        source = as_source(self._validated(X, reset=True))
        self._check_settings(source.ids, seed)
        self.encoder_ = None
        if is_trained_on(self.encoder, source):
            return source
        self.encoder_ = frozen_encoder(self.encoder)
        if self._learns_directions:
            samples: Samples = source if self.on_error != "skip" else self._readable(self.encoder_, source)
        else:
            samples = self._extract(self.encoder_, source, seed, memory=self.memory)
        self._check_size(samples.ids, seed)  # some may have been skipped
        return samples

    def _readable(self, encoder: Encoder, source: Source) -> Source:
        """The samples that can be read, found by one forward pass each."""
        z = embed(
            encoder,
            source,
            memory_budget=self.memory_budget,
            device=self.device,
            n_jobs=self.n_jobs,
            on_error="skip",
            progress=self.verbose > 0,
        )
        return source[~np.isnan(z).any(axis=1)]

    def _check_settings(self, ids: NDArray[np.str_], seed: int) -> None:
        """Whatever can be refused without the expensive pass is refused before it."""
        check_score_settings(self.formula, self.reference, self.floor, self.rank)
        if self.view_transform is not None and not callable(self.view_transform):
            raise TypeError(f"view_transform must be a function of a tensor; got {self.view_transform!r}")
        if not isinstance(self.verbose, Real):
            raise TypeError(f"verbose must be a number; got {self.verbose!r}")
        if not isinstance(self.method, Directions):
            check_choice("method", self.method, (*METHODS, "subspace"))
        check_number_of_directions(self.n_directions)
        self._check_thresholds()
        self._check_size(ids, seed)

    def _read(self, X: Any) -> Samples:
        if isinstance(X, Extraction):
            require_finite(X)
            return X
        return as_source(self._validated(X, reset=False)) if self._is_own else self.extract(X)

    def _learn(self, samples: Samples, y: NDArray | None, seed: int) -> tuple[FittedScore, NDArray[np.float64]]:
        encoder = learned = None
        if isinstance(samples, Extraction):
            extraction = samples
        else:
            if is_trained_on(self.encoder, samples):
                encoder = trained_encoder(self.encoder, samples, seed)
                self.encoder_ = self.encoder_ or encoder
            used = encoder or self._frozen
            if self._learns_directions:
                learned = learn_directions(used, samples, self.n_directions, **self._options(seed))
            extraction = self._extract(used, samples, seed, directions=learned, memory=self._memory_of(encoder))
        given = self._given_directions or learned
        model = fit_score_model(
            extraction,
            formula=self.formula,
            reference=self.reference,
            floor=self.floor,
            rank=self.rank,
            directions=given,
        )
        terms = model.terms(extraction)
        scores = np.sum(list(terms.values()), axis=0)
        warn_if_collapsed(scores, extraction)
        diagnosis = diagnose(model, extraction)
        return FittedScore(model, encoder, extraction.settings, diagnosis, learned, sorted_terms(terms)), scores

    def _score(self, model: FittedScore, samples: Samples) -> NDArray[np.float64]:
        measured = self._measured(model, samples)
        scores = model.model.score_samples(measured)
        return measured.aligned(scores) if isinstance(samples, Source) else scores

    def _measured(self, fitted: FittedScore, samples: Samples) -> Extraction:
        """The extraction of samples, made with the encoder and the directions that were fitted."""
        if isinstance(samples, Source):
            with nullcontext(fitted.encoder) if fitted.encoder else self._fitted_encoder(samples) as encoder:
                memory = self._memory_of(fitted.encoder)
                seed = fitted.settings["seed"]
                return self._extract(encoder, samples, seed, directions=fitted.directions, memory=memory)
        require_same_settings(fitted.settings, samples.meta, "the detector's fit and these samples")
        return samples

    @property
    def _frozen(self) -> Encoder:
        assert self.encoder_ is not None  # `_read_for_fit` loaded it
        return self.encoder_

    def _memory_of(self, trained: Encoder | None) -> Any:
        """What an encoder measures that was trained for one fit is not worth keeping."""
        return self.memory if trained is None else None

    def _extract(
        self,
        encoder: Encoder,
        source: Source,
        seed: int | None,
        *,
        directions: Directions | None = None,
        store: str | os.PathLike | None = None,
        memory: Any = None,
    ) -> Extraction:
        return extract(
            encoder,
            source,
            method=self.method if directions is None else directions,
            n_directions=self.n_directions if directions is None else None,
            store=store,
            memory=memory if store is None else None,
            **self._options(seed),
        )

    def _options(self, seed: int | None) -> dict[str, Any]:
        """Of every expensive pass."""
        return {
            "views": self.views,
            "transform": self.view_transform,
            "memory_budget": self.memory_budget,
            "device": self.device,
            "n_jobs": self.n_jobs,
            "on_error": self.on_error,
            "random_state": seed,
            "progress": self.verbose > 0,
        }
