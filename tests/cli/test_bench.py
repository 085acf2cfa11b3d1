"""`skjepa bench` as a shell sees it."""

import json

import numpy as np
import pytest
import torch
from oracles import conv_net, random_images
from PIL import Image

import skjepa
import skjepa.cli.app
import skjepa.evaluation.benchmark
from skjepa.evaluation.benchmark import default_detectors


def run(*args):
    """Exit code of `skjepa bench ARGS` in this process."""
    with pytest.raises(SystemExit) as exit:
        skjepa.cli.app.main(["bench", *map(str, args)])
    return exit.value.code


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Normal images, two folders of others of which one holds a normal image, and an encoder that is quick."""
    rng = np.random.default_rng(0)
    normal = random_images(60)
    sets = {"normal": normal, "noise": rng.integers(0, 256, (6, 32, 32, 3), np.uint8), "smooth": normal[:1]}
    for name, images in sets.items():
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / name / f"{i:02d}.png")
    Image.fromarray(random_images(1, seed=9)[0]).save(tmp_path / "smooth" / "new.png")
    torch.manual_seed(0)
    made = skjepa.load_encoder(conv_net(), image_size=32)
    monkeypatch.setattr(skjepa, "load_encoder", lambda *_, **__: made, raising=False)
    quick = {name: detector for name, detector in default_detectors().items() if name in ("skjepa", "kNN")}
    monkeypatch.setattr("skjepa.evaluation.benchmark.default_detectors", lambda **_: quick)
    return tmp_path


def test_both_ways_to_name_folders(folders, capsys):
    out = folders / "out"
    arguments = ["--id", folders / "normal", "--out", out, "--resamples", 20, "-q"]
    assert run(*arguments, "--ood", folders / "noise", folders / "smooth") == 0
    shown = capsys.readouterr()
    assert "| AUROC | noise | smooth |" in shown.out
    assert "repeated: smooth/00.png is the same as " in shown.err
    found = json.loads((out / "results.json").read_text())
    assert found["samples"] == {"fit": 30, "calibration": 12, "test": 18, "noise": 6, "smooth": 2}
    assert {path.name for path in out.iterdir()} >= {"scores.parquet", "table.md", "roc.png", "gallery.png"}
    assert run(*arguments, "--ood", folders / "noise", "--ood", folders / "smooth", "--drop-repeats") == 0
    assert json.loads((out / "results.json").read_text())["samples"]["smooth"] == 1
    assert "1 repeated images, left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give at least one folder of other images: --ood DIR"),
        (["--ood", "absent"], "--ood: no folder "),
        (["--ood", "noise", "--fit-share", "0.9", "--calibration", "0.1"], "leave no normal images for the test"),
        (["--ood", "noise", "noise"], "a folder is given twice"),
        (
            ["--ood", "noise", "--passes", "few"],
            "--passes takes 'auto', 'none' or numbers such as '0, 4, 16'; got 'few'",
        ),
        (["--ood", "noise", "--passes", "65"], "passes holds 65, and the encoder has 64 outputs"),
        (["--ood", "noise", "--out", "normal/00.png"], "--out: normal/00.png is a file; give a folder"),
    ],
)
def test_bad_input_is_one_sentence(folders, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(folders)
    assert run("--id", "normal", "-q", *arguments) == 2
    shown = capsys.readouterr().err
    assert message in " ".join(shown.split())
    assert "Traceback" not in shown
    assert not (folders / "benchmark-output").exists()


@pytest.mark.parametrize(
    ("passes", "expected"), [("auto", {"4", "16"}), ("none", set()), ("0, 4, 8", {"forward pass alone", "4", "8"})]
)
def test_numbers_of_passes(folders, capsys, passes, expected):
    out = folders / "out"
    arguments = ["--id", folders / "normal", "--ood", folders / "noise", "--out", out, "--resamples", 10, "-q"]
    assert run(*arguments, "--passes", passes, "--store", folders / "kept") == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[0].endswith("| Pareto |")
    assert (out / "pareto.png").stat().st_size > 5000
    found = json.loads((out / "results.json").read_text())["detectors"]
    ours = {name.removeprefix("skjepa, ").removesuffix(" passes") for name in found if "," in name}
    assert ours == expected


def test_unreadable_images(folders, capsys):
    (folders / "noise" / "00.png").write_bytes(b"nothing")
    arguments = ["--id", folders / "normal", "--ood", folders / "noise", "--out", folders / "out", "-q"]
    assert run(*arguments, "--on-error", "raise") == 2
    assert "00.png: cannot be read" in " ".join(capsys.readouterr().err.split())
    assert run(*arguments, "--resamples", 10) == 3
