"""`method="forward"` through all that has a detector in it: thresholds, folds, files, workers, PyOD, commands."""

import json
import pickle

import joblib
import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.ensemble import IsolationForest
from torch import nn

from skjepa import (
    EmbeddingDetector,
    Extraction,
    JEPAScoreDetector,
    KNNDetector,
    MahalanobisDetector,
    extract,
    load_encoder,
)
from skjepa.cli.app import main as command
from skjepa.evaluation.benchmark import run_benchmark
from skjepa.pyod import PyODDetector


def main(arguments):
    """Exit code of `skjepa ARGUMENTS` in this process."""
    with pytest.raises(SystemExit) as exit:
        command(arguments)
    return exit.value.code


RNG = np.random.default_rng(0)
NORMAL = RNG.integers(100, 156, size=(60, 32, 32, 3), dtype=np.uint8)
ODD = RNG.integers(0, 256, size=(20, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def no_backward_pass(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a backward pass")

    monkeypatch.setattr("skjepa.extraction.batches.measurement.jacobian", refuse)


@pytest.fixture(scope="module")
def detector():
    return JEPAScoreDetector(method="forward", calibration=0.3, target_fpr=0.1).fit(NORMAL)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    whole = tmp_path_factory.mktemp("pictures")
    for name, images in (("normal", NORMAL), ("odd", ODD)):
        (whole / name).mkdir()
        for i, pixels in enumerate(images):
            Image.fromarray(pixels).save(whole / name / f"{i:02}.png")
    return whole


def test_thresholds(detector):
    assert (detector.predict(ODD) == -1).all()
    assert (detector.p_values(ODD) < 0.1).all()
    assert (detector.predict(NORMAL) == -1).mean() < 0.3


@pytest.mark.parametrize("calibration", [3, 0.5])
def test_folds(calibration):
    made = JEPAScoreDetector(method="forward", calibration=calibration, target_fpr=0.1).fit(NORMAL)
    assert (made.predict(ODD) == -1).all()


def test_saved_and_read(detector, tmp_path):
    detector.save(tmp_path / "d")
    again = JEPAScoreDetector.load(tmp_path / "d")
    np.testing.assert_array_equal(again.score_samples(ODD), detector.score_samples(ODD))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(detector)).score_samples(ODD), detector.score_samples(ODD))


def test_workers(detector):
    with joblib.parallel_config("loky", n_jobs=2):
        found = clone(detector).set_params(memory_budget=2**22).fit(NORMAL).score_samples(ODD)
    np.testing.assert_allclose(found, detector.score_samples(ODD), rtol=1e-3)


def test_two_runs_agree(detector):
    np.testing.assert_array_equal(clone(detector).fit(NORMAL).score_samples(ODD), detector.score_samples(ODD))


def test_an_exact_extraction_knows_enough(detector):
    forward = extract(load_encoder("bundled"), ODD, method="forward")
    np.testing.assert_allclose(detector.score_samples(forward), detector.score_samples(ODD))
    whole = forward.forward_only()
    np.testing.assert_allclose(detector.score_samples(whole), detector.score_samples(ODD))


def test_pyod():
    made = PyODDetector(JEPAScoreDetector(method="forward"), contamination=0.1).fit(NORMAL)
    assert made.labels_.sum() == 6
    assert (made.predict(ODD) == 1).all()


def test_diagnosis_and_explanation(detector):
    diagnosis = detector.diagnose()
    assert diagnosis.n_singular_values == 0
    assert "singular values" not in str(diagnosis)
    words = str(detector.explain(ODD[:1]))
    assert "layer" in words
    assert "flagged" in words


@pytest.fixture(scope="module")
def passes():
    encoder = load_encoder("bundled")
    return extract(encoder, NORMAL, method="forward"), extract(encoder, ODD, method="forward")


class TestBaselines:
    @pytest.mark.parametrize(
        "made",
        [
            MahalanobisDetector(layer="stage 1"),
            MahalanobisDetector(layer="sum", normalize=True),
            MahalanobisDetector(layer="concatenated"),
            KNNDetector(layer="stage 2"),
            KNNDetector(layer="concatenated", normalize=True),
            EmbeddingDetector(IsolationForest(random_state=0), layer="concatenated"),
        ],
    )
    def test_on_layers(self, made, passes):
        normal, odd = passes
        made = clone(made).fit(normal)
        assert made.reads == "forward"
        assert made.score_samples(odd).max() < np.median(made.score_samples(normal))

    def test_the_sum_is_of_each(self, passes):
        normal, odd = passes
        whole = MahalanobisDetector(layer="sum").fit(normal).score_samples(odd)
        names = [*normal.layers, "output"]
        parts = [MahalanobisDetector(layer=name).fit(normal).score_samples(odd) for name in names]
        np.testing.assert_allclose(whole, np.sum(parts, axis=0))

    def test_saved(self, passes, tmp_path):
        normal, odd = passes
        for made in (MahalanobisDetector(layer="sum"), KNNDetector(layer="stage 3")):
            made.fit(normal).save(tmp_path / "m")
            again = type(made).load(tmp_path / "m")
            np.testing.assert_array_equal(again.score_samples(odd), made.score_samples(odd))

    def test_refused(self, passes):
        with pytest.raises(ValueError, match="no layer 'stage 9'; it has 'stage 1'"):
            KNNDetector(layer="stage 9").fit(passes[0])
        with pytest.raises(ValueError, match="layer='sum' works with MahalanobisDetector alone"):
            KNNDetector(layer="sum").fit(passes[0])
        with pytest.raises(
            TypeError,
            match="a layer of an encoder, and X holds rows of numbers; give images, or an Ex",
        ):
            KNNDetector(layer="stage 1").fit(np.zeros((10, 3)))


def test_benchmark():
    result = run_benchmark(NORMAL, {"odd": ODD}, encoder="bundled", method="forward", n_resamples=20)
    assert "JEPA-SCORE" not in result.detectors
    assert {"skjepa", "Mahalanobis, sum over layers", "IForest on layers"} <= set(result.detectors)
    assert result.summary["detectors"]["skjepa"]["mean"]["auroc"]["value"] == 1.0
    assert result.summary["detectors"]["skjepa"]["passes_per_sample"] == 1


class TestCommands:
    def test_fit_and_score(self, folders, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert (
            main(["fit", str(folders / "normal"), "--method", "forward", "--out", "d", "--quiet", "--alpha", "0.1"])
            == 0
        )
        code = main(["score", "--detector", "d", str(folders / "odd"), "--out", "s.csv", "--json", "--quiet"])
        assert code == 0
        group = json.loads(capsys.readouterr().out.splitlines()[-1])["groups"][0]
        assert group["flagged"] == 20

    def test_report(self, folders, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        options = ["--method", "forward", "--layers", "stage 1, stage 4", "--alpha", "0.1", "--quiet", "--no-picture"]
        assert main(["score", "--fit", str(folders / "normal"), str(folders / "odd"), *options]) == 0
        assert main(["report", "scores.parquet", "--quiet"]) == 0
        page = (tmp_path / "scores.html").read_text()
        assert "odd in the early layers" in page  # the first of the two
        assert "odd in the late layers" not in page

    def test_bench(self, folders, tmp_path):
        options = ["--method", "forward", "--out", str(tmp_path / "b"), "--resamples", "20", "--quiet"]
        code = main(["bench", "--id", str(folders / "normal"), "--ood", str(folders / "odd"), *options])
        assert code == 0
        assert "JEPA-SCORE" not in (tmp_path / "b" / "table.md").read_text()


def test_rows_need_no_backward_pass():
    X = np.random.default_rng(0).normal(size=(80, 4))
    made = JEPAScoreDetector().fit(X)
    assert made.predict(X + 9).tolist() == [-1] * 80
    own = JEPAScoreDetector(load_encoder(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)))).fit(X)
    assert own.models_[0].settings["layers"] == ["input", "1"]


@pytest.mark.parametrize("options", [{}, {"calibration": 3, "target_fpr": 0.1}])
def test_a_trimmed_detector_is_saved(options, tmp_path):
    made = JEPAScoreDetector(method="forward", trim=0.1, **options).fit(NORMAL)
    made.save(tmp_path / "d")
    again = JEPAScoreDetector.load(tmp_path / "d")
    np.testing.assert_array_equal(again.score_samples(ODD), made.score_samples(ODD))


def test_layers_of_an_extraction_are_those_asked_for(passes):
    normal, odd = passes
    scores = {}
    for layers in ("auto", None, ["stage 4"]):
        made = JEPAScoreDetector(method="forward", layers=layers).fit(normal)
        scores[str(layers)] = made.score_samples(odd)  # which holds more than that
        np.testing.assert_allclose(made.score_samples(ODD), scores[str(layers)], rtol=1e-4)
    assert len({float(values[0]) for values in scores.values()}) == 3
    with pytest.raises(ValueError, match="no layer 'stage 9'; it has 'stage 1'"):
        JEPAScoreDetector(layers=["stage 9"]).fit(normal)


def test_half_precision_is_kept_for_what_comes_later():
    encoder = load_encoder("bundled")
    half = extract(encoder, NORMAL, method="forward", layers_dtype="float16")
    made = JEPAScoreDetector(encoder, method="forward").fit(half)
    assert made.extract(ODD).layers["stage 1"].dtype == np.float16
    assert (made.predict(ODD) == -1).all()


def test_baselines_do_not_ask_for_singular_values(passes):
    normal, odd = passes
    told = Extraction(odd.embeddings, None, odd.ids, {**odd.meta, "method": "exact"}, layers=odd.layers)
    made = KNNDetector(layer="stage 2").fit(normal)
    np.testing.assert_array_equal(made.score_samples(told), made.score_samples(odd))


@pytest.mark.filterwarnings("ignore:all 5 scores are equal")
def test_copies_of_one_image_leave_a_ranking():
    made = JEPAScoreDetector(method="forward").fit(np.repeat(NORMAL[:1], 5, axis=0))
    assert np.isfinite(made.score_samples(ODD)).all()
