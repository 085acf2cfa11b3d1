"""What the experiments on known densities share: data, small trainings, and how well a score follows log p."""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy.stats import spearmanr, t
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn.functional import normalize
from tqdm import tqdm

from benchmarks.common import record
from benchmarks.common.known_densities import distribution
from skjepa import Encoder, Extraction, extract, load_encoder
from skjepa.encoders.isotropy import embedding_statistics
from skjepa.encoders.networks import build_network
from skjepa.pretraining.augmentations import VectorViewOptions
from skjepa.pretraining.config import PretrainConfig
from skjepa.scores.model import ScoreModel, fit_score_model

TOYS = {
    "mixture, d = 2": ("mixture", 2),
    "rings": ("rings", 2),
    "moons": ("moons", 2),
    "mixture, d = 8": ("mixture", 8),
}
N_FIT, N_TEST, BATCH, WIDTHS = 1500, 1000, 128, (64, 64)
NOISE = 0.1
"""Of the views, in standard deviations of the data: about the finest structure of the toys, which
`VectorViewOptions`' .3 would blur."""
SCORES = {"JEPA-SCORE alone": "jepa", "full formula": "density"}


@dataclass(frozen=True)
class Toy:
    """Standardised float64 samples: to train and fit on, to test on with exact log p (up to a constant), and outliers.

    Outliers are uniform over the box of the fit samples; some therefore fall where p is high, and no score reaches an
    AUROC of 1: `ceiling` is that of log p itself.
    """

    fit: NDArray[np.float64]
    test: NDArray[np.float64]
    log_p: NDArray[np.float64]
    outliers: NDArray[np.float64]
    ceiling: float


def make_toy(name: str, seed: int) -> Toy:
    """Fresh samples of one of `TOYS`; the mixtures themselves are drawn anew for each seed as well."""
    kind, n_features = TOYS[name]
    p, rng = distribution(kind, n_features, seed), np.random.default_rng(seed)
    raw = p.sample(N_FIT, rng), p.sample(N_TEST, rng)
    outliers = rng.uniform(raw[0].min(axis=0), raw[0].max(axis=0), (N_TEST, n_features))
    log_p, log_p_outliers = p.log_density(raw[1]), p.log_density(outliers)
    scale = StandardScaler().fit(raw[0])
    fit, test, foreign = (scale.transform(part) for part in (*raw, outliers))
    return Toy(fit, test, log_p, foreign, auroc(log_p, log_p_outliers))


def network(n_features: int, seed: int) -> nn.Module:
    """An untrained MLP with K = 8 outputs in the plane and 2 d beyond: room to spread in, without K >> d."""
    n_components = max(8, 2 * n_features)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_network("mlp", n_features=n_features, widths=WIDTHS, n_components=n_components)


def configuration(steps: int, seed: int, **settings: Any) -> PretrainConfig:
    """Settings of a training on a toy for about `steps` steps."""
    epochs = max(1, round(steps / (N_FIT // BATCH)))
    views = VectorViewOptions(noise=NOISE)
    # 32 projections a step are enough in so few dimensions; the embeddings' statistics are taken once, at the end.
    fixed = {"n_directions": 32, "n_watched": 0, "batch_size": BATCH}
    return PretrainConfig(epochs=epochs, views=views, seed=seed, **fixed, **settings)


def tensor(X: NDArray) -> Tensor:
    return torch.as_tensor(X, dtype=torch.float32)


def on_sphere(module: nn.Module, x: Tensor) -> Tensor:
    """The output that InfoNCE compares: normalised."""
    return normalize(module(x))


def as_encoder(module: nn.Module, output: str | Callable = "auto") -> Encoder:
    """In float64: what is measured is the method and not the arithmetic."""
    return load_encoder(module, output=output, precision="float64")


def quality(encoder: Encoder, toy: Toy) -> dict[str, float]:
    """Spearman correlation with log p and AUROC against the outliers of both scores; isotropy of the fit embeddings."""
    fit, test, outliers = (extract(encoder, X) for X in (toy.fit, toy.test, toy.outliers))
    return scored_quality(fit, test, outliers, toy.log_p) | isotropy(fit.embeddings)


def score_models(fit: Extraction) -> dict[str, ScoreModel]:
    """Both scores, fitted."""
    # The smallest singular values of a toy are no noise in float64: a floor would only hide where the volume goes.
    return {
        name: fit_score_model(fit, formula=kind, reference="knn", floor=1e-12, rank=None)
        for name, kind in SCORES.items()
    }


def scored_quality(fit: Extraction, test: Extraction, outliers: Extraction, log_p: NDArray) -> dict[str, float]:
    results = {}
    for name, model in score_models(fit).items():
        normal = model.score_samples(test)
        results[f"{name}: Spearman"] = spearman(normal, log_p)
        results[f"{name}: AUROC"] = auroc(normal, model.score_samples(outliers))
    return results


def isotropy(embeddings: NDArray) -> dict[str, float]:
    """Participation ratio and total variance of the embeddings."""
    statistics = embedding_statistics(torch.as_tensor(embeddings))
    return {
        "participation ratio": statistics["participation_ratio"],
        "total variance": float(embeddings.var(axis=0).sum()),
    }


def spearman(score: NDArray, log_p: NDArray) -> float:
    """Rank correlation; 0 for a score that is constant, and orders nothing."""
    return float(spearmanr(score, log_p).statistic) if np.ptp(score) > 0 else 0.0


def auroc(normal: NDArray, outliers: NDArray) -> float:
    labels = np.repeat([1, 0], [len(normal), len(outliers)])
    return float(roc_auc_score(labels, np.concatenate([normal, outliers])))


def interval(values: Iterable[float], level: float = 0.95) -> dict[str, Any]:
    """Mean over independent runs with Student's t interval, and the values themselves."""
    values = np.asarray(list(values), dtype=np.float64)
    half = t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    mean = values.mean()
    return {"mean": float(mean), "low": float(mean - half), "high": float(mean + half), "values": values.tolist()}


def run_all(function: Callable[..., Any], tasks: list[tuple], *, n_jobs: int) -> list[Any]:
    """`function(*task)` for every task, in order, one thread each."""
    results = Parallel(n_jobs=n_jobs, return_as="generator")(delayed(_single)(function, task) for task in tasks)
    return list(tqdm(results, total=len(tasks), desc="runs"))


def _single(function: Callable[..., Any], task: tuple) -> Any:
    torch.set_num_threads(1)
    return function(*task)


def summary(runs: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """Objective -> measure -> mean and interval over the seeds."""
    return {
        objective: {measure: interval(run[objective][measure] for run in runs) for measure in measures}
        for objective, measures in runs[0].items()
    }


def options(description: str | None, name: str) -> argparse.ArgumentParser:
    """What every one of these scripts takes on the command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer seeds, toys and steps: about a minute")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n-seeds", type=int, default=5)
    parser.add_argument("--n-jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=record.RESULTS / f"{name}.json")
    parser.add_argument("--figure", type=Path, default=record.IMAGES / f"{name}.png")
    return parser


def save(figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    print(f"wrote {path}")
