"""Measure an encoder trained by benchmarks/bundled_encoder/train.py and write the figures as stamped JSON.

    python -m benchmarks.bundled_encoder.evaluate --data CIFAR10_DIR \
        --weights skjepa/encoders/bundled/encoder.safetensors \
        --foreign mnist=MNIST_DIR --foreign tiny_imagenet=TINY_DIR --out benchmarks/results/bundled_encoder.json \
        --card skjepa/encoders/bundled/MODEL_CARD.md

CIFAR10_DIR holds train/<class>/ and test/<class>/; each foreign folder is searched for images at any depth. Labels
are used for the probe and the neighbours only. In the AUROCs CIFAR-10 test images are the normal class, everything
fitted is fitted on training images, and corrupted images are other test images than the clean ones. The card's lines
between its two metrics marks are rewritten from the figures.
"""

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.covariance import EmpiricalCovariance
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from benchmarks.bundled_encoder.train import IMAGE_SIZE, read_class_folders
from benchmarks.common import record
from skjepa.encoders.isotropy import embedding_statistics
from skjepa.encoders.networks import read_network
from skjepa.jacobian.rows import jacobian
from skjepa.jacobian.spectrum import singular_values
from skjepa.jacobian.volume import log_volume

FLOOR = 1e-2  # times the median largest singular value of the fit images

BARS = {"linear_probe": 0.78, "knn_20": 0.72, "participation_ratio_share": 0.6, "megabytes": 8.0}
"""What the project asks of the encoder: at least, but for the size, which is to be under."""

MARKS = ("<!-- metrics -->", "<!-- /metrics -->")


def epochs(training: dict) -> str:
    """Of all stages."""
    return " + ".join(map(str, [*training.get("earlier_epochs", []), training["epochs_done"]]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--foreign", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--card", type=Path)
    parser.add_argument("--n", type=int, default=400, help="images of each set in the AUROCs")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    network, metadata = read_network(arguments.weights)
    network.requires_grad_(False).to(memory_format=torch.channels_last)
    train, train_labels = read_class_folders(arguments.data / "train")
    test, test_labels = read_class_folders(arguments.data / "test")
    shape = (3, 1, 1)
    mean, std = torch.tensor(metadata["mean"]).view(shape), torch.tensor(metadata["std"]).view(shape)

    def prepare(images: Tensor) -> Tensor:
        return ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)

    def embed(module: nn.Module, images: Tensor) -> Tensor:
        return torch.cat([module(prepare(part)) for part in images.split(500)])

    report: dict = {"training": metadata["training"], "network": network_summary(network)}
    for name, module in (("features", network.features), ("head", network)):
        a, b = embed(module, train), embed(module, test)
        statistics = {key: round(value, 4) for key, value in embedding_statistics(b).items()}
        # Features of several stages have no common unit; the probe standardises them as well.
        centre, deviation = a.mean(0), a.std(0)
        standardised = (a - centre) / deviation, train_labels, (b - centre) / deviation
        report[name] = {
            "linear_probe": round(linear_probe(a, train_labels, b, test_labels), 4),
            "knn_20": round(neighbours_accuracy(*standardised, test_labels), 4),
            "knn_20_raw": round(neighbours_accuracy(a, train_labels, b, test_labels), 4),
            "statistics": statistics,
        }
    generator = torch.Generator().manual_seed(arguments.seed)
    fit = train[torch.randperm(len(train), generator=generator)[:20_000]]
    chosen = test[torch.randperm(len(test), generator=generator)[: 2 * arguments.n]]
    sets = {"normal": chosen[: arguments.n], **corrupted(chosen[arguments.n :], generator)}
    for item in arguments.foreign:
        name, _, folder = item.partition("=")
        sets[name] = read_foreign(Path(folder), arguments.n, arguments.seed)
    scores, seconds = score_sets(network, fit, sets, prepare, embed)
    report["auroc"] = {method: aurocs(by_set) for method, by_set in scores.items()}
    report["seconds_per_image"] = round(seconds, 5)
    report["bars"] = bars(report, arguments.weights)
    sha256 = hashlib.sha256(arguments.weights.read_bytes()).hexdigest()
    record.write(arguments.out, report, seed=arguments.seed, n_per_set=arguments.n, weights_sha256=sha256)
    report = json.loads(arguments.out.read_text())
    print(figures(report))
    if arguments.card is not None:
        before, rest = arguments.card.read_text().split(MARKS[0])
        arguments.card.write_text(
            before + MARKS[0] + "\n\n" + figures(report) + "\n" + MARKS[1] + rest.split(MARKS[1])[1]
        )


