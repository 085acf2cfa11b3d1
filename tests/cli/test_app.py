"""The command line as a shell sees it: files, output, exit codes."""

import json
import subprocess
import sys
import zipfile

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from oracles import random_images
from PIL import Image
from sklearn.datasets import load_digits

import skjepa.cli.app
from skjepa.evaluation.metrics import detection_metrics


def run(*args):
    """Exit code of `skjepa ARGS` in this process."""
    with pytest.raises(SystemExit) as exit:
        skjepa.cli.app.main([str(arg) for arg in args])
    return exit.value.code


@pytest.fixture
def folders(tmp_path):
    """Folders of 30 normal and 8 foreign images."""
    digits = np.repeat(np.kron(load_digits().images[:8], np.ones((1, 4, 4)))[..., None] * 15, 3, axis=-1)
    for name, images in (("normal", random_images(30)), ("foreign", digits.astype(np.uint8))):
        (tmp_path / name / "class").mkdir(parents=True)
        for i, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / name / "class" / f"{i:02d}.png")
    return tmp_path


def test_score_writes_a_table_and_a_picture(folders, capsys):
    out = folders / "scores.parquet"
    code = run("score", "--fit", folders / "normal", folders / "foreign", "--out", out, "--alpha", "0.2")
    assert code == 0
    table = pq.read_table(out)
    assert table.column_names == [
        "id",
        "score",
        "p_value",
        "decision",
        "label",
        "error",
        "reason",
        "nearest",
        "pca_1",
        "pca_2",
    ]
    rows = table.to_pydict()
    assert rows["id"] == [f"class/{i:02d}.png" for i in range(8)]
    assert rows["label"] == [1 if decision >= 0 else -1 for decision in rows["decision"]]
    assert rows["label"] == [-1 if p <= 0.2 else 1 for p in rows["p_value"]]
    assert rows["error"] == [None] * 8
    with Image.open(folders / "scores.png") as picture:
        assert picture.size[0] > 800
    shown = capsys.readouterr()
    assert f"{rows['label'].count(-1)} / 8" in shown.out
    assert "AUROC" not in shown.out  # nobody said what is normal
    assert f"Next: skjepa report {out}" in shown.out
    assert "img/s" in shown.err


def test_several_folders_and_csv(folders, capsys):
    out = folders / "scores.csv"
    tests = [folders / "foreign", folders / "normal"]
    code = run("score", "--fit", folders / "normal", *tests, "--out", out, "--contamination", 0.1, "--no-picture", "-q")
    assert code == 0
    rows = pyarrow.csv.read_csv(out).to_pydict()
    assert rows["id"][0] == "foreign/class/00.png"
    assert rows["id"][8] == "normal/class/00.png"
    assert rows["label"][8:].count(-1) == 3  # a tenth of the training set
    assert set(rows["p_value"]) == {None}
    assert not (folders / "scores.png").exists()
    assert "img/s" not in capsys.readouterr().err


def test_unreadable_image_is_an_error_or_a_row_with_a_reason(folders, capsys):
    broken = folders / "foreign" / "class" / "03.png"
    broken.write_bytes(broken.read_bytes()[:60])
    arguments = ["score", "--fit", folders / "normal", folders / "foreign", "--out", folders / "scores.parquet"]
    arguments += ["--contamination", "0.1"]
    assert run(*arguments, "--on-error", "raise") == 2
    shown = capsys.readouterr().err
    assert "error:" in shown
    assert "03.png: cannot be read as an image" in shown
    assert "fit:" not in shown  # found before the expensive pass
    assert "Traceback" not in shown
    assert not (folders / "scores.parquet").exists()
    assert run(*arguments) == 3
    rows = pq.read_table(folders / "scores.parquet").to_pydict()
    assert (rows["score"][3], rows["label"][3]) == (None, None)
    assert "03.png" in rows["error"][3]
    assert "1 unreadable" in capsys.readouterr().out


