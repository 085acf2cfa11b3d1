"""Everything that has to be known about a GPU, in one run of at most nine minutes.

    python -m benchmarks.speed.gpu --out FOLDER [--data FOLDER] [--device cuda|cpu] [--minutes 9] [--quick] [--only ...]

Each step runs in a process of its own with a time limit of its own. A step that fails, hangs or runs out of time is
recorded with its error and what it had measured until then, and the next one runs. FOLDER/gpu.json is written anew
after each step, whole or not at all; beside it lie the logs of the steps. The last step gets the time that is left: it
trains the bundled encoder, whose checkpoint and weights lie in FOLDER/encoder. For that DATA holds `cifar10/` or
`cifar10.zip`.

On a GPU, and without `--quick`, the results are written to benchmarks/results/gpu.json as well; where only FOLDER comes
back from the machine, copy FOLDER/gpu.json there. `--device cpu --quick` tries the script itself, with tiny shapes. The
tests need what the extra `test` installs; nothing else needs more than the package.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import record

SEED = 0
ROOT = Path(__file__).resolve().parents[2]
LEAST = 5.0
"""Seconds without which a step is not begun."""

GRACE = 10.0
"""Seconds between the time at which a step is told to stop and the one at which it is killed."""

ENDING = 8.0
"""Seconds kept for the last file."""

TESTS = (
    "tests/jacobian",
    "tests/extraction/test_encoder_pass.py",
    "tests/extraction/test_hidden_layers.py",
    "tests/detectors/test_forward.py",
)


@dataclass(frozen=True)
class Step:
    """A process of the run.

    Attributes
    ----------
    name : str
        Of its results, and of its log.
    command : callable of (seconds, file)
        Arguments of a Python process that has so many seconds and writes what it measured to that JSON file.
    seconds : float or None
        Its limit; None for all that is left.
    """

    name: str
    command: Callable[[float, Path], Sequence[str]]
    seconds: float | None


class Clock:
    """What is left of the run."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes

    def left(self) -> float:
        return self.end - time.monotonic() - ENDING


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--quick", action="store_true", help="tiny shapes: two minutes")
    options.add_argument("--out", type=Path, default=Path("bench-output/gpu"))
    options.add_argument("--data", type=Path, help="folder with cifar10/ or cifar10.zip; without it nothing is trained")
    options.add_argument("--minutes", type=float, default=9.0)
    options.add_argument("--only", nargs="+", help="names of steps")
    chosen = options.parse_args()
    steps = steps_of(chosen.device, quick=chosen.quick, data=chosen.data, out=chosen.out)
    unknown = set(chosen.only or ()) - {step.name for step in steps}
    if unknown:
        options.error(f"no step {', '.join(sorted(unknown))}; there are {', '.join(step.name for step in steps)}")
    settings: dict[str, Any] = {"device": chosen.device, "quick": chosen.quick, "minutes": chosen.minutes}
    on_gpu = chosen.device.startswith("cuda")
    if on_gpu:
        settings["gpu"] = torch.cuda.get_device_name(chosen.device)
        settings["memory_gib"] = torch.cuda.get_device_properties(chosen.device).total_memory / 2**30
    files = [chosen.out / "gpu.json"] + ([record.RESULTS / "gpu.json"] if on_gpu and not chosen.quick else [])
    chosen_steps = [step for step in steps if not chosen.only or step.name in chosen.only]
    run(chosen_steps, Clock(chosen.minutes), chosen.out, files, settings)


def steps_of(device: str, *, quick: bool, data: Path | None, out: Path) -> list[Step]:
    """All steps, the training last; limits are those of a GPU."""
    common = ["--device", device, *(["--quick"] if quick else [])]

    def measured(name: str) -> Callable[[float, Path], Sequence[str]]:
        def command(seconds: float, file: Path) -> Sequence[str]:
            whole = ["-m", "benchmarks.speed.gpu_steps", name, "--seconds", f"{seconds:.0f}", "--out", str(file)]
            return [*whole, *common]

        return command

    def tests(seconds: float, file: Path) -> Sequence[str]:
        chosen = TESTS[:1] if quick else TESTS
        return ["-m", "pytest", "-v", "-m", "not slow", "-p", "no:cacheprovider", "--device", device, *chosen]

    def training(seconds: float, file: Path) -> Sequence[str]:
        return [*measured("training")(seconds, file), "--data", str(data), "--folder", str(out / "encoder")]

    limits = {"exact": 130.0, "variants": 100.0, "forward": 50.0, "memory": 50.0, "together": 45.0}
    steps = [Step("tests", tests, 70.0), *(Step(name, measured(name), limit) for name, limit in limits.items())]
    return steps if data is None else [*steps, Step("training", training, None)]


def run(steps: Sequence[Step], clock: Clock, out: Path, files: Sequence[Path], settings: dict[str, Any]) -> dict:
    """What became of each step; the files are written after each of them."""
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {step.name: {"state": "not begun"} for step in steps}
    for step in steps:
        limit = clock.left() if step.seconds is None else min(step.seconds, clock.left())
        if limit < LEAST:
            found[step.name] = {"state": "not begun", "error": "no time was left"}
            continue
        print(f"{step.name}: at most {limit:.0f} s", flush=True)
        try:
            found[step.name] = run_step(step, limit, out)
        except Exception as error:  # whatever it is, the next step runs
            found[step.name] = {"state": "failed", "error": repr(error)}
        print(f"{step.name}: {found[step.name]['state']}", flush=True)
        for file in files:
            try:
                record.write(file, {"steps": found}, seed=SEED, **settings)
            except (OSError, ValueError) as error:  # a full disk, say; the next step's results may find room
                print(f"{file} is not written: {error}", flush=True)
    return found


def run_step(step: Step, limit: float, out: Path) -> dict[str, Any]:
    """State, seconds, error and results of one step: what its process had written when it ended or was killed."""
    file, log = out / f"{step.name}.json", out / f"{step.name}.log"
    file.unlink(missing_ok=True)
    started = time.monotonic()
    with log.open("w") as output:
        command = [sys.executable, *step.command(max(1.0, limit - GRACE), file)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            state = "done" if process.wait(limit) == 0 else "failed"
        except subprocess.TimeoutExpired:
            state = "out of time"
        finally:
            end_all(process)
    text = log.read_text(errors="replace")
    step_found: dict[str, Any] = {"state": state, "seconds": round(time.monotonic() - started, 1)}
    if state != "done":
        step_found["error"] = "\n".join(text.strip().splitlines()[-5:])[-1500:]
    if step.name == "tests":
        step_found["results"] = outcomes(text)
    elif file.exists():
        step_found["results"] = json.loads(file.read_text())
    return step_found


def end_all(process: subprocess.Popen) -> None:
    """The process and those that it started: what hangs on a device would hold it."""
    if os.name == "posix":
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
    else:
        process.kill()
    process.wait()


def outcomes(log: str) -> dict[str, Any]:
    """How many tests had which outcome, and which failed, from the lines of `pytest -v` until it ended."""
    counts: dict[str, int] = {}
    failed = []
    for line in log.splitlines():
        name, _, rest = line.partition(" ")
        word = rest.split()[0] if rest.split() else ""
        if "::" in name and word in ("PASSED", "FAILED", "ERROR", "SKIPPED"):
            counts[word.lower()] = counts.get(word.lower(), 0) + 1
            if word in ("FAILED", "ERROR"):
                failed.append(name)
    return {"counts": counts, "failed": failed}


if __name__ == "__main__":
    main()
