"""Measure how unusual a value is, compared with the values of normal samples that a fit left out."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from skjepa.persistence.folder import portable
from skjepa.persistence.schema import Above, Mark

UPPER = float(norm.cdf(1))
"""Share of a normal distribution that lies below its mean plus one standard deviation."""

FARTHEST = 1e8  # scales from the median, at which values are clipped so that the surprise stays finite


@portable
@dataclass(frozen=True)
class Tail:
    """Measure how unusual a value is among the values of fit samples that were left out, in nats.

    It uses the normal distribution with the median and the 84 % quantile of these values. Outliers among the fit
    samples hardly move them.

    Attributes
    ----------
    median, scale : float
        `scale` is the 84 % quantile minus the median, and at least the size of rounding.
    """

    median: Annotated[float, Mark.FINITE]
    scale: Annotated[float, Above(0)]

    @classmethod
    def learn(cls, values: NDArray[np.float64]) -> "Tail":
        median, upper = (float(np.quantile(values, share)) for share in (0.5, UPPER))
        # Where the values are equal up to rounding, a difference of the size of rounding must not look unusual.
        return cls(median, max(upper - median, 1e-6 * (abs(median) + float(np.abs(values).max())), 1e-300))

    def surprise(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return -log P(a normal sample has this value or a higher one); 0.69 at the median, higher = more unusual."""
        return -norm.logsf(np.clip((values - self.median) / self.scale, -FARTHEST, FARTHEST))
