"""A long run of one process: does its memory grow, does it slow down?

    python -m benchmarks.reliability.soak                    # 20,000 images, about ten minutes on two idle cores
    python -m benchmarks.reliability.soak --quick --out FILE # 400

Small images, cut at random from the photographs of the demo and written as files, pass the bundled encoder into a
store. A thread looks at the process once a second. Throughput is told in processor seconds an image: seconds of a clock
would show what else the machine has to do.
"""

import argparse
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from matplotlib.cbook import get_sample_data
from PIL import Image
from sklearn.datasets import load_sample_images

from benchmarks.common import record
from skjepa import extract, load_encoder
from skjepa.data.sources import Source, as_source

SIDE, TENTHS = 32, 10
FOLDERS_OF = 1000
BUDGET = 1 << 28  # bytes a batch: by default it follows the memory that is free, and so does what a batch takes


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--images", type=int, default=20_000)
    options.add_argument("--quick", action="store_true", help="400 images")
    options.add_argument("--threads", type=int, help="of torch; by default its own choice")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path, default=record.RESULTS / "soak_cpu.json")
    chosen = options.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    n_images = 400 if chosen.quick else chosen.images
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder, "images"), n_images, np.random.default_rng(chosen.seed))
        results = soak(Path(folder), n_images)
    print(results)
    record.write(chosen.out, results, seed=chosen.seed, threads=torch.get_num_threads())


def write_images(folder: Path, n_images: int, rng: np.random.Generator) -> None:
    """Pieces of the photographs at random places, a thousand files a folder; no two are the same but by chance."""
    portrait = np.asarray(Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)).convert("RGB"))
    photographs = [*load_sample_images().images, portrait]
    for i in range(n_images):
        image = photographs[rng.integers(len(photographs))]
        top, left = (rng.integers(side - SIDE + 1) for side in image.shape[:2])
        path = folder / f"{i // FOLDERS_OF:02d}" / f"{i:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[top : top + SIDE, left : left + SIDE]).save(path)


def soak(folder: Path, n_images: int) -> dict[str, Any]:
    """One pass over the folder, watched, tenth by tenth."""
    encoder, (source, begun) = load_encoder("bundled"), counted(as_source(folder / "images"))
    with watched(begun) as samples:
        found = extract(encoder, source, store=folder / "store", memory_budget=BUDGET)
    assert len(found) == n_images
    return {
        "images": n_images,
        "result_bytes": found.embeddings.nbytes + found.singular_values.nbytes,
        "store_bytes": sum(path.stat().st_size for path in (folder / "store").rglob("*") if path.is_file()),
        **by_tenths(np.array(samples), n_images),
    }


def counted(source: Source) -> tuple[Source, list[int]]:
    """The source, and a list that grows with every image begun."""
    begun: list[int] = []

    def load(i: int) -> Any:
        begun.append(i)
        return source.load(i)

    return replace(source, load=load, file=lambda i: None), begun


@contextmanager
def watched(begun: list[int]) -> Iterator[list[tuple[int, float, float]]]:
    """Once a second: images begun, processor seconds of this process, its resident bytes."""
    process, samples, done = psutil.Process(), [], threading.Event()

    def look() -> None:
        spent = process.cpu_times()
        samples.append((len(begun), spent.user + spent.system, process.memory_info().rss))

    def keep_looking() -> None:
        while not done.wait(1.0):
            if begun:
                look()

    thread = threading.Thread(target=keep_looking)
    thread.start()
    try:
        yield samples
        look()
    finally:
        done.set()
        thread.join()


def by_tenths(samples: np.ndarray, n_images: int) -> dict[str, Any]:
    """Processor seconds an image and mean resident bytes, of every tenth; the first one is the warm-up."""
    begun, seconds, resident = samples.T
    edges = np.interp(np.linspace(0, n_images, TENTHS + 1), begun, seconds)
    tenth = np.minimum(begun * TENTHS // n_images, TENTHS - 1)
    seen = np.unique(tenth)
    memory = np.interp(range(TENTHS), seen, [resident[tenth == i].mean() for i in seen]).tolist()
    costs = [float(after - before) * TENTHS / n_images for before, after in pairwise(edges)]
    warm = costs[1:]
    return {
        "resident_bytes": memory,
        "growth": memory[-1] / memory[1] - 1,
        "seconds_per_image": costs,
        "slowest_over_fastest": max(warm) / min(warm),
        "last_over_second": costs[-1] / costs[1],
    }


if __name__ == "__main__":
    main()
