"""Training images with junk among them, for the suite of curation."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.image_sets import FOREIGN, NOISE, Images, drawn, uniform_noise

KINDS = (*FOREIGN, NOISE)
MOST_JUNK = 0.3


@dataclass(frozen=True)
class Sizes:
    """Images of each run, junk and all; of the clean reference; of the test; and how many runs."""

    run: int
    reference: int
    test: int
    runs: int

    @property
    def of_each_kind(self) -> int:
        """Junk images of a kind in a run, at most."""
        return int(MOST_JUNK * self.run) // len(KINDS)


@dataclass(frozen=True, eq=False)
class Mix:
    """One folder to be curated, as positions in `Pool.images`.

    Attributes
    ----------
    places : array of shape (n,), int
    labels : array of shape (n,), int
        Of the classes; a random one for junk, which somebody took for a picture of it.
    is_junk : array of shape (n,), bool
    """

    places: NDArray[np.intp]
    labels: NDArray[np.intp]
    is_junk: NDArray[np.bool_]


class Pool:
    """All images that are measured once; no two runs share one.

    Attributes
    ----------
    images : list
        CIFAR-10 training images of every run, those of the clean reference, then junk, kind by kind.
    test, test_labels
        CIFAR-10 test images.
    """

    def __init__(self, folder: Path, sizes: Sizes, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.sizes, self.seed = sizes, seed
        clean, classes = drawn(folder / "cifar10" / "train", sizes.runs * sizes.run + sizes.reference, rng)
        self.test, test_classes = drawn(folder / "cifar10" / "test", sizes.test, rng)
        self.classes, labels = np.unique(classes, return_inverse=True)
        self.labels, self.test_labels = labels, np.searchsorted(self.classes, test_classes)
        n_junk = sizes.runs * sizes.of_each_kind
        junk: Images = [image for name in FOREIGN for image in drawn(folder / name, n_junk, rng)[0]]
        self.images: Images = [*clean, *junk, *uniform_noise(n_junk, rng)]

    @property
    def reference(self) -> NDArray[np.intp]:
        """Places of clean images that are in no run."""
        start = self.sizes.runs * self.sizes.run
        return np.arange(start, start + self.sizes.reference)

    def mix(self, run: int, share: float) -> Mix:
        """The run's images with this share of junk, as much of each kind; a larger share holds a smaller one's junk."""
        sizes = self.sizes
        of_each = int(share * sizes.run) // len(KINDS)
        clean = run * sizes.run + np.arange(sizes.run - of_each * len(KINDS))
        first = sizes.runs * sizes.run + sizes.reference + run * sizes.of_each_kind
        starts = first + sizes.runs * sizes.of_each_kind * np.arange(len(KINDS))
        junk = (starts[:, None] + np.arange(of_each)).ravel()
        taken_for = np.random.default_rng([self.seed, run]).integers(len(self.classes), size=len(junk))
        return Mix(
            places=np.concatenate([clean, junk]),
            labels=np.concatenate([self.labels[clean], taken_for]),
            is_junk=np.repeat([False, True], [len(clean), len(junk)]),
        )

    def one_kind(self, run: int, kind: str) -> Mix:
        """The run's images with all its junk of one kind and none of the others."""
        whole = self.mix(run, MOST_JUNK)
        n = self.sizes.of_each_kind
        start = KINDS.index(kind) * n
        junk = np.flatnonzero(whole.is_junk)[start : start + n]
        clean = run * self.sizes.run + np.arange(self.sizes.run - n)
        return Mix(
            places=np.concatenate([clean, whole.places[junk]]),
            labels=np.concatenate([self.labels[clean], whole.labels[junk]]),
            is_junk=np.repeat([False, True], [len(clean), n]),
        )
