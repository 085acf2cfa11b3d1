"""Large images by the command line: cut into tiles, scored, mapped, saved, watched and explained as whole images."""

import csv
import json
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from skjepa.cli.app import main

N = 6
TILES = 2 * 2  # of 32 pixels, overlapping by at least a quarter, in 48 x 56


def run(*arguments):
    with pytest.raises(SystemExit) as exit:
        main([str(argument) for argument in arguments])
    return exit.value.code


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """24 normal images, and 6 new ones, of which one has a bright square and one is no image."""
    folder, rng = tmp_path_factory.mktemp("large"), np.random.default_rng(0)
    for name, n in (("normal", 24), ("new", N)):
        (folder / name).mkdir()
        for i, image in enumerate(rng.integers(100, 156, size=(n, 48, 56, 3), dtype=np.uint8)):
            if name == "new" and i == 1:
                image[20:30, 30:42] = 255
            Image.fromarray(image).save(folder / name / f"{i}.png")
    (folder / "new" / "bad.png").write_bytes(b"no image")
    os.utime(folder / "new" / "bad.png", (0, 0))  # long enough unchanged for `skjepa watch` to report it
    return folder


@pytest.fixture(scope="module")
def detector(folder):
    settings = ("--encoder", "bundled", "--local", "--tiles", "32", "--calibration", "0.4", "--alpha", "0.1", "-q")
    assert run("fit", folder / "normal", "--out", folder / "detector", *settings) == 0
    return folder / "detector"


def test_score_finds_the_odd_image_and_maps_it(folder, tmp_path, capsys):
    options = ("--encoder", "bundled", "--local", "--tiles", "32,48", "--calibration", "0.4", "--alpha", "0.1", "-q")
    out, maps = tmp_path / "scores.parquet", tmp_path / "maps"
    assert run("score", "--normal", folder / "normal", folder / "new", "--out", out, "--maps", maps, *options) == 3
    rows = pq.read_table(out).to_pydict()
    odd = rows["id"].index("1.png")
    assert np.nanargmin([np.nan if score is None else score for score in rows["score"]]) == odd
    assert rows["label"][odd] == -1
    assert rows["reason"][odd]
    assert rows["error"][rows["id"].index("bad.png")].endswith("bad.png: cannot be read as an image (unknown format)")
    told = json.loads((maps / "spots.json").read_text())["images"]
    assert (told[0]["id"], told[0]["width"], told[0]["height"]) == ("1.png", 56, 48)
    assert (maps / told[0]["overlay"]).is_file()
    shown = capsys.readouterr().out
    assert "!  1.png" in shown
    assert "odd at some places" in shown or "odd in the" in shown


def test_a_saved_detector_cuts_tiles_wherever_it_is_used(folder, detector, tmp_path, capsys):
    table, watched = tmp_path / "scores.csv", tmp_path / "watched.csv"
    assert run("score", "--detector", detector, folder / "new", "--out", table, "--no-picture", "-q") == 3
    assert run("watch", folder / "new", "--detector", detector, "--once", "--out", watched, "-q") == 3
    scores = []
    for path in (table, watched):
        with open(path, newline="") as file:
            scores.append({row["id"]: row["score"] for row in csv.DictReader(file)})
    assert scores[0].keys() == scores[1].keys()
    for name, score in scores[0].items():
        assert name == "bad.png" or float(score) == pytest.approx(float(scores[1][name]), rel=1e-6)
    assert scores[0]["bad.png"] == scores[1]["bad.png"] == ""

    page = tmp_path / "report.html"
    assert run("report", table, "--images", folder / "new", "--detector", detector, "--out", page) == 0
    assert "principal axes" not in page.read_text()  # a map of whole images among tiles would mislead
    capsys.readouterr()
    assert run("explain", folder / "new" / "1.png", "--detector", detector, "--json") == 0
    (told,) = json.loads(capsys.readouterr().out)["images"]
    assert told["score"] == pytest.approx(float(scores[0]["1.png"]), rel=1e-6)
    assert told["reasons"]


def test_the_bill_counts_tiles(folder, monkeypatch, tmp_path, capsys):
    from skjepa.cli import bill

    monkeypatch.setattr(bill, "_TOLD_FROM", 0.0)
    settings = ("--encoder", "bundled", "--tiles", "32", "--contamination", "0.1", "--yes")
    assert run("fit", folder / "normal", "--out", tmp_path / "detector", *settings) == 0
    assert f"{24 * TILES} tiles of images, about" in capsys.readouterr().err


@pytest.mark.parametrize("sides", ["0", "32,", "large", "-4", "3.5"])
def test_sides_that_are_none(sides, folder, tmp_path, capsys):
    assert run("fit", folder / "normal", "--out", tmp_path / "detector", "--tiles", sides) == 2
    assert f"--tiles must be a number of pixels such as 224, or several such as 224,448; got '{sides}'" in (
        capsys.readouterr().err.replace("\n", " ")
    )


def test_a_store_keeps_no_tiles(folder, detector, tmp_path, capsys):
    out = ("--out", tmp_path / "detector", "--tiles", 32, "--store", tmp_path / "store")
    assert run("fit", folder / "normal", *out) == 2
    assert "leave --store out" in capsys.readouterr().err
    score = ("score", "--detector", detector, folder / "new", "--out", tmp_path / "s.csv")
    assert run(*score, "--store", tmp_path / "store") == 2
    assert "leave --store out" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_a_saved_detector_keeps_the_tiles_of_its_fit(folder, detector, tmp_path, capsys):
    score = ("score", "--detector", detector, folder / "new", "--out", tmp_path / "s.csv", "--no-picture", "-q")
    assert run(*score, "--tiles", 48) == 2
    assert "--tiles belongs to the fit" in capsys.readouterr().err
    assert run(*score, "--tiles", 32, "--local") == 3  # as fitted; one file is no image
    assert run("fit", folder / "normal", "--out", tmp_path / "plain", "--contamination", "0.1", "-q") == 0
    capsys.readouterr()
    assert run("score", "--detector", tmp_path / "plain", *score[3:], "--local") == 2
    assert "--local belongs to the fit" in capsys.readouterr().err
