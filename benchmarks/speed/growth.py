"""How cost grows: seconds against samples, passes, K, D and threads; peak memory; bytes on disk.

    python -m benchmarks.speed.growth [--quick] [--device cuda]

Every ladder climbs one size and holds the others, on small networks with random weights (time does not depend on them)
and photographs of the demo. The rungs of a ladder are measured in turn, several times; the fastest round counts. Memory
is the peak of a process of its own, above what it held with the model loaded.

Writes benchmarks/results/growth_<device>.json and docs/images/growth.png, or beside --out.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import timm
import torch

from benchmarks.common import record
from benchmarks.speed.exact_speed import matrix_rates, timed
from skjepa import Encoder, extract, load_encoder
from skjepa.data.sample_images import demo_images
from skjepa.encoders.networks import build_network
from skjepa.extraction.batches.sizing import MAX_BATCH
from skjepa.extraction.store.store import Store
from skjepa.jacobian.spectrum import singular_values

SEED = 0
NETWORK = {"widths": [32, 64, 128, 256], "depths": [1, 1, 1, 1], "n_pooled": 3}
# Models at 224x224, the passes of each (exact where one block makes that affordable), a budget, and how many images.
PEAKS: dict[str, dict[str, Any]] = {
    "ViT-S/14, one block, exact": {
        "model": {"model_name": "vit_small_patch14_dinov2.lvd142m", "depth": 1},
        "how": {},
        "gib": 1.0,
        "images": (8, 24),
    },
    "ViT-B/14, 2 directions": {
        "model": {"model_name": "vit_base_patch14_dinov2.lvd142m"},
        "how": {"method": "sketch", "n_directions": 2},
        "gib": 2.0,
        "images": (6, 12),
    },
    "ViT-H/14, 2 directions": {
        "model": {"model_name": "vit_huge_patch14_gap_224.in1k_ijepa"},
        "how": {"method": "sketch", "n_directions": 2},
        "gib": 4.0,
        "images": (3, 6),
    },
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--quick", action="store_true", help="short ladders, one round, small models: a minute")
    options.add_argument("--out", type=Path)
    options.add_argument("--peak", nargs=2, metavar=("SHAPE", "N"), help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.peak:
        shape, n = chosen.peak
        print(json.dumps(peak(shape, int(n))))
        return
    rounds, top = (1, 2) if chosen.quick else (3, 4)
    images = np.concatenate([demo_images(SEED)[name] for name in ("fit", "photographs")])
    device = chosen.device
    results = {
        "matrix_gflops": matrix_rates(device)[1],
        "samples": ladder([32, 64, 128, 256][:top], lambda n: images[:n], "n", device, rounds),
        "passes": ladder([4, 8, 16, 32, 64][: top + 1], lambda m: images[:32], "m", device, rounds),
        "components": ladder([16, 32, 64, 128, 256][: top + 1], lambda k: images[:32], "k", device, rounds),
        "inputs": ladder([16, 32, 64, 96][:top], lambda side: images[:16], "side", device, rounds),
        "threads": threads(images[:64], rounds) if device == "cpu" else [],
        "spectrum": spectra(device, quick=chosen.quick),
        "bytes_on_disk": {str(k): bytes_on_disk(k) for k in (64, 384, 1280)},
        "memory": [] if chosen.quick or device != "cpu" else memory(),
    }
    results["linear_in_passes"] = straight_line(results["passes"])
    out = chosen.out or record.RESULTS / f"growth_{torch.device(device).type}.json"
    settings = {"device": device, "threads": torch.get_num_threads(), "quick": chosen.quick}
    record.write(out, results, seed=SEED, **settings)
    draw(results, record.IMAGES if chosen.out is None else out.parent)
    print(json.dumps({key: results[key] for key in ("linear_in_passes", "threads", "memory")}, indent=1))


def network(k: int = 64, side: int = 32) -> Encoder:
    torch.manual_seed(SEED)
    module = build_network("convnet", **NETWORK, n_components=k).to(memory_format=torch.channels_last)
    return load_encoder(module, image_size=side, mean=(0.5,) * 3, std=(0.25,) * 3)


def ladder(sizes: list[int], images: Callable[[int], np.ndarray], what: str, device: str, rounds: int) -> list[dict]:
    """Seconds of `extract` for every size."""
    encoders = {size: network(**{what: size} if what in ("k", "side") else {}) for size in sizes}
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    for turn in range(rounds + 1):
        for size in sizes:
            how = {"method": "sketch", "n_directions": size} if what == "m" else {}
            took = timed(lambda size=size, how=how: extract(encoders[size], images(size), device=device, **how), device)
            if turn > 0:  # the first one warms up
                seconds[size].append(took)
    return [{"size": size, "images": len(images(size)), "seconds": min(seconds[size])} for size in sizes]


def threads(images: np.ndarray, rounds: int) -> list[dict]:
    before, seconds = torch.get_num_threads(), {}
    encoder = network()
    counts = sorted({1, before, *(2**i for i in range(8) if 2**i < before)})
    for turn in range(rounds + 1):
        for n in counts:
            torch.set_num_threads(n)
            took = timed(lambda: extract(encoder, images), "cpu")
            if turn > 0:
                seconds.setdefault(n, []).append(took)
    torch.set_num_threads(before)
    return [{"size": n, "images": len(images), "seconds": min(seconds[n])} for n in counts]


def straight_line(rungs: list[dict]) -> dict[str, float]:
    """Milliseconds of an image = fixed + passes x each, by least squares."""
    m = np.array([rung["size"] for rung in rungs], float)
    milliseconds = np.array([1e3 * rung["seconds"] / rung["images"] for rung in rungs])
    each, fixed = np.polyfit(m, milliseconds, 1)
    off = np.abs(fixed + each * m - milliseconds) / milliseconds
    return {"fixed_ms": float(fixed), "ms_of_a_pass": float(each), "largest_relative_error": float(off.max())}


def spectra(device: str, *, quick: bool) -> list[dict]:
    """Milliseconds that the singular values of an image take when the Jacobian is there."""
    found = []
    for k, d in ((64, 3072), (384, 3 * 224**2), (768, 3 * 224**2), (1280, 3 * 224**2))[: 2 if quick else 4]:
        J = torch.randn(1, k, d, device=device)
        took = min(timed(lambda J=J: singular_values(J), device) for _ in range(2))
        found.append({"n_components": k, "n_inputs": d, "ms": 1e3 * took})
    return found


def bytes_on_disk(n_components: int, n: int = 2000) -> float:
    """Of a store, a sample: embedding and singular values in float64, and an id."""
    rng = np.random.default_rng(SEED)
    arrays = rng.normal(size=(n, n_components)), rng.lognormal(size=(n, 1, n_components))
    with tempfile.TemporaryDirectory() as folder:
        with Store(folder, {"n_components": n_components}) as store:
            store.append([(f"{i:064x}", f"{i:032x}") for i in range(n)], *arrays)
        return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()) / n


def memory() -> list[dict]:
    """Peaks for a few batches and for three times as many."""
    found = []
    for shape, settings in PEAKS.items():
        for n in settings["images"]:
            command = [sys.executable, "-m", "benchmarks.speed.growth", "--peak", shape, str(n)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
    return found


def peak(shape: str, n: int) -> dict:
    torch.manual_seed(SEED)
    settings = PEAKS[shape]
    net = timm.create_model(**settings["model"], pretrained=False, num_classes=0, img_size=224)
    encoder = load_encoder(net, image_size=224, mean=(0.5,) * 3, std=(0.25,) * 3)
    images = demo_images(SEED)["fit"][:n]
    before = psutil.Process().memory_info().rss
    extract(encoder, images, memory_budget=int(settings["gib"] * 2**30), **settings["how"])
    above = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {"shape": shape, "images": n, "budget_gib": settings["gib"], "peak_gib": above / 2**30}


def draw(results: dict, folder: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(12, 3), layout="constrained")
    named = {"samples": "images", "passes": "passes m", "components": "components K", "inputs": "side of the image"}
    for axis, (key, label) in zip(axes, named.items(), strict=True):
        sizes = [rung["size"] for rung in results[key]]
        seconds = [rung["seconds"] for rung in results[key]]
        each = (
            seconds if key == "samples" else [1e3 * s / r["images"] for s, r in zip(seconds, results[key], strict=True)]
        )
        axis.loglog(sizes, each, marker="o")
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.set_yticks(each, [f"{value:.2g}" if value < 10 else f"{value:.0f}" for value in each])
        axis.minorticks_off()
        axis.set_xlabel(label)
        axis.set_ylabel("seconds" if key == "samples" else "ms an image")
    figure.suptitle(f"Time of extract, batches of at most {MAX_BATCH}")
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "growth.png", dpi=120)


if __name__ == "__main__":
    main()
