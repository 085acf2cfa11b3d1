"""What a report shows: scored samples, the rule that flagged them, and what was said of the detector."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skjepa.reporting.about import About


@dataclass(frozen=True, eq=False)
class Map:
    """Samples and normal samples on a plane, (n, 2) and (n_normal, 2); NaN where a sample has no place."""

    name: str
    points: NDArray[np.float64]
    normal: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Results:
    """n scored samples.

    Attributes
    ----------
    ids : array of shape (n,), str
    scores : array of shape (n,)
        Higher = more normal; NaN for samples that could not be read.
    flagged : array of shape (n,), bool
    p_values : array of shape (n,) or None
    threshold : float or None
        Scores below it are flagged; None where the rule is another.
    errors : dict of position -> reason
    image : callable
        Position to a picture in RGB, or None; raises what reading raises.
    normal_image : callable
        The same by the name of a normal sample.
    map_picture : callable
        Position to the picture with a map of where it is odd, or None.
    reasons : list of str, or None
        Which terms of the score are unusual; "" where none is.
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
        """Positions of the readable samples, those nearest to the threshold first; none without one."""
        if self.threshold is None:
            return np.empty(0, dtype=np.intp)
        return self.ranked[np.argsort(np.abs(self.scores[self.ranked] - self.threshold), kind="stable")]
