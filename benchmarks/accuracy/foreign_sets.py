"""Does the learned score beat JEPA-SCORE, Mahalanobis and kNN? Leak-free, one shared extraction for all scores.

    python -m benchmarks.accuracy.foreign_sets --data FOLDER [--encoder NAME] [--output LAYER]

FOLDER holds cifar10.zip, mnist.zip, fashion_mnist.zip and tiny_imagenet.zip (folders of images,
`cifar10/{train,test}/...`). Two suites: CIFAR-10 is normal, every score is fitted on its training images and judged on
its test images against the other sets; and the demo's tiles of photographs against its scans, terrain and digits.

Controls, outside the mean: the CIFAR sets once more "re-encoded", both sides through one JPEG compression, for CIFAR
here is JPEG and the others PNG. Writes benchmarks/results/foreign_sets.json (or --out).
"""

import argparse
import io
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.stats import spearmanr

from benchmarks.common import record
from skjepa import Encoder, Extraction, KNNDetector, MahalanobisDetector, extract, load_encoder
from skjepa.data.images import read_image
from skjepa.data.sample_images import demo_images
from skjepa.data.sources import folder_source
from skjepa.detectors.complexity import bits_per_pixel
from skjepa.evaluation.metrics import detection_metrics
from skjepa.jacobian.volume import combine_views, log_volume
from skjepa.scores.layered import fit_score
from skjepa.scores.model import fit_score_model

OUT = record.RESULTS / "foreign_sets.json"
NORMAL_FIT, NORMAL_TEST = "cifar10/train", "cifar10/test"
FOREIGN = ("mnist", "fashion_mnist", "tiny_imagenet")
CONTROL = " re-encoded"
JPEG_QUALITY = 75
COMPLEXITY = "bits per pixel"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--encoder", default="bundled")
    options.add_argument("--output", default="auto")
    options.add_argument("--n-fit", type=int, default=1000)
    options.add_argument("--n-test", type=int, default=400)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--store", type=Path, help="keep finished images here, and resume")
    options.add_argument("--out", type=Path, default=OUT)
    chosen = options.parse_args()
    encoder = load_encoder(chosen.encoder, output=chosen.output)
    with tempfile.TemporaryDirectory() as folder:
        cifar = read_sets(chosen.data, Path(folder), chosen.n_fit, chosen.n_test, chosen.seed)
    photographs = demo_images(chosen.seed)
    results, complexity = judge(encoder, cifar, NORMAL_FIT, NORMAL_TEST, chosen.store)
    more, more_complexity = judge(encoder, photographs, "fit", "photographs", chosen.store)
    report(chosen, encoder, results | more, complexity | more_complexity)


def judge(
    encoder: Encoder, images: dict, fit: str, normal: str, store: Path | None
) -> tuple[dict[str, dict], dict[str, float]]:
    """Foreign set -> rival -> metrics, for one suite; and normal set -> Spearman of JEPA-SCORE and bits per pixel."""
    passes = {
        name: extract(encoder, pictures, progress=True, store=store and store / name.replace("/", "-"))
        for name, pictures in images.items()
    }
    scores = {
        name: score(passes[fit], passed) | {COMPLEXITY: -bits_per_pixel(images[name])}
        for name, passed in passes.items()
        if name != fit
    }
    results = {}
    for name in scores:
        if not name.startswith(normal):
            unseen = scores[normal + CONTROL if name.endswith(CONTROL) else normal]
            results[name] = {rival: detection_metrics(unseen[rival], scores[name][rival]) for rival in unseen}
    simplicity = spearmanr(scores[normal]["skjepa jepa"], scores[normal][COMPLEXITY]).statistic
    return results, {normal: -float(simplicity)}


def read_sets(data: Path, folder: Path, n_fit: int, n_test: int, seed: int) -> dict[str, list[Image.Image]]:
    """Random images of every set, and the test images once more through one JPEG compression."""
    rng = np.random.default_rng(seed)
    for name in ("cifar10", *FOREIGN):
        with zipfile.ZipFile(data / f"{name}.zip") as archive:
            archive.extractall(folder)
    images = {}
    for name, n in {NORMAL_FIT: n_fit, NORMAL_TEST: n_test, **dict.fromkeys(FOREIGN, n_test)}.items():
        ids = folder_source(folder / name).ids
        images[name] = [read_image(folder / name / chosen) for chosen in rng.choice(ids, n, replace=False)]
    for name in (NORMAL_TEST, *FOREIGN):
        images[name + CONTROL] = [reencoded(image) for image in images[name]]
    return images


def reencoded(image: Image.Image) -> Image.Image:
    """The image at 32 pixels through JPEG."""
    buffer = io.BytesIO()
    image.resize((32, 32), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return Image.open(buffer).convert("RGB")


def score(fit: Extraction, test: Extraction) -> dict[str, np.ndarray]:
    """Every rival's score of the test samples, learned from the fit samples alone; higher = more normal."""
    settings: dict[str, Any] = {"reference": "knn", "floor": "auto", "rank": None}
    forward, tested = fit.forward_only(), test.forward_only()
    return {
        "JEPA-SCORE, floor 1e-6": combine_views(log_volume(test.singular_values)),
        "Mahalanobis": MahalanobisDetector().fit(fit).score_samples(test),
        "Mahalanobis++": MahalanobisDetector(normalize=True).fit(fit).score_samples(test),
        "kNN": KNNDetector().fit(fit).score_samples(test),
        "kNN, normalised": KNNDetector(normalize=True).fit(fit).score_samples(test),
        "Mahalanobis, sum over layers": MahalanobisDetector(layer="sum").fit(fit).score_samples(test),
        "kNN on layers": KNNDetector(layer="concatenated", normalize=True).fit(fit).score_samples(test),
        "skjepa jepa": fit_score(fit, formula="jepa", **settings).score_samples(test),
        "skjepa density": fit_score(fit, formula="density", **settings).score_samples(test),
        "skjepa without layers": fit_score_model(fit, formula="joint", **settings).score_samples(test),
        "skjepa, forward pass alone": fit_score(forward, formula="joint", **settings).score_samples(tested),
        "skjepa": fit_score(fit, formula="joint", **settings).score_samples(test),
    }


def report(chosen: argparse.Namespace, encoder: Encoder, results: dict, complexity: dict) -> None:
    rivals = next(iter(results.values())).keys()
    counted = [result for name, result in results.items() if not name.endswith(CONTROL)]
    mean = {rival: float(np.mean([result[rival]["auroc"] for result in counted])) for rival in rivals}
    settings = {name: getattr(chosen, name) for name in ("encoder", "output", "n_fit", "n_test")}
    measured = {"mean_auroc": mean, "sets": results, "spearman_with_bits_per_pixel": complexity}
    record.write(chosen.out, measured, seed=chosen.seed, fingerprint=encoder.fingerprint, **settings)
    print(f"{'AUROC':28}" + "".join(f"{name[:14]:>16}" for name in results) + f"{'mean':>8}")
    for rival in rivals:
        row = "".join(f"{result[rival]['auroc']:16.3f}" for result in results.values())
        print(f"{rival:28}{row}{mean[rival]:8.3f}")


if __name__ == "__main__":
    main()
