"""What `joint_forms.py` measures on: extractions of tables, images and known densities, each made once.

Every case has a half: forms are chosen on "tune" and looked at on "confirm" afterwards.
"""

import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import joblib
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from benchmarks.accuracy.foreign_sets import CONTROL, NORMAL_FIT, NORMAL_TEST, read_sets
from benchmarks.common.table_sets import PROTOCOLS, Parts, Table, read
from benchmarks.theory.known_density import ENCODERS, NAMES, samples
from skjepa import Extraction, VectorJEPA, extract, load_encoder
from skjepa.data.sample_images import demo_images

SMALL = (20, 50)
"""Rows or images of the small fits."""
TUNED_IMAGES = ("fashion_mnist", "MRI scan")
N_FEATURES = 64


def features(module: nn.Module, x: Tensor) -> Tensor:
    """Pooled features of the bundled network, by a random orthogonal projection: all of them would take hours."""
    pooled = module.features(x)
    gaussian = torch.randn(pooled.shape[1], N_FEATURES, generator=torch.Generator().manual_seed(0))
    return pooled @ torch.linalg.qr(gaussian)[0]


OUTPUTS: dict[str, str | Callable] = {"head": "auto", "features": features}
TOYS = {
    "InfoNCE": "InfoNCE, K = 8, noise 0.1",
    "SIGReg": "SIGReg, K = 4, noise 0.2",
    "VectorJEPA": "VectorJEPA (the default)",
}
KNOWN, BACKGROUND = "known densities, Spearman", "known densities, background"


@dataclass(frozen=True)
class Case:
    """Normal samples to learn from, samples to judge, and the truth of these: 1 = normal and 0 = not, or log p."""

    name: str
    group: str
    half: str
    fit: Extraction
    test: Extraction
    truth: NDArray


@dataclass(frozen=True)
class Sizes:
    """How much is measured: rows and seeds of the tables, images of both outputs, epochs of the toys' encoders."""

    rows: int = 1000
    seeds: int = 2
    images: tuple[int, int] = (500, 300)
    images_features: tuple[int, int] = (300, 100)
    epochs: int = 30


QUICK = Sizes(rows=200, seeds=1, images=(60, 40), images_features=(30, 20), epochs=4)


def all_cases(data: Path, cache: Path, sizes: Sizes) -> Iterator[Case]:
    """Every case, one after the other; extractions are kept in the folder `cache`."""
    yield from table_cases(data / "adbench", cache, sizes)
    yield from toy_cases(cache, sizes)
    yield from image_cases(data, cache, sizes)


