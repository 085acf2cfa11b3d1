"""`skjepa prune` as a shell sees it."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from oracles import conv_net, random_images
from PIL import Image

import skjepa
import skjepa.cli.app


def run(command, *args):
    """Exit code of `skjepa COMMAND ARGS` in this process."""
    with pytest.raises(SystemExit) as exit:
        skjepa.cli.app.main([command, *map(str, args)])
    return exit.value.code


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Twenty images of one class, six of another, and an encoder that is quick; the working folder is above them."""
    for name, pictures in (("0", random_images(20)), ("1", random_images(6, seed=1))):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i, picture in enumerate(pictures):
            Image.fromarray(picture).save(tmp_path / "images" / name / f"{i:02d}.png")
    made = skjepa.load_encoder(conv_net(), image_size=32)
    monkeypatch.setattr(skjepa, "load_encoder", lambda *_, **__: made, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "images"


def test_lists_and_tables_agree_and_nothing_is_moved(folder, capsys):
    before = sorted(folder.rglob("*"))
    assert run("prune", folder, "--keep", 0.5, "--per-class", "--scores", "all.csv", "-q") == 0
    kept = Path("kept.txt").read_text().splitlines()
    assert sorted(folder.rglob("*")) == before
    assert sum(name.startswith("0/") for name in kept) == 10
    assert sum(name.startswith("1/") for name in kept) == 3
    shown = capsys.readouterr().out
    assert [line.split() for line in shown.splitlines() if line[:1] in "01"] == [
        ["0", "20", "10", "10", "0"],
        ["1", "6", "3", "3", "0"],
    ]
    assert "kept.txt and all.csv written" in shown
    for out in ("kept.csv", "kept.parquet"):  # from the table, without the encoder
        assert run("prune", "all.csv", "--keep", 0.5, "--per-class", "--out", out) == 0
    text = pa.csv.ConvertOptions(column_types={"id": pa.string()})
    for table in (pa.csv.read_csv("kept.csv", convert_options=text), pq.read_table("kept.parquet")):
        assert table.column("id").to_pylist() == kept
        assert min(table.column("score").to_pylist()) > -np.inf
    assert run("prune", "all.csv", "--keep", 0.9, "--out", "more.txt") == 0
    assert len(Path("more.txt").read_text().splitlines()) == 24


def test_a_clean_folder_and_a_rate(folder, capsys):
    arguments = ["--normal", folder / "0", "--calibration", 0.5, "--alpha", 0.2, "-q"]
    assert run("prune", folder / "1", *arguments, "--scores", "all.parquet") == 0
    rows = pq.read_table("all.parquet").to_pydict()
    assert rows["kept"] == [p > 0.2 for p in rows["p_value"]]
    # What `skjepa score` flags by the same rule, and a table of it as input.
    code = run("score", "--fit", folder / "0", folder / "1", "--no-picture", "-q", "--alpha", 0.2, "--calibration", 0.5)
    assert code == 0
    assert run("prune", "scores.parquet", "--alpha", 0.2, "--out", "again.txt") == 0
    assert Path("again.txt").read_text() == Path("kept.txt").read_text()


def test_unreadable_files_and_copies(folder, capsys):
    (folder / "1" / "broken.png").write_bytes(b"nothing")
    (folder / "1" / "copy.png").write_bytes((folder / "0" / "00.png").read_bytes())
    assert (
        run("prune", folder, "--keep", 0.99, "--drop-copies", "--store", "kept", "--scores", "all.parquet", "-q") == 3
    )
    kept = Path("kept.txt").read_text().splitlines()
    assert len(kept) == 26
    assert not {"1/broken.png", "1/copy.png"} & set(kept)
    shown = capsys.readouterr()
    assert "1 copies of other images" in shown.out
    assert "unreadable: 1/broken.png: " in shown.err
    errors = pq.read_table("all.parquet").to_pydict()
    assert "cannot be read" in errors["error"][errors["id"].index("1/broken.png")]
    assert run("prune", folder, "--keep", 0.5, "--on-error", "raise", "-q") == 2
    assert "1/broken.png: cannot be read" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["images"], "give --keep, a share, or --alpha"),
        (["images", "--keep", "0.5", "--alpha", "0.1"], "not both"),
        (["images", "--alpha", "0.1"], "--alpha needs clean images to calibrate on"),
        (["images", "--keep", "0.5", "--out", "kept.json"], "the name must end in .txt or .csv or .parquet"),
        (["images", "--keep", "0.5", "--folds", "20"], "--folds 20 need at least 40 different samples; got 26"),
        (["images/0", "--keep", "0.5", "--per-class"], "--per-class needs classes"),
        (["absent", "--keep", "0.5"], "no folder absent"),
        (["absent.csv", "--keep", "0.5"], "no table absent.csv"),
        (["broken.parquet", "--keep", "0.5"], "broken.parquet cannot be read as a table"),
        (["table.csv", "--keep", "0.5"], "table.csv has no column 'score'"),
        (["text.csv", "--keep", "0.5"], "the column 'score' must hold numbers"),
        (["text.csv", "--keep", "0.5", "--normal", "images"], "--normal has no effect on text.csv"),
    ],
)
def test_bad_input_is_one_sentence(folder, capsys, arguments, message):
    for name, content in (("broken.parquet", "x"), ("table.csv", "id\na\n"), ("text.csv", "id,score\na,b\n")):
        (folder.parent / name).write_text(content)
    assert run("prune", "-q", *arguments) == 2
    shown = capsys.readouterr().err
    assert message in " ".join(shown.split())
    assert "Traceback" not in shown
    assert not (folder.parent / "kept.txt").exists()


def test_a_name_of_two_lines_is_refused_in_a_text_list(folder, capsys):
    (folder / "0" / "00.png").rename(folder / "0" / "a\nb.png")
    assert run("prune", folder, "--keep", 0.99, "-q") == 2
    assert "contains a line break" in capsys.readouterr().err
    assert run("prune", folder, "--keep", 0.99, "--out", "kept.csv", "-q") == 0
    assert not (folder.parent / "kept.txt").exists()
