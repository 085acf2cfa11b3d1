"""`skjepa watch` with real files, processes and signals: each file one row, whatever interrupts."""

import csv
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from filelock import FileLock
from oracles import random_images
from PIL import Image, ImageFilter

import skjepa.cli.app
from skjepa.deployment.score_monitor import ScoreMonitor
from skjepa.deployment.watch import NewFile
from skjepa.deployment.watch_table import COLUMNS, WatchTable
from skjepa.detectors.jepa_score import JEPAScoreDetector
from skjepa.reporting.from_table import results_of_table


def run(*args):
    """Exit code of `skjepa ARGS` in this process."""
    with pytest.raises(SystemExit) as exit:
        skjepa.cli.app.main([str(arg) for arg in args])
    return exit.value.code


def put(folder, images, first=0, age=60):
    """Images as files that were last changed `age` seconds ago, a second apart."""
    for i, image in enumerate(images, start=first):
        path = folder / f"{i:03d}.png"
        Image.fromarray(image).save(path)
        old = time.time() - age + i / 1000
        os.utime(path, (old, old))


def rows_of(path):
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A detector by the bundled encoder, as `skjepa fit` saves it."""
    home = tmp_path_factory.mktemp("saved")
    detector = JEPAScoreDetector(method="forward", calibration=0.4, target_fpr=0.1).fit(random_images(60))
    return detector.save(home / "detector")


@pytest.fixture
def home(tmp_path):
    (tmp_path / "incoming").mkdir()
    return tmp_path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_each_file_is_a_row_once_with_the_scores_of_the_detector(home, saved, suffix, capsys):
    folder, out = home / "incoming", home / f"watched{suffix}"
    images = random_images(9, seed=5)
    put(folder, images[:6])
    (folder / "notes.txt").write_text("no image")
    (folder / "broken.png").write_bytes(b"\x89PNG no picture")
    os.utime(folder / "broken.png", (1e9, 1e9))
    command = ("watch", folder, "--detector", saved, "--out", out, "--once", "--json", "-q")
    assert run(*command) == 3
    assert json.loads(capsys.readouterr().out)["new"] == 7
    put(folder, images[6:], first=6)
    assert run(*command) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["new"], facts["rows"], facts["alarms"]) == (3, 10, [])
    rows = rows_of(out)
    assert [row["id"] for row in rows] == ["broken.png", *(f"{i:03d}.png" for i in range(9))]
    assert tuple(rows[0])[: len(COLUMNS)] == COLUMNS
    assert "broken.png" in rows[0]["error"]
    assert str(rows[0]["label"]) == "-1"
    assert not rows[0]["score"]
    detector = JEPAScoreDetector.load(saved)
    scores = np.array([float(row["score"]) for row in rows[1:]])
    np.testing.assert_allclose(scores, detector.score_samples(images), rtol=1e-5)
    terms = np.array([[float(row[name]) for name in detector.models_[0].terms] for row in rows[1:]])
    np.testing.assert_allclose(terms.sum(axis=1), scores, rtol=1e-9)
    assert [float(row["p_value"]) for row in rows[1:]] == detector.p_values(images).tolist()
    if suffix == ".csv":
        assert len(results_of_table(out).ids) == 10  # `skjepa report` reads it


def test_a_changed_file_is_a_new_row_and_a_young_broken_one_waits(home, saved):
    folder, out = home / "incoming", home / "watched.csv"
    put(folder, random_images(2))
    whole = (folder / "000.png").read_bytes()
    (folder / "half.png").write_bytes(whole[: len(whole) // 2])  # still being written
    command = ("watch", folder, "--detector", saved, "--out", out, "--once", "-q")
    assert run(*command) == 0
    assert [row["id"] for row in rows_of(out)] == ["000.png", "001.png"]
    (folder / "half.png").write_bytes(whole)
    put(folder, random_images(1, seed=9), age=30)
    assert run(*command) == 0
    assert sorted(row["id"] for row in rows_of(out)) == ["000.png", "000.png", "001.png", "half.png"]
    (folder / "half.png").write_bytes(whole[:50])
    assert run(*command, "--patience", 0) == 3
    assert rows_of(out)[-1]["error"]


def test_drift_is_told_and_the_monitor_lies_beside_the_table(home, saved, capsys):
    folder, out = home / "incoming", home / "watched.csv"
    normal = random_images(60, seed=1)
    blurred = [np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(1))) for image in random_images(90, 2)]
    put(folder, [*normal, *blurred])
    assert run("watch", folder, "--detector", saved, "--out", out, "--once") == 0
    told = capsys.readouterr().err
    assert "drift:" in told
    assert "calibrate" in told
    alarm = ScoreMonitor.load(home / "watched.drift.json").alarm
    assert 60 <= alarm.noticed < 150
    drifted = [row for row in rows_of(out) if row["drift"]]
    assert drifted[0]["id"] == f"{alarm.noticed:03d}.png"


def test_a_lost_monitor_and_one_that_lags_behind_are_told_the_rows(home, saved):
    folder, out, kept = home / "incoming", home / "watched.csv", home / "watched.drift.json"
    images = random_images(40, seed=3)
    command = ("watch", folder, "--detector", saved, "--out", out, "--once", "-q")
    put(folder, images[:20])
    assert run(*command) == 0
    earlier = kept.read_bytes()
    put(folder, images[20:], first=20)
    assert run(*command) == 0
    whole = json.loads(kept.read_text())
    for lost in (None, earlier):  # removed; killed between the table and the monitor
        kept.unlink()
        if lost:
            kept.write_bytes(lost)
        assert run(*command) == 0
        assert json.loads(kept.read_text()) == whole


def test_normal_images_are_what_terms_are_compared_with(home, saved):
    put(home / "incoming", random_images(2))
    (home / "normal").mkdir()
    put(home / "normal", random_images(12, seed=8))
    command = ("watch", home / "incoming", "--detector", saved, "--out", home / "w.csv", "--once", "-q")
    assert run(*command, "--normal", home / "normal") == 0
    monitor = ScoreMonitor.load(home / "w.drift.json")
    assert {len(values) for values in monitor.state["normal"]} == {12}
    assert run(*command, "--drift-level", 0.2) == 2


def test_what_cannot_be_gone_on_with_is_refused(home, saved, capsys):
    folder, out = home / "incoming", home / "w.csv"
    put(folder, random_images(1))
    command = ("watch", folder, "--detector", saved, "--out", out, "--once", "-q")
    out.write_text("id,other\nx,1\n")
    assert run(*command) == 2
    assert "give another --out" in capsys.readouterr().err.lower()
    out.unlink()
    with FileLock(home / ".w.csv.lock"):
        assert run(*command) == 2
    assert "another process" in capsys.readouterr().err
    assert run("watch", home / "nothing", "--detector", saved, "--out", out) == 2
    assert run("watch", folder, "--detector", saved, "--out", home / "w.parquet") == 2


def test_half_a_line_is_cut_off(tmp_path):
    for name in ("t.csv", "t.jsonl"):
        path = tmp_path / name
        row = dict.fromkeys(COLUMNS) | {"id": 'a,"b\n', "score": 0.1, "label": 1, "size": 3, "modified": 5}
        with WatchTable(path, ["term"]) as table:
            table.append([row, row | {"id": "c"}])
        whole = path.read_bytes()
        path.write_bytes(whole[:-4])
        with WatchTable(path, ["term"]) as table:
            (kept,) = table.rows
        assert (kept["id"], kept["score"], kept["size"], kept["error"]) == ('a,"b\\n', 0.1, 3, None)
        path.write_bytes(whole[:5])  # half a header
        with WatchTable(path, ["term"]) as table:
            assert table.rows == []
        path.write_bytes(whole)
        with pytest.raises(ValueError, match="another --out"):
            WatchTable(path, ["other term"])


def test_a_file_that_changes_while_it_is_scored_is_another(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"1")
    seen = path.stat()
    file = NewFile(path, "a.png", seen.st_size, seen.st_mtime_ns)
    assert file.is_unchanged()
    assert file.is_young(60)
    path.write_bytes(b"12")
    assert not file.is_unchanged()
    path.unlink()
    assert not file.is_unchanged()


class TestProcesses:
    def start(self, home, saved):
        command = [sys.executable, "-m", "skjepa", "watch", home / "incoming", "--detector", saved]
        command += ["--out", home / "w.csv", "--interval", "0.1", "-q"]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=Path(skjepa.__file__).parents[1])

    def wait_for(self, home, n, process):
        limit = time.monotonic() + 120
        while time.monotonic() < limit and process.poll() is None:
            out = home / "w.csv"
            if out.exists() and out.read_bytes().count(b"\n") > n:
                return
            time.sleep(0.05)
        raise AssertionError(f"no {n} rows: {process.poll()}, {process.stderr.read() if process.poll() else ''}")

    @pytest.mark.slow
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
    def test_a_signal_loses_nothing_and_doubles_nothing(self, home, saved, number):
        images = random_images(70, seed=4)
        put(home / "incoming", images[:40])
        process = self.start(home, saved)
        self.wait_for(home, 1, process)
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode == (-9 if number == signal.SIGKILL else 0)
        put(home / "incoming", images[40:], first=40)
        process = self.start(home, saved)
        self.wait_for(home, 70, process)
        process.terminate()
        assert process.communicate(timeout=60)[1] == ""
        assert process.returncode == 0
        assert [row["id"] for row in rows_of(home / "w.csv")] == [f"{i:03d}.png" for i in range(70)]
        assert ScoreMonitor.load(home / "w.drift.json").monitor.n == 70
        shutil.rmtree(home / "incoming")


@pytest.mark.slow
def test_ten_thousand_pictures(home, saved):
    """Each has one row, no alarm is raised, and memory grows by the names and the ranks alone."""
    folder, used = home / "incoming", []
    command = ("watch", folder, "--detector", saved, "--out", home / "w.csv", "--once", "-q")
    for begin in range(0, 10_000, 2500):
        for i, image in enumerate(random_images(2500, seed=begin + 9), start=begin):
            Image.fromarray(image).save(folder / f"{i:05d}.png", compress_level=1)
        assert run(*command) == 0
        gc.collect()
        used.append(psutil.Process().memory_info().rss)
    rows = rows_of(home / "w.csv")
    assert len(rows) == len({row["id"] for row in rows}) == 10_000
    assert not any(row["error"] for row in rows)
    assert not any(row["drift"] for row in rows)
    assert ScoreMonitor.load(home / "w.drift.json").monitor.n == 10_000
    assert used[-1] - used[1] < 150 << 20
