"""Provide `Judgement`, all results of a detector for some samples from one pass."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Judgement(NamedTuple):
    """Hold scores, decisions, p-values and labels of the same samples.

    They equal the results of `score_samples`, `decision_function`, `p_values` and `predict`.

    Attributes
    ----------
    scores : array of shape (n_samples,)
        Higher = more normal; NaN for an image that could not be read.
    decisions : array of shape (n_samples,)
        Scores minus the threshold: negative where a sample is flagged.
    p_values : array of shape (n_samples,) or None
        In (0, 1], small = unlike normal data; None for a detector without calibration samples.
    labels : array of shape (n_samples,)
        +1 = normal, -1 = anomalous.
    """

    scores: NDArray[np.float64]
    decisions: NDArray[np.float64]
    p_values: NDArray[np.float64] | None
    labels: NDArray[np.int64]
