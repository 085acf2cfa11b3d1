"""Run every experiment, one after the other, and say what each took.

    python -m benchmarks.theory.run_all [--quick] [--data FOLDER] [--spectra FILE] [--n-jobs 2]

FOLDER holds cifar10, mnist, fashion_mnist and tiny_imagenet, unpacked: several views are then tried on them, too. FILE
holds singular values of larger encoders, beside which the limits of `diagnose()` are shown. `--quick` leaves its
figures in build/theory, away from the full ones.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

QUICK_PLACE = Path(__file__).resolve().parents[2] / "build" / "theory"
EXPERIMENTS = (
    "known_density",
    "dimension",
    "objectives",
    "objectives_images",
    "convergence",
    "views",
    "views_images",
    "failures",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--spectra", type=Path)
    parser.add_argument("--n-jobs", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=EXPERIMENTS, default=EXPERIMENTS)
    chosen = parser.parse_args()
    started = time.perf_counter()
    for name in chosen.only:
        begun = time.perf_counter()
        # One thread for each of the n jobs: the networks are too small for more.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", f"benchmarks.theory.{name}", *arguments(name, chosen)]
        subprocess.run(command, check=True, env=environment)
        print(f"{name}: {time.perf_counter() - begun:.0f} s", flush=True)
    print(f"all: {(time.perf_counter() - started) / 60:.1f} min")


def arguments(name: str, chosen: argparse.Namespace) -> list[str]:
    """What a script is called with."""
    given = ["--n-jobs", str(chosen.n_jobs)]
    if chosen.quick:
        given += ["--quick", "--out", str(QUICK_PLACE / f"{name}.json"), "--figure", str(QUICK_PLACE / f"{name}.png")]
    if name == "views_images":
        given += ["--data", str(chosen.data)] if chosen.data else []
        given += [] if chosen.quick else ["--n-test", "40", "--max-views", "8"]
    if name == "failures" and chosen.spectra:
        given += ["--spectra", str(chosen.spectra)]
    return given


if __name__ == "__main__":
    main()
