"""Hold the results that a report shows: scored samples, the rule that flagged them, and facts about the detector."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skjepa.reporting.about import About


@dataclass(frozen=True, eq=False)
class Map:
    """Samples, (n, 2), and normal samples, (n_normal, 2), on a plane; NaN where a sample has no place."""

    name: str
    points: NDArray[np.float64]
    normal: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Results:
    """Scored samples with everything that a report shows of them.

    Attributes
    ----------
    ids : array of shape (n,), str
    scores : array of shape (n,)
        Higher = more normal; NaN for samples that could not be read.
    flagged : array of shape (n,), bool
    p_values : array of shape (n,) or None
    threshold : float or None
        Scores below it are flagged; None where samples were flagged by another rule.
    errors : dict of position -> reason
    image : callable
        Returns the picture at a position in RGB, or None; raises the errors of reading it.
    normal_image : callable
        Returns the picture of a normal sample by its name, or None.
    map_picture : callable
        Returns the picture at a position with its anomaly map, or None.
    reasons : list of str, or None
        Names of the unusual terms of the score; "" where none is unusual.
    nearest : list of lists of str, or None
        Names of the nearest normal samples.
    maps : list of Map
    about : About
    """

    ids: NDArray[np.str_]
    scores: NDArray[np.float64]
    flagged: NDArray[np.bool_]
    p_values: NDArray[np.float64] | None = None
    threshold: float | None = None
    errors: dict[int, str] = field(default_factory=dict)
    image: Callable[[int], Image.Image | None] = lambda i: None
    normal_image: Callable[[str], Image.Image | None] = lambda name: None
    map_picture: Callable[[int], Image.Image | None] = lambda i: None
    reasons: list[str] | None = None
    nearest: list[list[str]] | None = None
    maps: list[Map] = field(default_factory=list)
    about: About = field(default_factory=About)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def readable(self) -> NDArray[np.bool_]:
        return np.isfinite(self.scores)

    @property
    def ranked(self) -> NDArray[np.intp]:
        """Positions of the readable samples, the most atypical first."""
        order = np.argsort(self.scores, kind="stable")  # NaN last
        return order[: int(self.readable.sum())]

    @property
    def borderline(self) -> NDArray[np.intp]:
        """Positions of the readable samples, the nearest to the threshold first; empty without a threshold."""
        if self.threshold is None:
            return np.empty(0, dtype=np.intp)
        return self.ranked[np.argsort(np.abs(self.scores[self.ranked] - self.threshold), kind="stable")]
