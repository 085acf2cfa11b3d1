"""From scores to decisions: `CalibratedDetector`, what all detectors share; scores are its subclasses' business."""

import math
import os
import warnings
from abc import ABCMeta, abstractmethod
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import sklearn
from numpy.typing import NDArray
from scipy.stats import false_discovery_control
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted

from skjepa import __version__
from skjepa._utils.validation import check_number, seed_from
from skjepa.data.sources import Source
from skjepa.detectors.conformal import (
    conformal_offset,
    conformal_p_values,
    contamination_offset,
    cross_conformal_margin,
    cross_conformal_p_values,
)
from skjepa.detectors.fitting import all_or_nothing, apart_in_mind, groups_in_mind, groups_of, validated
from skjepa.detectors.held_out import (
    apart_by_content,
    check_number_of_samples,
    check_threshold_parameters,
    first_of_each,
    held_out_parts,
    joined_by_copies,
)
from skjepa.detectors.judgement import Judgement
from skjepa.encoders.encoder import load_encoder
from skjepa.extraction.extraction import Extraction
from skjepa.persistence.folder import read_instance, write_folder
from skjepa.persistence.schema import Above, Mark, MayLack, Saved

Samples = Extraction | Source


class CalibratedDetector(OutlierMixin, BaseEstimator, metaclass=ABCMeta):
    """Base class: a subclass says how samples are read, what is learned from them, and how they are scored.

    Its parameters include `contamination`, `target_fpr`, `calibration` and `random_state`.

    Attributes
    ----------
    models_ : list
        What `_learn` returned: one model, or with folds one for each.
    offset_ : float
        ``decision_function = score_samples - offset_``.
    calibration_scores_ : array or None
        Scores of normal samples by a model that has not seen them.
    n_samples_fit_ : int
        Different samples learned from; with folds, all of them.
    reads : {"extraction", "forward", "embeddings", "samples"}
        What scoring takes: an Extraction with singular values or without (hidden layers alone), embeddings, or the
        samples themselves and no encoder.
    """

    contamination: float
    target_fpr: float | None
    calibration: float | int | None
    random_state: Annotated[Any, Saved(int | None)]
    models_: list
    offset_: Annotated[float, Mark.FINITE]
    calibration_scores_: Annotated[NDArray[np.float64], "_", Mark.MAY_BE_INFINITE] | None
    n_samples_fit_: int
    n_features_in_: MayLack[Annotated[int, "d"]]
    feature_names_in_: MayLack[Annotated[NDArray[np.object_], "d"]]
    _fold_scores: list[Annotated[NDArray[np.float64], "_", Mark.MAY_BE_INFINITE]] | None
    _is_exact: bool
    _level: Annotated[float, Above(0, below=1)]

    @property
    def reads(self) -> str:
        return "extraction"

    @abstractmethod
    def _read(self, X: Any) -> Samples:
        """New samples in the form that `_score` takes."""

    @abstractmethod
    def _read_for_fit(self, X: Any, seed: int) -> Samples:
        """Samples to fit on, in the form that `_learn` takes; bad ones are refused here."""

    @abstractmethod
    def _learn(self, samples: Samples, y: NDArray | None, seed: int) -> tuple[Any, NDArray[np.float64]]:
        """A model of normal samples, and its scores of these samples, (n_samples,)."""

    @abstractmethod
    def _score(self, model: Any, samples: Samples) -> NDArray[np.float64]:
        """Scores by one model, (n_samples,); higher = more normal."""

    def _labels(self, y: Any, n_samples: int) -> NDArray | None:
        """What `_learn` is told of `y`: nothing, as of any outlier detector's."""
        return None

    def fit(self, X: Any, y: Any = None, groups: Any = None) -> "CalibratedDetector":
        """Learn from normal samples. Exact copies of an image, known by their content, count once.

        So do equal rows of a table, unless its columns have few values and bring equal rows about: then how often they
        occur is learned from.

        Parameters
        ----------
        X : images, vectors or Extraction
            See the class.
        y : ignored
        groups : array of shape (n_samples,), optional
            What belongs together: frames of a video, exposures of one part, augmentations of one image. With
            `calibration` a group is held out as a whole, for its members are near copies of one another.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            Bad data or parameters. A failed `fit` leaves an earlier one as it was.
        """
        with all_or_nothing(self), groups_in_mind(groups is not None and self.calibration is not None):
            seed = seed_from(self.random_state)
            samples = self._read_for_fit(X, seed)
            labels, groups = self._labels(y, len(samples)), groups_of(groups, samples)
            names = apart_by_content(samples.identities, _table_of(samples))
            once = first_of_each(names)
            if 1 < len(once) < len(samples):  # of nothing but copies there would be one
                groups = None if groups is None else joined_by_copies(groups, names)[once]
                samples, names = samples[once], names[once]
                labels = None if labels is None else labels[once]
            apart = groups if groups is not None else names if len(once) > 1 else samples.ids
            self._check_size(apart, seed)
            held_out = held_out_parts(apart, self.calibration, seed)
            learned = []
            for part in held_out or [np.zeros(len(samples), dtype=bool)]:
                with apart_in_mind(apart[~part]):
                    learned.append(self._learn(samples[~part], None if labels is None else labels[~part], seed))
            self.models_ = [model for model, _ in learned]
            unseen = [self._score(model, samples[part]) for model, part in zip(self.models_, held_out, strict=False)]
            self._set_thresholds(unseen, samples, learned[0][1])
        return self

    def _set_thresholds(self, unseen: list[NDArray], samples: Samples, scores: NDArray) -> None:
        """From each model's scores of what was held out of it, all samples, and the first model's scores of its own."""
        self._fold_scores = unseen if len(unseen) > 1 else None
        self._is_exact = len(unseen) == 1
        self._level = self.contamination if self.target_fpr is None else self.target_fpr
        self.calibration_scores_ = np.concatenate(unseen) if unseen else None
        self.n_samples_fit_ = len(samples) if self._fold_scores else len(scores)
        if self._fold_scores:
            scores = self._combine(self._scores_by_model(samples))
        _require_finite(scores, "the fit samples")
        if self.target_fpr is None or self.calibration_scores_ is None:
            self.offset_ = contamination_offset(scores, self.contamination)
        elif self._fold_scores:
            self.offset_ = 0.0
        else:
            _require_finite(self.calibration_scores_, "the calibration samples")
            self.offset_ = conformal_offset(self.calibration_scores_, self.target_fpr)

    def _combine(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """One score a sample, (n_samples,), from those of every model, (n_models, n_samples)."""
        if self._fold_scores is None:
            return scores[0]
        return cross_conformal_margin(self._fold_scores, scores, self._level)

    def _scores_by_model(self, samples: Samples) -> NDArray[np.float64]:
        return np.stack([self._score(model, samples) for model in self.models_])

    def _scores_of(self, X: Any) -> NDArray[np.float64]:
        """Scores by every model, (n_models, n_samples), NaN where a sample could not be read."""
        check_is_fitted(self)
        samples = self._read(X)
        scores = self._scores_by_model(samples)
        if samples is X or not isinstance(samples, Extraction):
            return scores
        return np.stack([samples.aligned(row) for row in scores])

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """Score of each sample: the higher, the more normal; the lower, the more abnormal.

        With folds it is the margin by which a sample passes their models' thresholds together.

        Parameters
        ----------
        X : images, vectors or Extraction

        Returns
        -------
        array of shape (n_samples,), float64
            NaN for a skipped image; an Extraction has none, so its scores are as many as its samples.
        """
        return self._combine(self._scores_of(X))

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """``score_samples(X) - offset_``: negative where a sample is flagged; (n_samples,)."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> NDArray[np.int64]:
        """+1 for normal, -1 for anomalous samples (and for images that could not be read); (n_samples,)."""
        return _labels_of(self.decision_function(X))

    def judge(self, X: Any) -> Judgement:
        """Scores, decisions, p-values and labels from one pass over the samples.

        Parameters
        ----------
        X : images, vectors or Extraction

        Returns
        -------
        Judgement
            What `score_samples`, `decision_function`, `p_values` and `predict` return.
        """
        by_model = self._scores_of(X)
        scores = self._combine(by_model)
        decisions = scores - self.offset_
        p_values = None if self.calibration_scores_ is None else self._p_values_of(by_model)
        return Judgement(scores, decisions, p_values, _labels_of(decisions))

    def calibrate(self, X: Any, target_fpr: float | None = None) -> "CalibratedDetector":
        """Take threshold and p-values from fresh normal samples, which the detector must not have seen before.

        Parameters
        ----------
        X : images, vectors or Extraction
            Normal samples, exchangeable with those to come.
        target_fpr : float in (0, 1), optional
            In the place of the parameter. Where neither is given, the threshold stays and only p-values change.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            Too few samples for `target_fpr`; names the number needed.
        """
        target = self.target_fpr if target_fpr is None else target_fpr
        scores = self.score_samples(X)
        scores = scores[~np.isnan(scores)]
        if len(scores) == 0:
            raise ValueError("calibrate needs normal samples; X holds none")
        _require_finite(scores, "the calibration samples")
        if target is not None:
            self.offset_ = conformal_offset(scores, check_number("target_fpr", target, above=0.0, below=1.0))
        self.calibration_scores_, self._is_exact = scores, True
        return self

    def p_values(self, X: Any) -> NDArray[np.float64]:
        """Conformal p-values: small = unlike normal data; (n_samples,), in (0, 1].

        A normal sample gets one of at most a with probability at most a, over draws of the calibration samples too;
        with folds the proof gives 2a (Barber et al., 2021), and a is what is seen.

        Raises
        ------
        ValueError
            No calibration samples.
        """
        check_is_fitted(self)
        if self.calibration_scores_ is None:
            raise ValueError(
                "p-values need normal samples that were not learned from: fit with calibration=0.2, say, or call "
                "calibrate(X_normal)"
            )
        return self._p_values_of(self._scores_of(X))

    def _p_values_of(self, by_model: NDArray[np.float64]) -> NDArray[np.float64]:
        assert self.calibration_scores_ is not None  # asked by the caller
        if self._fold_scores is None or not self.is_cross_calibrated:
            return conformal_p_values(self.calibration_scores_, self._combine(by_model))
        return cross_conformal_p_values(self._fold_scores, by_model)

    @property
    def is_cross_calibrated(self) -> bool:
        """Whether the threshold comes from scores out of fold, which are not those that `score_samples` gives."""
        return self._fold_scores is not None and not self._is_exact

    @property
    def fold_scores(self) -> list[NDArray[np.float64]] | None:
        """Of each fold, scores of its samples by the model that has not seen them; None without folds."""
        return self._fold_scores

    @property
    def level(self) -> float:
        """The share of normal samples that the threshold lets be flagged: `target_fpr`, else `contamination`."""
        return self._level

    def predict_fdr(self, X: Any, level: float = 0.1) -> NDArray[np.int64]:
        """Flag samples so that at most the share `level` of the flagged are normal, in expectation.

        Benjamini and Hochberg's procedure on the p-values of all samples in X together (Bates et al., 2023).

        Parameters
        ----------
        X : images, vectors or Extraction
            The whole batch among which outliers are looked for.
        level : float in (0, 1)
            False-discovery rate.

        Returns
        -------
        array of shape (n_samples,)
            -1 for the flagged (and for images that could not be read), +1 for the others.

        Raises
        ------
        ValueError
            Calibrated by folds, whose p-values do not meet the procedure's conditions, or not at all.

        Warns
        -----
        UserWarning
            So few calibration samples that a single outlier among these could not be found.
        """
        level = check_number("level", level, above=0.0, below=1.0)
        p = self.p_values(X)
        if not self._is_exact or self.calibration_scores_ is None:
            raise ValueError(
                "predict_fdr needs p-values of held-out samples: fit with a share as calibration, not a number of "
                "folds, or call calibrate(X_normal)"
            )
        read, n = ~np.isnan(p), len(self.calibration_scores_)
        smallest = 1 / (n + 1)
        if smallest > level / max(read.sum(), 1):
            needed = math.ceil(read.sum() / level) - 1
            warnings.warn(
                f"no p-value can be under {smallest:.2g} with {n} calibration samples: one "
                f"outlier among {read.sum()} samples cannot be found at level {level:g}; that takes {needed}",
                stacklevel=2,
            )
        flagged = ~read
        if read.any():
            flagged[read] = false_discovery_control(p[read], method="bh") <= level
        return np.where(flagged, -1, 1)

    def save(self, path: str | os.PathLike) -> Path:
        """Write the fitted detector to a folder of JSON and safetensors, whole or not at all; no pickle.

        A named encoder is written as its name and fingerprint, a trained `VectorJEPA` whole; of any other module only
        the fingerprint, and `load` then needs it.

        Parameters
        ----------
        path : path-like
            Made, or replaced where it is a saved detector.

        Raises
        ------
        skjepa.persistence.NotPortableError
            A parameter, such as a `reference` or a `view_transform` of your own, cannot be written without pickle.
        FileExistsError
            `path` is something else.
        """
        check_is_fitted(self)
        return write_folder(self, path, versions={"skjepa": __version__, "scikit-learn": sklearn.__version__})

    @classmethod
    def load(cls, path: str | os.PathLike, *, encoder: Any = None) -> Self:
        """Read a detector that `save` wrote, on any device; its scores are the same.

        Parameters
        ----------
        path : path-like
        encoder : Encoder or str, optional
            The one it was fitted with, as `load_encoder` makes or takes it, where that was made from a module of your
            own, or lies in a file, in a folder or on a page of the hub.

        Raises
        ------
        ValueError, FileNotFoundError
            Damaged or forged (docs/guide/safety.md), of another format, another class, or without its encoder.
        skjepa.encoders.FingerprintError
            The encoder is not the one that was saved.
        """
        made = read_instance(cls, path, {} if encoder is None else {"encoder": load_encoder(encoder)})
        check_is_fitted(made)
        return made

    def portable_check(self) -> None:
        folds = 1 if self._fold_scores is None else len(self._fold_scores)
        if len(self.models_) != folds:
            raise ValueError(f"{len(self.models_)} models do not go with scores of {folds} folds")
        if self._fold_scores is not None and min(map(len, self._fold_scores)) == 0:
            raise ValueError("a fold has no scores")
        if self.calibration_scores_ is None and (self._is_exact or self._fold_scores is not None):
            raise ValueError("the calibration scores are missing")

    def _validated(self, X: Any, *, reset: bool) -> Any:
        return validated(self, X, reset=reset, min_samples=2 if reset else 1)

    def _check_thresholds(self) -> None:
        """Whatever can be refused without the samples."""
        check_threshold_parameters(self.contamination, self.target_fpr, self.calibration)

    def _check_size(self, ids: NDArray[np.str_], seed: int) -> None:
        """Whether different samples are enough to learn from and to calibrate with, before anything dear is done."""
        check_number_of_samples(ids, self.target_fpr, self.calibration, seed)


def _labels_of(decisions: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.where(decisions >= 0, 1, -1)


def _table_of(samples: Samples) -> NDArray | None:
    """The rows of a table, or what an Extraction knows of them; None for images."""
    if isinstance(samples, Extraction):
        return None if not samples.is_table else next(iter(samples.layers.values()), samples.embeddings)
    return samples.rows() if samples.is_vector else None


def _require_finite(scores: NDArray[np.float64], what: str) -> None:
    bad = int((~np.isfinite(scores)).sum())
    if bad:
        raise ValueError(
            f"{bad} of {len(scores)} scores of {what} are not finite: values too large, or a reference that gives no "
            "density there"
        )
