"""Short trainings that the bundled encoder's recipe was chosen by.

    python -m benchmarks.bundled_encoder.trials --data CIFAR10_DIR [--images 6400] [--epochs 8]

Everything is decided on CIFAR-10's training images: encoders train on some, probes on some of those with labels, and
both are judged on 5,000 others. JEPA-SCORE is judged on sets held for tuning: those images with noise, blurred, and
with low contrast, and uniform noise. One change at a time from the recipe. Writes
benchmarks/results/encoder_trials.json after every trial, and goes on from there if it is interrupted.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.bundled_encoder.evaluate import aurocs, corrupted, linear_probe, neighbours_accuracy
from benchmarks.bundled_encoder.train import IMAGE_SIZE, MEAN, NETWORK, STD, read_class_folders, recipe
from benchmarks.common import record
from skjepa import extract, load_encoder
from skjepa.encoders.isotropy import embedding_statistics, whiten_head
from skjepa.encoders.networks import build_network
from skjepa.jacobian.volume import log_volume
from skjepa.pretraining.loop import embed, pretrain
from skjepa.scores.model import AUTO_FLOOR

OUT = record.RESULTS / "encoder_trials.json"
N_LABELLED, N_VALIDATION, N_SCORED = 5_000, 5_000, 200

TRIALS: dict[str, dict[str, Any]] = {
    "the recipe": {},
    "features of the last stage only": {"network": {"n_pooled": 1}},
    "no projector": {"projector_objective": None},
    "projector's loss at weight 1": {"projector_weight": 1.0},
    "l = 0.1": {"sigreg_weight": 0.1},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=6_400)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=list(TRIALS), default=list(TRIALS))
    arguments = parser.parse_args()
    settings = {"images": arguments.images, "epochs": arguments.epochs}
    images, labels = read_class_folders(arguments.data / "train")
    done = finished(arguments.seed, settings)
    for name in arguments.only:
        if name not in done:
            done[name] = trial(images, labels, TRIALS[name], arguments)
            print(name, done[name])
            record.write(OUT, {"trials": done}, seed=arguments.seed, **settings)


def finished(seed: int, settings: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Trials of an earlier run with the same settings."""
    if not OUT.exists():
        return {}
    earlier = json.loads(OUT.read_text())
    same = all(earlier["stamp"].get(key) == value for key, value in {"seed": seed, **settings}.items())
    return earlier["trials"] if same else {}


def trial(images: Tensor, labels: Tensor, changes: dict[str, Any], arguments: argparse.Namespace) -> dict[str, float]:
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(arguments.seed))
    seen, unseen = order[: arguments.images], order[-N_VALIDATION:]
    own = {key: value for key, value in changes.items() if key != "network"}
    config = replace(recipe(arguments.epochs, arguments.seed), **own)
    torch.manual_seed(arguments.seed)
    network = build_network("convnet", **{**NETWORK, **changes.get("network", {})})
    started = time.perf_counter()
    pretrain(network, images[seen], config, progress=True)
    seconds = time.perf_counter() - started
    labelled = seen[:N_LABELLED]
    a, b = (embed(network.features, images[part], config) for part in (labelled, unseen))  # type: ignore[arg-type]
    statistics = embedding_statistics(embed(network, images[unseen], config))
    whiten_head(network.head, embed(network, images[seen], config))  # type: ignore[arg-type]
    detection = volume_aurocs(network, images[labelled][:N_SCORED], images[unseen], arguments.seed)
    return {
        "linear_probe": round(linear_probe(a, labels[labelled], b, labels[unseen]), 4),
        "knn_20": round(neighbours_accuracy(a, labels[labelled], b, labels[unseen]), 4),
        "participation_ratio": round(statistics["participation_ratio"], 2),
        "n_components": int(statistics["n_components"]),
        "jepa_score_auroc": detection["mean"],
        "seconds": round(seconds, 1),
    }


def volume_aurocs(network: torch.nn.Module, fit: Tensor, unseen: Tensor, seed: int) -> dict[str, float]:
    """AUROC of the log-volume of unseen images against changed ones and uniform noise."""
    generator = torch.Generator().manual_seed(seed)
    sets = {"normal": unseen[:N_SCORED], **corrupted(unseen[N_SCORED : 2 * N_SCORED], generator)}
    sets["uniform noise"] = torch.randint(0, 256, fit.shape, dtype=torch.uint8, generator=generator)
    encoder = load_encoder(network, image_size=IMAGE_SIZE, mean=MEAN, std=STD)

    def spectra(pictures: Tensor):
        return extract(encoder, pictures.permute(0, 2, 3, 1).numpy()).singular_values[:, 0]

    floor = AUTO_FLOOR * float(torch.tensor(spectra(fit)[:, 0]).median())
    return aurocs({name: log_volume(spectra(pictures), floor=floor) for name, pictures in sets.items()})


if __name__ == "__main__":
    main()
