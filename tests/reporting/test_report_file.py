"""`skjepa.report` and the same page from a table."""

import json
import re
import shutil
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from oracles import random_images
from PIL import Image
from report_pages import HOSTILE, Page

import skjepa
import skjepa.reporting.report_file
from skjepa import ComplexityDetector, JEPAScoreDetector
from skjepa.data.sources import folder_source
from skjepa.reporting.about import About
from skjepa.reporting.from_table import results_of_table
from skjepa.reporting.report_file import report_of_table
from skjepa.reporting.score_table import ABOUT, score_table, write_table
from skjepa.reporting.scored_groups import about_run, score_group

NORMAL, NEW = random_images(40), random_images(12, seed=1)


pytestmark = pytest.mark.filterwarnings("ignore:skipped")


@pytest.fixture(autouse=True)
def _no_umap(monkeypatch):
    """It is tried in test_surroundings; here it takes seconds."""
    monkeypatch.setattr(skjepa.reporting.report_file, "has_umap", lambda: False)


@pytest.fixture(scope="module")
def detector():
    return JEPAScoreDetector(target_fpr=0.2, calibration=0.3, random_state=0, on_error="skip").fit(NORMAL)


@pytest.fixture(scope="module")
def scored(tmp_path_factory, detector):
    """A folder with two folders of images, normal ones, and a table of scores."""
    root = tmp_path_factory.mktemp("scored")
    names = [name.replace("/", "\u2215").strip() for name in HOSTILE]  # a slash ends a folder's name
    for folder, images in (("normal", NORMAL), ("one", NEW[:10]), ("two", NEW[10:])):
        (root / folder).mkdir()
        for i, image in enumerate(images):
            name = names[i][-60:] if folder == "one" and i < len(names) else f"{i:02d}.png"
            Image.fromarray(image).save(root / folder / name)
    (root / "two" / "broken.png").write_bytes(b"no image")
    shutil.copy(root / "normal" / "03.png", root / "two" / "again.png")
    normal = folder_source(root / "normal")
    extraction = detector.extract(normal)
    folders = {name: root / name for name in ("one", "two")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the broken image
        groups = [score_group(detector, name, folder_source(folder)) for name, folder in folders.items()]
    surroundings, about = about_run(
        detector, extraction, encoder="bundled", folders=folders, normal_folder=root / "normal"
    )
    table = score_table(groups, surroundings=surroundings, about=about)
    write_table(table, root / "scores.parquet")
    write_table(table, root / "scores.csv")
    return root


def shown(path):
    """Page, and what its table shows."""
    text = path.read_text(encoding="utf-8")
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1]
    return Page(text), json.loads(data)


def test_report_of_images(detector, tmp_path):
    path = skjepa.report(detector, NEW, tmp_path / "page.html", normal=NORMAL, title=HOSTILE[0])
    page, data = shown(path)
    expected = detector.score_samples(NEW)
    np.testing.assert_allclose(data["scores"], expected, rtol=1e-3)
    np.testing.assert_allclose(data["p"], detector.p_values(NEW), rtol=6e-3)
    assert data["status"] == ["f" if label < 0 else "n" for label in detector.predict(NEW)]
    assert {"summary", "atypical", "borderline", "typical", "map", "diagnosis", "alike", "table"} <= set(page.ids)
    assert HOSTILE[0] in page.texts
    assert all(image["src"] for image in page.all("img"))
    assert len(data["maps"][0]["normal"][0]) == 40
    assert f"below {detector.offset_:.4g} are flagged" in page.text


def test_report_of_an_extraction_is_the_same(detector, tmp_path):
    X, normal = detector.extract(NEW), detector.extract(NORMAL)
    whole = skjepa.report(detector, NEW, tmp_path / "a.html", normal=NORMAL).read_text()
    assert skjepa.report(detector, X, tmp_path / "b.html", normal=normal, images=NEW).read_text().count(
        "<img"
    ) == whole.count("<img") - whole.count('alt="normal:')
    page, _ = shown(skjepa.report(detector, X, tmp_path / "c.html"))
    assert "no picture" in page.text
    assert "alike" not in page.ids
    with pytest.raises(ValueError, match="one image per sample: there are 12 samples, 40 images"):
        skjepa.report(detector, X, tmp_path / "d.html", images=NORMAL)


def test_without_normal_images_the_map_has_what_the_detector_keeps(detector, tmp_path):
    page, data = shown(skjepa.report(detector, NEW, tmp_path / "page.html", duplicates=False))
    assert len(data["maps"][0]["normal"][0]) == 28
    assert "alike" not in page.ids
    assert not any((image["alt"] or "").startswith("normal:") for image in page.all("img"))


def test_unreadable_images_have_their_reason(detector, scored, tmp_path):
    page, data = shown(skjepa.report(detector, scored / "two", tmp_path / "page.html"))
    assert data["status"].count("u") == 1
    assert "cannot be read as an image" in next(iter(data["errors"].values()))
    assert "1 image could not be read" in page.text


@pytest.mark.parametrize(
    "other",
    [ComplexityDetector(), JEPAScoreDetector(formula="jepa"), JEPAScoreDetector(target_fpr=0.2, calibration=3)],
    ids=["complexity", "jepa", "folds"],
)
def test_other_detectors(other, tmp_path):
    page, data = shown(skjepa.report(other.fit(NORMAL), NEW, tmp_path / "page.html"))
    assert data["status"] == ["f" if label < 0 else "n" for label in other.predict(NEW)]
    assert ("diagnosis" in page.ids) == isinstance(other, JEPAScoreDetector)


