"""`Judgement`: everything that a detector says of some samples, from one pass."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Judgement(NamedTuple):
    """What `score_samples`, `decision_function`, `p_values` and `predict` say of the same samples.

    Attributes
    ----------
    scores : array of shape (n_samples,)
        Higher = more normal; NaN for a skipped image.
    decisions : array of shape (n_samples,)
        Scores less the threshold: negative where a sample is flagged.
    p_values : array of shape (n_samples,) or None
        Small = unlike normal data; None for a detector without calibration samples.
    labels : array of shape (n_samples,)
        +1 normal, -1 anomalous.
    """

    scores: NDArray[np.float64]
    decisions: NDArray[np.float64]
    p_values: NDArray[np.float64] | None
    labels: NDArray[np.int64]
