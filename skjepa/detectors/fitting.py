"""Prepare every fit: check tables, read groups, and restore the estimator where the fit fails."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import column_or_1d, validate_data
from torch import Tensor

from skjepa.data.one_picture import listed
from skjepa.data.sources import Source, holds_vectors
from skjepa.extraction.extraction import Extraction
from skjepa.inspection.findings import GROUPS_ARE_GIVEN

APART: ContextVar[NDArray | None] = ContextVar("apart", default=None)
"""A name per sample that `_learn` gets, equal for samples that no split inside the fit may separate."""


@contextmanager
def apart_in_mind(names: NDArray) -> Iterator[None]:
    """Set `APART` to these names inside the context."""
    token = APART.set(names)
    try:
        yield
    finally:
        APART.reset(token)


@contextmanager
def groups_in_mind(are_given: bool) -> Iterator[None]:
    """Set `GROUPS_ARE_GIVEN`, which silences the warning of near copies, inside the context."""
    token = GROUPS_ARE_GIVEN.set(are_given)
    try:
        yield
    finally:
        GROUPS_ARE_GIVEN.reset(token)


def one_each(name: str, values: Any, samples: Extraction | Source) -> NDArray:
    """Return one of the values per sample, without the values of samples that could not be read."""
    found = column_or_1d(values)
    if isinstance(samples, Extraction) and len(found) == len(samples.all_ids):
        return found[samples.measured]
    if isinstance(samples, Source) and samples.chosen is not None and len(found) == len(samples.chosen):
        return found[samples.chosen]
    if len(found) != len(samples):
        raise ValueError(f"{name} must hold one value per sample: X has {len(samples)} samples, {name} {len(found)}")
    return found


def validated(estimator: BaseEstimator, X: Any, *, reset: bool, min_samples: int = 1) -> Any:
    """Check a table by scikit-learn's rules and store or compare its width and column names; pass images through.

    One picture comes back as a list of one, an iterator as the list of its items.
    """
    X = listed(X)
    if isinstance(X, Source) or not holds_vectors(X):
        return X
    if isinstance(X, Tensor):
        X = X.detach().cpu().double().numpy()
    return validate_data(estimator, X, reset=reset, dtype=np.float64, ensure_min_samples=min_samples)


@contextmanager
def all_or_nothing(estimator: BaseEstimator) -> Iterator[None]:
    """Run a fit without the column names of an earlier fit; where it fails, restore the estimator as it was."""
    before = dict(vars(estimator))
    for name in ("n_features_in_", "feature_names_in_", "appearance_"):
        estimator.__dict__.pop(name, None)
    try:
        yield
    except BaseException:
        vars(estimator).clear()
        vars(estimator).update(before)
        raise
