"""Few rows against many features: is the default turned upside down by a network that knows its rows by heart?

    python -m benchmarks.accuracy.few_rows            # four minutes on one core

Rows of three kinds, n of d features: independent ones, a few hidden factors with noise, four clusters. New normal rows
and outliers (rows 1.6 times as wide; columns shuffled; mixtures of two clusters) are scored by the default, which
trains a network where rows are enough, by the same with a network always, and by the shortcut alone. Written are AUROC
and the share of new normal rows flagged at `contamination=0.1`, for each kind, size and seed.
"""

import argparse
import warnings
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from benchmarks.common.record import RESULTS, write
from skjepa import JEPAScoreDetector, VectorJEPA

SEED = 0
SIZES = [(n, d) for d in (2, 10, 50, 100, 200, 500) for n in (20, 50, 200, 500)]
N_NEW = 200
FORMS: dict[str, Callable[[int], VectorJEPA]] = {
    "default": lambda n: VectorJEPA(),
    "network always": lambda n: VectorJEPA(n_steps=max(100, n // 10)),
    "no network": lambda n: VectorJEPA(n_steps=0),
}

Rows = NDArray[np.float64]


def independent(n: int, d: int, rng: np.random.Generator) -> tuple[Rows, Rows, Rows]:
    return rng.normal(size=(n, d)), rng.normal(size=(N_NEW, d)), 1.6 * rng.normal(size=(N_NEW, d))


def factors(n: int, d: int, rng: np.random.Generator) -> tuple[Rows, Rows, Rows]:
    loadings = rng.normal(size=(min(5, max(1, d // 2)), d))

    def draw(m: int) -> Rows:
        return np.tanh(rng.normal(size=(m, len(loadings)))) @ loadings + 0.3 * rng.normal(size=(m, d))

    return draw(n), draw(N_NEW), rng.permuted(draw(N_NEW), axis=0)


def clusters(n: int, d: int, rng: np.random.Generator) -> tuple[Rows, Rows, Rows]:
    centres = 3 * rng.normal(size=(4, d))

    def draw(m: int) -> Rows:
        return centres[rng.integers(0, 4, m)] + rng.normal(size=(m, d))

    between = (centres[rng.integers(0, 4, N_NEW)] + centres[rng.integers(0, 4, N_NEW)]) / 2
    return draw(n), draw(N_NEW), between + 1.2 * rng.normal(size=(N_NEW, d))


KINDS = {"independent": independent, "factors": factors, "clusters": clusters}


def measured(kind: str, n: int, d: int, seed: int) -> list[dict]:
    X, normal, odd = KINDS[kind](n, d, np.random.default_rng([seed, n, d]))
    found = []
    for form, make in FORMS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of few rows: that is the question
            detector = JEPAScoreDetector(make(n), contamination=0.1, random_state=seed).fit(X)
            scores = detector.score_samples(np.concatenate([normal, odd]))
        auroc = roc_auc_score(np.repeat([1, 0], N_NEW), scores)
        flagged = (scores[:N_NEW] < detector.offset_).mean()
        found.append(
            {"kind": kind, "n": n, "d": d, "seed": seed, "form": form, "auroc": float(auroc), "flagged": float(flagged)}
        )
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, default=3)
    seeds = options.parse_args().seeds
    torch.set_num_threads(1)
    cases = [
        case
        for n, d in SIZES
        for kind in KINDS
        for seed in range(SEED, SEED + seeds)
        for case in measured(kind, n, d, seed)
    ]
    write(RESULTS / "few_rows.json", {"cases": cases}, seed=SEED, seeds=seeds)


if __name__ == "__main__":
    main()
