"""What a notebook or a terminal shows of a result: a table or a picture, short, and never a dump of arrays."""

import io
import re

import numpy as np
import pytest
from oracles import conv_net, mlp, random_images
from PIL import Image

from skjepa import JEPAScoreDetector, KNNDetector, MahalanobisDetector, extract, load_encoder, prune, run_benchmark
from skjepa._utils.figures import ShownFigure
from skjepa._utils.shown import html_pictures, text_table
from skjepa.evaluation import ranks_figure, save_figure, score_figure
from skjepa.inspection import volume_maps_figure
from skjepa.inspection.heat import heat_picture

IMAGES = random_images(40)
ENCODER = load_encoder(conv_net(), image_size=32)
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def detector():
    return JEPAScoreDetector(ENCODER, method="forward").fit(IMAGES[:30])


@pytest.fixture(scope="module")
def benchmark():
    parts = {"near": RNG.normal(1, 1, size=(30, 4)), "<far>": RNG.normal(6, 1, size=(30, 4))}
    detectors = {"kNN": KNNDetector(), "Mahalanobis": MahalanobisDetector()}
    return run_benchmark(RNG.normal(size=(200, 4)), parts, detectors, encoder=load_encoder(mlp(4)), method="forward")


def shown(result) -> str:
    """As a notebook would show it; checks that it is no dump."""
    page = result._repr_html_()
    assert "array(" not in page + repr(result) + str(result)
    assert "\n" not in repr(result)
    assert len(repr(result)) < 300
    assert page.count("<table") == page.count("</table>")
    return page


def pictures_in(page: str) -> int:
    return len(re.findall(r'<img src="data:image/png;base64,[A-Za-z0-9+/]+=*"', page))


def test_diagnosis(detector):
    found = detector.diagnose()
    page = shown(found)
    assert repr(found).startswith("Diagnosis(30 samples, formula='joint': ")
    for finding in found.findings:
        assert finding.name in repr(found)
        assert finding.advice.split('"')[0].split("'")[0] in page
    assert "participation ratio" in page


def test_extraction():
    made = extract(ENCODER, IMAGES[:3], method="exact")
    assert "<td" in shown(made)
    assert repr(made) == (
        "Extraction(samples: 3, embeddings: K = 16, singular values: 16 per sample, layers: "
        f"{', '.join(made.layers)}, encoder: {made.meta['encoder']}, method: exact)"
    )
    assert "singular values: none" in repr(made.forward_only())


def test_explanation(detector):
    found = detector.explain(IMAGES)
    page = shown(found)
    lowest = str(found.ids[np.argmin(found.score)])
    assert page.count("<tr>") == 11
    assert page.index(lowest) == min(page.index(str(name)) for name in found.ids if str(name) in page)
    assert all(term in page for term in found.parts)
    assert len(str(found).splitlines()) == 40


def test_picture_map(detector):
    found = detector.picture_maps(IMAGES[:1])[0]
    with Image.open(io.BytesIO(found._repr_png_())) as picture:
        assert picture.size == (270, 274)
    assert re.fullmatch(r"PictureMap\('\w+', \d+ x \d+ positions of 32 x 32 pixels\)", repr(found))


def test_maps(detector):
    maps = detector.additive_maps(IMAGES[:12])
    assert pictures_in(shown(maps)) == 10
    assert repr(maps).startswith("AnomalyMaps(12 samples; layers: ")
    volume = detector.volume_explainer(IMAGES[:6]).explain(IMAGES[:2])
    assert pictures_in(shown(volume)) == 2
    assert repr(volume) == "VolumeMaps(2 samples, 8 x 8 patches of 4)"


def test_heat():
    picture = np.asarray(heat_picture([[2.0, 0.0], [-2.0, np.nan]], 2.0))
    assert picture.shape == (128, 128, 3)
    assert (picture[0, 0] == [178, 24, 43]).all()
    assert (picture[100, 0] == [33, 102, 172]).all()
    assert (picture[0, 100] == 255).all()
    assert (picture[100, 100] == 255).all()


def test_benchmark_result(benchmark):
    page = shown(benchmark)
    assert "&lt;far&gt;" in page
    assert repr(benchmark) == "BenchmarkResult(2 detectors on 2 sets of outliers)"
    auroc = benchmark.summary["detectors"]["kNN"]["sets"]["near"]["auroc"]["value"]
    assert f"{auroc:.3f}" in str(benchmark)
    means = [float(line.split()[-1]) for line in str(benchmark).splitlines()[2:]]
    assert means == sorted(means, reverse=True)


def test_pruned():
    X = np.concatenate([RNG.normal(size=(90, 3)), RNG.normal(20, 5, size=(10, 3))])
    pruned = prune(X, keep=0.9, detector=KNNDetector())
    page = shown(pruned)
    assert repr(pruned) == "Pruned(90 of 100 kept)"
    assert all(str(name) in page for name in pruned.ids[~pruned.kept])
    assert str(pruned).count("low score") == 10


def test_figures_show_themselves(benchmark, detector):
    drawn = [
        score_figure({"a": [1.0, 2.0], "b": [0.0, 3.0]}, threshold=0.5),
        ranks_figure({"a": 1.2, "b": 1.8}, 0.9),
        benchmark.roc(),
        benchmark.pareto(),
        volume_maps_figure(IMAGES[:2], detector.volume_explainer(IMAGES[:4]).explain(IMAGES[:2])),
    ]
    for figure in drawn:
        assert isinstance(figure, ShownFigure)
        with Image.open(io.BytesIO(figure._repr_png_())) as picture:
            assert min(picture.size) > 100


def test_a_figure_is_still_saved(tmp_path):
    path = save_figure(score_figure({"a": [1.0, 2.0]}, threshold=0.5), tmp_path / "x.svg")
    assert path.read_text().startswith("<?xml")


def test_tables_and_captions():
    assert text_table(("a", "bc"), [("long", "1"), ("x", "")]) == "a     bc\nlong  1\nx"
    assert 'alt="&lt;b&gt;"' in html_pictures([(Image.new("RGB", (2, 2)), "<b>")])
