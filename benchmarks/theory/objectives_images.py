"""`objectives.py` on images: small convolutional networks, trained briefly, under every objective.

    python -m benchmarks.theory.objectives_images [--quick] [--seed 0] [--n-jobs 2] [--data FOLDER]

Normal: the demo's tiles of photographs, against its other sets; or with --data CIFAR-10 (`cifar10/{train,test}`)
against `mnist`, `fashion_mnist` and `tiny_imagenet`. Writes benchmarks/results/theory_objectives_images.json.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.common import record
from benchmarks.theory.objectives import OBJECTIVES, scored_output
from benchmarks.theory.toy import SCORES, auroc, isotropy, options, run_all, summary
from benchmarks.theory.views_images import Images, folder_images
from skjepa import extract, load_encoder
from skjepa.data.sample_images import demo_images
from skjepa.encoders.networks import build_network
from skjepa.pretraining.config import PretrainConfig
from skjepa.pretraining.loop import pretrain
from skjepa.scores.model import fit_score_model

NAME = "theory_objectives_images"
BATCH, N_COMPONENTS, N_TEST = 64, 16, 40
KINDS = {**SCORES, "joint": "joint"}


def main() -> None:
    parser = options(__doc__, NAME)
    parser.add_argument("--data", type=Path)
    chosen = parser.parse_args()
    n_seeds, steps = (2, 20) if chosen.quick else (chosen.n_seeds, 60)
    seeds = range(chosen.seed, chosen.seed + n_seeds)
    runs = run_all(image_run, [(chosen.data, steps, seed) for seed in seeds], n_jobs=chosen.n_jobs)
    settings = {"images": "CIFAR-10" if chosen.data else "tiles of photographs", "n_seeds": n_seeds, "steps": steps}
    settings |= {"n_components": N_COMPONENTS, "n_test": N_TEST, "interval": "95 %, Student's t over seeds"}
    record.write(chosen.out, {"images": summary(runs)}, seed=chosen.seed, quick=chosen.quick, **settings)


def image_run(data: Path | None, steps: int, seed: int) -> dict[str, dict[str, float]]:
    """Objective -> AUROC of normal images against each foreign set, and isotropy, for one seed."""
    images = demo_images(seed) if data is None else folder_images(data, N_TEST, seed)
    samples = torch.as_tensor(next(iter(images.values()))).permute(0, 3, 1, 2).contiguous()
    found = {}
    for objective, settings in OBJECTIVES.items():
        module = untrained(seed)
        if settings is not None:
            epochs = max(1, round(steps / (len(samples) // BATCH)))
            shared = {"batch_size": BATCH, "seed": seed, "n_watched": 0, "n_directions": 64}
            pretrain(module, samples, PretrainConfig(epochs=epochs, **shared, **settings))
        found[objective] = quality(module, scored_output(objective), images)
    return found


def untrained(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network("convnet", widths=(16, 32, 64), depths=(1, 1, 1), n_components=N_COMPONENTS)
    return network.eval()


def quality(module: nn.Module, output, images: Images) -> dict[str, float]:
    encoder = load_encoder(module, image_size=32, output=output, mean=PretrainConfig.mean, std=PretrainConfig.std)
    learned, normal, *foreign = (
        extract(encoder, pictures if i == 0 else pictures[:N_TEST]) for i, pictures in enumerate(images.values())
    )
    found = isotropy(learned.embeddings)
    for label, kind in KINDS.items():
        model = fit_score_model(learned, formula=kind, reference="knn", floor="auto", rank=None)
        high = model.score_samples(normal)
        against: list[float] = [auroc(high, model.score_samples(part)) for part in foreign]
        found |= {f"{label}: {name}": value for name, value in zip(list(images)[2:], against, strict=True)}
        found[f"{label}: mean AUROC"] = float(np.mean(against))
    return found


if __name__ == "__main__":
    main()