def bars(report: dict, weights: Path) -> dict[str, dict]:
    """Each bar with what was measured, and whether it is met."""
    spread = report["head"]["statistics"]
    measured = {
        "linear_probe": report["features"]["linear_probe"],
        "knn_20": report["features"]["knn_20"],
        "participation_ratio_share": round(spread["participation_ratio"] / spread["n_components"], 4),
        "megabytes": round(weights.stat().st_size / 1e6, 2),
    }
    return {
        name: {"bar": BARS[name], "measured": value, "met": (value < BARS[name]) == (name == "megabytes")}
        for name, value in measured.items()
    }


def network_summary(network: nn.Module) -> dict:
    """Name, arguments, parameters and multiply-adds (convolutions and linear maps) for one image."""
    counts = []

    def count(module, _, output):
        counts.append(module.weight.numel() * (output.shape[-1] * output.shape[-2] if output.ndim == 4 else 1))

    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    network(torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE))
    for hook in hooks:
        hook.remove()
    return {**network.recipe, "parameters": sum(p.numel() for p in network.parameters()), "multiply_adds": sum(counts)}


def linear_probe(a: Tensor, labels: Tensor, b: Tensor, test_labels: Tensor) -> float:
    """Test accuracy of a logistic regression on standardised embeddings."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
    return probe.fit(a.numpy(), labels.numpy()).score(b.numpy(), test_labels.numpy())


def neighbours_accuracy(a: Tensor, labels: Tensor, b: Tensor, test_labels: Tensor, k: int = 20) -> float:
    """Test accuracy of k nearest neighbours by cosine, votes weighted by exp(cosine / 0.1)."""
    a, b = F.normalize(a), F.normalize(b)
    right = 0
    for part, truth in zip(b.split(1000), test_labels.split(1000), strict=True):
        similarity, index = (part @ a.T).topk(k)
        votes = torch.zeros(len(part), int(labels.max()) + 1).scatter_add_(1, labels[index], (similarity / 0.1).exp())
        right += int((votes.argmax(1) == truth).sum())
    return right / len(b)


def corrupted(images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Noise (sd 20 of 255), blur (binomial 5x5) and contrast (times 0.35) of the same images."""
    x = images.float()
    level = x.mean((1, 2, 3), keepdim=True)
    line = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    kernel = (line[:, None] * line).expand(3, 1, 5, 5)
    results = {
        "noise": x + 20 * torch.randn(x.shape, generator=generator),
        "blur": F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, groups=3),
        "contrast": level + 0.35 * (x - level),
    }
    return {name: value.clamp(0, 255).round().to(torch.uint8) for name, value in results.items()}


