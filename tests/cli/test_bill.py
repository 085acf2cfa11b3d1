"""The bill of a command: what it says, when it asks, and what --budget chooses."""

import re

import numpy as np
import pytest
import typer
from PIL import Image

from skjepa import JEPAScoreDetector
from skjepa.cli import bill
from skjepa.cli.app import main
from skjepa.extraction import PassCost

RNG = np.random.default_rng(0)
QUICK = PassCost(n_samples=90, n_components=64, forward=1e-3, graph=1e-3, backward=1e-4, spectrum=1e-7, gflop=0.01)
SLOW = PassCost(n_samples=90, n_components=384, forward=0.3, graph=0.4, backward=0.25, spectrum=1e-5, gflop=11.0)


def run(*arguments):
    with pytest.raises(SystemExit) as exit:
        main([str(argument) for argument in arguments])
    return exit.value.code


@pytest.fixture
def folder(tmp_path):
    for name, n in (("normal", 60), ("odd", 30)):
        (tmp_path / name).mkdir()
        for i, image in enumerate(RNG.integers(0, 256, size=(n, 32, 32, 3), dtype=np.uint8)):
            Image.fromarray(image).save(tmp_path / name / f"{i}.png")
    return tmp_path


@pytest.fixture
def scored(folder, monkeypatch):
    """`skjepa score` of 90 images."""
    monkeypatch.chdir(folder)
    options = ("--fit", "normal", "odd", "--out", "scores.csv", "--no-picture", "--contamination", "0.1")
    return lambda *more: run("score", *options, *more)


@pytest.fixture
def slow(monkeypatch):
    """The estimate is that of a large encoder."""
    monkeypatch.setattr(bill, "_cost", lambda *_: SLOW)


@pytest.fixture
def quick(monkeypatch):
    """The estimate is that of a small encoder on an idle machine."""
    monkeypatch.setattr(bill, "_cost", lambda *_: QUICK)


@pytest.fixture
def terminal(monkeypatch):
    """Answers "no" to whatever is asked."""
    asked = []

    def confirm(question, **options):
        asked.append(question)
        raise typer.Abort

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr(typer, "confirm", confirm)
    return asked


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("90", 90), ("10m", 600), ("1.5h", 5400), ("2 d", 172800), ("3min", 180)]
)
def test_times(text, seconds):
    assert bill.seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-3m", "0s", "10 weeks"])
def test_what_is_no_time(text):
    with pytest.raises(ValueError, match="--budget must be a time such as 90s"):
        bill.seconds_of(text)


def test_the_bill_lists_every_choice_with_its_price(slow, scored, capsys):
    assert scored("--method", "exact", "--memory-budget", "1.5") == 0
    said = capsys.readouterr().err
    assert "90 images, about 2.5 h on this machine" in said
    rows = dict(re.findall(r"(--method \w+(?: --directions \d+)?) +\d+ +([\d.]+ \w+)", said))
    assert list(rows) == [
        "--method exact",
        "--method sketch --directions 16",
        "--method sketch --directions 4",
        "--method forward",
    ]
    assert rows["--method forward"] == "0.3 s"
    assert re.search(r"> +--method exact", said)
    assert re.search(r"--method forward .* -0\.0\d\d", said)
    assert re.search(r"Memory: up to 1\.5 GiB \(--memory-budget\)", said)


def test_nothing_is_said_of_what_is_quick(quick, scored, capsys):
    assert scored() == 0
    assert "on this machine" not in capsys.readouterr().err


def test_a_user_is_asked_before_more_than_a_minute(slow, terminal, scored, folder):
    assert scored("--method", "exact") == 130
    assert len(terminal) == 1
    assert not (folder / "scores.csv").exists()


@pytest.mark.parametrize("option", ["--yes", "--quiet"])
def test_a_script_is_not_asked(slow, terminal, scored, option):
    assert scored("--method", "exact", option) == 0
    assert not terminal


def test_a_budget_chooses_for_auto(slow, terminal, scored, capsys):
    assert scored("--budget", "10m") == 0
    assert not terminal
    said = capsys.readouterr().err
    assert re.search(r"> +--method sketch --directions 16", said)
    assert "method sketch: 16 backward passes per image" in said


def test_a_budget_refuses_what_was_asked_for(slow, scored, capsys, folder):
    assert scored("--method", "exact", "--budget", "10m") == 2
    assert "take about 2.5 h on this machine; --budget is 10 min" in capsys.readouterr().err
    assert not (folder / "scores.csv").exists()


def test_the_paper_score_keeps_its_passes(slow, scored, capsys):
    assert scored("--formula", "jepa", "--budget", "3m") == 0
    said = capsys.readouterr().err
    assert re.search(r"> +--method sketch --directions 4", said)
    assert "--method forward" not in said


def test_the_choice_stands_in_the_saved_detector(slow, folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert run("fit", "normal", "--out", "detector", "--budget", "10m", "--quiet", "--alpha", "0.2") == 0
    detector = JEPAScoreDetector.load(folder / "detector")
    assert (detector.method, detector.n_directions) == ("sketch", 16)
    assert "the budget is 10 min" in detector.method_reason_
    assert run("score", "--detector", "detector", "odd", "--out", "s.csv", "--no-picture", "--budget", "1s") == 2


def test_bench_and_prune_have_it_too(slow, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert run("prune", "normal", "--keep", "0.5", "--method", "exact", "--budget", "1m") == 2
    assert run("bench", "--id", "normal", "--ood", "odd", "--method", "exact", "--budget", "1m") == 2
    assert capsys.readouterr().err.count("take about 2.5 h on this machine") == 2
