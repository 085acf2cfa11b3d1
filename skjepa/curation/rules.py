"""Choose the samples of a collection to keep, by existing scores."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from skjepa._utils.shown import SHOWN, html_table, text_table, three_digits
from skjepa._utils.validation import check_number
from skjepa.data.splits import checked_classes

_HEAD = ("id", "class", "score", "why it is dropped")


@dataclass(frozen=True, eq=False, repr=False)
class Pruned:
    """Hold the samples of a collection to keep, with the scores behind the choice.

    Attributes
    ----------
    ids : array of shape (n_samples,), str
    scores : array of shape (n_samples,), float64
        Higher = more normal; NaN where a sample could not be read.
    kept : array of shape (n_samples,), bool
    classes : array of shape (n_samples,) or None
    p_values : array of shape (n_samples,) or None
        Conformal p-values, where the rule is a false-positive rate.
    errors : dict of position -> reason
        Why samples could not be read.
    copy_of : dict of position -> id
        For each exact copy, the sample that it equals.
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
        """Ids of the kept samples, in the order of the collection."""
        return self.ids[self.kept].tolist()

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the numbers of all, kept, dropped and unreadable samples by class; the class is "" without classes."""
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

    def __repr__(self) -> str:
        return f"Pruned({self._summary()})"

    def __str__(self) -> str:
        return "\n".join([self._title(), text_table(_HEAD, self._rows())])

    def _repr_html_(self) -> str:
        return html_table(_HEAD, self._rows(), title=self._title())

    def _summary(self) -> str:
        unreadable = int(np.isnan(self.scores).sum())
        return f"{int(self.kept.sum())} of {len(self)} kept" + (f", {unreadable} unreadable" if unreadable else "")

    def _title(self) -> str:
        return f"{self._summary()}; those dropped with the lowest scores, .table() has all"

    def _rows(self) -> list[tuple[str, ...]]:
        """Dropped samples, the lowest scores first, then those that could not be read."""
        dropped = [i for i in np.argsort(self.scores, kind="stable").tolist() if not self.kept[i]]
        return [
            (
                str(self.ids[i]),
                "" if self.classes is None else str(self.classes[i]),
                three_digits(self.scores[i]),
                self.errors.get(i) or (f"copy of {self.copy_of[i]}" if i in self.copy_of else "low score"),
            )
            for i in dropped[:SHOWN]
        ]

    def table(self) -> pa.Table:
        """Return a table with one row per sample: id, class, score, p_value, kept, copy_of and error.

        A missing value is null.
        """
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
    """Choose the samples to keep by existing scores.

    Parameters
    ----------
    ids : array of shape (n_samples,), str
        Names; among equal scores the first by name is kept.
    scores : array of shape (n_samples,)
        Higher = more normal; NaN where a sample could not be read. Such a sample is never kept.
    keep, target_fpr, per_class, drop_copies
        See `skjepa.prune`; `target_fpr` needs `p_values`.
    p_values, classes : arrays of shape (n_samples,), optional
    contents : array of shape (n_samples,), str, optional
        An identity per sample that is equal for copies; by default the ids.
    errors : dict of position -> reason, optional
        Why samples could not be read.

    Returns
    -------
    Pruned

    Raises
    ------
    ValueError
        `keep` and `target_fpr` are not exactly one rule, arrays differ in length, or a score is infinite.

    Examples
    --------
    >>> prune_scores(["a", "b", "c", "d"], [0.1, 0.4, 0.3, 0.2], keep=0.5).kept_ids
    ['b', 'c']
    """
    check_rule(keep, target_fpr, per_class)
    names, values = np.asarray(ids, dtype=np.str_), np.asarray(scores, dtype=np.float64)
    if names.ndim != 1 or values.shape != names.shape:
        raise ValueError(
            f"scores must hold one score per sample: ids have shape {names.shape}, scores shape {values.shape}"
        )
    if np.isinf(values).any():
        raise ValueError(
            f"the score of {str(names[np.isinf(values)][0])!r} is infinite: give a finite score, or NaN if it is "
            "unreadable"
        )
    labels = checked_classes(classes, len(names))
    check_classes(labels, per_class)
    copy_of = _copies(names, names if contents is None else np.asarray(contents, dtype=np.str_))
    found = None if p_values is None else np.asarray(p_values, dtype=np.float64)
    eligible = ~np.isnan(values)
    if drop_copies:
        eligible[list(copy_of)] = False
    if found is not None and found.shape != names.shape:
        raise ValueError(
            f"p_values must hold one p-value per sample: {len(names)} samples, p_values of shape {found.shape}"
        )
    if keep is not None:
        groups = labels if per_class and labels is not None else np.zeros(len(names))
        kept = _best(names, values, eligible, groups, keep)
    elif found is not None and target_fpr is not None:
        kept = eligible & (found > target_fpr + 1e-12)  # a p-value may exceed target_fpr by rounding
    else:
        raise ValueError("target_fpr needs p-values, which come from a clean reference: give p_values=, or keep=")
    return Pruned(names, values, kept, labels, found, dict(errors or {}), copy_of)


def check_rule(keep: float | None, target_fpr: float | None, per_class: bool) -> None:
    """Raise ValueError or TypeError where `keep`, `target_fpr` and `per_class` do not form one rule."""
    if (keep is None) == (target_fpr is None):
        raise ValueError(
            f"give either keep, a share, or target_fpr, a false-positive rate; got keep={keep} and "
            f"target_fpr={target_fpr}"
        )
    if keep is not None:
        check_number("keep", keep, above=0.0, below=1.0)
        return
    check_number("target_fpr", target_fpr, above=0.0, below=1.0)
    if per_class:
        raise ValueError("per_class=True keeps a share of every class: give keep= in place of target_fpr=")


def check_classes(labels: NDArray | None, per_class: bool) -> None:
    """Raise ValueError where `per_class` is given without classes."""
    if per_class and labels is None:
        raise ValueError("per_class=True needs classes, and there are none: give sub-folders, or classes=")


def _best(
    ids: NDArray[np.str_], scores: NDArray[np.float64], eligible: NDArray[np.bool_], groups: NDArray, keep: float
) -> NDArray[np.bool_]:
    """Keep the share of every group with the highest scores, rounded up."""
    kept = np.zeros(len(ids), dtype=bool)
    for group in np.unique(groups):
        members = np.flatnonzero(eligible & (groups == group))
        ranked = members[np.lexsort((ids[members], -scores[members]))]
        # Rounded before the ceiling, because products such as 0.7 * 10 can come out as 7.000000000000001.
        kept[ranked[: int(np.ceil(np.round(keep * len(members), 9)))]] = True
    return kept


def _copies(ids: NDArray[np.str_], contents: NDArray[np.str_]) -> dict[int, str]:
    """Return the first name by position, for all samples of each content except the first."""
    first: dict[str, int] = {}
    copies = {}
    for i in np.lexsort((ids, contents)).tolist():
        content = str(contents[i])
        if content in first:
            copies[i] = str(ids[first[content]])
        else:
            first[content] = i
    return copies
