"""Diagnose an encoder and its scores from normal samples alone, with measurements, findings and advice.

Neither labels nor the true density are needed. `benchmarks/theory/failures.py` produces each failure on purpose and
compares the findings with the damage to the scores.
"""

from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom
from sklearn.neighbors import NearestNeighbors

from skjepa._utils.statistics import spearman
from skjepa.encoders.isotropy import embedding_statistics
from skjepa.extraction.extraction import Extraction
from skjepa.inspection.findings import GAP, NO_SPECTRUM, Diagnosis, findings_at_fit, findings_of_new
from skjepa.scores.densities import KNNDensity
from skjepa.scores.known_rows import ROUNDING
from skjepa.scores.layered import AnyScore, LayeredScore, share_far_off

_COPIES_AT_MOST = 32
_FEWEST_FAR_OFF = 100  # samples needed to estimate a share of a few hundredths
_FEWEST = 30  # samples needed to distinguish a gap from chance
_CHANCE = 1e-3  # probability of as many gaps by chance
_N_WATCHED = 1000  # rows for the statistics of the embeddings: enough, and they take milliseconds


def diagnose(model: AnyScore, extraction: Extraction, fitted: Diagnosis | None = None) -> Diagnosis:
    """Measure samples and report what is wrong with the encoder or its scores.

    Parameters
    ----------
    model : ScoreModel or LayeredScore
        Fitted model.
    extraction : Extraction
        At least two samples, from the fit or new.
    fitted : Diagnosis, optional
        Diagnosis of the fit samples. With it, `extraction` holds new samples, which are compared with the fit samples.

    Returns
    -------
    Diagnosis

    Raises
    ------
    ValueError
        Fewer than two samples.
    """
    if len(extraction) < 2:
        raise ValueError(f"a diagnosis needs at least 2 samples; got {len(extraction)}")
    measured = Diagnosis(
        model.formula,
        len(extraction),
        extraction.embeddings.shape[1],
        **_spectrum(model, extraction),
        **_embeddings(model, extraction),
        **_scores(model, extraction, at_fit=fitted is None),
        **_views(model, extraction),
        far_off=_far_off(model, extraction) if fitted is None else 0.0,
    )
    findings = findings_at_fit(measured) if fitted is None else findings_of_new(measured, fitted)
    return replace(measured, findings=tuple(findings))


def _spectrum(model: AnyScore, extraction: Extraction) -> dict[str, Any]:
    if extraction.singular_values is None:
        return NO_SPECTRUM
    rank = extraction.numerical_rank
    counted = extraction.spectra[..., : model.rank]  # fewer than the rank where a subspace was measured
    return {
        "n_singular_values": extraction.spectra.shape[2],
        "n_views": extraction.spectra.shape[1],
        "rank": min(model.rank, extraction.spectra.shape[2]),
        "floor": float(model.floor),
        "numerical_rank": float(np.median(rank)),
        "numerical_rank_lowest": int(rank.min()),
        "numerical_rank_highest": int(rank.max()),
        "short_of_rank": float((rank < counted.shape[-1]).any(axis=1).mean()),
        "at_floor": float((counted <= model.floor).mean()),
    }


def _embeddings(model: AnyScore, extraction: Extraction) -> dict[str, Any]:
    some = extraction
    if len(extraction) > _N_WATCHED:
        some = extraction[np.sort(np.random.default_rng(0).choice(len(extraction), _N_WATCHED, replace=False))]
    z = some.embeddings
    statistics = embedding_statistics(torch.from_numpy(z))
    neighbours = KNNDensity().fit(z)
    centre = float(np.linalg.norm(z.mean(axis=0)))
    spread = float(np.sqrt(z.var(axis=0).sum()))
    fidelity = 0.0
    if some.singular_values is not None:
        volume = model.volume(some)
        fidelity = spearman(volume, volume + neighbours.score_samples(z))
    return {
        "relative_spread": spread / max(centre, 1e-3 * spread, np.finfo(float).tiny),
        "participation_ratio": statistics["participation_ratio"],
        "normality": statistics["normality"],
        "near_copies": near_copies(extraction.embeddings),
        "intrinsic_dim": neighbours.intrinsic_dim_,
        "fidelity": fidelity,
    }


def _far_off(model: AnyScore, extraction: Extraction) -> float:
    """Return the share of fit images that are far off.

    It is 0 for tables, whose clean rows have long tails as well, and where the fit left samples out already.
    """
    if not isinstance(model, LayeredScore) or extraction.is_table or len(extraction) < _FEWEST_FAR_OFF:
        return 0.0
    return 0.0 if len(model.seen.embeddings) < len(extraction) else share_far_off(extraction)


