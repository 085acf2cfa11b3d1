"""The script that asks a GPU everything at once: a step that fails, hangs or has no time does not stop the others."""

import json
import sys
import time

import pytest

from benchmarks.render.gpu import TABLES, tables_of
from benchmarks.speed import gpu


def step(name, code, seconds=20.0):
    """A step whose process runs a line of Python; FILE is where it may write what it measured."""
    return gpu.Step(name, lambda _, file: ["-c", f"FILE = {str(file)!r}\n{code}"], seconds)


WRITES = "open(FILE, 'w').write('{\"rows\": [1]}')"


def nothing_to_run(seconds, file):
    raise KeyError("no such shape")


def test_what_fails_is_recorded_and_the_rest_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "LEAST", 0.1)
    steps = [
        gpu.Step("without a command", nothing_to_run, 20.0),
        step("fails", "raise ValueError('of the device')"),
        step("ends hard", "import os; os.abort()"),
        step("hangs", f"{WRITES}; import time; time.sleep(60)", seconds=2.0),
        step("works", WRITES),
    ]
    written = tmp_path / "results" / "gpu.json"
    started = time.monotonic()
    gpu.run(steps, gpu.Clock(2), tmp_path, [tmp_path / "gpu.json", written], {"device": "cpu"})
    assert time.monotonic() - started < 30
    for file in (tmp_path / "gpu.json", written):
        found = json.loads(file.read_text())
        assert found["stamp"]["device"] == "cpu"
        states = {name: outcome["state"] for name, outcome in found["steps"].items()}
        assert states == {
            "without a command": "failed",
            "fails": "failed",
            "ends hard": "failed",
            "hangs": "out of time",
            "works": "done",
        }
    assert "no such shape" in found["steps"]["without a command"]["error"]
    assert "ValueError: of the device" in found["steps"]["fails"]["error"]
    assert found["steps"]["hangs"]["results"] == found["steps"]["works"]["results"] == {"rows": [1]}


def test_results_are_written_after_each_step(tmp_path):
    ends = step("second", f"import json; assert 'done' in open({str(tmp_path / 'gpu.json')!r}).read(); {WRITES}")
    found = gpu.run([step("first", WRITES), ends], gpu.Clock(2), tmp_path, [tmp_path / "gpu.json"], {})
    assert found["second"]["state"] == "done"


def test_nothing_is_begun_without_time(tmp_path):
    found = gpu.run([step("late", WRITES)], gpu.Clock(0.2), tmp_path, [tmp_path / "gpu.json"], {})
    assert found["late"] == {"state": "not begun", "error": "no time was left"}


def test_what_an_earlier_run_left_is_not_taken_for_a_result(tmp_path):
    (tmp_path / "fails.json").write_text("{}")
    found = gpu.run([step("fails", "raise SystemExit(3)")], gpu.Clock(2), tmp_path, [], {})
    assert "results" not in found["fails"]


def test_outcomes_of_tests_that_were_cut_off():
    log = "tests/a.py::test_b[1] PASSED [ 1%]\ntests/a.py::test_c FAILED [ 2%]\ntests/a.py::test_d "
    assert gpu.outcomes(log) == {"counts": {"passed": 1, "failed": 1}, "failed": ["tests/a.py::test_c"]}


def test_rows_that_fail_keep_their_place(tmp_path):
    from benchmarks.speed.gpu_steps import Rows

    rows = Rows(tmp_path / "rows.json", 60)
    rows.add(lambda: {"ms": 1 / 0}, way="a")
    rows.add(lambda: {"ms": 2.0}, way="b")
    rows.end = 0
    rows.add(lambda: {"ms": 3.0}, way="c")
    found = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row.get("ms") for row in found] == [None, 2.0, None]
    assert "ZeroDivisionError" in found[0]["error"]
    assert found[2]["error"] == "no time was left"


def test_page_has_what_was_measured_and_says_what_was_not():
    timed = {"precision": "bfloat16", "batch": 1}
    exact = [
        {"way": "skjepa", "ms": 20.0, **timed},
        {"way": "skjepa", "ms": 10.0, **timed, "batch": 32},
        {"way": "skjepa", "error": "CUDA out of memory", **timed, "batch": 64},
        {"way": "Listing 1", "ms": 2000.0, **timed},
        {"way": "parts", "precision": "bfloat16", "passes_ms": 9.0, "singular_values_ms": 1.0, "batch": 32},
    ]
    ways = [
        {"way": "skjepa", "ms": 10.0, "largest_difference": 0.0, **timed},
        {"way": "torch.compile", "ms": 5.0, "largest_difference": 1e-3, **timed},
    ]
    page = tables_of(
        {
            "stamp": {"device": "cuda", "gpu": "a GPU", "date": "2030-01-01T00:00:00+00:00"},
            "steps": {
                "exact": {"state": "done", "results": {"rows": exact, "floor_ms": {"bfloat16": 8.0}}},
                "variants": {"state": "out of time", "results": {"rows": ways}},
                "memory": {"state": "failed", "error": "no such device"},
            },
        }
    )
    assert "| skjepa | bfloat16 | 20.00 | 10.00 (batch 32) | 1.25 | 200.00 |" in page
    assert "| torch.compile | bfloat16 | 1 | 5.00 | 0.50 | 1e-03 |" in page
    assert "`variants` did not end well: out of time" in page
    assert "Memory" not in page


@pytest.mark.slow
def test_every_step_runs_on_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--quick", "--out", str(tmp_path), "--minutes", "8"])
    gpu.main()
    steps = json.loads((tmp_path / "gpu.json").read_text())["steps"]
    assert {outcome["state"] for outcome in steps.values()} == {"done"}, steps
    rows = [row for outcome in steps.values() for row in outcome["results"].get("rows", [])]
    assert len(rows) > 20
    assert not [row for row in rows if "error" in row]
    page = tables_of(json.loads((tmp_path / "gpu.json").read_text()))
    assert all(caption in page for caption, _ in TABLES.values())
