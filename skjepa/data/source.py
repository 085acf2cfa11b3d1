"""Provide `Source`, which holds the ids of samples and loads them one at a time, and hash their content."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skjepa.data.content import hash_of
from skjepa.data.images import ImageReadError


@dataclass(frozen=True, eq=False)
class Source:
    """Hold the ids of n samples and a function that loads them one at a time.

    Attributes
    ----------
    ids : array of shape (n_samples,), str
        Names of the samples.
    load : callable
        Returns the sample at a position: a PIL image in RGB, a uint8 or float array (H, W, 3), a float tensor
        (3, H, W), or, if `is_vector`, a float64 array (d,). Raises `skjepa.data.ImageReadError`.
    is_vector : bool
        Whether samples are vectors and not images.
    stable_ids : bool
        False if ids are only positions (a torch Dataset), which may differ in a later run.
    content : callable
        Returns a hash of the content at a position, by which a store recognises a file that changed under its name; ""
        if the hash is not known without loading the sample.
    file : callable
        Returns the path of the image file at a position, which another process can read; None if there is none.
    chosen : array of bool, optional
        Which of the samples that were given these are, where `only` left some out.
    """

    ids: NDArray[np.str_]
    load: Callable[[int], Any]
    is_vector: bool = False
    stable_ids: bool = True
    content: Callable[[int], str] = lambda i: ""
    file: Callable[[int], str | os.PathLike | None] = lambda i: None
    chosen: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> "Source":
        """Return the samples at a slice, a mask or integer positions."""
        chosen = np.arange(len(self))[index].tolist()
        return Source(
            self.ids[index],
            lambda i: self.load(chosen[i]),
            self.is_vector,
            self.stable_ids,
            lambda i: self.content(chosen[i]),
            lambda i: self.file(chosen[i]),
        )

    def only(self, chosen: NDArray[np.bool_]) -> "Source":
        """Return the samples at a mask, which the result keeps as `chosen`."""
        given = chosen
        if self.chosen is not None:
            given = self.chosen.copy()
            given[self.chosen] = chosen
        return replace(self[chosen], chosen=given)

    @property
    def identities(self) -> NDArray[np.str_]:
        """Keys that are equal for copies of one sample, (n_samples,): content hashes, or ids if none are known."""
        return np.array([self.content(i) or name for i, name in enumerate(self.ids.tolist())], dtype=np.str_)

    def sample(self, n: int | None, seed: int) -> "Source":
        """Return at most n samples, drawn at random, in their original order; all if n is None."""
        if n is None or len(self) <= n:
            return self
        return self[np.sort(np.random.default_rng(seed).choice(len(self), n, replace=False))]

    def rows(self) -> NDArray[np.float64]:
        """Return all vectors of a source of vectors, (n_samples, d)."""
        return np.stack([self.load(i) for i in range(len(self))])


def known_by_content(source: Source) -> Source:
    """Return the source with a content hash for every sample, loading samples whose hash is not known.

    Its `load` raises ValueError if such a sample differs from when it was hashed.
    """
    loaded: dict[int, str] = {}

    def content(i: int) -> str:
        known = source.content(i)
        if not known and i not in loaded:
            loaded[i] = _hash_of_loaded(source, i)
        return known or loaded[i]

    def load(i: int) -> Any:
        sample = source.load(i)
        if i in loaded and hash_of(sample) != loaded[i]:
            raise ValueError(
                f"sample {source.ids[i]} changed between two loads; memory= needs a deterministic data set"
            )
        return sample

    return Source(source.ids, load, source.is_vector, source.stable_ids, content, source.file)


def noting_content(source: Source) -> Source:
    """Return the source for one run, in which each sample is hashed only once, at the latest when it is loaded."""
    noted: dict[int, str] = {}

    def content(i: int) -> str:
        if not noted.get(i):
            noted[i] = source.content(i)
        return noted[i]

    def load(i: int) -> Any:
        sample = source.load(i)
        noted[i] = content(i) or hash_of(sample)
        return sample

    return Source(source.ids, load, source.is_vector, source.stable_ids, content, source.file)


def _hash_of_loaded(source: Source, i: int) -> str:
    try:
        return hash_of(source.load(i))
    except ImageReadError:
        return ""  # `load` raises it again
