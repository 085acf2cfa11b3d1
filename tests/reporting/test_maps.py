import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from skjepa import JEPAScoreDetector, report
from skjepa.cli.app import app
from skjepa.reporting.map_files import SPOTS


def pictures(n, seed=0):
    return np.random.default_rng(seed).integers(100, 156, (n, 40, 40, 3), dtype=np.uint8)


def odd_ones(n, seed=1):
    found = pictures(n, seed)
    found[0, 20:28, 10:18] = 255
    return found


def test_a_report_of_a_local_detector_shows_where_the_odd_images_are_odd(tmp_path):
    local = JEPAScoreDetector(method="forward", local=True).fit(pictures(40))
    page = report(local, odd_ones(6), tmp_path / "a.html", gallery=3, duplicates=False).read_text()
    assert page.count('<img class="main with-map"') >= 3  # an image may stand in two galleries
    assert 'id="show-maps"' in page

    plain = JEPAScoreDetector(method="forward").fit(pictures(40))
    page = report(plain, odd_ones(6), tmp_path / "b.html", gallery=3, duplicates=False).read_text()
    assert '<img class="main with-map"' not in page
    assert 'id="show-maps"' not in page


@pytest.mark.parametrize("options", [["--local"], []])
def test_score_writes_maps_of_flagged_images(tmp_path, options):
    for folder, X in (("normal", pictures(60)), ("new", odd_ones(5))):
        (tmp_path / folder).mkdir()
        for i, pixels in enumerate(X):
            Image.fromarray(pixels).save(tmp_path / folder / f"{i}.png")
    where = [str(tmp_path / "new"), "--fit", str(tmp_path / "normal"), "--out", str(tmp_path / "scores.csv")]
    how = [
        "--method",
        "forward",
        "--no-picture",
        "--alpha",
        "0.1",
        "--quiet",
        "--json",
        "--maps",
        str(tmp_path / "maps"),
    ]
    result = CliRunner().invoke(app, ["score", *where, *how, *options])
    assert result.exit_code == 0, result.output

    told = json.loads((tmp_path / "maps" / SPOTS).read_text())
    first = next(image for image in told["images"] if image["id"] == "0.png")
    assert (first["width"], first["height"]) == (40, 40)
    with Image.open(tmp_path / "maps" / first["overlay"]) as overlay:
        assert overlay.width == 280
    if options:
        left, top, right, bottom = first["spots"][0]["box"]
        assert left <= 14 <= right
        assert top <= 24 <= bottom
    else:
        assert first["spots"] == []
    assert len(told["images"]) == len(list((tmp_path / "maps").glob("*.png")))


def test_maps_do_not_go_among_the_images(tmp_path):
    (tmp_path / "new").mkdir()
    Image.fromarray(pictures(1)[0]).save(tmp_path / "new" / "0.png")
    where = [str(tmp_path / "new"), "--fit", str(tmp_path / "new"), "--maps", str(tmp_path / "new" / "maps")]
    result = CliRunner().invoke(app, ["score", *where, "--out", str(tmp_path / "scores.csv")])
    assert result.exit_code != 0
