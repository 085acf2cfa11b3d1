"""What can go wrong with an encoder or its scores, told from normal samples alone: measurements, findings, advice.

No labels and no true density are needed. `benchmarks/theory/failures.py` produces each failure on purpose and sets
what is found here beside what the failure does to the scores.
"""

from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.neighbors import NearestNeighbors

from skjepa._utils.statistics import spearman
from skjepa.encoders.isotropy import embedding_statistics
from skjepa.extraction.extraction import Extraction
from skjepa.inspection.findings import GAP, Diagnosis, findings_at_fit, findings_of_new
from skjepa.scores.densities import KNNDensity
from skjepa.scores.known_rows import ROUNDING
from skjepa.scores.model import ScoreModel

_COPIES_AT_MOST = 32
_FEWEST = 30  # samples to tell a gap from chance
_N_WATCHED = 1000  # enough rows for the embeddings' statistics, and milliseconds beside any fit


def diagnose(model: ScoreModel, extraction: Extraction, fitted: Diagnosis | None = None) -> Diagnosis:
    """Measure, and say what is wrong.

    Parameters
    ----------
    model : ScoreModel
        Fitted.
    extraction : Extraction
        Of at least two samples: those of the fit, or new ones.
    fitted : Diagnosis, optional
        Of the fit samples, with which new ones are then compared.

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
        extraction.singular_values.shape[2],
        extraction.singular_values.shape[1],
        min(model.rank, extraction.singular_values.shape[2]),
        float(model.floor),
        **_spectrum(model, extraction),
        **_embeddings(model, extraction),
        **_scores(model, extraction, at_fit=fitted is None),
        **_views(model, extraction),
    )
    findings = findings_at_fit(measured) if fitted is None else findings_of_new(measured, fitted)
    return replace(measured, findings=tuple(findings))


def _spectrum(model: ScoreModel, extraction: Extraction) -> dict[str, Any]:
    rank = extraction.numerical_rank
    counted = extraction.singular_values[..., : model.rank]  # in a subspace fewer
    return {
        "numerical_rank": float(np.median(rank)),
        "numerical_rank_lowest": int(rank.min()),
        "numerical_rank_highest": int(rank.max()),
        "short_of_rank": float((rank < counted.shape[-1]).any(axis=1).mean()),
        "at_floor": float((counted <= model.floor).mean()),
    }


def _embeddings(model: ScoreModel, extraction: Extraction) -> dict[str, Any]:
    some = extraction
    if len(extraction) > _N_WATCHED:
        some = extraction[np.sort(np.random.default_rng(0).choice(len(extraction), _N_WATCHED, replace=False))]
    z, volume = some.embeddings, model.volume(some)
    statistics = embedding_statistics(torch.from_numpy(z))
    neighbours = KNNDensity().fit(z)
    centre = float(np.linalg.norm(z.mean(axis=0)))
    spread = float(np.sqrt(z.var(axis=0).sum()))
    return {
        "relative_spread": spread / max(centre, 1e-3 * spread, np.finfo(float).tiny),
        "participation_ratio": statistics["participation_ratio"],
        "normality": statistics["normality"],
        "near_copies": near_copies(extraction.embeddings),
        "intrinsic_dim": neighbours.intrinsic_dim_,
        "fidelity": spearman(volume, volume + neighbours.score_samples(z)),
    }


def near_copies(z: NDArray[np.float64]) -> float:
    """Share of the samples with near copies: after at most 32 others (a tenth of all) the next is `GAP` times as far.

    By chance that is so for a share of about ``GAP ** -d`` where embeddings fill d dimensions, told from neighbours
    farther away; 0 where no more than three times that share has a gap.
    """
    n = len(z)
    if n < _FEWEST:
        return 0.0
    some = z if n <= _N_WATCHED else z[np.random.default_rng(0).choice(n, _N_WATCHED, replace=False)]
    most = min(_COPIES_AT_MOST, max(1, n // 10))  # larger groups are classes
    search = NearestNeighbors(n_neighbors=min(4 * _COPIES_AT_MOST, n // 2)).fit(z)
    distances = search.kneighbors(some)[0][:, 1:]  # the first is the sample itself
    near = distances[:, : most + 1]
    # Distances of rounding are no gap: of a collapsed encoder all are.
    rounding = ROUNDING * (np.linalg.norm(some, axis=1, keepdims=True) + np.finfo(float).tiny)
    share = float((near[:, 1:] > GAP * np.maximum(near[:, :-1], rounding)).any(axis=1).mean())
    far, half = distances[:, -1], distances[:, distances.shape[1] // 2]
    growth = float(np.median(np.log(np.maximum(far, 1e-300)) - np.log(np.maximum(half, 1e-300))))
    dimension = np.log(distances.shape[1] / (distances.shape[1] // 2 + 1)) / growth if growth > 0 else np.inf
    return share if share > 3 * GAP ** -max(dimension, 1.0) else 0.0


def _scores(model: ScoreModel, extraction: Extraction, *, at_fit: bool) -> dict[str, Any]:
    terms = model.terms(extraction)
    scores = np.sum(list(terms.values()), axis=0)
    distinct = scores[np.unique(extraction.ids, return_index=True)[1]]  # copies of one sample tie rightly
    return {
        "score_spread": float(scores.std()),
        "tied": _share_tied(distinct),
        "term_correlation": {f"{a} ~ {b}": spearman(terms[a], terms[b]) for a, b in combinations(terms, 2)},
        "decisive": max(spearman(term, scores) for term in terms.values()),
        "terms": {
            # Out of fold, where that is known: what a model says of samples it has seen is flattering.
            name: (0.0, model.weight[name] * model.scale[name])
            if at_fit and name in model.weight and np.isfinite(model.scale[name])
            else (float(term.mean()), float(term.std()))
            for name, term in terms.items()
        },
    }


def _views(model: ScoreModel, extraction: Extraction) -> dict[str, Any]:
    volumes = model.volumes(extraction)
    n_views = volumes.shape[1]
    if n_views < 2:
        return {}
    pairs = [spearman(volumes[:, a], volumes[:, b]) for a, b in combinations(range(n_views), 2)]
    return {"view_spearman": float(np.mean(pairs)), "view_icc": intraclass_correlation(volumes)}


def intraclass_correlation(values: ArrayLike) -> float:
    """Share of the variance that lies between samples and not between repeats of one: ICC(1) of Shrout and Fleiss.

    Parameters
    ----------
    values : array of shape (n_samples, n_repeats)
        At least two of each.

    Returns
    -------
    float
        1 where all repeats of a sample agree, about 0 where they are as different as samples are; 0 if nothing varies.

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
    # Equal up to rounding: linear encoders give equal volumes that differ in the last digits.
    resolution = 1e-9 * (1 + float(np.abs(scores).max()))
    _, counts = np.unique(np.round(scores / resolution), return_counts=True)
    return float(counts[counts > 1].sum() / len(scores))