def test_vectors_have_no_pictures(tmp_path):
    rng = np.random.default_rng(0)
    detector = JEPAScoreDetector(random_state=0).fit(rng.normal(size=(60, 4)))
    page, data = shown(skjepa.report(detector, rng.normal(size=(9, 4)), tmp_path / "page.html"))
    assert len(data["ids"]) == 9
    assert page.all("img") == []


def test_table_alone_is_enough(scored, detector, tmp_path):
    page, data = shown(report_of_table(scored / "scores.parquet", tmp_path / "page.html"))
    rows = pq.read_table(scored / "scores.parquet").to_pydict()
    assert data["ids"] == rows["id"]
    assert {"borderline", "map", "diagnosis", "alike"} <= set(page.ids)
    assert "no picture" not in page.text
    assert sum((image["alt"] or "").startswith("normal:") for image in page.all("img")) > 10
    assert f"below {detector.offset_:.4g} are flagged" in page.text
    assert "12 normal images that the detector did not learn from" in page.text
    assert "Like a normal image" in page.text
    assert rows["nearest"][rows["id"].index("two/again.png")][0] == "03.png"


def test_moved_images_are_found_where_they_are_said_to_be(scored, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(scored, moved)
    told = pq.read_table(scored / "scores.parquet")
    about = About.from_json(told.schema.metadata[ABOUT])
    lost = About(**{**vars(about), "folders": {"one": "/nowhere", "two": "/nowhere"}, "normal_folder": "/nowhere"})
    write_table(told.replace_schema_metadata({ABOUT: lost.to_json()}), moved / "scores.parquet")
    page, _ = shown(report_of_table(moved / "scores.parquet", tmp_path / "page.html"))
    assert page.all("img") == []
    page, _ = shown(
        report_of_table(
            moved / "scores.parquet",
            tmp_path / "page.html",
            images=[moved / "one", moved / "two"],
            normal=moved / "normal",
        )
    )
    assert "no picture" not in page.text
    with pytest.raises(FileNotFoundError, match="no folder"):
        report_of_table(moved / "scores.parquet", tmp_path / "page.html", images=[tmp_path / "nothing"])


def test_csv_with_a_detector_has_neighbours_map_and_diagnosis(scored, detector, tmp_path):
    folders = {"images": [scored / "one", scored / "two"], "normal": scored / "normal"}
    bare, _ = shown(report_of_table(scored / "scores.csv", tmp_path / "bare.html", images=folders["images"]))
    assert "diagnosis" not in bare.ids
    detector.save(tmp_path / "detector")
    page, data = shown(
        report_of_table(
            scored / "scores.csv",
            tmp_path / "page.html",
            detector=JEPAScoreDetector.load(tmp_path / "detector"),
            **folders,
        )
    )
    assert {"map", "diagnosis"} <= set(page.ids)
    assert any((image["alt"] or "").startswith("normal:") for image in page.all("img"))
    assert len(data["maps"][0]["place"]) == 13


def test_pruned_table(tmp_path):
    table = pa.table({"id": ["a", "b"], "score": [1.0, -1.0], "p_value": [None, None], "kept": [True, False]})
    write_table(table, tmp_path / "pruned.parquet")
    results = results_of_table(tmp_path / "pruned.parquet")
    assert results.flagged.tolist() == [False, True]
    assert results.threshold is None
    assert results.p_values is None


@pytest.mark.parametrize("name", ["../secret.png", "/etc/secret.png", "a/../../secret.png"])
def test_a_table_cannot_show_files_outside_its_folders(tmp_path, name):
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (tmp_path / "images" / "a").mkdir(parents=True)
    table = pa.table({"id": [name], "score": [1.0]})
    write_table(table, tmp_path / "scores.parquet")
    results = results_of_table(tmp_path / "scores.parquet", images=[tmp_path / "images"])
    assert results.image(0) is None


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"score": [1.0]}, "no column 'id'"),
        ({"id": ["a"]}, "no column 'score'"),
        ({"id": ["a"], "score": ["high"]}, "'score' must hold numbers"),
        ({"id": [], "score": []}, "no rows"),
    ],
)
def test_other_tables_are_refused(tmp_path, columns, message):
    write_table(pa.table(columns), tmp_path / "scores.parquet")
    with pytest.raises(ValueError, match=message):
        report_of_table(tmp_path / "scores.parquet", tmp_path / "page.html")


def test_bad_paths_are_refused_before_any_work(detector, tmp_path):
    with pytest.raises(ValueError, match="must end in"):
        skjepa.report(detector, None, tmp_path / "page.pdf")
    with pytest.raises(FileNotFoundError, match="no folder"):
        skjepa.report(detector, None, tmp_path / "nothing" / "page.html")


def test_an_extraction_shows_the_samples_that_it_holds(tmp_path):
    """Skipped samples have no rows in an Extraction, nor in its report."""
    images = random_images(24, side=32)
    detector = JEPAScoreDetector().fit(images)
    whole = detector.extract(images[:6])
    part = whole[:4]
    part.meta["skipped"] = [[1, "bad.png", "cut short"]]
    page = skjepa.report(detector, part, tmp_path / "report.html").read_text()
    assert "cut short" not in page
    assert all(name[:8] in page for name in part.ids.tolist())
