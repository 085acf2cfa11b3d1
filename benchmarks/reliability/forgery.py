"""Forged folders of saved detectors, of every kind: how many are refused, and whether any loads and then fails.

    PYTHONPATH=tests/helpers:tests/faults python -m benchmarks.reliability.forgery --seconds 600

writes benchmarks/results/forgery.json. The forging is that of tests/faults/test_saved_detectors.py; the checksum of a
forged folder is right.
"""

import argparse
import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from test_saved_detectors import KINDS, Saved, tally

from benchmarks.common import record

OUTCOMES = ("refused", "refused in use", "the same scores", "other scores", "loads")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=600, help="for all kinds together")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path, default=record.RESULTS / "forgery.json")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    kinds = {}
    with tempfile.TemporaryDirectory() as home:
        for i, name in enumerate(KINDS):
            rng = random.Random(chosen.seed * len(KINDS) + i)
            counts, bad = tally(Saved(name, Path(home)), rng, seconds=chosen.seconds / len(KINDS))
            kinds[name] = summed(counts)
            print(name, kinds[name], *(f"\n    {what}: {outcome}" for what, outcome in bad), flush=True)
    total = sum((Counter(found) for found in kinds.values()), Counter())
    results = {"total": {name: total[name] for name in ("tried", *OUTCOMES)}, "kinds": kinds}
    record.write(chosen.out, results, seed=chosen.seed, seconds=chosen.seconds)


def summed(counts: Counter) -> dict[str, Any]:
    """Refused, for whatever reason; loaded, to the same or other scores; loaded, and failed in use."""
    found = {outcome: sum(n for name, n in counts.items() if name.partition(":")[0] == outcome) for outcome in OUTCOMES}
    return {"tried": counts.total(), **found}


if __name__ == "__main__":
    main()
