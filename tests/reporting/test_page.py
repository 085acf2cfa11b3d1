"""The page's structure: well-formed, closed in itself, and no name of a file is ever more than text."""

import base64
import hashlib
import io
import json
import re

import numpy as np
import pytest
from oracles import random_images
from PIL import Image
from report_pages import HOSTILE, Page, results_of

from skjepa.reporting.about import About
from skjepa.reporting.page import data_uri, render

NAMES = [*HOSTILE, *(f"{i:02d}.png" for i in range(40 - len(HOSTILE)))]


@pytest.fixture(scope="module")
def hostile():
    return render(
        results_of(40, names=NAMES), title=HOSTILE[1], groups=[list(range(9))], known=[(0, HOSTILE[3])], gallery=20
    )


def data_of(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def test_names_are_text_and_nothing_else(hostile):
    page = Page(hostile)
    assert [script.get("type") for script in page.all("script")] == ["application/json", None]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    titles = {attributes["title"] for attributes in page.all("div") if "title" in attributes}
    assert set(HOSTILE) <= titles
    assert data_of(hostile)["ids"] == NAMES
    assert "49" not in {name.strip() for name in page.texts}
    assert HOSTILE[1] in page.texts


def test_nothing_is_fetched(hostile):
    page = Page(hostile)
    for _, attributes in page.tags:
        for name in {"src", "href", "srcset", "data", "action"} & set(attributes):
            assert attributes[name].startswith(("data:", "#"))
    assert not {"iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    assert "url(" not in hostile
    assert "@import" not in hostile
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv"))
    assert "default-src 'none'" in policy
    script = hostile.rpartition("<script>")[2].partition("</script>")[0]
    assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy


def test_ids_are_unique_links_arrive_and_images_are_named(hostile):
    page = Page(hostile)
    assert len(set(page.ids)) == len(page.ids)
    assert {link["href"][1:] for link in page.all("a")} <= set(page.ids)
    assert all("alt" in image for image in page.all("img"))
    for section in page.all("section"):
        assert section["aria-labelledby"] in page.ids


def test_galleries_hold_the_extremes():
    results = results_of(60)
    page = Page(render(results, gallery=5))
    places = [int(image["data-place"]) for image in page.all("img") if "data-place" in image]
    order = np.argsort(results.scores)[:59]
    assert places[:5] == order[:5].tolist()
    assert places[-5:] == order[::-1][:5].tolist()
    distance = np.abs(results.scores - results.threshold)
    assert places[5:10] == np.argsort(distance)[:5].tolist()


def test_table_data_is_that_of_the_results():
    results = results_of(60)
    data = data_of(render(results))
    for name, values in (("scores", results.scores), ("p", results.p_values)):
        given = np.array([np.nan if value is None else value for value in data[name]])
        np.testing.assert_allclose(given, values, rtol=6e-3)
    assert data["status"] == ["u" if np.isnan(s) else "f" if s < results.threshold else "n" for s in results.scores]
    assert data["errors"] == {"30": results.errors[30]}
    assert [len(found["place"]) for found in data["maps"]] == [59, 59]


def test_histogram_counts_every_image():
    results = results_of(60)
    text = render(results)
    heights = {
        colour: sum(float(h) for h in re.findall(rf'<rect class="{colour}".*?height="([0-9.]+)"/>', text))
        for colour in ("red", "blue")
    }
    flagged = int((results.flagged & results.readable).sum())
    assert heights["red"] / (heights["red"] + heights["blue"]) == pytest.approx(flagged / 59, abs=0.01)


def test_only_what_is_known_is_shown():
    bare = results_of(6, nearest=None, maps=[], about=About(), p_values=None, threshold=None, image=lambda i: None)
    page = Page(render(bare))
    assert not {"map", "diagnosis", "alike", "borderline"} & set(page.ids)
    assert "no picture" in page.text
    assert "holds no threshold" in page.text


def test_nothing_readable_makes_a_page_too():
    scores = np.full(4, np.nan)
    page = Page(render(results_of(4, scores=scores, flagged=np.ones(4, bool), maps=[])))
    assert "0 images were scored" in page.text


def test_a_broken_picture_leaves_a_gap():
    def broken(i):
        raise OSError("gone")

    assert "no picture" in Page(render(results_of(6, image=broken))).text


def test_ten_thousand_images_stay_small():
    noise = Image.fromarray(random_images(1, 600)[0])  # the worst for JPEG
    text = render(results_of(10_000, image=lambda i: noise, normal_image=lambda name: noise))
    assert len(text) < 12e6
    assert text.count("data:image/") < 72 + 2 + 400 + 2 * 72 + 1
    size = float(re.search(r"This file has ([0-9.]+) MB", text)[1])
    assert size == pytest.approx(len(text.encode()) / 1e6, abs=0.06)


@pytest.mark.parametrize(("size", "kind"), [((32, 32), "png"), ((900, 300), "jpeg")])
def test_thumbnails_are_bounded(size, kind):
    uri = data_uri(Image.new("RGB", size, "red"), 100)
    assert uri.startswith(f"data:image/{kind};base64,")
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        assert max(image.size) == min(100, max(size))
