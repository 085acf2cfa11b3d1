"""Do heat maps of the volume term point to what moves it? And in which layer does oddness appear?

    python -m benchmarks.accuracy.heat_maps --data FOLDER [--cache FOLDER] [--quick]

FOLDER holds folders of images: cifar10/train, cifar10/test, mnist, fashion_mnist and tiny_imagenet. The explainer
learns from CIFAR-10 training images, each seed from another half of them. On test images, which it has not seen:

- faithfulness: the m patches that lower the log-volume most by a map are masked, then the m that raise it most, and
  the log-volume is measured anew; the gap between the two is what the map knows, and zero for a random one. A mask is
  the mean colour of the image, or the same patch of a training image of the other half;
- a square of foreign content is pasted into a test image: is it found?
- layers: AUROC of the log-volume and the joint score of every layer, fitted on training images, judged on test images.

Intervals: bootstrap over images, of means over seeds. Writes benchmarks/results/explain.json and
docs/images/explain.png (of the demo's images), or beside --out.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from benchmarks.common import record
from skjepa import Encoder, Extraction, extract, extract_layers, learn_volume_explainer, load_encoder
from skjepa.data.images import read_image
from skjepa.data.sample_images import demo_images
from skjepa.data.sources import folder_source
from skjepa.evaluation.plotting import save_figure
from skjepa.inspection.volume_map_figure import volume_maps_figure
from skjepa.inspection.volume_maps import VolumeExplainer, patch_labels
from skjepa.jacobian.volume import log_volume
from skjepa.scores.model import fit_score_model

NORMAL_FIT, NORMAL_TEST = "cifar10/train", "cifar10/test"
FOREIGN = ("mnist", "fashion_mnist", "tiny_imagenet")
PATCH = 8
MASKED = (3,)
FILLS = ("normal patches", "mean colour")
LAYERS = ["features.2", "features.3", "features.4", "features.5", "features.6", "output"]
DIRECTIONS = 32
"""Random output directions of each layer: a share of every spectrum, and equally many passes for every layer."""
CONTENT = ("noise", "one colour", "checkerboard", "digit")
RESAMPLES = 2000
Maps = dict[str, NDArray[np.float64]]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--n-fit", type=int, default=200, help="images that explainers and layers learn from")
    options.add_argument("--n-test", type=int, default=24, help="images explained; of layers, three times as many")
    options.add_argument("--seeds", type=int, default=2)
    options.add_argument("--cache", type=Path, help="keep the layers of sets here")
    options.add_argument("--quick", action="store_true", help="few images: a smoke test")
    options.add_argument("--out", type=Path, default=record.RESULTS / "explain.json")
    chosen = options.parse_args()
    if chosen.quick:
        chosen.n_fit, chosen.n_test, chosen.seeds = 60, 6, 2
    encoder = load_encoder("bundled")
    sizes = {NORMAL_FIT: chosen.n_fit, NORMAL_TEST: 3 * chosen.n_test, **dict.fromkeys(FOREIGN, 3 * chosen.n_test)}
    sets = {name: pixels(chosen.data / name, n) for name, n in sizes.items()}
    results = judge_maps(encoder, sets, chosen.n_test, chosen.seeds)
    results["layers"] = judge_layers(encoder, sets, chosen.cache)
    settings = {name: getattr(chosen, name) for name in ("n_fit", "n_test", "seeds", "quick")}
    record.write(chosen.out, results, seed=0, fingerprint=encoder.fingerprint, patch_size=PATCH, **settings)
    picture = record.IMAGES / "explain.png" if chosen.out.parent == record.RESULTS else chosen.out.with_suffix(".png")
    draw(encoder, picture)


def pixels(folder: Path, n: int) -> NDArray[np.uint8]:
    """Random images of a folder, (n, 32, 32, 3)."""
    chosen = np.random.default_rng(0).choice(folder_source(folder).ids, n, replace=False)
    return np.stack([np.asarray(read_image(folder / name).convert("RGB").resize((32, 32))) for name in chosen])


def judge_maps(encoder: Encoder, sets: dict[str, NDArray], n_test: int, seeds: int) -> dict[str, Any]:
    images, runs, errors = sets[NORMAL_TEST][:n_test], [], []
    pasted = {content: paste(images, content, sets["mnist"]) for content in CONTENT}
    rivals: Maps | None = None
    seconds: dict[str, float] = {}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        fit, others = np.array_split(sets[NORMAL_FIT][rng.permutation(len(sets[NORMAL_FIT]))], 2)
        explainer = learn_volume_explainer(encoder, fit, patch_size=PATCH)
        shares = timed(seconds, "share", len(images), lambda e=explainer: e.explain(images))
        total = shares.baseline + shares.shares.sum(axis=(1, 2)) + shares.floor + shares.outside
        errors.append(float(np.abs(total - shares.volume).max()))
        rivals = rivals or timed_rivals(explainer, images, seconds)
        flat = shares.shares.reshape(len(images), -1)
        absolute = flat + explainer.expected[: flat.shape[1]]
        maps = {"share": flat, "not less the mean of its place": absolute, **rivals}
        maps["random"] = rng.normal(size=flat.shape)
        moved = {
            f"{fill}, {m}": {
                name: faithfulness(explainer, images, by, m, fill, others, rng) for name, by in maps.items()
            }
            for fill in FILLS
            for m in MASKED
        }
        found = {content: localisation(explainer, *pair) for content, pair in pasted.items()}
        runs.append((moved, found))
        print(f"seed {seed} done", flush=True)
    first_moved, first_found = runs[0]
    return {
        "seconds_per_image": seconds,
        "largest_error_of_the_sum": max(errors),
        "faithfulness": {
            kind: {
                name: {
                    end: interval(np.mean([moved[kind][name][end] for moved, _ in runs], axis=0))
                    for end in ("lowest", "highest", "gap")
                }
                for name in by_map
            }
            for kind, by_map in first_moved.items()
        },
        "found": {
            content: {name: interval(np.mean([found[content][name] for _, found in runs], axis=0)) for name in by_map}
            for content, by_map in first_found.items()
        },
    }


def timed(seconds: dict[str, float], name: str, n: int, make: Callable[[], Any]) -> Any:
    started = time.perf_counter()
    made = make()
    seconds.setdefault(name, (time.perf_counter() - started) / n)
    return made


def timed_rivals(explainer: VolumeExplainer, images: NDArray, seconds: dict[str, float]) -> Maps:
    """Maps (n, patches) that do without normal images, signed as the shares: negative = makes the log-volume small."""
    n = len(images)
    timed(seconds, "the score alone", n, lambda: volume(explainer, images))
    return {
        "naive share": timed(seconds, "naive share", n, lambda: naive_maps(explainer, images)[0]),
        "energy": naive_maps(explainer, images)[1],
        "gradient x input": timed(seconds, "gradient x input", n, lambda: gradient_maps(explainer, images)),
        "occlusion": timed(seconds, "occlusion", n, lambda: occlusion_maps(explainer, images)),
    }


def volume(explainer: VolumeExplainer, images: NDArray) -> NDArray[np.float64]:
    sigma = extract(explainer.encoder, images).singular_values[:, 0]
    return log_volume(sigma, floor=explainer.floor, rank=explainer.rank)


def naive_maps(explainer: VolumeExplainer, images: NDArray) -> tuple[NDArray, NDArray]:
    """tr(G^-1 G_p) / 2, which sums to K / 2, and the share of the energy, tr(G_p) / tr(G)."""
    order = np.argsort(patch_labels(explainer.input_shape, PATCH), kind="stable")
    naive: list[NDArray] = []
    energy: list[NDArray] = []

    def see(jacobians: torch.Tensor) -> None:
        for J in jacobians.double():
            parts = J[:, torch.from_numpy(order)].unflatten(1, (len(explainer.grams), -1)).transpose(0, 1)
            grams = parts @ parts.mT
            values, vectors = torch.linalg.eigh(grams.sum(0))
            inverse = vectors / values.clamp_min(explainer.floor**2) @ vectors.T
            naive.append(0.5 * torch.einsum("pij,ji->p", grams, inverse).numpy())
            energy.append((grams.diagonal(dim1=1, dim2=2).sum(1) / values.sum()).numpy())

    extraction = extract(explainer.encoder, images, observe=see)
    place = {name: i for i, name in enumerate(dict.fromkeys(extraction.ids.tolist()))}
    rows = [place[name] for name in extraction.ids.tolist()]
    return np.stack(naive)[rows], np.stack(energy)[rows]


def gradient_maps(explainer: VolumeExplainer, images: NDArray) -> NDArray[np.float64]:
    """Gradient of the log-volume times the normalised input, summed over each patch: a pass through K passes."""
    encoder, labels = explainer.encoder, patch_labels(explainer.input_shape, PATCH)
    assert encoder.preprocessing is not None
    maps = []
    with encoder.scoring() as function, torch.enable_grad():
        for image in images:
            x = encoder.preprocessing.normalise(encoder.preprocessing.load(image, encoder.dtype)[None])
            x = x.detach().requires_grad_(True)
            z = function(x)[0]
            J = torch.stack([torch.autograd.grad(value, x, create_graph=True)[0].flatten() for value in z]).double()
            values = torch.linalg.eigvalsh(J @ J.T).flip(0)[: explainer.rank]
            (gradient,) = torch.autograd.grad(0.5 * values.clamp_min(explainer.floor**2).log().sum(), x)
            maps.append(np.bincount(labels, weights=(gradient * x).detach().flatten().double().numpy()))
    return np.stack(maps)


def occlusion_maps(explainer: VolumeExplainer, images: NDArray) -> NDArray[np.float64]:
    """The log-volume less that of the image with one patch in its mean colour."""
    n_patches = len(explainer.grams)
    blank = np.broadcast_to(images.mean(axis=(1, 2), keepdims=True), images.shape)
    columns = [volume(explainer, masked(images, np.full((len(images), 1), p), blank)) for p in range(n_patches)]
    return volume(explainer, images)[:, None] - np.stack(columns, axis=1)


def masked(images: NDArray, patches: NDArray[np.intp], fill: NDArray) -> NDArray[np.uint8]:
    """Images with the patches (n, m) of each taken from `fill`, images of the same shape."""
    labels = patch_labels((3, *images.shape[1:3]), PATCH).reshape(3, *images.shape[1:3])[0]
    chosen = np.stack([np.isin(labels, row) for row in patches])[..., None]
    return np.where(chosen, np.round(fill).astype(np.uint8), images)


def faithfulness(
    explainer: VolumeExplainer,
    images: NDArray,
    maps: NDArray,
    m: int,
    fill: str,
    others: NDArray,
    rng: np.random.Generator,
) -> dict[str, NDArray]:
    """Change of the log-volume of each image where its m lowest, or its m highest, patches are masked; and the gap."""
    order = np.argsort(maps, axis=1)
    if fill == "mean colour":
        content = np.broadcast_to(images.mean(axis=(1, 2), keepdims=True), images.shape)
    else:
        content = others[rng.choice(len(others), len(images), replace=len(others) < len(images))]
    before = volume(explainer, images)
    lowest = volume(explainer, masked(images, order[:, :m], content)) - before
    highest = volume(explainer, masked(images, order[:, -m:], content)) - before
    return {"lowest": lowest, "highest": highest, "gap": lowest - highest}


def paste(images: NDArray, content: str, digits: NDArray) -> tuple[NDArray, NDArray[np.bool_]]:
    """Images with one patch of foreign content, and which patch that is, (n, patches)."""
    rng = np.random.default_rng(len(content))
    n = len(images)
    board = 255 * (np.indices((PATCH, PATCH)).sum(axis=0) % 2)[:, :, None]
    square = {
        "noise": rng.integers(0, 256, size=(n, PATCH, PATCH, 3)),
        "one colour": np.broadcast_to(rng.integers(0, 256, size=(n, 1, 1, 3)), (n, PATCH, PATCH, 3)),
        "checkerboard": np.broadcast_to(board, (n, PATCH, PATCH, 3)),
        "digit": digits[rng.choice(len(digits), n, replace=len(digits) < n)][:, 4:28:3, 4:28:3],
    }[content]
    per_row = images.shape[2] // PATCH
    where = rng.integers(0, (images.shape[1] // PATCH) * per_row, size=n)
    fill = images.copy()
    for image, p, patch in zip(fill, where, square, strict=True):
        top, left = PATCH * (p // per_row), PATCH * (p % per_row)
        image[top : top + PATCH, left : left + PATCH] = patch
    return fill, np.arange((images.shape[1] // PATCH) * per_row) == where[:, None]


def localisation(explainer: VolumeExplainer, images: NDArray, where: NDArray[np.bool_]) -> dict[str, NDArray]:
    """AUROC of the pasted patch among those of its image, by three readings of the maps; (n,) each."""
    shares = explainer.explain(images).shares.reshape(len(images), -1)
    naive, energy = naive_maps(explainer, images)
    readings = {
        "lowest share": -shares,
        "largest |share|": np.abs(shares),
        "lowest naive share": -naive,
        "lowest energy": -energy,
    }
    return {
        name: np.array([roc_auc_score(truth, values) for truth, values in zip(where, by, strict=True)])
        for name, by in readings.items()
    }


def interval(values: NDArray) -> dict[str, float]:
    """Mean and its 95 % bootstrap interval over images."""
    drawn = np.random.default_rng(0).choice(values, (RESAMPLES, len(values))).mean(axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def judge_layers(encoder: Encoder, sets: dict[str, NDArray], cache: Path | None) -> dict[str, Any]:
    """Layer -> formula -> foreign set -> AUROC."""
    started = time.perf_counter()
    measured = {name: layers_of(encoder, name, images, cache) for name, images in sets.items()}
    print(f"layers of {sum(map(len, sets.values()))} images: {time.perf_counter() - started:.0f} s", flush=True)
    return {
        layer: {
            formula: auroc_of({name: by_layer[layer] for name, by_layer in measured.items()}, formula)
            for formula in ("jepa", "joint")
        }
        for layer in LAYERS
    }


def layers_of(encoder: Encoder, name: str, images: NDArray, cache: Path | None) -> dict[str, Extraction]:
    folder = None if cache is None else cache / f"{name.replace('/', '-')}-{len(images)}"
    if folder is not None and folder.exists():
        return {layer: Extraction.load(folder / f"{layer}.npz") for layer in LAYERS}
    found = extract_layers(encoder, images, LAYERS, n_directions=DIRECTIONS)
    if folder is not None:
        folder.mkdir(parents=True)
        for layer, extraction in found.items():
            extraction.save(folder / f"{layer}.npz")
    print(f"{name}: {len(images)} images, {len(LAYERS)} layers", flush=True)
    return found


def auroc_of(measured: dict[str, Extraction], formula: str) -> dict[str, float]:
    model = fit_score_model(measured[NORMAL_FIT], formula=formula, reference="knn", floor="auto", rank=None)
    scores = {name: model.score_samples(extraction) for name, extraction in measured.items() if name != NORMAL_FIT}
    return {
        name: float(
            roc_auc_score(
                np.repeat([0, 1], [len(scores[NORMAL_TEST]), len(scores[name])]),
                -np.concatenate([scores[NORMAL_TEST], scores[name]]),
            )
        )
        for name in FOREIGN
    }


def draw(encoder: Encoder, path: Path) -> None:
    """Maps of unseen photographs, plain and with a pasted square, and of the demo's foreign images."""
    images = demo_images(0)
    explainer = learn_volume_explainer(encoder, images["fit"][:150], patch_size=4)
    photographs = images["photographs"][:3]
    pasted = [paste(photographs[i : i + 1], content, images["digits"])[0] for i, content in enumerate(CONTENT[:3])]
    shown = np.concatenate([photographs, *pasted, *(images[name][:1] for name in ("MRI scan", "elevation model"))])
    captions = [*["photograph"] * 3, *CONTENT[:3], "MRI scan", "elevation model"]
    figure = volume_maps_figure(list(shown), explainer.explain(shown), captions)
    save_figure(figure, path)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
