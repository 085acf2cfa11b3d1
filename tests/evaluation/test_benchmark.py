"""The runner: what detectors are shown, what is held apart, and what comes out."""

import numpy as np
import pytest
import torch
from oracles import conv_net, random_images
from PIL import Image
from pyod.models.knn import KNN
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.ensemble import IsolationForest
from torch import nn

from skjepa import JEPAScoreDetector, KNNDetector, MahalanobisDetector, VectorJEPA, extract, load_encoder
from skjepa.data.sources import Source
from skjepa.evaluation import benchmark
from skjepa.evaluation.benchmark import Entry, default_detectors, run_benchmark
from skjepa.evaluation.metrics import METRICS, detection_metrics
from skjepa.extraction.extraction import Extraction


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return load_encoder(nn.Linear(4, 3))


@pytest.fixture(scope="module")
def image_encoder():
    return load_encoder(conv_net(), image_size=32)


def rows(n, shift=0.0, seed=0):
    return np.random.default_rng(seed).normal(shift, 1.0, size=(n, 4))


class Spy(OutlierMixin, BaseEstimator):
    """Remembers what it is shown; scores by the position in what it was shown."""

    seen: list = []  # noqa: RUF012

    def fit(self, X, y=None):
        Spy.seen.append(("fit", X, y))
        return self

    def score_samples(self, X):
        Spy.seen.append(("score", X, None))
        return np.arange(float(len(X)))


def test_a_run_by_hand(encoder):
    normal, far = rows(60), rows(20, 3.0, seed=1)
    splits = {"fit": normal[:30], "calibration": normal[30:40], "test": normal[40:]}
    result = run_benchmark(splits, {"far": far}, {"kNN": KNNDetector(), "forest": IsolationForest()}, encoder=encoder)
    fit, test, out = (extract(encoder, part) for part in (normal[:30], normal[40:], far))
    detector = KNNDetector().fit(fit)
    assert np.allclose(result.scores["kNN"]["test"], detector.score_samples(test))
    expected = detection_metrics(detector.score_samples(test), detector.score_samples(out))
    found = result.summary["detectors"]["kNN"]["sets"]["far"]
    assert {metric: found[metric]["value"] for metric in METRICS} == pytest.approx(expected)
    assert result.reference == "kNN"
    assert [test["rival"] for test in result.summary["paired_tests"]] == ["forest"]
    assert result.summary["samples"] == {"fit": 30, "calibration": 10, "test": 20, "far": 20}


@pytest.mark.parametrize(
    ("reads", "kind", "method", "n_passes"),
    [
        ("extraction", Extraction, "exact", 4),
        ("extraction", Extraction, "auto", 1),  # of vectors "auto" makes no backward pass
        ("forward", Extraction, "exact", 1),
        ("embeddings", np.ndarray, "exact", 1),
        ("samples", np.ndarray, "exact", 0),
    ],
)
def test_what_a_detector_is_shown(encoder, reads, kind, method, n_passes, monkeypatch):
    encoding = {"extraction": 3000.0, "forward": 1000.0, "embeddings": 1000.0, "samples": 0.0}
    monkeypatch.setattr(benchmark, "seconds_per_sample", lambda *args, **options: encoding)
    Spy.seen.clear()
    entries, options = {"spy": Entry(Spy(), reads)}, {"encoder": encoder, "method": method}
    result = run_benchmark(rows(20), {"far": rows(7, 3.0, seed=1)}, entries, **options)
    assert [what for what, *_ in Spy.seen] == ["fit", "score", "score", "score"]
    assert all(isinstance(X, kind) for _, X, _ in Spy.seen)
    assert [len(X) for _, X, _ in Spy.seen] == [10, 4, 6, 7]
    if kind is Extraction:
        assert all((X.singular_values is None) == (n_passes == 1) and X.layers for _, X, _ in Spy.seen)
    assert result.costs["spy"]["passes_per_sample"] == n_passes
    assert 0 <= result.costs["spy"]["seconds_per_sample"] - encoding[reads] < 1000


def test_a_detector_says_by_itself_what_it_reads(encoder):
    class Reader(Spy):
        reads = "extraction"

    Spy.seen.clear()
    run_benchmark(rows(20), {"far": rows(7, 3.0, seed=1)}, {"spy": Reader()}, encoder=encoder, n_resamples=5)
    assert all(isinstance(X, Extraction) for _, X, _ in Spy.seen)


