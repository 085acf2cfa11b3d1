"""What to keep of a collection, by scores that are there already."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from skjepa._utils.validation import check_number
from skjepa.data.splits import checked_classes


@dataclass(frozen=True, eq=False)
class Pruned:
    """What to keep of a collection, and why.

    Attributes
    ----------
    ids : array of shape (n_samples,), str
    scores : array of shape (n_samples,), float64
        Higher = more normal; NaN where a sample could not be read.
    kept : array of shape (n_samples,), bool
    classes : array of shape (n_samples,) or None
    p_values : array of shape (n_samples,) or None
        Conformal, where the rule is a false-positive rate.
    errors : dict of position -> reason
        Samples that could not be read.
    copy_of : dict of position -> id
        Samples that are, to the bit, the same as the one named.
    """

    ids: NDArray[np.str_]
    scores: NDArray[np.float64]
    kept: NDArray[np.bool_]
    classes: NDArray | None = None
    p_values: NDArray[np.float64] | None = None
    errors: Mapping[int, str] = field(default_factory=dict)
    copy_of: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def kept_ids(self) -> list[str]:
        """Names of what is kept, in the order of the collection."""
        return self.ids[self.kept].tolist()

    def counts(self) -> dict[str, dict[str, int]]:
        """Class -> how many samples there are, and how many are kept, dropped and unreadable; "" without classes."""
        classes = np.full(len(self), "") if self.classes is None else self.classes.astype(np.str_)
        unreadable = np.isnan(self.scores)
        found = {}
        for name in np.unique(classes):
            members = classes == name
            n, n_kept, n_unreadable = (int((members & part).sum()) for part in (True, self.kept, unreadable))
            found[str(name)] = {
                "images": n,
                "kept": n_kept,
                "dropped": n - n_kept - n_unreadable,
                "unreadable": n_unreadable,
            }
        return found

    def table(self) -> pa.Table:
        """One row a sample: id, class, score, p_value, kept, copy_of, error; nulls where there is no value."""
        n = len(self)
        p_values = np.full(n, np.nan) if self.p_values is None else self.p_values
        classes = [None] * n if self.classes is None else self.classes.astype(np.str_).tolist()
        return pa.table(
            {
                "id": pa.array(self.ids, pa.string()),
                "class": pa.array(classes, pa.string()),
                "score": pa.array(self.scores, pa.float64(), mask=np.isnan(self.scores)),
                "p_value": pa.array(p_values, pa.float64(), mask=np.isnan(p_values)),
                "kept": pa.array(self.kept, pa.bool_()),
                "copy_of": pa.array([self.copy_of.get(i) for i in range(n)], pa.string()),
                "error": pa.array([self.errors.get(i) for i in range(n)], pa.string()),
            }
        )


def prune_scores(
    ids: ArrayLike,
    scores: ArrayLike,
    *,
    keep: float | None = None,
    target_fpr: float | None = None,
    p_values: ArrayLike | None = None,
    classes: ArrayLike | None = None,
    per_class: bool = False,
    contents: ArrayLike | None = None,
    drop_copies: bool = False,
    errors: Mapping[int, str] | None = None,
) -> Pruned:
    """Say what to keep by scores that are there already.

    Parameters
    ----------
    ids : array of shape (n_samples,), str
        Among equal scores the first by name is kept.
    scores : array of shape (n_samples,)
        Higher = more normal; NaN where a sample could not be read, which is never kept.
    keep, target_fpr, per_class, drop_copies
        See `prune`; `target_fpr` needs `p_values`.
    p_values, classes : arrays of shape (n_samples,), optional
    contents : array of shape (n_samples,), str, optional
        Equal for copies; by default the ids.
    errors : dict of position -> reason, optional

    Raises
    ------
    ValueError
        A rule that is not one, arrays of different length, scores that are infinite.

    Examples
    --------
    >>> prune_scores(["a", "b", "c", "d"], [0.1, 0.4, 0.3, 0.2], keep=0.5).kept_ids
    ['b', 'c']
    """
    check_rule(keep, target_fpr, per_class)
    names, values = np.asarray(ids, dtype=np.str_), np.asarray(scores, dtype=np.float64)
    if names.ndim != 1 or values.shape != names.shape:
        raise ValueError(f"scores must be one a sample: ids of shape {names.shape}, scores of shape {values.shape}")
    if np.isinf(values).any():
        raise ValueError(f"the score of {names[np.isinf(values)][0]} is infinite")
    labels = checked_classes(classes, len(names))
    check_classes(labels, per_class)
    copy_of = _copies(names, names if contents is None else np.asarray(contents, dtype=np.str_))
    found = None if p_values is None else np.asarray(p_values, dtype=np.float64)
    eligible = ~np.isnan(values)
    if drop_copies:
        eligible[list(copy_of)] = False
    if found is not None and found.shape != names.shape:
        raise ValueError(f"p-values must be one a sample: {len(names)} samples, p-values of shape {found.shape}")
    if keep is not None:
        groups = labels if per_class and labels is not None else np.zeros(len(names))
        kept = _best(names, values, eligible, groups, keep)
    elif found is not None and target_fpr is not None:
        kept = eligible & (found > target_fpr + 1e-12)  # a p-value of .1 may be .1 and a rounding
    else:
        raise ValueError("target_fpr needs p-values, which come with a clean reference")
    return Pruned(names, values, kept, labels, found, dict(errors or {}), copy_of)


def check_rule(keep: float | None, target_fpr: float | None, per_class: bool) -> None:
    """Raise ValueError or TypeError where these three are not one rule."""
    if (keep is None) == (target_fpr is None):
        raise ValueError("give keep, a share, or target_fpr, a false-positive rate, and not both")
    if keep is not None:
        check_number("keep", keep, above=0.0, below=1.0)
        return
    check_number("target_fpr", target_fpr, above=0.0, below=1.0)
    if per_class:
        raise ValueError("per_class is about shares: it needs keep, not target_fpr")


def check_classes(labels: NDArray | None, per_class: bool) -> None:
    """Raise ValueError where shares of classes are asked for, and there are none."""
    if per_class and labels is None:
        raise ValueError("per_class needs classes: sub-folders, or classes=")


def _best(
    ids: NDArray[np.str_], scores: NDArray[np.float64], eligible: NDArray[np.bool_], groups: NDArray, keep: float
) -> NDArray[np.bool_]:
    """Of every group the share with the highest scores, rounded up."""
    kept = np.zeros(len(ids), dtype=bool)
    for group in np.unique(groups):
        members = np.flatnonzero(eligible & (groups == group))
        ranked = members[np.lexsort((ids[members], -scores[members]))]
        # Rounded before the ceiling: 0.7 * 10 is 7.000000000000001 in one order of things and 7 in another.
        kept[ranked[: int(np.ceil(np.round(keep * len(members), 9)))]] = True
    return kept


def _copies(ids: NDArray[np.str_], contents: NDArray[np.str_]) -> dict[int, str]:
    """Position -> the first name, for all but the first sample of each content."""
    first: dict[str, int] = {}
    copies = {}
    for i in np.lexsort((ids, contents)).tolist():
        content = str(contents[i])
        if content in first:
            copies[i] = str(ids[first[content]])
        else:
            first[content] = i
    return copies
