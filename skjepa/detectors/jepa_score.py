"""Provide `JEPAScoreDetector`, the main detector: its parameters, its fit, and how it is saved."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from skjepa._utils.validation import check_choice, check_number
from skjepa.data.sources import Source
from skjepa.data.tiles import check_sides
from skjepa.detectors.base import Samples
from skjepa.detectors.encoder_choice import (
    is_trained_on,
    trained_encoder,
    use_here,
)
from skjepa.detectors.fitted_score import FittedScore, warn_if_collapsed, warn_of_near_copies
from skjepa.detectors.fitting import APART
from skjepa.detectors.mapping import MappingDetector
from skjepa.encoders.encoder import Encoder
from skjepa.extraction.batches.options import RunOptions
from skjepa.extraction.batches.pooling import check_layer_names
from skjepa.extraction.batches.views import Transform
from skjepa.extraction.cost.choice import METHODS
from skjepa.extraction.extraction import Extraction
from skjepa.extraction.learned_directions import learn_directions
from skjepa.inspection.appearance import NormalAppearance
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
    """Detect anomalies in images or vectors from the layers, the embedding and the Jacobian of an encoder.

    It learns from normal samples alone. Higher scores are more normal. K below is the number of outputs of the encoder.

    Parameters
    ----------
    encoder : str, Encoder or VectorJEPA
        "auto" (images up to 64 pixels: "bundled"; larger images: "lite0"; vectors: a `VectorJEPA`), a name that
        `load_encoder` knows, an `Encoder`,
        or a `VectorJEPA`. `fit` clones and trains a `VectorJEPA` on the rows that it learns from, without the rows that
        are held out.
    formula : {"joint", "density", "jepa"}
        Formula of the score. "joint" adds up how normal each hidden layer is given the layer before it, the direction
        of the embedding, and its distance to normal embeddings; with backward passes also the singular values given
        the embedding (docs/guide/scores.md). Without `layers`, "joint" is the five terms of
        `skjepa.scores.joint_weights`. "jepa" is JEPA-SCORE, the log-volume alone (arXiv 2510.05949, Eq. 5). "density"
        is log-volume + log q(z), the full change of variables. "jepa" and "density" need backward passes and do not
        use layers.
    reference : {"knn", "gaussian"} or estimator
        Model of log q(z), the log-density of the embeddings. In "joint" with layers it is the model of the term
        "neighbours", where "knn" means the mean distance to the nearest normal samples.
    floor : float or "auto"
        Smallest value of a singular value in the score; smaller ones are raised to it. One floor holds for all samples.
    rank : int, optional
        Number of singular values per sample that enter the score.
    method : {"auto", "forward", "exact", "subspace", "sketch"} or Directions
        Number of backward passes per sample, see `skjepa.extract`.

        - "auto": for images K passes where K is at most 64 and the passes take at most 20 GFLOP, else none. For
          vectors none. K passes wherever `formula` needs them. `method_reason_` holds the choice and its reason.
        - "forward": none, one forward pass alone.
        - "exact": K passes.
        - "subspace": m passes. `fit` learns `Directions` from the samples that are not held out.
        - "sketch": m passes in random directions.
        - `Directions` from `skjepa.learn_directions`: m passes. They are learned once, so that several fits can share
          them and the extractions made with them.
    n_directions : int, optional
        m of "subspace" and "sketch"; by default K / 4.
    layers : "auto", list of str, or None
        Hidden layers that "joint" reads in the forward pass, see `skjepa.extract`. None: the embedding alone.
    local : bool
        Whether "joint" also reads what each position of a picture shows, and learns what is normal there: for defects
        that are small in a picture. The oddest positions are a term of the score, `anomaly_map` shows the surprise of
        each position, and `spots` gives those that normal pictures lack (docs/guide/local-defects.md). Where `fit` is
        given groups, what is usual is learned from groups that were left out. Takes some hundred kilobytes per picture
        during `fit`.
    tiles : int, or several, optional
        For pictures larger than what the encoder is shown: each is cut into overlapping squares of this side in pixels,
        at its own resolution, so that a defect of few pixels is not resized away. Several sides look at several
        scales. Take the side that the encoder is shown, or a multiple. `fit` learns from the tiles, of as many as
        `memory_budget` holds; everything else is of whole pictures: the score is that of the oddest tile, calibration
        holds out pictures, maps have no seams, spots have p-values of the picture (docs/guide/local-defects.md).
    trim : float in [0, 0.5)
        Use it where the fit samples may contain anomalies. This share of the fit samples, the lowest by a first fit on
        their layers, is left out of a second fit, which the detector keeps. The left-out samples still count for
        `contamination` and `calibration`.
    views, view_transform
        Augmented views of each sample; `views` and `transform` of `skjepa.extract`. The name differs because
        scikit-learn would take an estimator with `transform` for a transformer.
    contamination : float in (0, 0.5]
        Share of the training samples that `predict` flags. It makes no guarantee about new normal samples, of which
        more may be flagged; for that give `target_fpr`.
    target_fpr : float in (0, 1), optional
        Flag at most this share of new normal samples, in expectation over calibration sets; overrides `contamination`.
        Alone, without `calibration`, it holds out a fifth of the samples where these suffice (500 samples for a rate of
        0.05), and else makes five folds; `calibration_` has what was done. n calibration samples keep no rate below
        1 / (n + 1): `fit` refuses a lower one, and names the lowest.
    calibration : float in (0, 1) or int, optional
        Where the normal samples for `target_fpr` and `p_values` come from. A share, such as 0.2, is held out and the
        detector learns from the rest; the rate of `target_fpr` is then guaranteed. A number of folds fits one model
        per fold on the other folds, and the models score together. Every sample is then learned from, but only twice
        the rate is proven. Each fold retrains a `VectorJEPA`, unless `fit` gets an Extraction, and learns its own
        directions of "subspace".
    memory : path or joblib.Memory, optional
        Folder that keeps the embedding and the singular values of every sample by its content, so that no image is
        measured twice, for example in a grid search. It has no effect on a `VectorJEPA`, which every fit retrains.
    time_budget : float, optional
        Seconds that the pass over the fit samples may take, estimated from two of them before it starts. "auto" makes
        as many backward passes as fit into the budget; any other method that would take longer raises an error. New
        samples are scored by the method of the fit, however long that takes.
    device, memory_budget, n_jobs, on_error
        Options of the pass, see `skjepa.extract`. With ``on_error="skip"`` unreadable images are left out of `fit`;
        after `fit` they score NaN and get the label -1.
    random_state : int, RandomState or Generator, optional
        Seeds views, the calibration split and the training of a `VectorJEPA` that has no seed of its own; None means 0.
    verbose : int or "auto"
        A number above 0 shows a progress bar; "auto" shows one in a terminal or a notebook, after two seconds.

    Attributes
    ----------
    encoder_ : Encoder or None
        The encoder in use, trained where `encoder` was a `VectorJEPA`. None after a fit on an Extraction.
    models_ : list of FittedScore
        The fitted models: one, or one per fold.
    model_, floor_, rank_
        The score model of the first fit (`skjepa.scores.ScoreModel`), with the floor and the rank that it learned.
    directions_ : Directions or None
        The directions of the first model, learned or given.
    correction_ : Correction or None
        Maps the singular values in these directions to the exact log-volume, with its out-of-fold error; of the first
        model.
    intrinsic_dim_ : float
        Intrinsic dimension of the embeddings, as the "knn" reference estimates it.
    offset_ : float
        ``decision_function = score_samples - offset_``.
    calibration_scores_ : array or None
        Scores of normal samples by a model that was not fitted on them.
    n_samples_fit_ : int
        Number of different samples learned from.
    calibration_ : float, int or None
        The share held out, or the number of folds; see `target_fpr`.
    method_reason_ : str or None
        Why ``method="auto"`` chose the number of backward passes.

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
    appearance_: MayLack[NormalAppearance]

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
        tiles: Any = None,
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
        verbose: int | Literal["auto"] = "auto",
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
        self.tiles = tiles
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
            Name of the file, which must end in ``.onnx``.

        Raises
        ------
        skjepa.deployment.ExportError
            A part of the detector cannot be exported, for example a method that reads the Jacobian.
        """
        check_is_fitted(self)
        # Deployment stands above detectors, so it is imported here on first use.
        from skjepa.deployment.export import export_onnx

        return export_onnx(self, path)

    @property
    def partial_fit(self) -> Any:
        """Not there, for no part of this score is exact when learned in parts; the AttributeError says what to do.

        Of each layer, statistics are divided by deviations over all fit samples and then brought to unit length; each
        term is ranked among fit samples that were left out; neighbours and tails need the samples themselves.
        """
        raise AttributeError(
            "JEPAScoreDetector has no partial_fit: the terms of layers divide by deviations over all fit samples "
            "before rows are brought to unit length, and every term is ranked among fit samples that were left out, so "
            "neither can be learned in parts. Measure each part once and fit on all: detector.fit(Extraction.concat("
            "[earlier, detector.extract(new)])) makes no pass over the earlier samples. MahalanobisDetector and "
            "KNNDetector have partial_fit"
        )

    def portable_state(self) -> dict[str, Any]:
        return vars(self) | {"memory": None}  # the folder exists on this machine alone

    @classmethod
    def from_portable_state(cls, state: dict[str, Any], given: dict[str, Any]) -> "JEPAScoreDetector":
        made = cls.__new__(cls)
        earlier = {
            "layers": None,
            "local": False,
            "tiles": None,
            "trim": 0.0,
            "time_budget": None,
        }  # earlier versions lack them
        made.__dict__.update(earlier | state)
        use_here(made, given)
        return made

    def portable_check(self) -> None:
        super().portable_check()
        check_score_settings(self.formula, self.reference, self.floor, self.rank)
        if not isinstance(self.method, Directions):
            check_choice("method", self.method, (*METHODS, "subspace"))
        if self.tiles is not None:
            check_sides("tiles", self.tiles)
        RunOptions(n_jobs=self.n_jobs)
        takes_none = ("auto", "forward", "exact")
        taken = self.n_directions if isinstance(self.method, str) and self.method not in takes_none else None
        if self.n_directions not in (taken, self._given_directions and self._given_directions.n_directions):
            raise ValueError(f"n_directions = {self.n_directions} does not belong to method {self.method!r}")
        for fitted in self.models_:
            shape = fitted.settings["input_shape"] or ()
            if len(shape) == 1 and getattr(self, "n_features_in_", shape[0]) != shape[0]:
                raise ValueError(f"n_features_in_ is {self.n_features_in_}, the fit samples have {shape[0]} columns")
            if len(shape) == 1 and self.tiles is not None:
                raise ValueError("tiles are cut from images, and the fit samples are vectors")
            if (encoder := fitted.encoder or self.encoder_) is not None:
                check_layer_names(encoder, fitted.settings.get("layers") or ())
            correction, directions = fitted.model.correction, fitted.directions or self._given_directions
            if correction is None:
                continue
            if directions is None or not directions.has_made(correction):
                raise ValueError("the correction was not made by these directions")

    def _check_settings(self, ids: NDArray[np.str_], seed: int) -> None:
        """Refuse bad parameters before the expensive pass."""
        check_score_settings(self.formula, self.reference, self.floor, self.rank)
        if self.view_transform is not None and not callable(self.view_transform):
            raise TypeError(f"view_transform must be a function that takes a tensor; got {self.view_transform!r}")
        if not isinstance(self.method, Directions):
            check_choice("method", self.method, (*METHODS, "subspace"))
            if self.formula != "joint" and self.method == "forward":
                raise ValueError(
                    f"formula={self.formula!r} needs singular values, and method='forward' measures none: "
                    "give method='exact' or 'sketch', or formula='joint'"
                )
        if not isinstance(self.local, bool | np.bool_):
            raise TypeError(f"local must be True or False; got {self.local!r}")
        if self.local and (self.formula != "joint" or self.layers is None):
            raise ValueError("local=True reads hidden layers: give formula='joint' and layers='auto', or local=False")
        if self.tiles is not None:
            check_sides("tiles", self.tiles)
        check_number("trim", self.trim, above=0.0, below=0.5, closed="<")
        check_number_of_directions(self.n_directions)
        if self.time_budget is not None:
            check_number("time_budget", self.time_budget, above=0.0)
        RunOptions.of(self)
        self._check_thresholds()
        self._check_size(ids, seed)

    def _learn(self, samples: Samples, y: NDArray | None, seed: int) -> tuple[FittedScore, NDArray[np.float64]]:
        if self.tiles is not None and isinstance(samples, Source):
            return self._learn_from_tiles(samples, APART.get(), seed)
        return self._learn_from(samples, APART.get(), None, seed)

    def _learn_from(
        self, samples: Samples, apart: NDArray | None, pictures: NDArray | None, seed: int
    ) -> tuple[FittedScore, NDArray[np.float64]]:
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
            if len(extraction) < len(samples):
                apart, pictures = (None if each is None else each[extraction.measured] for each in (apart, pictures))
        given = self._given_directions or learned
        model = fit_score(
            extraction,
            formula=self.formula,
            reference=self.reference,
            floor=self.floor,
            rank=self.rank,
            directions=given,
            trim=self.trim,
            apart=apart,
            pictures=pictures,
        )
        terms = model.terms(extraction)
        scores = np.sum(list(terms.values()), axis=0)
        warn_if_collapsed(scores, extraction)
        diagnosis = diagnose(model, extraction)
        warn_of_near_copies(diagnosis)
        return FittedScore(model, encoder, extraction.settings, diagnosis, learned, sorted_terms(terms)), scores

    def _score(self, model: FittedScore, samples: Samples) -> NDArray[np.float64]:
        if self.tiles is not None and isinstance(samples, Source):
            return self._oddest_tiles([model], self._cut(samples))[0].scores
        measured = self._measured(model, samples)
        scores = model.model.score_samples(measured)
        return measured.aligned(scores) if isinstance(samples, Source) else scores