def test_store_resumes(folders):
    arguments = ["score", "--fit", folders / "normal", folders / "foreign", "--contamination", "0.1", "--no-picture"]
    arguments += ["--store", folders / "kept", "-q"]
    assert run(*arguments, "--out", folders / "a.parquet") == 0
    assert run(*arguments, "--out", folders / "b.parquet") == 0
    assert pq.read_table(folders / "a.parquet").equals(pq.read_table(folders / "b.parquet"))
    shards = list((folders / "kept" / "samples").glob("*.parquet"))
    assert len(shards) == 2  # one of each folder, none of the second run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fit", "{}/nowhere", "{}/foreign"], "no folder"),
        (["--fit", "{}/normal", "{}/nowhere"], "no folder"),
        (["--fit", "{}/normal/class/00.png", "{}/foreign"], "is a file; give a folder"),
        (["--fit", "{}/normal", "{}/foreign", "--encoder", "vit_smal_patch14_dinov2"], "unknown encoder"),
        (["--fit", "{}/normal", "{}/foreign", "--out", "{}/scores.txt"], "must end in .parquet or .csv"),
        (["--fit", "{}/normal", "{}/foreign", "--out", "{}/no/scores.csv"], "no folder"),
        (["--fit", "{}/normal", "{}/foreign", "--formula", "best"], "--formula must be one of"),
        (
            ["--fit", "{}/normal", "{}/foreign", "--alpha", "0.01"],
            "--alpha 0.01 needs 99 held-out normal images; there are 30 in all",
        ),
        (["--fit", "{}/normal", "{}/foreign", "{}/foreign"], "given twice"),
        (["--fit", "{}/normal", "{}/foreign", "--out", "{}/foreign/0.csv"], "would lie among the images"),
        (["--fit", "{}/normal"], "Missing argument"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_two(folders, capsys, arguments, message):
    target = [] if any("--out" in argument for argument in arguments) else ["--out", str(folders / "scores.parquet")]
    assert run("score", *[argument.format(folders) for argument in arguments], *target) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert message in shown
    assert "Traceback" not in shown
    assert not list(folders.glob("scores*"))


def test_debug_shows_the_traceback(folders):
    with pytest.raises(FileNotFoundError):
        skjepa.cli.app.main(["--debug", "score", "--fit", str(folders / "nowhere"), str(folders / "foreign")])


def test_encoders_lists_passes_and_cost(capsys):
    assert run("encoders") == 0
    shown = capsys.readouterr().out
    for word in ("bundled", "I-JEPA", "DINOv2", "MetaCLIP", "DINOv3", "forward", "sketch", "exact"):
        assert word in shown


def test_encoders_of_one_size(capsys):
    assert run("encoders", "--image-size", 224) == 0
    shown = capsys.readouterr().out
    row = next(line.split() for line in shown.splitlines() if line.startswith("vit_small_patch14_dinov2.lvd142m"))
    forward, sketch, exact = (float(text.replace(",", "")) for text in row[3:])
    assert row[1:3] == ["224*", "384"]
    assert forward < sketch < exact
    assert "bundled" not in shown  # it takes 32 pixels
    assert run("encoders", "--image-size", 100) == 2
    assert "listed are 32, 224" in capsys.readouterr().err


def test_help_of_the_installed_command():
    done = subprocess.run([sys.executable, "-m", "skjepa", "--help"], capture_output=True, text=True, check=True)
    for word in ("score", "encoders", "demo", "Exit codes"):
        assert word in done.stdout


def test_demo(tmp_path, capsys):
    assert run("demo", "--out", tmp_path / "demo") == 0
    written = {path.name for path in (tmp_path / "demo").iterdir()}
    assert written == {"images", "odd.png", "scores.parquet", "scores.png", "summary.json"}
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    gravel, coins, bricks, grass = summary["groups"]
    assert gravel["group"] == "gravel"
    assert gravel["flagged"] < 0.15 * gravel["images"]
    assert min(coins["auroc"], bricks["auroc"]) > 0.95
    assert min(coins["located"], bricks["located"]) > 0.8
    assert grass["auroc"] > 0.7
    assert all(row["auroc"] > max(row["rivals"].values()) for row in (coins, bricks, grass))
    assert "AUROC" in capsys.readouterr().out


def test_cifar_against_mnist(shared_data, tmp_path):
    """The README's job on real folders: fit on CIFAR-10, then MNIST is foreign and unseen CIFAR images are not."""
    for name, wanted in (("cifar10", "cifar10/test/"), ("mnist", "mnist/")):
        with zipfile.ZipFile(shared_data / f"{name}.zip") as archive:
            files = [name for name in archive.namelist() if name.startswith(wanted) and not name.endswith("/")]
            archive.extractall(tmp_path, files[:: len(files) // 300])
    cifar = sorted((tmp_path / "cifar10" / "test").rglob("*.jpg"))
    for path in cifar[::3]:
        target = tmp_path / "unseen" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    arguments = ["--fit", tmp_path / "cifar10" / "test", tmp_path / "unseen", tmp_path / "mnist"]
    assert run("score", *arguments, "--out", tmp_path / "scores.parquet", "-q") == 0
    rows = pq.read_table(tmp_path / "scores.parquet").to_pydict()
    scores, ids = np.array(rows["score"]), np.array(rows["id"])
    is_mnist = np.char.startswith(ids, "mnist/")
    assert detection_metrics(scores[~is_mnist], scores[is_mnist])["auroc"] > 0.9


@pytest.mark.filterwarnings("ignore::skjepa.pretraining.loop.CollapseWarning")
def test_pretrain_writes_an_encoder_that_score_takes(folders, capsys):
    encoder = folders / "my.safetensors"
    settings = ["--epochs", 1, "--image-size", 16, "--components", 4, "--batch-size", 8, "-q"]
    assert run("pretrain", folders / "normal", "--out", encoder, *settings) == 0
    assert "30 images, 1 epochs" in capsys.readouterr().out
    out, saved = folders / "scores.parquet", folders / "detector"
    scoring = ["--encoder", encoder, "--contamination", 0.1, "--out", out, "-q"]
    assert run("score", "--fit", folders / "normal", folders / "foreign", *scoring) == 0
    rows = pq.read_table(out).select(["id", "score", "label"])
    assert rows.num_rows == 8
    assert run("fit", folders / "normal", "--encoder", encoder, "--contamination", 0.1, "--out", saved, "-q") == 0
    assert run("score", "--detector", saved, "--encoder", encoder, folders / "foreign", "--out", out, "-q") == 0
    assert pq.read_table(out).select(rows.column_names).equals(rows)
    page = ["report", out, "--detector", saved, "--normal", folders / "normal", "--no-duplicates", "-q"]
    assert run(*page) == 2
    assert run(*page, "--encoder", encoder) == 0
    capsys.readouterr()
    assert run("pretrain", folders / "normal", "--out", folders / "no" / "my.safetensors", *settings) == 2
    assert "no folder" in capsys.readouterr().err


def test_a_saved_detector_scores_as_the_one_that_was_fitted(folders, capsys):
    saved, out = folders / "detector", folders / "scores.parquet"
    held_out = ["--alpha", 0.2, "--calibration", 0.2]
    assert run("fit", folders / "normal", *held_out, "--out", saved, "-q") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "fitted on 30 normal images" in shown
    assert "a p-value of at most 0.2 are flagged: on average at most 20 % of new normal images" in shown
    assert run("score", "--detector", saved, folders / "foreign", "--out", out, "-q") == 0
    found = pq.read_table(out)
    both = ["score", "--fit", folders / "normal", folders / "foreign", *held_out, "--out", out, "-q"]
    assert run(*both) == 0
    assert found.equals(pq.read_table(out).select(found.column_names))
    (folders / "thesis").mkdir()
    assert run("fit", folders / "normal", "--out", folders / "thesis") == 2
    assert run("score", folders / "foreign", "--out", out) == 2
    assert run("score", "--detector", saved, "--fit", folders / "normal", folders / "foreign", "--out", out) == 2
    assert "give --normal, a folder of normal images, or --detector" in " ".join(capsys.readouterr().err.split())


def test_json_is_all_that_is_printed(folders, capsys):
    scores = folders / "scores.parquet"
    scoring = ["score", "--fit", folders / "normal", folders / "foreign", "--alpha", 0.2, "--out", scores]
    pruning = ["prune", folders / "normal", "--keep", 0.5, "--out", folders / "kept.txt"]
    comparing = ["bench", "--id", folders / "normal", "--ood", folders / "foreign", "--out", folders / "bench"]
    for command, key in (
        (["fit", folders / "normal", "--alpha", 0.2, "--out", folders / "detector"], "threshold"),
        (scoring, "groups"),
        (["report", scores, "--no-duplicates"], "bytes"),
        (pruning, "classes"),
        ([*comparing, "--resamples", 10], "detectors"),
        (["encoders"], "encoders"),
    ):
        assert run(*command, "--json") == 0
        assert key in json.loads(capsys.readouterr().out)


class TestConfig:
    def write(self, folders, text):
        (folders / "run.toml").write_text(text)
        return folders / "run.toml"

    def test_options_come_from_a_file_and_the_command_line_overrides_them(self, folders):
        out = folders / "of_file.csv"
        text = f'[score]\nfit = "{folders}/normal"\ntests = ["{folders}/foreign"]\ncontamination = 0.5\n'
        config = self.write(folders, text + f'no-picture = true\nout = "{out}"\n')
        assert run("--config", config, "score", "-q") == 0
        assert not list(folders.glob("*.png"))
        assert pyarrow.csv.read_csv(out).num_rows == 8
        assert run("--config", config, "score", "-q", "--out", folders / "other.csv") == 0
        assert (folders / "other.csv").exists()

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[score\n", "is not TOML"),
            ("[sore]\nfit = 'normal'\n", "[sore] is not a command"),
            ("[score]\nimage_sise = 3\n", "has no option 'image_sise'; did you mean image-size?"),
            ("fit = 3\n", "[fit] is not a command"),
            ("[score]\nimage-size = 'big'\n", "'--image-size': "),
        ],
    )
    def test_what_is_wrong_with_it_is_named(self, folders, capsys, text, message):
        config = self.write(folders, text)
        assert run("--config", config, "score", "--fit", folders / "normal", folders / "foreign") == 2
        assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())

    def test_no_file(self, folders, capsys):
        assert run("--config", folders / "none.toml", "encoders") == 2
        assert "no file" in capsys.readouterr().err


def test_version_is_told_without_loading_anything_heavy():
    heavy = ("torch", "timm", "pyod", "matplotlib", "sklearn", "numpy", "pyarrow")
    code = (
        "import sys, skjepa.cli.app\n"
        "try: skjepa.cli.app.main(['--version'])\n"
        f"finally: print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"skjepa {skjepa.__version__}\n[]\n"


def test_completion_for_the_shell(capsys, monkeypatch):
    monkeypatch.setattr("shellingham.detect_shell", lambda *_: ("bash", "/bin/bash"))  # under make it is sh
    assert run("--show-completion") == 0
    assert "skjepa" in capsys.readouterr().out
