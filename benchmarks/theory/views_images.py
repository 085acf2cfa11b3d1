"""One view against several on images: AUROC of the bundled encoder's scores, and what a view costs.

    python -m benchmarks.theory.views_images [--quick] [--seed 0] [--data FOLDER] [--n-test 60] [--max-views 16]

Normal: the demo's tiles of photographs, against its other sets; with --data also CIFAR-10 (`cifar10/{train,test}`)
against `mnist`, `fashion_mnist` and `tiny_imagenet`, folders of images. Writes
benchmarks/results/theory_views_images.json.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import record
from benchmarks.theory.toy import SCORES, options
from skjepa import Encoder, extract, load_encoder
from skjepa.data.images import read_image
from skjepa.data.sample_images import demo_images
from skjepa.data.sources import folder_source
from skjepa.extraction.batches.views import default_transform
from skjepa.scores.model import fit_score_model

NAME = "theory_views_images"
ITSELF = "the sample itself"
FOREIGN = ("mnist", "fashion_mnist", "tiny_imagenet")
N_FIT, N_BOOTSTRAP = 200, 2000

Images = dict[str, NDArray[np.uint8]]


def main() -> None:
    parser = options(__doc__, NAME)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--n-test", type=int, default=60, help="images of each set")
    parser.add_argument("--max-views", type=int, default=16)
    chosen = parser.parse_args()
    n_test, largest = (20, 4) if chosen.quick else (chosen.n_test, chosen.max_views)
    views = [2**i for i in range(largest.bit_length())]
    encoder = load_encoder("bundled")
    suites = {"tiles of photographs": demo_images(chosen.seed)}
    if chosen.data:
        suites["CIFAR-10"] = folder_images(chosen.data, n_test, chosen.seed)
    results = {name: suite_run(encoder, images, views, n_test, chosen.seed) for name, images in suites.items()}
    settings = {"encoder": "bundled", "fingerprint": encoder.fingerprint, "n_fit": N_FIT, "n_test": n_test}
    settings["interval"] = f"95 %, percentiles of {N_BOOTSTRAP} bootstrap samples of the test images, paired"
    record.write(chosen.out, {"suites": results}, seed=chosen.seed, quick=chosen.quick, **settings)


def folder_images(data: Path, n_test: int, seed: int) -> Images:
    """Random images at 32 pixels; the first two sets are normal, to fit on and to test with."""
    rng, images = np.random.default_rng(seed), {}
    folders = {"cifar10/train": N_FIT, "cifar10/test": n_test} | dict.fromkeys(FOREIGN, n_test)
    for folder, n in folders.items():
        paths = rng.choice(folder_source(data / folder).ids, n, replace=False)
        images[folder] = np.stack([np.asarray(read_image(data / folder / path).resize((32, 32))) for path in paths])
    return images


def suite_run(encoder: Encoder, images: Images, views: list[int], n_test: int, seed: int) -> dict[str, Any]:
    """Views -> score -> mean AUROC over the foreign sets, its interval, that of the gain over the sample itself."""
    learned, normal, *foreign = images.values()
    fit = extract(encoder, learned[:N_FIT])
    # Floor, rank and log q(z) come from the samples themselves: views enter the volume of the test images alone.
    models = {
        label: fit_score_model(fit, formula=kind, reference="knn", floor="auto", rank=None)
        for label, kind in SCORES.items()
    }
    tests = [pictures[:n_test] for pictures in (normal, *foreign)]
    cases: dict[str, list] = {ITSELF: [extract(encoder, pictures) for pictures in tests]}
    transform, started = default_transform(encoder.input_shape[1:]), time.perf_counter()
    several = [
        extract(encoder, pictures, views=views[-1], transform=transform, random_state=seed) for pictures in tests
    ]
    seconds = (time.perf_counter() - started) / sum(map(len, tests)) / views[-1]
    for v in views:
        cases[str(v)] = [replace(part, singular_values=part.singular_values[:, :v]) for part in several]
    found: dict[str, Any] = {"foreign": list(images)[2:], "seconds an image and view": seconds, "views": {}}
    draws = resamples([len(part) for part in tests], seed)
    for views_label, parts in cases.items():
        found["views"][views_label] = {}
        for label, model in models.items():
            scores = [model.score_samples(part) for part in parts]
            own = [model.score_samples(part) for part in cases[ITSELF]]
            at, base = (bootstrap_auroc(each, draws) for each in (scores, own))
            found["views"][views_label][label] = percentiles(at) | {"gain": percentiles(at - base)}
    return found


def resamples(sizes: list[int], seed: int) -> list[NDArray]:
    """Weights of the images of every set, (1 + N_BOOTSTRAP, n): all alike first, then how often each is drawn."""
    rng = np.random.default_rng(seed)
    return [np.vstack([np.full(n, 1 / n), rng.multinomial(n, np.full(n, 1 / n), size=N_BOOTSTRAP) / n]) for n in sizes]


def bootstrap_auroc(scores: list[NDArray], draws: list[NDArray]) -> NDArray:
    """Mean AUROC of the first set against each other one, for every row of weights."""
    normal, *foreign = scores
    wins = [(normal[:, None] > other) + 0.5 * (normal[:, None] == other) for other in foreign]
    each = [np.einsum("bi,ij,bj->b", draws[0], win, draw, optimize=True)
            for win, draw in zip(wins, draws[1:], strict=True)]  # fmt: skip
    return np.mean(each, axis=0)


def percentiles(values: NDArray) -> dict[str, float]:
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return {"value": float(values[0]), "low": float(low), "high": float(high)}


if __name__ == "__main__":
    main()
