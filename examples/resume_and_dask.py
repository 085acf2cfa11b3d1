"""
Resume long runs, and use a dask cluster
========================================

With ``store=`` a run that ended early continues where it stopped: no finished image is measured twice. A joblib
backend spreads the work over processes, either of this machine (``backend="loky"``) or, as here, of a dask cluster.

Cluster processes import this script, so all work is below ``if __name__ == "__main__"``.
"""

import time
from pathlib import Path
from tempfile import mkdtemp

import joblib
import matplotlib.pyplot as plt
import numpy as np
import pyarrow.parquet as pq
from distributed import Client, LocalCluster
from PIL import Image

from skjepa import JEPAScoreDetector, extract
from skjepa.data import ImageReadError, demo_images

BUDGET = 2**25  # bytes per batch; small, so that there are many batches


# %%
# A run that ends too early
# -------------------------
# The folder holds a truncated file. The run stops there (``on_error="skip"`` would continue). All finished images are
# in the store, a plain folder of Parquet files.


def run(folder, store):
    """Measure a folder as far as possible; return the number of images measured by this run, and the seconds."""
    before, started = in_store(store), time.perf_counter()
    try:
        extract("bundled", folder, store=store, memory_budget=BUDGET)
    except ImageReadError as error:
        print(f"stopped: {str(error).replace(str(folder), folder.name)}")
    return in_store(store) - before, time.perf_counter() - started


def in_store(store):
    return pq.read_table(store / "samples").num_rows if (store / "samples").exists() else 0


def three_runs(folder, store):
    """Run with a damaged file, again with the file repaired, and once more."""
    damaged = sorted(folder.iterdir())[100]
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    runs = {"first run, stopped": run(folder, store)}
    damaged.write_bytes(whole)
    runs["second run"] = run(folder, store)
    runs["third run"] = run(folder, store)
    for name, (measured, seconds) in runs.items():
        print(f"{name}: {measured} images measured in {seconds:.1f} s")
    return runs


# %%
# The same on a cluster
# ---------------------
# The cluster has two workers on this machine; ``Client("tcp://scheduler:8786")`` would connect to others. With the same
# batch size the numbers agree, to the last bit if the workers use the same number of threads.


def on_a_cluster(folder):
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with cluster, Client(cluster), joblib.parallel_config(backend="dask"):
        return extract("bundled", folder, memory_budget=BUDGET)


def draw(runs):
    _, axes = plt.subplots(1, 2, figsize=(8, 2.6), layout="constrained", sharey=True)
    for square, values, title in zip(
        axes, zip(*runs.values(), strict=True), ("images measured", "seconds"), strict=True
    ):
        bars = square.barh(list(runs), values, color="#0072B2")
        square.bar_label(bars, fmt="{:.3g}", padding=3)
        square.set_title(title, fontsize=10)
        square.margins(x=0.15)
        square.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    plt.show()


# %%
# Run
# ---

if __name__ == "__main__":
    work = Path(mkdtemp())
    folder = work / "incoming"
    folder.mkdir()
    images = demo_images(seed=0)
    for i, image in enumerate(images["photographs"][:160]):
        Image.fromarray(image).save(folder / f"{i:03d}.png")

    runs = three_runs(folder, work / "store")
    here, there = extract("bundled", folder, store=work / "store", memory_budget=BUDGET), on_a_cluster(folder)
    difference = np.abs(here.singular_values - there.singular_values).max()
    print(f"largest difference of a singular value between this process and the cluster: {difference:.1g}")

    detector = JEPAScoreDetector(contamination=0.1).fit(there[:100])
    print(f"flagged: {np.mean(detector.predict(there[100:]) == -1):.0%} of the other 60 (10 % of those fitted on)")
    draw(runs)
