"""`JEPAScoreDetector`: the scikit-learn face. Its parameters, what a fit learns, and how it is saved."""

import os
from numbers import Real
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from skjepa._utils import hardware
from skjepa._utils.validation import check_choice, check_number
from skjepa.data.sources import Source
from skjepa.detectors.base import Samples
from skjepa.detectors.encoder_choice import (
    is_auto,
    is_trained_on,
    trained_encoder,
)
from skjepa.detectors.fitted_score import FittedScore, warn_if_collapsed, warn_of_near_copies
from skjepa.detectors.fitting import APART
from skjepa.detectors.mapping import MappingDetector
from skjepa.encoders.encoder import Encoder
from skjepa.encoders.loading import require_known_source
from skjepa.extraction.batches.options import RunOptions
from skjepa.extraction.batches.views import Transform
from skjepa.extraction.cost.choice import METHODS
from skjepa.extraction.extraction import Extraction
from skjepa.extraction.learned_directions import learn_directions
from skjepa.inspection.diagnosis import diagnose
from skjepa.inspection.terms import sorted_terms
from skjepa.jacobian.directions import Directions, check_number_of_directions
from skjepa.persistence.folder import portable
from skjepa.persistence.schema import Above, MayLack, Saved, Unfitted
from skjepa.pretraining.tables import VectorJEPA
from skjepa.scores.densities import AnyDensity
from skjepa.scores.layered import fit_score
from skjepa.scores.model import check_score_settings


