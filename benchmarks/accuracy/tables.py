"""Does a JEPA trained on a table's own rows find its outliers, and does it beat PyOD's detectors at their defaults?

    python -m benchmarks.accuracy.tables --data FOLDER [--seeds 5] [--max-rows 10000] [--quick] [--again skjepa]

FOLDER holds ADBench's sets as .npz files of X (n, d) and y (1 = outlier). Two protocols:

- semi-supervised: fit on half of the normal rows, judged on the other half and all outliers;
- unsupervised: fit and judged on all rows.

Of a set of more than `--max-rows` rows so many are drawn, normal ones and outliers in their shares. Everyone gets the
same rows: PyOD's KNN, LOF, IForest, ECOD, MCD, OCSVM and AutoEncoder standardised by the fitted ones ("KNN, unscaled"
shows what that is worth), skjepa's as they are. The settings of `VectorJEPA` were chosen on every second set in the
order of file names, the first among them ("tuned"); the others ("confirmed") were not used for it. A rival that fails,
or takes more than `--limit` seconds, gives the scores of a constant: AUROC .5, precision the share of outliers; where
it ran out of time once, it is not tried with other seeds. "all finished" leaves out the sets where that happened.

Every result is kept beside --out as it comes, and a run that was cut off goes on from there; `--again` measures a rival
anew, `--keep` leaves the kept results for that. Writes benchmarks/results/tables.json (or --out), and a picture of
the mean ranks, semi-supervised.
"""

import argparse
import json
import re
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy.table_rivals import DEFAULT, LISTED, NAMES, RIVALS
from benchmarks.accuracy.table_verdicts import METRICS, summary
from benchmarks.common import record
from benchmarks.common.table_sets import PROTOCOLS, QUICK, Parts, read, split, tables_in, thinned
from skjepa._utils.files import written_whole
from skjepa.evaluation.metrics import detection_metrics
from skjepa.evaluation.plotting import ranks_figure, save_figure

OUT = record.RESULTS / "tables.json"
HALVES = ("tuned", "confirmed")  # every second file, and the others
OUT_OF_TIME = "out of time"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--max-rows", type=int, default=10_000)
    options.add_argument("--limit", type=float, default=120.0, help="seconds that one fit may take")
    options.add_argument("--again", nargs="+", choices=list(RIVALS), default=[], help="measure these anew")
    options.add_argument("--keep", action="store_true", help="leave the kept results, for --again")
    options.add_argument("--quick", action="store_true", help="8 tables, one seed, 2,000 rows: minutes")
    options.add_argument("--out", type=Path, default=OUT)
    chosen = options.parse_args()
    seeds, max_rows = (1, min(2000, chosen.max_rows)) if chosen.quick else (chosen.seeds, chosen.max_rows)
    order = list(tables_in(chosen.data))
    paths = tables_in(chosen.data, QUICK if chosen.quick else ())
    kept = Kept(chosen.out.with_suffix(".runs"), again=chosen.again)
    for seed in range(seeds):
        for name, path in paths.items():
            run_set(kept, name, path, seed, max_rows, chosen.limit)
    sets = {name: facts(path, HALVES[order.index(name) % 2]) for name, path in paths.items()}
    runs = {
        (name, protocol, rival): [kept.runs[name, seed, max_rows, protocol, rival] for seed in range(seeds)]
        for name in paths
        for protocol in PROTOCOLS
        for rival in RIVALS
    }
    results = summary(runs, sets, default=DEFAULT, listed=LISTED)
    settings = {"seeds": seeds, "max_rows": max_rows, "limit_seconds": chosen.limit, "quick": chosen.quick}
    record.write(chosen.out, results, seed=0, torch_threads=torch.get_num_threads(), **settings)
    whole = results["verdicts"][PROTOCOLS[0]]["all"]
    ranks = {name: whole["detectors"][name]["mean_rank"] for name in LISTED}
    images = record.IMAGES if chosen.out == OUT else chosen.out.parent
    print(f"wrote {save_figure(ranks_figure(ranks, whole['critical_difference']), images / 'tables_ranks.png')}")
    if not chosen.keep:
        kept.path.unlink()


class Kept:
    """What was measured, by (set, seed, rows, protocol, rival), in a file that grows by a line each."""

    def __init__(self, path: Path, again: list[str]) -> None:
        self.path = path
        self.runs: dict[tuple, dict] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                with suppress(json.JSONDecodeError):  # the last one, where the run was cut off
                    run = json.loads(line)
                    self.runs[tuple(run["key"])] = run
            self.runs = {key: run for key, run in self.runs.items() if key[-1] not in again}
            with written_whole(path) as partial:
                partial.write_text("".join(json.dumps(run) + "\n" for run in self.runs.values()))

    def add(self, key: tuple, run: dict) -> None:
        self.runs[key] = {**run, "key": key}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(self.runs[key]) + "\n")


def run_set(kept: Kept, name: str, path: Path, seed: int, max_rows: int, limit: float) -> None:
    """Every rival under both protocols, as far as it is not kept."""
    keys = [(name, seed, max_rows, protocol, rival) for protocol in PROTOCOLS for rival in RIVALS]
    missing = [key for key in keys if key not in kept.runs]
    if not missing:
        return
    table = thinned(read(path), max_rows, seed)
    parts = {protocol: split(table, protocol, seed) for protocol in PROTOCOLS}
    for key in missing:
        protocol, rival = key[-2:]
        earlier = [kept.runs.get((name, s, max_rows, protocol, rival), {}) for s in range(seed)]
        gave_up = next((run for run in earlier if run.get("failed", "").startswith(OUT_OF_TIME)), None)
        kept.add(key, gave_up or judged(rival, parts[protocol], seed, limit))
    shown = {rival: kept.runs[name, seed, max_rows, PROTOCOLS[0], rival][rival]["auroc"] for rival in RIVALS}
    print(name, seed, {rival: round(value, 3) for rival, value in shown.items()}, flush=True)


def judged(rival: str, parts: Parts, seed: int, limit: float) -> dict[str, Any]:
    """Metrics and seconds of what a rival scores, by name; or those of a constant, and why."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        started, found = time.perf_counter(), {}
        try:
            with time_limit(limit):
                scores = RIVALS[rival](parts, seed)
            for name, (values, seconds) in scores.items():
                metrics = detection_metrics(-values[~parts.outlier], -values[parts.outlier])
                found[name] = {**{m: metrics[m] for m in METRICS}, "seconds": seconds}
        except Exception as error:  # of any kind: a rival's failure is a result
            constant = {"auroc": 0.5, "aupr_out": float(parts.outlier.mean()), "seconds": time.perf_counter() - started}
            found = dict.fromkeys(NAMES.get(rival, (rival,)), constant)
            found["failed"] = f"{error}" if isinstance(error, TimeoutError) else f"{type(error).__name__}: {error}"
    return {**found, "warned": sorted({in_short(warning.message) for warning in caught})}


def in_short(message: Warning | str) -> str:
    """The first words of a warning, without its numbers: one for a hundred of a kind."""
    return re.split(r"[:;(.]", str(message))[0].strip()


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError after so long, at the next step that Python itself takes."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"{OUT_OF_TIME}, more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def facts(path: Path, half: str) -> dict[str, Any]:
    """What a table is, before it is thinned."""
    table = read(path)
    return {
        "n_samples": len(table.X),
        "n_features": table.X.shape[1],
        "outliers": int(table.y.sum()),
        "half": half,
    }


if __name__ == "__main__":
    main()
