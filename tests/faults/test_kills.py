"""Processes killed at random moments, files cut and damaged, disks that refuse: nothing finished is lost.

The trials are those whose full counts stand in docs/guide/reliability.md.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks and signals of POSIX systems")


def trials(tmp_path: Path, *more: str, kills: int, seed: int) -> dict:
    """The counts of a process of its own: this one has run encoders, and must not fork."""
    out = tmp_path / "reliability.json"
    options = ["--kills", str(kills), "--seed", str(seed), "--out", str(out), *more]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.reliability.kills", *options], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())["trials"]


def assert_nothing_lost(found: dict, *, kills: int) -> None:
    for name, counts in found.items():
        assert counts["times"] > 0, name
        assert counts["lost"] == counts["different"] == 0, (name, counts)
        assert counts.get("repeated_at_most", 0) <= 1 or name == "bit of a shard", (name, counts)
        for always in ("named", "found"):
            assert counts.get(always, counts["times"]) == counts["times"], (name, counts)
    assert found["killed"]["times"] >= kills
    assert found["killed"]["repeated_batches"] <= found["killed"]["times"]


def test_a_few_kills(tmp_path):
    assert_nothing_lost(trials(tmp_path, "--only", "killed", kills=3, seed=1), kills=3)


@pytest.mark.slow
def test_thirty_kills_and_all_other_trials(tmp_path):
    found = trials(tmp_path, "--share", "0.1", kills=30, seed=2)
    assert {"killed", "two writers killed", "journal cut", "bit of a journal", "bit of a shard"} <= found.keys()
    assert_nothing_lost(found, kills=30)