@portable
class JEPAScoreDetector(MappingDetector):
    """Anomaly detector on the embeddings and the Jacobian spectrum of an encoder.

    Parameters
    ----------
    encoder : str, Encoder or VectorJEPA
        "auto" (images up to 64 pixels: "bundled"; larger ones: "lite0"; vectors: a `VectorJEPA`),
        a name that `load_encoder` knows, an `Encoder`,
        or a `VectorJEPA`, which `fit` clones and trains on the rows that it learns from, not on those held out.
    formula : {"joint", "density", "jepa"}
        Of the score. "joint": how surprising each hidden layer is given the one before it, the direction of the
        embedding and its distance to normal ones, and, where backward passes were made, the singular values given the
        embedding (docs/guide/scores.md); without `layers` the five terms of `skjepa.scores.joint_weights`.
        "jepa": JEPA-SCORE, the log-volume alone (arXiv 2510.05949, Eq. 5). "density": log-volume + log q(z), the whole
        change of variables. These two need backward passes and do not use layers.
    reference : {"knn", "gaussian"} or estimator
        Model of log q(z); in "joint" with layers, of the term "neighbours": "knn" is there the mean distance to the
        nearest normal samples.
    floor : float or "auto"
        Floor of the singular values, one for all samples.
    rank : int, optional
        Number of singular values that count, in every sample.
    method : {"auto", "forward", "exact", "subspace", "sketch"} or Directions
        Backward passes per sample, see `skjepa.extract`. "auto": for images all K where that is at most 64 and at most
        20 GFLOP, else none; for vectors none; all K where `formula` needs them. `method_reason_` says what was chosen
        and why. "forward": none, one forward pass alone. "subspace": `fit`
        learns `Directions` from the samples that are not held out, and every sample costs m passes instead of K.
        `Directions` from `skjepa.learn_directions` are frozen: made once, they and the extractions made with them serve
        many fits.
    n_directions : int, optional
        m of "subspace" and "sketch"; by default K / 4.
    layers : "auto", list of str, or None
        Hidden layers that "joint" reads in the forward pass, see `skjepa.extract`. None: the embedding alone.
    local : bool
        Whether "joint" also reads what each position of a picture shows, and learns what is normal there: for defects
        that are small in a picture. The oddest positions are a term of the score, `anomaly_map` shows the surprise of
        each position, and `spots` gives those that normal pictures lack (docs/guide/local-defects.md). Takes some
        hundred kilobytes per picture during `fit`.
    trim : float in [0, 0.5)
        For fit samples among which there may be anomalies: so large a share of them, those that score lowest at a
        first fit by their layers, is left out of a second fit, from which the detector learns. They count among the
        samples of `contamination` and of `calibration` all the same.
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
    time_budget : float, optional
        Seconds that the pass over the fit samples may take, judged by two of them before it starts: "auto" makes as
        many backward passes as fit into it, other methods that take longer are refused. Samples are scored by the
        method of the fit, however long that takes.
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
    method_reason_ : str or None
        Why ``method="auto"`` chose the backward passes of the fit.

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

    formula: str
    reference: Annotated[Any, Saved(Literal["knn", "gaussian"] | Unfitted[AnyDensity])]
    floor: float | str
    trim: MayLack[Annotated[float, Above(-1e-9, below=0.5)]]
    rank: Annotated[int, Above(0)] | None

    def __init__(
        self,
        encoder: str | Encoder | VectorJEPA = "auto",
        *,
        formula: str = "joint",
        reference: Any = "knn",
        floor: float | str = "auto",
        rank: int | None = None,
        method: str | Directions = "auto",
        n_directions: int | None = None,
        layers: Any = "auto",
        local: bool = False,
        trim: float = 0.0,
        views: int = 1,
        view_transform: Transform | None = None,
        contamination: float = 0.1,
        target_fpr: float | None = None,
        calibration: float | None = None,
        time_budget: float | None = None,
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
        self.layers = layers
        self.local = local
        self.trim = trim
        self.views = views
        self.view_transform = view_transform
        self.contamination = contamination
        self.target_fpr = target_fpr
        self.calibration = calibration
        self.time_budget = time_budget
        self.device = device
        self.memory_budget = memory_budget
        self.memory = memory
        self.n_jobs = n_jobs
        self.on_error = on_error
        self.random_state = random_state
        self.verbose = verbose

    @property
    def reads(self) -> str:
        return "forward" if self._is_forward else "extraction"

    def export(self, path: str | os.PathLike) -> Path:
        """Write the fitted detector as an ONNX file, see `skjepa.export_onnx`.

        Parameters
        ----------
        path : path-like
            Ends in ``.onnx``.

        Raises
        ------
        skjepa.deployment.ExportError
            A part cannot be exported: methods that read the Jacobian, for example.
        """
        check_is_fitted(self)
        # Deployment stands above detectors: nothing here may need it before it is asked for.
        from skjepa.deployment.export import export_onnx

        return export_onnx(self, path)

    def portable_state(self) -> dict[str, Any]:
        return vars(self) | {"memory": None}  # a folder of this machine

    @classmethod
    def from_portable_state(cls, state: dict[str, Any], given: dict[str, Any]) -> "JEPAScoreDetector":
        made = cls.__new__(cls)
        earlier = {"layers": None, "local": False, "trim": 0.0, "time_budget": None}  # earlier versions lack them
        made.__dict__.update(earlier | state)
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
        RunOptions(n_jobs=self.n_jobs)
        takes_none = ("auto", "forward", "exact")
        taken = self.n_directions if isinstance(self.method, str) and self.method not in takes_none else None
        if self.n_directions not in (taken, self._given_directions and self._given_directions.n_directions):
            raise ValueError(f"n_directions = {self.n_directions} does not go with method {self.method!r}")
        for fitted in self.models_:
            shape = fitted.settings["input_shape"] or ()
            if len(shape) == 1 and getattr(self, "n_features_in_", shape[0]) != shape[0]:
                raise ValueError(f"n_features_in_ is {self.n_features_in_}, the rows learned from have {shape[0]}")
            correction, directions = fitted.model.correction, fitted.directions or self._given_directions
            if correction is None:
                continue
            if directions is None or not directions.has_made(correction):
                raise ValueError("the correction is not one of the directions")

    def _check_settings(self, ids: NDArray[np.str_], seed: int) -> None:
        """Whatever can be refused without the expensive pass is refused before it."""
        check_score_settings(self.formula, self.reference, self.floor, self.rank)
        if self.view_transform is not None and not callable(self.view_transform):
            raise TypeError(f"view_transform must be a function of a tensor; got {self.view_transform!r}")
        if not isinstance(self.verbose, Real):
            raise TypeError(f"verbose must be a number; got {self.verbose!r}")
        if not isinstance(self.method, Directions):
            check_choice("method", self.method, (*METHODS, "subspace"))
            if self.formula != "joint" and self.method == "forward":
                raise ValueError(
                    f"formula={self.formula!r} sums logarithms of singular values, and method='forward' measures none: "
                    "give method='exact' or 'sketch', or formula='joint'"
                )
        if not isinstance(self.local, bool | np.bool_):
            raise TypeError(f"local must be True or False; got {self.local!r}")
        if self.local and (self.formula != "joint" or self.layers is None):
            raise ValueError("local=True reads hidden layers: give formula='joint' and layers='auto', or local=False")
        check_number("trim", self.trim, above=0.0, below=0.5, closed="<")
        check_number_of_directions(self.n_directions)
        if self.time_budget is not None:
            check_number("time_budget", self.time_budget, above=0.0)
        RunOptions.of(self)
        self._check_thresholds()
        self._check_size(ids, seed)

    def _learn(self, samples: Samples, y: NDArray | None, seed: int) -> tuple[FittedScore, NDArray[np.float64]]:
        encoder = learned = None
        if isinstance(samples, Extraction):
            extraction = samples
        else:
            if is_trained_on(self.encoder, samples):
                encoder = trained_encoder(self.encoder, samples, seed)
                self.encoder_ = self.encoder_ or encoder
            used = encoder or self._frozen()
            if self._learns_directions:
                options = self._options(seed) | {"layers": self.layers}
                learned = learn_directions(used, samples, self.n_directions, **options)
            extraction = self._extract(used, samples, seed, directions=learned, memory=self._memory_of(encoder))
        given = self._given_directions or learned
        model = fit_score(
            extraction,
            formula=self.formula,
            reference=self.reference,
            floor=self.floor,
            rank=self.rank,
            directions=given,
            trim=self.trim,
            apart=APART.get(),
        )
        terms = model.terms(extraction)
        scores = np.sum(list(terms.values()), axis=0)
        warn_if_collapsed(scores, extraction)
        diagnosis = diagnose(model, extraction)
        warn_of_near_copies(diagnosis)
        return FittedScore(model, encoder, extraction.settings, diagnosis, learned, sorted_terms(terms)), scores

    def _score(self, model: FittedScore, samples: Samples) -> NDArray[np.float64]:
        measured = self._measured(model, samples)
        scores = model.model.score_samples(measured)
        return measured.aligned(scores) if isinstance(samples, Source) else scores
