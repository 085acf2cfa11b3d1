"""`skjepa score`, `explain` and `inspect` say which images are odd, and why, in words."""

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from oracles import random_images
from PIL import Image, ImageEnhance

import skjepa.cli.app
from skjepa.detectors.jepa_score import JEPAScoreDetector


def run(*args):
    """Exit code of `skjepa ARGS` in this process."""
    with pytest.raises(SystemExit) as stop:
        skjepa.cli.app.main([str(arg) for arg in args])
    return stop.value.code


@pytest.fixture
def home(tmp_path, monkeypatch):
    """30 normal images; 12 to be scored, of which one is dark, one is green and one cannot be read."""
    monkeypatch.chdir(tmp_path)
    images = [Image.fromarray(image) for image in random_images(39)]
    (tmp_path / "normal").mkdir()
    (tmp_path / "new" / "good").mkdir(parents=True)
    (tmp_path / "new" / "bad").mkdir()
    for i, image in enumerate(images[:30]):
        image.save(f"normal/{i:02d}.png")
    for i, image in enumerate(images[30:]):
        image.save(f"new/good/{i:02d}.png")
    ImageEnhance.Brightness(images[30]).enhance(0.1).save("new/bad/dark.png")
    Image.new("RGB", (32, 32), (0, 220, 0)).save("new/bad/green.png")
    (tmp_path / "new" / "bad" / "broken.png").write_bytes(b"nothing")
    return tmp_path


def test_thirty_normal_images_are_calibrated_by_folds(home, capsys):
    assert run("score", "--normal", "normal", "new", "--method", "forward", "--no-picture", "-q") == 3
    shown = capsys.readouterr()
    err, out = " ".join(shown.err.split()), " ".join(shown.out.split())
    assert "30 normal images: a fifth of them is few for --alpha 0.05, so the threshold comes from 5 folds" in err
    assert "about 5 % of new normal images" in out
    assert "darker than any normal image" in out
    assert "AUROC" not in out
    assert "1 of the images could not be read" in out
    rows = pq.read_table("scores.parquet").to_pydict()
    assert [label == -1 for label in rows["label"]] == [p is None or p <= 0.05 for p in rows["p_value"]] or (
        [label == -1 for label, p in zip(rows["label"], rows["p_value"], strict=True) if p]
        == [p <= 0.05 for p in rows["p_value"] if p]
    )


def test_json_holds_the_most_atypical_and_the_next_command(home, capsys):
    command = ("score", "--normal", "normal", "new", "--method", "forward", "--out", "s.csv", "--no-picture")
    assert run(*command, "--json", "-q") == 3
    facts = json.loads(capsys.readouterr().out)
    assert len(facts["atypical"]) == 10
    order = [row["p_value"] for row in facts["atypical"]]
    assert order == sorted(order)
    assert {"bad/dark.png", "bad/green.png"} <= {row["id"] for row in facts["atypical"][:4]}
    assert facts["next"] == "skjepa report s.csv --images new"
    assert run("report", "s.csv", "--images", "new", "--no-duplicates", "-q") == 0
    assert (home / "s.html").stat().st_size > 10_000
    with open("s.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 12


@pytest.mark.parametrize("labels", ["good", "labels.csv", "signs.csv"])
def test_labels_give_an_auroc(home, capsys, labels):
    names = [*(f"good/{i:02d}.png" for i in range(9)), "bad/dark.png", "bad/green.png"]
    (home / "labels.csv").write_text("id,label\n" + "".join(f"{name},{int('bad' in name)}\n" for name in names))
    (home / "signs.csv").write_text("id,label\n" + "".join(f"{name},{-1 if 'bad' in name else 1}\n" for name in names))
    command = ("score", "--normal", "normal", "new", "--method", "forward", "--no-picture", "--labels", labels, "-q")
    assert run(*command, "--json") == 3
    row = json.loads(capsys.readouterr().out)["groups"][0]
    assert row["normal_images"] == 9
    assert row["anomalous_images"] == (3 if labels == "good" else 2)
    assert row["auroc"] > 0.9
    assert run(*command) == 3
    assert "AUROC: share of pairs" in " ".join(capsys.readouterr().out.split())


def test_labels_that_are_no_labels(home, capsys):
    (home / "labels.csv").write_text("id,label\ngood/00.png,crack\n")
    command = ("score", "--normal", "normal", "new", "--labels", "labels.csv")
    assert run(*command) == 2
    assert "labels.csv holds 'crack'; labels are 0 or normal" in " ".join(capsys.readouterr().err.split())
    (home / "labels.csv").write_text("id,label\nother.png,1\n")
    assert run(*command, "-q") == 2
    assert "names none of the images; ids are paths in the folder, such as bad/" in " ".join(
        capsys.readouterr().err.split()
    )


def test_explain_says_why_with_numbers_on_request(home, capsys):
    assert run("fit", "normal", "--method", "forward", "--out", "detector", "-q") == 0
    assert "Next: skjepa score --detector detector FOLDER" in capsys.readouterr().out
    assert run("explain", "new/bad/dark.png", "new/good", "--detector", "detector") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("new/bad/dark.png: flagged, p-value ")
    assert "    darker than any normal image\n" in shown
    assert "standard deviations" not in shown
    assert run("explain", "new/bad/dark.png", "--detector", "detector", "--verbose") == 0
    shown = capsys.readouterr().out
    assert "darker than any normal image  (mean grey level of 0 to 255: " in shown
    assert "normal images " in shown
    assert run("explain", "new/bad", "--detector", "detector", "--json") == 3
    told = {row["id"].rpartition("/")[2]: row for row in json.loads(capsys.readouterr().out)["images"]}
    assert "cannot be read" in told["broken.png"]["error"]
    assert any("than any normal image" in reason["words"] for reason in told["green.png"]["reasons"])


def test_a_detector_that_does_not_know_how_normal_images_look(home, capsys):
    normal = np.stack([np.asarray(Image.open(path)) for path in sorted((home / "normal").iterdir())])
    JEPAScoreDetector(method="forward").fit(normal).save("detector")
    assert run("explain", "new/bad/dark.png", "--detector", "detector") == 0
    shown = capsys.readouterr()
    assert "give --normal NORMAL_DIR to compute them" in " ".join(shown.err.split())
    assert "darker" not in shown.out
    assert run("explain", "new/bad/dark.png", "--detector", "detector", "--normal", "normal") == 0
    assert "darker than any normal image" in capsys.readouterr().out


def test_inspect_needs_no_encoder(home, capsys):
    (home / "new" / "good" / "copy.png").write_bytes((home / "new" / "good" / "00.png").read_bytes())
    assert run("inspect", "new", "--normal", "normal", "-q") == 3
    shown = " ".join(capsys.readouterr().out.split())
    assert "new: 12 images, each 32 x 32 pixels" in shown
    assert "1 of the images are near-duplicates of another" in shown
    assert "darker than any normal image" in shown
    assert "Next: skjepa score --normal normal new" in shown
    assert run("inspect", "new", "--json", "-q") == 3
    facts = json.loads(capsys.readouterr().out)
    assert facts["images"] == 12
    assert facts["near_duplicates"] == [["good/00.png", "good/copy.png"]]
    assert {"bad/green.png"} <= {row["id"] for row in facts["odd"]}
