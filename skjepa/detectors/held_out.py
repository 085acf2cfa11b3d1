"""Choose the normal samples that a fit holds out for its threshold, and check that there are enough."""

import math
from numbers import Integral

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import KFold, train_test_split

from skjepa._utils.validation import check_integer, check_number
from skjepa.detectors.conformal import conformal_offset
from skjepa.detectors.rates import DEFAULT_FOLDS, DEFAULT_SHARE, ENOUGH, n_allowed

_SHARED = 0.95  # a column with fewer different values than this share of the different rows repeats its values


def check_threshold_parameters(contamination: float, target_fpr: float | None, calibration: float | int | None) -> None:
    """Refuse threshold parameters that are wrong for any samples.

    Raises
    ------
    ValueError, TypeError
    """
    check_number("contamination", contamination, above=0.0, below=0.5, closed=">")
    if target_fpr is not None:
        check_number("target_fpr", target_fpr, above=0.0, below=1.0)
    if isinstance(calibration, Integral):
        check_integer("calibration", calibration, minimum=2)
    elif calibration is not None:
        check_number("calibration", calibration, above=0.0, below=1.0)


def chosen_calibration(
    ids: NDArray[np.str_], target_fpr: float | None, calibration: float | int | None
) -> float | int | None:
    """Return how a fit calibrates: as told, and where `target_fpr` alone was given, by what its samples suffice for.

    A fifth of the samples is held out where at least five of those scores fall below the threshold (500 samples for a
    rate of 5 %): the guarantee is then exact. With fewer samples there are five folds, so that every sample calibrates
    and every sample is learned from.

    Parameters
    ----------
    ids : array of shape (n,), str
        One name for what belongs together.
    target_fpr, calibration
        Of the detector.
    """
    if target_fpr is None or calibration is not None:
        return calibration
    if n_allowed(target_fpr, math.ceil(DEFAULT_SHARE * len(ids))) >= ENOUGH:
        return DEFAULT_SHARE
    return min(DEFAULT_FOLDS, max(2, len(np.unique(ids))))


def check_number_of_samples(
    ids: NDArray[np.str_], target_fpr: float | None, calibration: float | int | None, seed: int
) -> None:
    """Refuse samples that are too few to learn from and to calibrate with.

    Raises
    ------
    ValueError
    """
    if len(ids) < 2:
        raise ValueError(f"fit needs at least 2 samples; got {len(ids)} sample that could be read")
    if calibration is None:
        return
    groups = len(np.unique(ids))
    if groups < 3:
        raise ValueError(f"calibration needs at least 3 different samples or groups; got {groups}")
    if isinstance(calibration, Integral):
        if groups < calibration:
            raise ValueError(
                f"calibration={calibration} folds need at least {calibration} different samples or groups; got {groups}"
            )
        largest = math.ceil(groups / int(calibration))
    else:
        largest = math.ceil(groups * calibration)
    if groups - largest < 2:
        raise ValueError(
            f"calibration={calibration:g} leaves {groups - largest} of {groups} different samples or groups to fit on, "
            "and 2 are needed: give more samples, or another calibration"
        )
    if target_fpr is not None:
        held_out = sum(int(part.sum()) for part in held_out_parts(ids, calibration, seed))
        conformal_offset(np.zeros(held_out), target_fpr)


def apart_by_content(identities: NDArray[np.str_], rows: NDArray | None) -> NDArray[np.str_]:
    """Return a name per sample, (n,), equal for samples that are copies of one another.

    For images equal content means a copy. In a table, columns with few values produce equal rows by chance: there most
    rows occur more than once, and no column has nearly as many values as there are different rows. In such a table
    every row gets its own name. In a table with a continuous column an equal row is a copy.

    Parameters
    ----------
    identities : array of shape (n,), str
        Names by content.
    rows : array of shape (n, d), or None
        Rows of a table; None for images.
    """
    _, first, counts = np.unique(identities, return_index=True, return_counts=True)
    if rows is None or counts.max() == 1 or (counts == 1).sum() <= (counts > 1).sum():
        return identities
    different = rows[first]
    values = [len(np.unique(column)) for column in different.T]
    return np.arange(len(identities)).astype(str) if max(values) < _SHARED * len(different) else identities


def first_of_each(identities: NDArray[np.str_]) -> NDArray[np.intp]:
    """Return the positions of the first sample of each content, ascending."""
    return np.sort(np.unique(identities, return_index=True)[1])


def joined_by_copies(groups: NDArray, identities: NDArray[np.str_]) -> NDArray[np.str_]:
    """Merge groups that share a sample of the same content; return the new group of each sample, (n,)."""
    _, group = np.unique(groups, return_inverse=True)
    _, content = np.unique(identities, return_inverse=True)
    n = int(group.max()) + 1
    links = coo_array((np.ones(len(group)), (group, n + content)), shape=(n + int(content.max()) + 1,) * 2)
    return connected_components(links, directed=False)[1][group].astype(str)


def held_out_parts(ids: NDArray[np.str_], calibration: float | int | None, seed: int) -> list[NDArray[np.bool_]]:
    """Return a mask per model of the samples that it does not learn from; samples of one name stay together."""
    if calibration is None:
        return []
    groups = np.unique(ids)
    if isinstance(calibration, Integral):
        folds = KFold(int(calibration), shuffle=True, random_state=seed).split(groups)
        return [np.isin(ids, groups[unseen]) for _, unseen in folds]
    return [np.isin(ids, train_test_split(groups, test_size=float(calibration), random_state=seed)[1])]
