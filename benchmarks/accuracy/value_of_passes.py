"""What do the terms of the Jacobian add once hidden layers are read? AUROC at 0, 4, 16 and K backward passes per image.

    python -m benchmarks.accuracy.value_of_passes --data FOLDER [--encoder vicreg.safetensors] [--quick]

FOLDER is that of benchmarks.accuracy.images; the sets are its eight foreign ones and its five blind corruptions, drawn
with another seed. One fit on CIFAR-10 training images; judged are test images against each set. Measured are

- the default with the forward pass alone, and with 4 and 16 random directions of the output and with all K of them;
- the forward pass and 8 random directions at the ends of each of the last three stages (`skjepa.extract_layers`): for
  each stage log q(s given z) and log q(sigma given z) with z the pooled output of that stage, in the place and with the
  weight of the output's terms.

Intervals are of the difference to the forward pass, 95 %, by a bootstrap of the normal images and those of the set.
Writes benchmarks/results/value_of_passes.json (or --out).
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from benchmarks.accuracy.images import Sets, Sizes
from benchmarks.common import record
from benchmarks.common.image_sets import Images, folders_of
from skjepa import Encoder, Extraction, JEPAScoreDetector, extract, extract_layers, load_encoder
from skjepa.scores.densities import ConditionalDensity, SpectrumDensity
from skjepa.scores.layered import VOLUME_WEIGHT, Tail
from skjepa.scores.model import AUTO_FLOOR

OUT = record.RESULTS / "value_of_passes.json"
PASSES = (4, 16)
HIDDEN = ("stage 2", "stage 3", "stage 4")
N_HIDDEN = 8
FULL, QUICK = Sizes(1000, 0, 600, 250), Sizes(200, 0, 100, 40)
FORWARD = "forward pass alone"
Scores = dict[str, NDArray[np.float64]]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--encoder", default="bundled")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--resamples", type=int, default=500)
    options.add_argument("--quick", action="store_true", help="few images: a minute")
    options.add_argument("--out", type=Path, default=OUT)
    chosen = options.parse_args()
    with folders_of(chosen.data) as folder:
        sets = Sets(folder, QUICK if chosen.quick else FULL, chosen.seed, None)
        groups = {"fit": sets.normal["fit"], "test": sets.normal["test"], **sets.outliers, **sets.blind}
        encoder = load_encoder(chosen.encoder)
        scores = {f"{m} passes": of_output(encoder, groups, method="sketch", n_directions=m) for m in PASSES}
        exact = {name: extract(encoder, images) for name, images in groups.items()}
    scores = {
        FORWARD: judged({name: passed.forward_only() for name, passed in exact.items()}),
        **scores,
        f"{exact['fit'].spectra.shape[2]} passes": judged(exact),
    }
    scores[f"{N_HIDDEN * len(HIDDEN)} passes at hidden stages"] = of_hidden(encoder, groups, scores[FORWARD])
    results = {
        "sets": {name: compared(scores, name, chosen.resamples) for name in groups if name not in ("fit", "test")},
        "foreign": list(sets.outliers),
        "blind": list(sets.blind),
    }
    record.write(chosen.out, results, seed=chosen.seed, encoder=chosen.encoder, quick=chosen.quick)
    for way in scores:
        mean = {
            kind: np.mean([results["sets"][s][way]["auroc"] for s in results[kind]]) for kind in ("foreign", "blind")
        }
        print(f"{way:32}{mean['foreign']:8.3f}{mean['blind']:8.3f}")


def of_output(encoder: Encoder, groups: dict[str, Images], **how: Any) -> Scores:
    """Scores of the default from passes of the output."""
    return judged({name: extract(encoder, images, random_state=0, **how) for name, images in groups.items()})


def judged(passes: dict[str, Extraction]) -> Scores:
    detector = JEPAScoreDetector().fit(passes["fit"])
    return {name: detector.score_samples(passed) for name, passed in passes.items() if name != "fit"}


def of_hidden(encoder: Encoder, groups: dict[str, Images], forward: Scores) -> Scores:
    """Scores of the forward pass, and the terms of the Jacobians of hidden stages, as those of the output are added."""
    paths = [encoder.module.stages[name] for name in HIDDEN]
    passes = {name: extract_layers(encoder, images, paths, n_directions=N_HIDDEN) for name, images in groups.items()}
    terms = [term for path in paths for term in volume_terms(passes["fit"][path], path)]
    return {
        name: scores - VOLUME_WEIGHT * np.mean([term(passes[name]) for term in terms], axis=0)
        for name, scores in forward.items()
    }


def volume_terms(fit: Extraction, path: str) -> list[Callable[[dict[str, Extraction]], NDArray[np.float64]]]:
    """How unusual s given z and sigma given z of one stage are, as functions of the extractions of all stages."""
    floor = AUTO_FLOOR * float(np.median(fit.spectra[..., 0]))

    def logs(passed: Extraction) -> NDArray[np.float64]:
        return np.log(np.maximum(passed.spectra[:, 0], floor))

    z, log_sigma = fit.embeddings, logs(fit)
    volume, spectrum = ConditionalDensity().fit(z, log_sigma.sum(axis=1)), SpectrumDensity().fit(z, log_sigma)
    tails = [Tail.learn(-density.fit_scores_) for density in (volume, spectrum)]

    def of_volume(passes: dict[str, Extraction]) -> NDArray[np.float64]:
        passed = passes[path]
        return tails[0].surprise(-volume.score_samples(passed.embeddings, logs(passed).sum(axis=1)))

    def of_spectrum(passes: dict[str, Extraction]) -> NDArray[np.float64]:
        passed = passes[path]
        return tails[1].surprise(-spectrum.score_samples(passed.embeddings, logs(passed)))

    return [of_volume, of_spectrum]


def compared(scores: dict[str, Scores], name: str, n_resamples: int) -> dict[str, dict[str, float]]:
    """AUROC on one set by every way of passing, and its lead over the forward pass with an interval."""
    rng = np.random.default_rng(0)
    drawn = [
        (rng.integers(len(by["test"]), size=len(by["test"])), rng.integers(len(by[name]), size=len(by[name])))
        for by in [scores[FORWARD]] * n_resamples
    ]

    def aurocs(by: Scores) -> NDArray[np.float64]:
        return np.array([auroc(by["test"][normal], by[name][odd]) for normal, odd in drawn])

    base = aurocs(scores[FORWARD])
    found = {}
    for way, by in scores.items():
        low, high = np.quantile(aurocs(by) - base, [0.025, 0.975])
        value = auroc(by["test"], by[name])
        lead = value - auroc(scores[FORWARD]["test"], scores[FORWARD][name])
        found[way] = {"auroc": value, "lead": lead, "low": float(low), "high": float(high)}
    return found


def auroc(normal: NDArray[np.float64], odd: NDArray[np.float64]) -> float:
    return float(roc_auc_score(np.repeat([1, 0], [len(normal), len(odd)]), np.concatenate([normal, odd])))


if __name__ == "__main__":
    main()