def test_pyod_signs_are_turned(encoder):
    result = run_benchmark(rows(60), {"far": rows(20, 4.0, seed=1)}, {"KNN": KNN()}, encoder=encoder)
    assert result.summary["detectors"]["KNN"]["mean"]["auroc"]["value"] > 0.8
    assert result.summary["critical_difference"] is None


def test_images_with_class_folders_and_default_detectors(tmp_path, image_encoder):
    for i, image in enumerate(random_images(60)):
        folder = tmp_path / "normal" / ("even", "odd")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")
    noise = np.random.default_rng(0).integers(0, 256, size=(9, 32, 32, 3), dtype=np.uint8)
    detectors = default_detectors(classes=True)
    del detectors["Gaussian mixture"]  # wants more samples
    result = run_benchmark(tmp_path / "normal", {"noise": noise}, detectors, encoder=image_encoder, n_resamples=50)
    assert set(result.detectors) == set(detectors)
    assert result.summary["detectors"]["bits per pixel"]["sets"]["noise"]["auroc"]["value"] == 1.0
    assert result.costs["bits per pixel"]["passes_per_sample"] == 0
    assert result.costs["Mahalanobis"]["passes_per_sample"] == 1
    assert result.costs["skjepa"]["passes_per_sample"] == 17
    written = {path.name for path in result.save(tmp_path / "out")}
    assert written == {
        "results.json",
        "scores.parquet",
        "table.md",
        "roc.png",
        "gallery.png",
        "pareto.png",
    }  # one set: no ranks


def test_numbers_of_passes_in_one_run(image_encoder):
    normal, noise = random_images(40), np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    splits = {"fit": normal[:24], "calibration": normal[24:30], "test": normal[30:]}
    rivals = {"skjepa": JEPAScoreDetector(), "kNN": KNNDetector()}
    options = {"encoder": image_encoder, "n_resamples": 10}
    result = run_benchmark(splits, {"noise": noise}, rivals, passes=(4, 0, 16, 4), **options)
    # 16 are all of them, which the default has made already.
    assert result.detectors == ["skjepa", "skjepa, 4 passes", "skjepa, forward pass alone", "kNN"]
    assert [result.costs[name]["passes_per_sample"] for name in result.detectors] == [17, 5, 1, 1]
    fit, foreign = (extract(image_encoder, X, method="sketch", n_directions=4) for X in (splits["fit"], noise))
    by_hand = JEPAScoreDetector().fit(fit).score_samples(foreign)
    np.testing.assert_allclose(result.scores["skjepa, 4 passes"]["noise"], by_hand, rtol=1e-6)
    assert run_benchmark(splits, {"noise": noise}, rivals, **options).detectors == ["skjepa", "kNN"]
    options["method"] = "forward"
    result = run_benchmark(splits, {"noise": noise}, rivals, passes=(0, 4), **options)
    assert result.detectors == ["skjepa", "skjepa, 4 passes", "kNN"]


@pytest.mark.parametrize(("method", "expected"), [("exact", [4]), ("forward", []), ("auto", [4])])
def test_automatic_numbers_of_passes(image_encoder, method, expected, monkeypatch):
    monkeypatch.setattr(benchmark, "default_detectors", lambda **_: {"skjepa": JEPAScoreDetector()})
    noise = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    options = {"encoder": image_encoder, "n_resamples": 5, "method": method}
    result = run_benchmark(random_images(40), {"noise": noise}, **options)
    assert result.detectors == ["skjepa", *(f"skjepa, {m} passes" for m in expected)]
    assert run_benchmark(random_images(40), {"noise": noise}, passes=None, **options).detectors == ["skjepa"]


def test_repeated_samples_are_reported_or_dropped(encoder):
    normal, far = rows(40), rows(10, 3.0, seed=1)
    far[3] = normal[5]
    for on_repeats, size in (("report", 10), ("drop", 9)):
        result = run_benchmark(normal, {"far": far}, {"kNN": KNNDetector()}, encoder=encoder, on_repeats=on_repeats)
        [repeat] = result.repeats
        assert repeat.group == "far"
        assert len(result.scores["kNN"]["far"]) == size
        assert result.summary["repeats"][0]["first_group"] in ("fit", "calibration", "test")