def near_copies(z: NDArray[np.float64]) -> float:
    """Return the share of samples with near copies among the embeddings.

    A sample has near copies where, after at most 32 neighbours (or a tenth of all samples), the next neighbour is `GAP`
    times as far. By chance that happens for a share of about ``GAP ** -d`` of the samples, where d is the dimension of
    the embeddings, estimated from farther neighbours. The result is 0 unless significantly more than three times that
    share have a gap.
    """
    z = distinct_rows(z)  # exact copies are reported elsewhere
    n = len(z)
    if n < _FEWEST:
        return 0.0
    some = z if n <= _N_WATCHED else z[np.random.default_rng(0).choice(n, _N_WATCHED, replace=False)]
    most = min(_COPIES_AT_MOST, max(1, n // 10))  # larger groups are classes
    search = NearestNeighbors(n_neighbors=min(4 * _COPIES_AT_MOST, n // 2)).fit(z)
    distances = search.kneighbors(some)[0][:, 1:]  # the first is the sample itself
    near = distances[:, : most + 1]
    # Distances of the size of rounding do not count as gaps; with a collapsed encoder all distances are.
    rounding = ROUNDING * (np.linalg.norm(some, axis=1, keepdims=True) + np.finfo(float).tiny)
    share = float((near[:, 1:] > GAP * np.maximum(near[:, :-1], rounding)).any(axis=1).mean())
    far, half = distances[:, -1], distances[:, distances.shape[1] // 2]
    growth = float(np.median(np.log(np.maximum(far, 1e-300)) - np.log(np.maximum(half, 1e-300))))
    dimension = np.log(distances.shape[1] / (distances.shape[1] // 2 + 1)) / growth if growth > 0 else np.inf
    by_chance = min(1.0, 3 * GAP ** -max(dimension, 1.0))
    return share if share * len(some) > binom.isf(_CHANCE, len(some), by_chance) else 0.0


def distinct_rows(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rows without repetitions, in their order."""
    whole = np.ascontiguousarray(z).view(np.dtype((np.void, z.itemsize * z.shape[1]))).ravel()
    return z[np.sort(np.unique(whole, return_index=True)[1])]


def _scores(model: AnyScore, extraction: Extraction, *, at_fit: bool) -> dict[str, Any]:
    terms = model.terms(extraction)
    scores = np.sum(list(terms.values()), axis=0)
    distinct = scores[np.unique(extraction.ids, return_index=True)[1]]  # copies of one sample must tie
    # Out-of-fold moments where they are known, because the scores of fit samples are too high.
    known = model.fit_moments if at_fit else {}
    return {
        "score_spread": float(scores.std()),
        "tied": _share_tied(distinct),
        "term_correlation": {f"{a} ~ {b}": spearman(terms[a], terms[b]) for a, b in combinations(terms, 2)},
        "decisive": max(spearman(term, scores) for term in terms.values()),
        "terms": {name: known.get(name) or model.moments(term) for name, term in terms.items()},
    }


def _views(model: AnyScore, extraction: Extraction) -> dict[str, Any]:
    if extraction.singular_values is None:
        return {}
    volumes = model.volumes(extraction)
    n_views = volumes.shape[1]
    if n_views < 2:
        return {}
    pairs = [spearman(volumes[:, a], volumes[:, b]) for a, b in combinations(range(n_views), 2)]
    return {"view_spearman": float(np.mean(pairs)), "view_icc": intraclass_correlation(volumes)}


def intraclass_correlation(values: ArrayLike) -> float:
    """Return the share of the variance that lies between samples instead of between repeats of one sample.

    It is the intraclass correlation ICC(1) of Shrout and Fleiss.

    Parameters
    ----------
    values : array of shape (n_samples, n_repeats)
        At least two samples and two repeats.

    Returns
    -------
    float
        1 where all repeats of a sample agree, about 0 where they differ as much as samples do, and 0 if nothing varies.
        It can be negative by chance.

    References
    ----------
    Shrout and Fleiss (1979), Psychological Bulletin 86(2).

    Examples
    --------
    >>> intraclass_correlation([[1.0, 1.0], [2.0, 2.0], [5.0, 5.0]])
    1.0
    """
    values = np.asarray(values, dtype=np.float64)
    repeats = values.shape[1]
    between = repeats * float(values.mean(axis=1).var(ddof=1))
    within = float(values.var(axis=1, ddof=1).mean())
    total = between + (repeats - 1) * within
    return (between - within) / total if total > 0 else 0.0


def _share_tied(scores: NDArray[np.float64]) -> float:
    # Scores count as equal up to rounding, because the equal volumes of linear encoders differ in the last digits.
    resolution = 1e-9 * (1 + float(np.abs(scores).max()))
    _, counts = np.unique(np.round(scores / resolution), return_counts=True)
    return float(counts[counts > 1].sum() / len(scores))
