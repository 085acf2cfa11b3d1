"""Failures on purpose, what they do to the scores, and what `detector.diagnose()` says of them.

    python -m benchmarks.theory.failures [--quick] [--seed 0] [--spectra FILE]

Vectors: small MLPs on a mixture with exact log p, collapsed and not, several seeds of each. Images: the bundled encoder
on the demo's tiles, with outputs that lose rank, trained on without a term against collapse, and with random views.
FILE is an .npz of singular values (n, K) of larger encoders, to see that healthy ones raise no alarm. Fit, test and
foreign samples are disjoint. Writes benchmarks/results/theory_failures.json and docs/images/theory_failures.png.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import layer_norm, normalize, relu
from torchvision.transforms import v2

from benchmarks.common import record
from benchmarks.theory.failures_figure import draw
from benchmarks.theory.toy import (
    Toy,
    as_encoder,
    auroc,
    configuration,
    make_toy,
    network,
    on_sphere,
    options,
    spearman,
    tensor,
)
from skjepa import Encoder, Extraction, JEPAScoreDetector, extract, load_encoder
from skjepa.data.sample_images import demo_images
from skjepa.encoders.networks import read_network
from skjepa.extraction.batches.views import default_transform
from skjepa.inspection import findings
from skjepa.inspection.seeds import seed_agreement
from skjepa.pretraining.augmentations import ViewOptions
from skjepa.pretraining.loop import PretrainConfig, pretrain

NAME, TOY = "theory_failures", "mixture, d = 2"
BUNDLED = Path(findings.__file__).parent / "bundled" / "encoder.safetensors"
SCORES = ("jepa", "density", "joint")

TRAININGS: dict[str, dict[str, Any] | None] = {
    "healthy (InfoNCE)": {"objective": "info_nce"},
    "untrained": None,
    "SIGReg, weight 1e-5": {"objective": "sigreg", "sigreg_weight": 1e-5},
    "invariance alone": {"objective": "invariance"},
}

OUTPUTS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "then LayerNorm, gain 16": lambda module, x: 16 * layer_norm(module(x), (64,)),
    "then L2 normalisation": lambda module, x: normalize(module(x), dim=1),
    "then ReLU": lambda module, x: relu(module(x)),
}

TRANSFORMS = {
    "mild views": default_transform((32, 32)),
    "violent views": v2.Compose(
        [
            v2.RandomResizedCrop((32, 32), scale=(0.02, 0.2), antialias=True),
            v2.ColorJitter(0.8, 0.8, 0.8, 0.4),
            v2.RandomGrayscale(0.3),
        ]
    ),
}


def main() -> None:
    parser = options(__doc__, NAME)
    parser.set_defaults(n_seeds=3)
    parser.add_argument("--spectra", type=Path, help="singular values (n, K) of larger encoders, by name")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.n_jobs)
    n_seeds, steps, largest = (2, 150, 40) if chosen.quick else (chosen.n_seeds, 600, 120)
    results: dict[str, Any] = {"limits": limits()}
    results["vectors"], results["seeds"] = vectors(chosen.seed, n_seeds, steps)
    images = {name: part[: largest // (1 if name == "fit" else 2)] for name, part in demo_images(chosen.seed).items()}
    bundled = extracted(load_encoder("bundled"), images)
    results["images"] = {"bundled (healthy)": judged_images(bundled), **outputs(images)}
    results["images"]["trained on, invariance alone"] = collapsed(images, chosen)
    results["views"] = {name: views(images, transform, chosen.seed) for name, transform in TRANSFORMS.items()}
    results["healthy"] = healthy(bundled, chosen.spectra)
    record.write(chosen.out, results, seed=chosen.seed, quick=chosen.quick, n_seeds=n_seeds, steps=steps)
    draw(results, chosen.figure)


def limits() -> dict[str, float]:
    """The limits that the findings went by."""
    return {name: value for name, value in vars(findings).items() if name.isupper() and not name.startswith("_")}


def vectors(seed: int, n_seeds: int, steps: int) -> tuple[dict, dict]:
    """Every training under several seeds, on one toy: each measured, and their agreement."""
    toy = make_toy(TOY, seed)
    measured: dict[str, list] = {}
    agreement = {}
    for name, settings in TRAININGS.items():
        scores = {}
        for own in range(seed, seed + n_seeds):
            encoder = trained(toy, settings, own, steps)
            row, scores[own] = judged_vectors(encoder, toy)
            measured.setdefault(name, []).append(row)
            print(f"{name}, seed {own}: {row['spearman']} {names(row['diagnoses']['jepa'])}")
        agreement[name] = seed_agreement(scores).to_dict()
    return measured, agreement


def trained(toy: Toy, settings: dict[str, Any] | None, seed: int, steps: int) -> Encoder:
    module = network(toy.fit.shape[1], seed)
    if settings is None:
        return as_encoder(module)
    pretrain(module, tensor(toy.fit), configuration(steps, seed, **settings))
    return as_encoder(module, on_sphere if settings["objective"] == "info_nce" else "auto")


def judged_vectors(encoder: Encoder, toy: Toy) -> tuple[dict[str, Any], NDArray]:
    """Spearman with log p of every score, and its diagnosis; and the scores of JEPA-SCORE alone."""
    fit, test = extract(encoder, toy.fit), extract(encoder, toy.test)
    detectors = {score: JEPAScoreDetector(formula=score).fit(fit) for score in SCORES}
    scores = {score: detector.score_samples(test) for score, detector in detectors.items()}
    row = {
        "spearman": {score: spearman(values, toy.log_p) for score, values in scores.items()},
        "diagnoses": {score: detector.diagnose().to_dict() for score, detector in detectors.items()},
        "eigenvalues": eigenvalues(fit.embeddings),
    }
    return row, scores["jepa"]


def outputs(images: dict[str, NDArray]) -> dict[str, dict]:
    """The bundled encoder with outputs that lose rank, as those of many pretrained encoders do."""
    encoders = {name: load_encoder("bundled", output=output) for name, output in OUTPUTS.items()}
    return {name: judged_images(extracted(encoder, images)) for name, encoder in encoders.items()}


def extracted(encoder: Encoder, images: dict[str, NDArray], **settings: Any) -> dict[str, Extraction]:
    return {name: extract(encoder, part, **settings) for name, part in images.items()}


def collapsed(images: dict[str, NDArray], chosen) -> dict[str, Any]:
    """The bundled encoder after some epochs on the fit images under the invariance term alone."""
    module, about = read_network(BUNDLED)
    samples = torch.from_numpy(images["fit"]).permute(0, 3, 1, 2)
    mean, std = about["mean"], about["std"]
    config = PretrainConfig(
        epochs=2 if chosen.quick else 12,
        batch_size=16,
        learning_rate=5e-3,
        objective="invariance",
        views=ViewOptions(),
        mean=tuple(mean),
        std=tuple(std),
        precision="float32",
        seed=chosen.seed,
    )
    history = pretrain(module, samples, config)
    judged = judged_images(extracted(load_encoder(module, image_size=32, mean=mean, std=std), images))
    return {**judged, "eigenvalue_max by epoch": [epoch["eigenvalue_max"] for epoch in history]}


def judged_images(parts: dict[str, Extraction]) -> dict[str, Any]:
    """AUROC against each foreign set, and the diagnosis: the paper's floor, the rank advised, and the default."""
    lowest = int(parts["fit"].numerical_rank.min())
    settings = {
        "JEPA-SCORE, floor 1e-6": {"formula": "jepa", "floor": 1e-6},
        "JEPA-SCORE, rank as advised": {"formula": "jepa", "floor": 1e-6, "rank": max(lowest, 1)},
        "JEPA-SCORE": {"formula": "jepa"},
        "joint": {"formula": "joint"},
    }
    judged = {name: judged_detector(JEPAScoreDetector(**options), parts) for name, options in settings.items()}
    print({name: (row["auroc"], names(row["diagnosis"])) for name, row in judged.items()})
    spectrum = parts["fit"].singular_values[:, 0]
    return {
        "detectors": judged,
        "spectrum": np.median(spectrum, axis=0).tolist(),
        "noise": 10 * parts["fit"].eps * float(np.median(spectrum[:, 0])),
        "eigenvalues": eigenvalues(parts["fit"].embeddings),
    }