def read_foreign(folder: Path, n: int, seed: int) -> Tensor:
    """n random images found under `folder`, resized."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
    if len(paths) < n:
        sys.exit(f"{folder} holds {len(paths)} images, {n} are needed")
    chosen = np.random.default_rng(seed).choice(len(paths), n, replace=False)
    pixels = []
    for index in chosen:
        with Image.open(paths[index]) as image:
            small = image.convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
        pixels.append(torch.from_numpy(np.array(small)))
    return torch.stack(pixels).permute(0, 3, 1, 2).contiguous()


def score_sets(network, fit: Tensor, sets: dict[str, Tensor], prepare, embed) -> tuple[dict, float]:
    """Scores (higher = more normal) by method and set, and the seconds one image's Jacobian takes."""
    started = time.perf_counter()

    def spectra(images: Tensor) -> np.ndarray:
        return torch.cat([singular_values(jacobian(network, prepare(x))[1]) for x in images.split(32)]).numpy()

    volumes_of = {name: spectra(images) for name, images in {"fit": fit[:400], **sets}.items()}
    seconds = (time.perf_counter() - started) / sum(map(len, volumes_of.values()))
    floor = FLOOR * np.median(volumes_of["fit"].max(1))
    volume = {name: log_volume(sigma, floor=floor) for name, sigma in volumes_of.items()}
    # The first 400 fit images only standardise; neighbours and covariance come from the others.
    reference = embed(network, fit[400:]).double().numpy()
    z = {name: embed(network, images).double().numpy() for name, images in {"fit": fit[:400], **sets}.items()}
    gaussian = EmpiricalCovariance().fit(reference)
    trees = NearestNeighbors(n_neighbors=10).fit(reference)
    density = {name: -np.log(trees.kneighbors(values)[0][:, -1]) for name, values in z.items()}

    def in_units_of_fit(by_set: dict[str, np.ndarray], name: str) -> np.ndarray:
        return (by_set[name] - by_set["fit"].mean()) / by_set["fit"].std()

    scores = {
        "jepa_score_floor_1e-6": {name: log_volume(volumes_of[name], floor=1e-6) for name in sets},
        "jepa_score": {name: volume[name] for name in sets},
        "mahalanobis": {name: -gaussian.mahalanobis(z[name]) for name in sets},
        "knn": {name: density[name] for name in sets},
        "jepa_score+knn": {name: in_units_of_fit(volume, name) + in_units_of_fit(density, name) for name in sets},
    }
    return scores, seconds


def aurocs(by_set: dict[str, np.ndarray]) -> dict[str, float]:
    """AUROC of each set against "normal", and their mean."""
    normal = by_set["normal"]
    result = {}
    for name, values in by_set.items():
        if name != "normal":
            truth = np.r_[np.ones(len(normal)), np.zeros(len(values))]
            result[name] = round(float(roc_auc_score(truth, np.r_[normal, values])), 4)
    result["mean"] = round(float(np.mean(list(result.values()))), 4)
    return result


def figures(report: dict) -> str:
    """The report as Markdown."""
    rows = [("linear_probe", "linear probe"), ("knn_20", "20-NN, standardised"), ("knn_20_raw", "20-NN, raw")]
    spread = [("participation_ratio", "participation ratio"), ("normality", "normality statistic")]
    lines = ["| on the CIFAR-10 test set | features | scored output |", "|---|---|---|"]
    lines += [f"| {label} | {report['features'][key]:.3f} | {report['head'][key]:.3f} |" for key, label in rows]
    for key, label in spread:
        lines.append(
            "| {} | {:.4g} | {:.4g} |".format(label, *(report[x]["statistics"][key] for x in ("features", "head")))
        )
    lines += ["", "| target | required | measured | |", "|---|---|---|---|"]
    for name, bar in report["bars"].items():
        relation, verdict = "under" if name == "megabytes" else "at least", "met" if bar["met"] else "not met"
        lines.append(f"| {name.replace('_', ' ')} | {relation} {bar['bar']:g} | {bar['measured']:.3g} | {verdict} |")
    sets = list(next(iter(report["auroc"].values())))
    lines += ["", f"| AUROC, normal = CIFAR-10 test | {' | '.join(sets)} |", "|---|" + "---|" * len(sets)]
    for method, values in report["auroc"].items():
        lines.append(f"| {method} | " + " | ".join(f"{values[name]:.3f}" for name in sets) + " |")
    at, net = report["stamp"], report["network"]
    lines += [
        "",
        f"{net['parameters'] / 1e6:.2f} million parameters, {net['multiply_adds'] / 1e6:.1f} million multiply-adds per",
        f"image, {1000 * report['seconds_per_image']:.0f} ms per image for its singular values ({at['processor']},",
        f"{at['cores']} cores, torch {at['versions']['torch']}); {epochs(report['training'])} epochs;",
        f"{at['n_per_set']} images per set; measured {at['date']}.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