def test_an_encoder_is_trained_on_the_fit_split_alone():
    seen = []

    class Watched(VectorJEPA):
        def fit(self, X, y=None):
            seen.append(set(X.ids))
            return super().fit(X, y)

    Watched.__init__ = VectorJEPA.__init__
    result = run_benchmark(
        rows(40), {"far": rows(10, 3.0, seed=1)}, {"joint": JEPAScoreDetector()}, encoder=Watched(n_steps=5)
    )
    assert seen == [set(result.groups["fit"].ids)]


def test_unreadable_images_are_left_out_for_everyone(tmp_path, image_encoder):
    for folder, n in (("normal", 30), ("foreign", 5)):
        (tmp_path / folder).mkdir()
        for i, image in enumerate(random_images(n, seed=n)):
            Image.fromarray(image).save(tmp_path / folder / f"{i:02d}.png")
    (tmp_path / "foreign" / "02.png").write_bytes(b"nothing")
    rivals = {"kNN": KNNDetector(), "bits per pixel": default_detectors()["bits per pixel"]}
    options = {"encoder": image_encoder, "n_resamples": 20}
    with pytest.warns(UserWarning, match=r"02\.png"):
        result = run_benchmark(
            tmp_path / "normal", {"foreign": tmp_path / "foreign"}, rivals, on_error="skip", passes=[4], **options
        )
    n_scored = {name: len(scores["foreign"]) for name, scores in result.scores.items()}
    assert n_scored == {"kNN": 4, "skjepa, 4 passes": 4, "bits per pixel": 4}
    assert result.settings["unreadable"] == {"fit": 0, "calibration": 0, "test": 0, "foreign": 1}
    with pytest.raises(ValueError, match=r"02\.png"):
        run_benchmark(tmp_path / "normal", {"foreign": tmp_path / "foreign"}, rivals, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outliers": {}}, "outliers holds no sets"),
        ({"outliers": {"test": rows(3)}}, "cannot be called 'test'"),
        ({"outliers": {"far": random_images(3)}}, "all images or all vectors"),
        ({"detectors": {"a": KNNDetector(encoder="bundled")}}, "detector 'a' has an encoder of its own"),
        ({"detectors": {}}, "detectors is empty"),
        ({"detectors": {"a": Entry(KNN(), "pixels")}}, "reads of 'a' must be one of"),
        ({"normal": {"fit": rows(9), "test": rows(9)}}, "must have the keys 'fit', 'calibration', 'test'"),
        ({"classes": [1, 2]}, "one per fit sample"),
        ({"passes": "all"}, "passes must be 'auto', None or a sequence of numbers"),
        ({"passes": [4, -1]}, "passes must be an integer >= 0|passes must be"),
        ({"passes": [2, 4]}, "passes holds 4, and the encoder has 3 outputs"),
        ({"on_repeats": "keep"}, "on_repeats must be one of"),
        ({"outliers": {"same": rows(40)}, "on_repeats": "drop"}, "every sample of .same. is also among the normal"),
    ],
)
def test_bad_input_is_named(encoder, change, message):
    given = {"normal": rows(40), "outliers": {"far": rows(3, 3.0)}, "detectors": {"kNN": KNNDetector()}} | change
    normal, outliers, detectors = given.pop("normal"), given.pop("outliers"), given.pop("detectors")
    with pytest.raises((ValueError, TypeError), match=message):
        run_benchmark(normal, outliers, detectors, encoder=encoder, **given)


def test_source_of_samples_for_images(image_encoder):
    Spy.seen.clear()
    run_benchmark(
        random_images(20),
        {"noise": random_images(4, seed=1)},
        {"spy": Entry(Spy(), "samples"), "Mahalanobis": MahalanobisDetector()},
        encoder=image_encoder,
        n_resamples=10,
    )
    assert all(isinstance(X, Source) for _, X, _ in Spy.seen)


def test_a_time_budget_is_refused(encoder):
    with pytest.raises(TypeError, match=r"run_benchmark takes no time_budget.*estimate_cost"):
        run_benchmark(rows(40), {"far": rows(10, 9)}, encoder=encoder, time_budget=5)
