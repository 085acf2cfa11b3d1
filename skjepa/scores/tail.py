"""How unusual a value is among those of normal samples that were left out."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from skjepa.persistence.folder import portable
from skjepa.persistence.schema import Above, Mark

UPPER = float(norm.cdf(1))
"""Share of a normal distribution that lies under its mean and one deviation."""

FARTHEST = 1e8  # scales from the median: what is farther is as odd, and its surprise is a number


@portable
@dataclass(frozen=True)
class Tail:
    """How unusual a value is among those of fit samples that were left out, in nats.

    A normal distribution is laid through their median and their 84 % quantile, which outliers among them hardly move.

    Attributes
    ----------
    median, scale : float
        `scale` is the 84 % quantile less the median, and no less than rounding.
    """

    median: Annotated[float, Mark.FINITE]
    scale: Annotated[float, Above(0)]

    @classmethod
    def learn(cls, values: NDArray[np.float64]) -> "Tail":
        median, upper = (float(np.quantile(values, share)) for share in (0.5, UPPER))
        # Equal up to rounding: then nothing is unusual that rounding may bring.
        return cls(median, max(upper - median, 1e-6 * (abs(median) + float(np.abs(values).max())), 1e-300))

    def surprise(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """-log P(a normal sample has a value so high or higher); 0.69 at the median."""
        return -norm.logsf(np.clip((values - self.median) / self.scale, -FARTHEST, FARTHEST))
