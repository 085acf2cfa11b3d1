"""OpenOOD's near and far sets, from its own image lists: the default detector against every baseline.

    python -m benchmarks.accuracy.openood --data FOLDER [--id cifar10] [--limit 1000] [--memory FOLDER] [--encoder NAME]

FOLDER is OpenOOD v1.5's (Zhang et al., 2023, arXiv 2306.09301) as its download script leaves it: `benchmark_imglist/`
with a list of images for every split and set, a path and a label a line, and `images_classic/` or `images_largescale/`
with the images. Detectors are fitted on images of the list "train", calibrated on "val" and judged on "test": normal
against each set, and the mean over near and far sets. At most --limit images of each list, drawn by the seed.

Writes benchmarks/results/benchmark_openood_ID.json, or --out. OpenOOD's own AUROCs take the same convention, in per
cent; its FPR@95 is `fpr95_outlier_positive` here.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.common import record
from skjepa.data.sources import Source, as_source
from skjepa.evaluation.benchmark import run_benchmark
from skjepa.evaluation.benchmark_result import BenchmarkResult

LISTS, IMAGES = "benchmark_imglist", ("images_classic", "images_largescale")
SPLITS = {"fit": "train", "calibration": "val", "test": "test"}
SMALL = ("mnist", "svhn", "texture", "places365")
LARGE = ("inaturalist", "textures", "openimage_o")
SETS = {
    "cifar10": {"near": ("cifar100", "tin"), "far": SMALL},
    "cifar100": {"near": ("cifar10", "tin"), "far": SMALL},
    "imagenet200": {"near": ("ssb_hard", "ninco"), "far": LARGE},
    "imagenet": {"near": ("ssb_hard", "ninco"), "far": LARGE},
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--id", choices=SETS, default="cifar10")
    options.add_argument("--encoder", default="bundled")
    options.add_argument("--limit", type=int, default=1000, help="images of each list")
    options.add_argument("--memory", type=Path, help="keep finished images here, and resume")
    options.add_argument("--resamples", type=int, default=1000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = judged(chosen, chosen.memory or Path(scratch))
    results = {"all": found.summary}
    results |= {nearness: found.on(list(names)).summary for nearness, names in SETS[chosen.id].items()}
    settings = {"id": chosen.id, "encoder": chosen.encoder, "limit": chosen.limit}
    record.write(
        chosen.out or record.RESULTS / f"benchmark_openood_{chosen.id}.json", results, seed=chosen.seed, **settings
    )
    print(found.to_markdown())


def judged(chosen: argparse.Namespace, memory: Path) -> BenchmarkResult:
    rng = np.random.default_rng(chosen.seed)
    lists = {name: f"{split}_{chosen.id}" for name, split in SPLITS.items()}
    lists |= {name: f"test_{name}" for names in SETS[chosen.id].values() for name in names}
    groups, labels = {}, {}
    for name, file in lists.items():
        groups[name], labels[name] = listed(chosen.data, chosen.id, file, chosen.limit, rng)
    return run_benchmark(
        {name: groups.pop(name) for name in SPLITS},
        groups,
        encoder=chosen.encoder,
        classes=labels["fit"],
        memory=memory,
        n_resamples=chosen.resamples,
        random_state=chosen.seed,
        progress=True,
    )


def listed(root: Path, normal: str, name: str, limit: int, rng: np.random.Generator) -> tuple[Source, list[str]]:
    """At most so many images of a list, and their labels.

    Raises
    ------
    SystemExit
        No such list, or no such image.
    """
    file = root / LISTS / normal / f"{name}.txt"
    if not file.is_file():
        raise SystemExit(f"no list {file}: --data must be a folder as OpenOOD v1.5 downloads it")
    lines = np.array(file.read_text().splitlines())
    chosen = [str(line).rpartition(" ") for line in rng.permutation(lines)[:limit]]
    paths = [found(root, path) for path, _, _ in chosen]
    return as_source(paths, ids=[path for path, _, _ in chosen]), [label for _, _, label in chosen]


def found(root: Path, path: str) -> Path:
    for folder in IMAGES:
        if (root / folder / path).is_file():
            return root / folder / path
    raise SystemExit(f"no image {path} in {' or '.join(str(root / folder) for folder in IMAGES)}")


if __name__ == "__main__":
    main()