def judged_detector(detector: JEPAScoreDetector, parts: dict[str, Extraction]) -> dict[str, Any]:
    detector.fit(parts["fit"])
    normal = detector.score_samples(parts["photographs"])
    others = {name: part for name, part in parts.items() if name not in ("fit", "photographs")}
    return {
        "auroc": {name: auroc(normal, detector.score_samples(part)) for name, part in others.items()},
        "diagnosis": detector.diagnose().to_dict(),
        "new samples": {
            name: names(detector.diagnose(part).to_dict()) for name, part in parts.items() if name != "fit"
        },
    }


def views(images: dict[str, NDArray], transform: Callable, seed: int) -> dict[str, Any]:
    """JEPA-SCORE of random views; half of the images, for each costs as many passes as it has views."""
    half = {name: part[: (len(part) + 1) // 2] for name, part in images.items()}
    parts = extracted(load_encoder("bundled"), half, views=3, transform=transform, random_state=seed)
    row = judged_detector(JEPAScoreDetector(formula="jepa"), parts)
    print(row["auroc"], names(row["diagnosis"]))
    volumes = np.log(np.maximum(parts["fit"].singular_values, row["diagnosis"]["floor"]))[
        ..., : row["diagnosis"]["rank"]
    ]
    return {**row, "two views": volumes.sum(axis=-1)[:, :2].T.tolist()}


def healthy(bundled: dict[str, Extraction], spectra: Path | None) -> dict[str, Any]:
    """Diagnoses of detectors with nothing wrong: the bundled encoder fitted on one kind of image after the other, and
    the spectra of larger encoders."""
    found = {
        f"bundled, fitted on {name}": JEPAScoreDetector().fit(part).diagnose().to_dict()
        for name, part in bundled.items()
    }
    if spectra is not None:
        with np.load(spectra) as file:
            found |= {name.replace("__", ", "): spectral(file[name]) for name in file}
    return found


def spectral(singular_values: NDArray) -> dict[str, Any]:
    """Only what the spectrum tells: the embeddings are not there, and are taken to be isotropic."""
    n = len(singular_values)
    z = np.random.default_rng(0).normal(size=(n, 16))
    ids = np.arange(n).astype(str)
    extraction = Extraction(z, singular_values.astype(np.float64)[:, None], ids, {"precision": "float32"})
    diagnosis = JEPAScoreDetector(formula="jepa").fit(extraction).diagnose().to_dict()
    known = ("n_samples", "n_singular_values", "rank", "floor", "at_floor", "short_of_rank", "tied", "score_spread")
    known += ("numerical_rank", "numerical_rank_lowest", "numerical_rank_highest", "findings")
    return {name: diagnosis[name] for name in known}


def eigenvalues(embeddings: NDArray) -> list[float]:
    """Of the covariance, descending, as shares of their sum."""
    values = np.clip(np.linalg.eigvalsh(np.atleast_2d(np.cov(embeddings.T)))[::-1], 0, None)
    return (values / max(values.sum(), np.finfo(float).tiny)).tolist()


def names(diagnosis: dict[str, Any]) -> list[str]:
    return [finding["name"] for finding in diagnosis["findings"]]


if __name__ == "__main__":
    main()
