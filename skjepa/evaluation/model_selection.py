"""Cross-validate detectors with scikit-learn, on folds that train on normal samples alone.

scikit-learn's convention is y = +1 for normal samples, y = -1 for outliers, and scores that are higher for normal
samples, so that ``scoring="roc_auc"`` is right. Labels of 0 for normal and 1 for outliers, as PyOD uses them, would
silently turn an AUROC into 1 - AUROC. `inlier_labels` converts such labels, and `NormalKFold` takes them only
when told which label is normal.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import BaseCrossValidator, StratifiedKFold
from sklearn.utils.validation import column_or_1d

from skjepa._utils.validation import check_integer

_DIRECTION = "y must be +1 for normal samples and -1 for outliers"


class NormalKFold(BaseCrossValidator):
    """Split samples into folds for outlier detectors, with normal samples alone for training and both kinds for tests.

    Use it as `cv` in scikit-learn's model selection. Every sample is tested once. Outliers are never trained on.

    Parameters
    ----------
    n_splits : int
        Number of folds.
    shuffle : bool
        Whether to shuffle the samples before they are assigned to folds.
    random_state : int or RandomState, optional
        Seeds the shuffling. Without it every call of `split` returns different folds.
    normal : int, bool or str, optional
        Label of normal samples in y; every other label is an outlier. With 0/1 or boolean labels give it: ``normal=0``
        or ``normal=False`` where 1 or True marks outliers. Without it y must be +1 (normal) and -1 (outlier). It
        decides the folds alone: ``scoring="roc_auc"`` still needs labels that are higher for normal samples.

    Examples
    --------
    >>> import numpy as np
    >>> from skjepa import NormalKFold
    >>> y = np.array([1, 1, 1, 1, -1, -1])
    >>> for train, test in NormalKFold(2, shuffle=False).split(y, y):
    ...     print(train, test)
    [2 3] [0 1 4]
    [0 1] [2 3 5]
    >>> is_outlier = y == -1
    >>> folds = NormalKFold(2, shuffle=False, normal=False).split(y, is_outlier)
    >>> [train.tolist() for train, _ in folds]
    [[2, 3], [0, 1]]
    """

    def __init__(
        self, n_splits: int = 5, *, shuffle: bool = True, random_state: Any = None, normal: Any = None
    ) -> None:
        self.n_splits = n_splits
        self.shuffle = shuffle
        self.random_state = random_state
        self.normal = normal

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Return the number of folds."""
        return check_integer("n_splits", self.n_splits, minimum=2)

    def split(
        self, X: Any, y: ArrayLike | None = None, groups: Any = None
    ) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
        """Yield the positions of the training and test samples of each fold.

        Parameters
        ----------
        X : array or Extraction
            The samples, of which only the number is used.
        y : array of shape (n_samples,)
            +1 for normal samples, -1 for outliers; or any labels, where `normal` names the normal one.
        groups : ignored

        Raises
        ------
        ValueError
            The labels are missing or of another kind, or there are fewer samples of a class than folds.
        """
        if y is None:
            raise ValueError(f"NormalKFold needs y: {_DIRECTION}")
        labels = _checked(y) if self.normal is None else _by_name(y, self.normal)
        n_splits = self.get_n_splits()
        normal, outlier = ("+1", "-1") if self.normal is None else (repr(self.normal), "any other label")
        for label, name in ((1, f"normal samples ({normal})"), (-1, f"outliers ({outlier})")):
            count = int((labels == label).sum())
            if count < n_splits:
                raise ValueError(f"{n_splits} folds need at least {n_splits} {name} in y; got {count}")
        folds = StratifiedKFold(
            n_splits, shuffle=self.shuffle, random_state=self.random_state if self.shuffle else None
        )
        for train, test in folds.split(np.zeros(len(labels)), labels):
            yield train[labels[train] == 1], test


def inlier_labels(y: ArrayLike) -> NDArray[np.int64]:
    """Convert labels of 0 (normal) and 1 (outlier), as PyOD and most data sets use them, to +1 and -1.

    Parameters
    ----------
    y : array of shape (n_samples,)
        Zeros and ones, or booleans that are True for outliers.

    Returns
    -------
    array of shape (n_samples,)
        +1 for normal samples, -1 for outliers. With them ``scoring="roc_auc"`` is the AUROC of scores that are higher
        for normal samples.

    Raises
    ------
    ValueError
        A label is neither 0 nor 1.

    Examples
    --------
    >>> from skjepa import inlier_labels
    >>> inlier_labels([0, 0, 1]).tolist()
    [1, 1, -1]
    """
    labels = column_or_1d(y)
    found = np.unique(labels)
    if not np.isin(found, (0, 1)).all():
        raise ValueError(f"labels must be 0 (normal) and 1 (outlier); got {_listed(found)}")
    return np.where(labels == 1, -1, 1)


def _by_name(y: ArrayLike, normal: Any) -> NDArray[np.int64]:
    """+1 where the label is the normal one, -1 elsewhere."""
    labels = column_or_1d(y)
    found = np.unique(labels)
    if normal not in found.tolist():
        raise ValueError(f"no sample has the normal label {normal!r}; y holds {_listed(found)}")
    return np.where(labels == normal, 1, -1)


def _checked(y: ArrayLike) -> NDArray:
    labels = column_or_1d(y)
    found = np.unique(labels)
    if np.isin(found, (-1, 1)).all():
        return labels
    hint = ""
    if np.isin(found, (0, 1)).all():
        hint = (
            ". Labels of 0 and 1 would turn an AUROC into 1 - AUROC: give y=skjepa.inlier_labels(y), or tell the folds "
            "which label is normal, NormalKFold(normal=0)"
        )
    raise ValueError(f"{_DIRECTION}; got {_listed(found)}{hint}")


def _listed(values: NDArray) -> str:
    return ", ".join(map(str, values[:5].tolist())) + (" ..." if len(values) > 5 else "")