def kept(path: Path, make: Callable, *args) -> tuple:
    """What ``make(*args)`` returns, from the file if there is one."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about floors, of sets with fewer directions than features
            joblib.dump(make(*args), path)
        print(f"measured {path.stem}", flush=True)
    return joblib.load(path)


def table_cases(folder: Path, cache: Path, sizes: Sizes) -> Iterator[Case]:
    """ADBench sets with the default `VectorJEPA`, trained on the rows to fit on; every second set is to tune on."""
    settings = [(protocol, f"tables, {protocol}", protocol, None) for protocol in PROTOCOLS]
    settings += [(str(n), f"tables, fit on {n}", PROTOCOLS[0], n) for n in SMALL]
    for seed in range(sizes.seeds):
        for i, path in enumerate(sorted(folder.glob("*.npz"))):
            for key, group, protocol, n in settings:
                args = path, protocol, seed, sizes.rows, n
                parts = kept(cache / f"{path.stem}-{key}-{seed}.pkl", table, *args)
                yield Case(path.stem, group, ("tune", "confirm")[i % 2], *parts)


def table(path: Path, protocol: str, seed: int, rows: int, n_fit: int | None) -> tuple:
    """Extractions of the rows to fit on and of those to judge; 1 = normal."""
    parts = split(read(path), protocol, seed, rows)
    encoder = VectorJEPA(random_state=seed).fit(parts.fit[:n_fit]).encoder_
    return extract(encoder, parts.fit[:n_fit]), extract(encoder, parts.test), (~parts.outlier).astype(int)


def split(table: Table, protocol: str, seed: int, rows: int) -> Parts:
    """As the suite of tables does, but with at most so many rows to fit on, and as many to judge."""
    X, outlier = table.X, table.y == 1
    rng = np.random.default_rng(seed)
    if protocol == "unsupervised":
        chosen = rng.permutation(len(X))[:rows]
        return Parts(X[chosen], X[chosen], outlier[chosen], same=True)
    normal, foreign = rng.permutation(np.flatnonzero(~outlier)), np.flatnonzero(outlier)
    half = len(normal) // 2
    test = rng.permutation(np.concatenate([normal[half:], foreign]))[:rows]
    return Parts(X[normal[:half][:rows]], X[test], outlier[test], same=False)


def toy_cases(cache: Path, sizes: Sizes) -> Iterator[Case]:
    """Mixture, rings and moons: log p of new samples, and these against uniform background. Seed 0 is to tune on."""
    for seed, half in enumerate(("tune", "confirm")):
        for name in NAMES:
            for encoder in TOYS:
                args = name, encoder, seed, sizes.epochs
                fit, new, background, log_p = kept(cache / f"{name}-{encoder}-{seed}.pkl", toy, *args)
                yield Case(f"{name}, {encoder}", KNOWN, half, fit, new, log_p)
                yield against(f"{name}, {encoder}", BACKGROUND, half, fit, new, background)


def against(name: str, group: str, half: str, fit: Extraction, normal: Extraction, foreign: Extraction) -> Case:
    truth = np.repeat([1, 0], [len(normal), len(foreign)])
    return Case(name, group, half, fit, Extraction.concat([normal, foreign]), truth)


def toy(name: str, encoder: str, seed: int, epochs: int) -> tuple:
    """Extractions of samples to fit on, of new ones and of a uniform background; log p of the new ones."""
    law, fit, test = samples(name, seed)
    background = np.random.default_rng(seed).uniform(fit.min(axis=0), fit.max(axis=0), test.shape)
    scale = StandardScaler().fit(fit)
    trained = ENCODERS[TOYS[encoder]](scale.transform(fit), seed, epochs)
    return *(extract(trained, scale.transform(X)) for X in (fit, test, background)), law.log_density(test)


def image_cases(data: Path, cache: Path, sizes: Sizes) -> Iterator[Case]:
    """CIFAR-10 against three sets and the demo's photographs against three, bundled encoder."""
    for output, (n_fit, n_test) in zip(OUTPUTS, (sizes.images, sizes.images_features), strict=True):
        suites = kept(cache / f"images-{output}.pkl", image_suites, data, output, n_fit, n_test)
        for fit, normal, foreign in suites:
            for name, images in foreign.items():
                half = "tune" if name in TUNED_IMAGES else "confirm"
                yield against(name, f"images, {output}", half, fit, normal, images)
                for n in SMALL if output == "head" else ():
                    yield against(name, f"images, fit on {n}", half, fit[:n], normal, images)


def image_suites(data: Path, output: str, n_fit: int, n_test: int) -> list[tuple]:
    """For both suites: extractions of the images to fit on, of normal ones to judge, and of every foreign set."""
    encoder = load_encoder("bundled", output=OUTPUTS[output])
    with tempfile.TemporaryDirectory() as folder:
        cifar = read_sets(data, Path(folder), n_fit, n_test, 0)
    cifar = {name: images for name, images in cifar.items() if not name.endswith(CONTROL)}
    suites = []
    for images, fit, normal in ((cifar, NORMAL_FIT, NORMAL_TEST), (demo_images(0), "fit", "photographs")):
        passes = {
            name: extract(encoder, some[: n_fit if name == fit else n_test], progress=True)
            for name, some in images.items()
        }
        suites.append((passes.pop(fit), passes.pop(normal), passes))
    return suites
