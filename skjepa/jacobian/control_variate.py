"""Predict from hidden layers the part of the log-volume that a first regression cannot predict."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

N_FOLDS = 5
_ALPHAS = np.logspace(-2, 4, 13)
_ALPHAS_OF_LAYERS = np.logspace(-2, 6, 17)
_SMALL = 1e-2  # share of a layer's mean standard deviation; smaller deviations count as constant


class TwoStageRidge(RegressorMixin, BaseEstimator):
    """Fit a ridge regression on the first columns, and one on the other columns for its out-of-fold residuals.

    The first stage is fitted as if there were no other columns, so that they only predict what it cannot. A single
    regression on all columns relies on the others even far from its training samples, where they are wrong
    (benchmarks/accuracy/activations.py).

    Parameters
    ----------
    n_first : int
        Number of columns of the first stage. Without other columns there is no second stage.
    """

    def __init__(self, n_first: int) -> None:
        self.n_first = n_first

    def fit(self, X: ArrayLike, y: ArrayLike, samples: ArrayLike | None = None) -> "TwoStageRidge":
        """Fit on rows (n, p) and targets (n,); equal numbers in `samples` (n,) mark rows of one sample."""
        rows, target = np.asarray(X), np.asarray(y)
        samples = np.arange(len(rows)) if samples is None else np.asarray(samples)
        first, others = rows[:, : self.n_first], rows[:, self.n_first :]
        self.stages_ = [_ridge(_ALPHAS).fit(first, target)]
        if others.shape[1]:
            unseen = cross_val_predict(_ridge(_ALPHAS), first, target, groups=samples, cv=folds(samples))
            self.stages_.append(_ridge(_ALPHAS_OF_LAYERS).fit(others, target - unseen))
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """Predict targets (n,) for rows (n, p)."""
        rows = np.asarray(X)
        parts = (rows[:, : self.n_first], rows[:, self.n_first :])
        return np.sum([stage.predict(part) for stage, part in zip(self.stages_, parts, strict=False)], axis=0)


def folds(samples: NDArray[np.integer]) -> GroupKFold:
    """Return cross-validation folds that keep the views of one sample together, since they are not independent."""
    return GroupKFold(min(N_FOLDS, len(np.unique(samples))))


def deviation_floors(layers: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    """Return the lower bound of standard deviations for each layer that has them.

    Layers of vectors, which have none, are recognised by negative values in their second half and left out.
    """
    deviations = {name: values[:, values.shape[1] // 2 :].astype(np.float64) for name, values in layers.items()}
    return {name: float(_SMALL * found.mean()) or 1.0 for name, found in deviations.items() if (found >= 0).all()}


def activations(layers: Mapping[str, NDArray[Any]], floors: Mapping[str, float], n_samples: int) -> NDArray[np.float64]:
    """Concatenate means and log standard deviations of the layers in `floors`, (n_samples, W)."""
    columns = [np.empty((n_samples, 0))]
    for name, floor in floors.items():
        mean, deviation = np.split(np.asarray(layers[name], dtype=np.float64), 2, axis=1)
        columns += [mean, np.log(np.maximum(deviation, floor))]
    return np.hstack(columns)


def _ridge(alphas: NDArray[np.float64]) -> Any:
    return make_pipeline(StandardScaler(), RidgeCV(alphas=alphas))
