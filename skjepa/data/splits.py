"""Split samples into fit, calibration and test sets, and find images that are in more than one set."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skjepa._utils.validation import check_integer, check_number
from skjepa.data.source import Source, known_by_content
from skjepa.data.sources import as_source

SPLITS = ("fit", "calibration", "test")


@dataclass(frozen=True)
class Repeat:
    """Name a sample that two groups share, with equal bits after decoding.

    Attributes
    ----------
    group, id : str
        Group and id of the repeated sample.
    first_group, first_id : str
        Group and id of its first occurrence.
    """

    group: str
    id: str
    first_group: str
    first_id: str


def split_source(
    X: Any, *, fit: float = 0.5, calibration: float = 0.2, limit: int | None = None, random_state: int = 0
) -> dict[str, Source]:
    """Split normal samples at random into fit, calibration and test sets.

    Parameters
    ----------
    X : images or vectors
        See `skjepa.data.as_source`.
    fit, calibration : float in (0, 1)
        Shares of the samples; the rest is the test set.
    limit : int, optional
        Largest number of samples in all sets together.
    random_state : int

    Returns
    -------
    dict of Source
        With the keys "fit", "calibration" and "test"; no sample is in two of them.

    Raises
    ------
    ValueError
        If the shares leave no samples for a set.

    Examples
    --------
    >>> import numpy as np
    >>> parts = split_source(np.eye(10), fit=0.5, calibration=0.2)
    >>> {name: len(part) for name, part in parts.items()}
    {'fit': 5, 'calibration': 2, 'test': 3}
    """
    source = as_source(X)
    fit = check_number("fit", fit, above=0.0, below=1.0)
    calibration = check_number("calibration", calibration, above=0.0, below=1.0)
    order = np.random.default_rng(random_state).permutation(len(source))
    if limit is not None:
        order = order[: check_integer("limit", limit, minimum=1)]
    ends = np.round(np.array([fit, fit + calibration]) * len(order)).astype(int)
    parts = {name: np.sort(part) for name, part in zip(SPLITS, np.split(order, ends), strict=True)}
    for name, part in parts.items():
        if len(part) < (2 if name == "fit" else 1):
            raise ValueError(
                f"got {len(order)} normal samples; the shares fit={fit:g} and calibration={calibration:g} leave "
                f"{len(part)} for {name}: give more samples or other shares"
            )
    return {name: source[part] for name, part in parts.items()}


def repeats(groups: Mapping[str, Source]) -> list[Repeat]:
    """Find samples that an earlier group already holds, by comparing their content after decoding.

    Groups other than "fit", "calibration" and "test" are compared only with these: two sets of outliers may share
    images.

    Parameters
    ----------
    groups : mapping of name -> Source
        Every sample is loaded; samples that cannot be read are left out.

    Returns
    -------
    list of Repeat
    """
    seen: dict[str, tuple[str, str]] = {}
    found = []
    for group, source in groups.items():
        contents = contents_of(source)
        found += [
            Repeat(group, str(name), *seen[content])
            for name, content in zip(source.ids, contents, strict=True)
            if content in seen
        ]
        if group in SPLITS:
            new = {content: (group, str(name)) for name, content in zip(source.ids, contents, strict=True) if content}
            seen = new | seen
    return found


def without_repeats(groups: Mapping[str, Source], found: Sequence[Repeat]) -> dict[str, Source]:
    """Return the groups without the repeated samples that `repeats` found in them."""
    again = {(repeat.group, repeat.id) for repeat in found}
    return {
        group: source[np.array([(group, str(name)) not in again for name in source.ids], dtype=bool)]
        for group, source in groups.items()
    }


def contents_of(source: Source) -> list[str]:
    """Return a hash of every sample as loaded; "" for samples that cannot be read.

    Pixels are hashed, not files, so an image stored in two files or with other metadata has the same hash.
    """
    loaded = known_by_content(Source(source.ids, source.load, source.is_vector))
    return [loaded.content(i) for i in range(len(source))]


def classes_of(source: Source) -> NDArray[np.str_] | None:
    """Return the folder of each image as its class, like torchvision's ImageFolder; None if all are in one folder.

    Examples
    --------
    >>> source = Source(np.array(["cat/1.png", "dog/1.png"]), load=lambda i: None)
    >>> classes_of(source).tolist()
    ['cat', 'dog']
    """
    return folders_of(source.ids)


def folders_of(ids: Iterable[str]) -> NDArray[np.str_] | None:
    """Return the folder in each id, a path with forward slashes; None if all are in one folder."""
    names = np.array([str(name).rpartition("/")[0] for name in ids], dtype=np.str_)
    return names if len(np.unique(names)) > 1 else None


def checked_classes(classes: ArrayLike | None, n_samples: int) -> NDArray | None:
    """Return classes as an array of one per sample, or None; raises ValueError for another shape."""
    if classes is None:
        return None
    labels = np.asarray(classes)
    if labels.shape != (n_samples,):
        raise ValueError(f"classes must be one per fit sample: {n_samples} samples, classes of shape {labels.shape}")
    return labels
