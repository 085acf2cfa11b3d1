"""Measure how well encoders that were trained with different seeds agree on the scores."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from skjepa._utils.statistics import spearman
from skjepa.inspection.findings import SEEDS_AGREE, Finding, seeds_disagree


@dataclass(frozen=True)
class SeedAgreement:
    """Hold the agreement of the scores by encoders that were trained with different seeds, on the same samples.

    Attributes
    ----------
    n_samples : int
        Number of samples with a score under every seed.
    seeds : tuple of str
    correlation : tuple of tuples
        Spearman correlation of the scores, (n_seeds, n_seeds).
    mean, lowest : float
        Mean and lowest correlation over pairs of seeds.
    findings : tuple of Finding
        Empty where the seeds agree.
    """

    n_samples: int
    seeds: tuple[str, ...]
    correlation: tuple[tuple[float, ...], ...]
    mean: float
    lowest: float
    findings: tuple[Finding, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the agreement as a dict that JSON can hold."""
        return asdict(self)

    def __str__(self) -> str:
        summary = (
            f"{len(self.seeds)} seeds, {self.n_samples} samples: Spearman {self.mean:.2f}, lowest {self.lowest:.2f}"
        )
        return "\n".join([summary, *(str(finding) for finding in self.findings)])


def seed_agreement(scores_by_seed: Mapping[Any, ArrayLike] | ArrayLike) -> SeedAgreement:
    """Measure whether encoders that differ in their seed alone rank samples alike.

    Parameters
    ----------
    scores_by_seed : mapping of seed -> (n_samples,), or array of shape (n_seeds, n_samples)
        Scores of the same samples under each seed. Samples with NaN under any seed are left out.

    Returns
    -------
    SeedAgreement

    Raises
    ------
    ValueError
        There are fewer than two seeds or three samples, or the scores differ in length.

    Examples
    --------
    >>> print(seed_agreement({0: [1.0, 2.0, 3.0, 4.0], 1: [1.0, 2.0, 4.0, 9.0]}))
    2 seeds, 4 samples: Spearman 1.00, lowest 1.00
    """
    if not isinstance(scores_by_seed, Mapping):
        scores_by_seed = dict(enumerate(np.asarray(scores_by_seed, dtype=np.float64)))
    rows = {str(seed): np.asarray(scores, dtype=np.float64).ravel() for seed, scores in scores_by_seed.items()}
    lengths = {len(scores) for scores in rows.values()}
    if len(rows) < 2 or len(lengths) > 1:
        raise ValueError(
            f"scores_by_seed needs scores of the same samples under at least 2 seeds; got {len(rows)} seeds with "
            f"{', '.join(map(str, sorted(lengths))) or 'no'} samples"
        )
    scores = np.array(list(rows.values()))
    scores = scores[:, np.isfinite(scores).all(axis=0)]
    if scores.shape[1] < 3:
        raise ValueError(
            f"scores_by_seed needs at least 3 samples with a score under every seed; got {scores.shape[1]}"
        )
    correlation = np.eye(len(scores))
    pairs = list(combinations(range(len(scores)), 2))
    for a, b in pairs:
        correlation[a, b] = correlation[b, a] = spearman(scores[a], scores[b])
    values = [correlation[pair] for pair in pairs]
    mean, lowest = float(np.mean(values)), float(np.min(values))
    findings = (seeds_disagree(mean, lowest),) if mean < SEEDS_AGREE else ()
    matrix = tuple(tuple(map(float, row)) for row in correlation)
    return SeedAgreement(scores.shape[1], tuple(rows), matrix, mean, lowest, findings)
