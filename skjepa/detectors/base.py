"""Provide `CalibratedDetector`, which turns the scores of any subclass into thresholds, labels and p-values."""

import math
import os
import warnings
from abc import ABCMeta, abstractmethod
from collections.abc import Sequence
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
from skjepa.detectors.fitting import all_or_nothing, apart_in_mind, groups_in_mind, one_each, validated
from skjepa.detectors.held_out import (
    apart_by_content,
    check_number_of_samples,
    check_threshold_parameters,
    chosen_calibration,
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
    """Turn scores into thresholds, labels and p-values, as the base class of all detectors.

    A subclass defines how samples are read, what is learned from them, and how they are scored. Its parameters include
    `contamination`, `target_fpr`, `calibration` and `random_state`.

    Attributes
    ----------
    models_ : list
        The fitted models: one, or one per fold where `calibration` is a number of folds.
    offset_ : float
        ``decision_function = score_samples - offset_``.
    calibration_scores_ : array or None
        Scores of normal samples by a model that was not fitted on them.
    n_samples_fit_ : int
        Number of different samples learned from; with folds, the samples of all folds.
    calibration_ : float, int or None
        How the fit was calibrated: the share held out, the number of folds, or None for not at all. It equals
        `calibration`, and where only `target_fpr` was given, it is what the number of samples allowed.
    reads : {"extraction", "forward", "embeddings", "samples"}
        What scoring needs. "extraction": an Extraction with singular values. "forward": one with hidden layers
        alone. "embeddings": embeddings. "samples": the samples themselves, without an encoder.
    """

    contamination: float
    target_fpr: float | None
    calibration: float | int | None
    random_state: Annotated[Any, Saved(int | None)]
    models_: list
    offset_: Annotated[float, Mark.FINITE]
    calibration_scores_: Annotated[NDArray[np.float64], "_", Mark.MAY_BE_INFINITE] | None
    n_samples_fit_: int
    calibration_: MayLack[float | int | None]
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
        """Convert new samples to the form that `_score` takes."""

    @abstractmethod
    def _read_for_fit(self, X: Any, seed: int) -> Samples:
        """Check the samples to fit on and convert them to the form that `_learn` takes."""

    @abstractmethod
    def _learn(self, samples: Samples, y: NDArray | None, seed: int) -> tuple[Any, NDArray[np.float64]]:
        """Return a model of normal samples and its scores for these samples, (n_samples,)."""

    @abstractmethod
    def _score(self, model: Any, samples: Samples) -> NDArray[np.float64]:
        """Return the scores by one model, (n_samples,); higher = more normal."""

    def _labels(self, y: Any, samples: Samples) -> NDArray | None:
        """Return the part of `y` that `_learn` uses: None, unless a subclass needs classes."""
        return None

    def fit(self, X: Any, y: Any = None, groups: Any = None) -> "CalibratedDetector":
        """Learn from normal samples and set the threshold.

        Exact copies of an image are recognised by their content and count once. Equal rows of a table count once as
        well, unless its columns have so few values that equal rows occur by chance: then repeated rows count as often
        as they occur.

        Parameters
        ----------
        X : images, vectors or Extraction
            Normal samples; see the class for the forms it takes.
        y : ignored
        groups : array of shape (n_samples,), optional
            A name per sample, equal for samples that belong together: frames of a video, exposures of one part,
            augmentations of one image. `calibration` or `target_fpr` holds out a group as a whole, because its
            members are near copies of one another.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            Bad data or parameters. A failed `fit` leaves an earlier one as it was.
        """
        has_calibration = self.calibration is not None or self.target_fpr is not None
        with all_or_nothing(self), groups_in_mind(groups is not None and has_calibration):
            seed = seed_from(self.random_state)
            samples = self._read_for_fit(X, seed)
            labels = self._labels(y, samples)
            groups = None if groups is None else one_each("groups", groups, samples).astype(str)
            names = apart_by_content(samples.identities, table_of(samples))
            once = first_of_each(names)
            if 1 < len(once) < len(samples):  # if all samples are copies, keep them: one is too few to fit on
                groups = None if groups is None else joined_by_copies(groups, names)[once]
                samples, names = samples[once], names[once]
                labels = None if labels is None else labels[once]
            apart = groups if groups is not None else names if len(once) > 1 else samples.ids
            self._check_size(apart, seed)
            self.calibration_ = chosen_calibration(apart, self.target_fpr, self.calibration)
            held_out = held_out_parts(apart, self.calibration_, seed)
            learned = []
            for part in held_out or [np.zeros(len(samples), dtype=bool)]:
                with apart_in_mind(apart[~part]):
                    learned.append(self._learn(samples[~part], None if labels is None else labels[~part], seed))
            self.models_ = [model for model, _ in learned]
            unseen = [self._score(model, samples[part]) for model, part in zip(self.models_, held_out, strict=False)]
            self._set_thresholds(unseen, samples, learned[0][1])
        return self

    def _set_thresholds(self, unseen: list[NDArray], samples: Samples, scores: NDArray) -> None:
        """Set the thresholds.

        Parameters
        ----------
        unseen : list of arrays
            For each model, its scores for the samples that were held out of its fit.
        samples : Extraction or Source
            All samples of the fit.
        scores : array
            Scores by the first model for the samples that it was fitted on.
        """
        self._fold_scores = unseen if len(unseen) > 1 else None
        self._is_exact = len(unseen) == 1
        self._level = self.contamination if self.target_fpr is None else self.target_fpr
        self.calibration_scores_ = np.concatenate(unseen) if unseen else None
        self.n_samples_fit_ = len(samples) if self._fold_scores else len(scores)
        if self._fold_scores:
            scores = self._combine(self._scores_by_model(samples))
        require_finite_scores(scores, "the fit samples")
        if self.target_fpr is None or self.calibration_scores_ is None:
            self.offset_ = contamination_offset(scores, self.contamination)
        elif self._fold_scores:
            self.offset_ = 0.0
        else:
            require_finite_scores(self.calibration_scores_, "the calibration samples")
            self.offset_ = conformal_offset(self.calibration_scores_, self.target_fpr)

    def _combine(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Combine the scores of all models, (n_models, n_samples), into one score per sample, (n_samples,)."""
        if self._fold_scores is None:
            return scores[0]
        return cross_conformal_margin(self._fold_scores, scores, self._level)

    def _scores_by_model(self, samples: Samples) -> NDArray[np.float64]:
        return np.stack([self._score(model, samples) for model in self.models_])

    def _scores_of(self, X: Any) -> NDArray[np.float64]:
        """Return the scores by every model, (n_models, n_samples), with NaN where a sample could not be read."""
        check_is_fitted(self)
        samples = self._read(X)
        return self._aligned(X, samples, self._scores_by_model(samples))

    def _aligned(self, X: Any, samples: Samples, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Put the scores of the samples that could be read, (n_models, n_read), in place; NaN for the others."""
        if samples is X or not isinstance(samples, Extraction):
            return scores
        return np.stack([samples.aligned(row) for row in scores])

    def _reasoned(self, X: Any) -> tuple[NDArray[np.str_], NDArray[np.float64], Sequence[str]]:
        """Return ids, scores by every model and reasons from one pass; the base class gives no reasons."""
        samples = self._read(X)
        by_model = self._aligned(X, samples, self._scores_by_model(samples))
        if samples is X or not isinstance(samples, Extraction):
            return samples.ids, by_model, [""] * len(samples)
        ids, errors = samples.all_ids, samples.errors
        return ids, by_model, [errors.get(i, "") for i in range(len(ids))]

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """Return one score per sample; higher = more normal.

        Where `calibration` is a number of folds, the score is the margin by which a sample passes the joint threshold
        of the models of all folds (see `skjepa.detectors.cross_conformal_p_values`).

        Parameters
        ----------
        X : images, vectors or Extraction

        Returns
        -------
        array of shape (n_samples,), float64
            NaN for an image that could not be read. An Extraction holds only samples that could be read, so it gets
            one score for each of them.
        """
        return self._combine(self._scores_of(X))

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Return ``score_samples(X) - offset_``, (n_samples,): negative where a sample is flagged."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> NDArray[np.int64]:
        """Return +1 for normal and -1 for anomalous samples, (n_samples,).

        Images that could not be read get -1.
        """
        return _labels_of(self.decision_function(X))

    def judge(self, X: Any) -> Judgement:
        """Return scores, decisions, labels, p-values and reasons from one pass over the samples.

        Parameters
        ----------
        X : images, vectors or Extraction

        Returns
        -------
        Judgement
            What `score_samples`, `decision_function`, `predict` and `p_values` return, and for each sample the terms of
            its score that are unusual. It prints as a table; ``judge(X).to_frame()`` is a pandas DataFrame.

        Examples
        --------
        >>> import numpy as np
        >>> from skjepa import KNNDetector
        >>> X = np.random.default_rng(0).normal(size=(100, 3))
        >>> found = KNNDetector(target_fpr=0.05).fit(X).judge([[0.0, 0.0, 0.0], [9.0, 9.0, 9.0]])
        >>> found
        Judgement(1 of 2 flagged)
        >>> found.table().column_names
        ['id', 'score', 'decision', 'label', 'p_value', 'reason']
        """
        check_is_fitted(self)
        return self._judgement(*self._reasoned(X))

    def _judgement(self, ids: NDArray[np.str_], by_model: NDArray[np.float64], reasons: Sequence[str]) -> Judgement:
        scores = self._combine(by_model)
        decisions = scores - self.offset_
        p_values = None if self.calibration_scores_ is None else self._p_values_of(by_model)
        return Judgement(ids, scores, decisions, _labels_of(decisions), p_values, reasons)

    def calibrate(self, X: Any, target_fpr: float | None = None) -> "CalibratedDetector":
        """Reset the threshold and the p-values with fresh normal samples.

        Parameters
        ----------
        X : images, vectors or Extraction
            Normal samples that the detector was not fitted on, drawn from the same distribution as the normal samples
            that it will score.
        target_fpr : float in (0, 1), optional
            Largest share of new normal samples to flag, in place of the detector's parameter. Where neither is given,
            the threshold stays and only the p-values change.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            Too few samples for `target_fpr`; the message names the number needed.
        """
        target = self.target_fpr if target_fpr is None else target_fpr
        scores = self.score_samples(X)
        scores = scores[~np.isnan(scores)]
        if len(scores) == 0:
            raise ValueError("calibrate needs normal samples; X holds none that could be read")
        require_finite_scores(scores, "the calibration samples")
        if target is not None:
            self.offset_ = conformal_offset(scores, check_number("target_fpr", target, above=0.0, below=1.0))
        self.calibration_scores_, self._is_exact = scores, True
        return self

    def p_values(self, X: Any) -> NDArray[np.float64]:
        """Return conformal p-values, (n_samples,), in (0, 1]; small = unlike normal data.

        The conformal p-value of a sample is the rank of its score among the scores of n normal calibration samples,
        divided by n + 1. For a normal sample P(p <= a) <= a, on average over draws of the calibration samples. With
        folds the proven bound is 2a (Barber et al., 2021); the observed rate is a.

        Raises
        ------
        ValueError
            The detector has no calibration samples.
        """
        check_is_fitted(self)
        if self.calibration_scores_ is None:
            raise ValueError(
                "p-values need normal samples that the detector did not learn from: fit with target_fpr=0.05 or with "
                "calibration=0.2, for example, or call calibrate(X_normal)"
            )
        return self._p_values_of(self._scores_of(X))

    def _p_values_of(self, by_model: NDArray[np.float64]) -> NDArray[np.float64]:
        assert self.calibration_scores_ is not None  # the callers check this
        if self._fold_scores is None or not self.is_cross_calibrated:
            return conformal_p_values(self.calibration_scores_, self._combine(by_model))
        return cross_conformal_p_values(self._fold_scores, by_model)

    @property
    def is_cross_calibrated(self) -> bool:
        """Whether the threshold comes from out-of-fold scores, which differ from the scores by `score_samples`."""
        return self._fold_scores is not None and not self._is_exact

    @property
    def fold_scores(self) -> list[NDArray[np.float64]] | None:
        """For each fold, the scores of its samples by the model that was not fitted on them; None without folds."""
        return self._fold_scores

    @property
    def level(self) -> float:
        """The share of normal samples that the threshold may flag: `target_fpr`, else `contamination`."""
        return self._level

    def predict_fdr(self, X: Any, level: float = 0.1) -> NDArray[np.int64]:
        """Flag samples so that at most the share `level` of the flagged are normal, in expectation.

        Use it to search a batch for outliers. It applies the Benjamini-Hochberg procedure to the conformal p-values of
        all samples in X together (Bates et al., 2023).

        Parameters
        ----------
        X : images, vectors or Extraction
            The whole batch to search for outliers.
        level : float in (0, 1)
            False-discovery rate: the largest expected share of normal samples among the flagged.

        Returns
        -------
        array of shape (n_samples,)
            -1 for the flagged (and for images that could not be read), +1 for the others.

        Raises
        ------
        ValueError
            The detector is not calibrated, or calibrated by folds, whose p-values do not meet the conditions of the
            procedure.

        Warns
        -----
        UserWarning
            There are so few calibration samples that a single outlier in this batch could not be found.
        """
        level = check_number("level", level, above=0.0, below=1.0)
        p = self.p_values(X)
        if not self._is_exact or self.calibration_scores_ is None:
            raise ValueError(
                "predict_fdr needs p-values of held-out samples, and this detector was calibrated by folds: fit with a "
                "share such as calibration=0.2, or call calibrate(X_normal)"
            )
        read, n = ~np.isnan(p), len(self.calibration_scores_)
        smallest = 1 / (n + 1)
        if smallest > level / max(read.sum(), 1):
            needed = math.ceil(read.sum() / level) - 1
            warnings.warn(
                f"no p-value can be under {smallest:.2g} with {n} calibration samples, so one outlier among "
                f"{read.sum()} samples cannot be found at level {level:g}: give {needed} calibration samples",
                stacklevel=2,
            )
        flagged = ~read
        if read.any():
            flagged[read] = false_discovery_control(p[read], method="bh") <= level
        return np.where(flagged, -1, 1)

    def save(self, path: str | os.PathLike) -> Path:
        """Write the fitted detector to a folder of JSON and safetensors, without pickle.

        The folder appears whole or not at all. A named encoder is written as its name and fingerprint, and a trained
        `VectorJEPA` with its weights. For any other encoder only the fingerprint is written, and `load` then needs
        that encoder as an argument.

        Parameters
        ----------
        path : path-like
            Folder to create; a saved detector at this path is replaced.

        Raises
        ------
        skjepa.persistence.NotPortableError
            A parameter, such as your own `reference` or `view_transform`, cannot be written without pickle.
        FileExistsError
            `path` exists and is not a saved detector.
        """
        check_is_fitted(self)
        return write_folder(self, path, versions={"skjepa": __version__, "scikit-learn": sklearn.__version__})

    @classmethod
    def load(cls, path: str | os.PathLike, *, encoder: Any = None) -> Self:
        """Load a detector that `save` wrote, on any device, with the same scores.

        Parameters
        ----------
        path : path-like
            Folder that `save` wrote.
        encoder : Encoder or str, optional
            The encoder that the detector was fitted with, or its name as `load_encoder` takes it. Needed where the
            encoder was made from your own module, or comes from a file, a folder or a page of the hub.

        Raises
        ------
        ValueError, FileNotFoundError
            The folder is damaged or forged (docs/guide/safety.md), has another format, holds another class, or needs
            `encoder`.
        skjepa.encoders.FingerprintError
            The encoder is not the encoder of the fit.
        """
        made = read_instance(cls, path, {} if encoder is None else {"encoder": load_encoder(encoder)})
        check_is_fitted(made)
        return made

    def portable_check(self) -> None:
        folds = 1 if self._fold_scores is None else len(self._fold_scores)
        if len(self.models_) != folds:
            raise ValueError(f"there are {len(self.models_)} models, and scores of {folds} folds; give one per fold")
        if self._fold_scores is not None and min(map(len, self._fold_scores)) == 0:
            raise ValueError("a fold has no scores")
        if self.calibration_scores_ is None and (self._is_exact or self._fold_scores is not None):
            raise ValueError("the calibration scores are missing")

    def _validated(self, X: Any, *, reset: bool) -> Any:
        return validated(self, X, reset=reset, min_samples=2 if reset else 1)

    def _check_thresholds(self) -> None:
        """Refuse bad threshold parameters before the samples are read."""
        check_threshold_parameters(self.contamination, self.target_fpr, self.calibration)

    def _check_size(self, ids: NDArray[np.str_], seed: int) -> None:
        """Refuse too few different samples to learn from and to calibrate with, before any expensive work."""
        calibration = chosen_calibration(ids, self.target_fpr, self.calibration)
        check_number_of_samples(ids, self.target_fpr, calibration, seed)


def _labels_of(decisions: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.where(decisions >= 0, 1, -1)


def table_of(samples: Samples) -> NDArray | None:
    """Return the rows of a table, or the first layer that an Extraction kept of them; None for images."""
    if isinstance(samples, Extraction):
        return None if not samples.is_table else next(iter(samples.layers.values()), samples.embeddings)
    return samples.rows() if samples.is_vector else None


def require_finite_scores(scores: NDArray[np.float64], what: str) -> None:
    bad = int((~np.isfinite(scores)).sum())
    if bad:
        raise ValueError(
            f"{bad} of {len(scores)} scores of {what} are not finite: either X holds values that are too large, so "
            "scale it, or `reference` gives no density there, so choose another one"
        )
