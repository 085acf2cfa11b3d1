"""Many small runs that may be interrupted: what is finished is kept, and the next start goes on from there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed
from tqdm import tqdm


def resumable(function: Callable[..., Any], tasks: list[tuple], kept: Path, *, n_jobs: int) -> list[Any]:
    """`function(*task)` for every task, in order; each result is a line of the file `kept` as soon as it is there.

    Tasks and results must be JSON; every setting that changes a result belongs in its task. Delete the file when the
    results have been written elsewhere.
    """
    kept.parent.mkdir(parents=True, exist_ok=True)
    lines = kept.read_text().splitlines() if kept.exists() else []
    done = {tuple(task): result for task, result in map(json.loads, lines)}
    missing = [task for task in tasks if task not in done]
    results = Parallel(n_jobs=n_jobs, return_as="generator")(delayed(function)(*task) for task in missing)
    with kept.open("a") as file:
        for task, result in zip(missing, tqdm(results, total=len(missing), desc="runs"), strict=True):
            done[task] = result
            file.write(json.dumps([task, result]) + "\n")
            file.flush()
    return [done[task] for task in tasks]
