"""One sample at a time: what is looked at once, everything from one pass, and memory that stays."""

import gc
import re
import sys
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
from oracles import conv_net, random_images
from PIL import Image
from torch.nn import functional

from skjepa import JEPAScoreDetector, KNNDetector, MahalanobisDetector, VectorJEPA, extract, load_encoder
from skjepa.encoders import FingerprintError

IMAGES = random_images(40)


@pytest.fixture(scope="module")
def detector():
    encoder = load_encoder(conv_net(), image_size=32)
    return JEPAScoreDetector(encoder, method="forward", calibration=0.4, target_fpr=0.1).fit(IMAGES)


@pytest.fixture
def passes(monkeypatch):
    """Samples in each call of the encoder from now on."""
    call, calls = functional.conv2d, []

    def counted(x, weight, *args, **kwargs):
        if weight.shape[1] == 3:
            calls.append(len(x))
        return call(x, weight, *args, **kwargs)

    monkeypatch.setattr(functional, "conv2d", counted)
    return calls


def test_a_warm_detector_makes_one_pass(detector, passes):
    detector.predict(IMAGES[:1])
    passes.clear()
    detector.predict(IMAGES[1:2])
    assert passes == [1]


def test_a_change_is_seen_before_and_after_a_steady_context(monkeypatch):
    module = conv_net().train()
    encoder = load_encoder(module, image_size=32)
    detector = JEPAScoreDetector(encoder, method="forward").fit(IMAGES)
    expected = detector.score_samples(IMAGES[:3])
    read = []
    described = encoder._described
    monkeypatch.setattr(encoder, "_described", lambda: read.append(1) or described())
    with detector.steady():
        np.testing.assert_allclose(
            [detector.score_samples(image[None])[0] for image in IMAGES[:3]], expected, rtol=1e-4
        )
        assert len(read) == 1
        with torch.no_grad():
            next(module.parameters()).add_(1)
        detector.predict(IMAGES[:1])
    assert module.training
    with pytest.raises(FingerprintError):
        detector.predict(IMAGES[:1])
    with pytest.raises(FingerprintError), detector.steady():
        pass


@pytest.mark.parametrize("calibration", [None, 3])
def test_steady_with_encoders_that_the_fit_trained(calibration):
    rows = np.random.default_rng(0).normal(size=(90, 3))
    jepa = VectorJEPA(n_components=4, widths=(8,), n_steps=5)
    detector = JEPAScoreDetector(jepa, method="forward", calibration=calibration).fit(rows)
    expected = detector.score_samples(rows[:4])
    with detector.steady():
        np.testing.assert_array_equal(detector.score_samples(rows[:4]), expected)


def test_a_changed_encoder_is_looked_at_again(passes):
    module = conv_net()
    encoder = load_encoder(module, image_size=32)
    extract(encoder, IMAGES[:1], method="forward")
    with torch.no_grad():
        next(module.parameters()).add_(1)
    passes.clear()
    extract(encoder, IMAGES[:1], method="forward")
    assert len(passes) > 5


def require_judgement(detector, X):
    found = detector.judge(X)
    np.testing.assert_array_equal(found.scores, detector.score_samples(X))
    np.testing.assert_array_equal(found.decisions, detector.decision_function(X))
    np.testing.assert_array_equal(found.labels, detector.predict(X))
    if detector.calibration_scores_ is None:
        assert found.p_values is None
    else:
        np.testing.assert_array_equal(found.p_values, detector.p_values(X))
    explained = detector.explain(X) if hasattr(detector, "explain") else None
    assert list(found.reasons) == [explained.reason(i) if explained else "" for i in range(len(found))]


@pytest.mark.parametrize("options", [{}, {"calibration": 4, "target_fpr": 0.2}, {"calibration": 4}])
def test_judge_says_what_the_methods_say_from_one_pass(options, passes):
    encoder = load_encoder(conv_net(), image_size=32)
    detector = JEPAScoreDetector(encoder, method="forward", **options).fit(IMAGES[:30])
    require_judgement(detector, IMAGES[30:])
    passes.clear()
    detector.judge(IMAGES[30:])
    assert sum(passes) == 10


@pytest.mark.parametrize("make", [KNNDetector, MahalanobisDetector])
def test_judge_of_rows(make):
    rows = np.random.default_rng(0).normal(size=(80, 3))
    require_judgement(make(calibration=4, target_fpr=0.1).fit(rows[:60]), rows[60:])
    require_judgement(make(calibration=4).fit(rows[:60]).calibrate(rows[40:60], 0.2), rows[60:])


def test_judge_of_what_cannot_be_read(detector, tmp_path):
    (tmp_path / "a.png").write_bytes(b"broken")
    Image.fromarray(IMAGES[0]).save(tmp_path / "b.png")
    skipping = JEPAScoreDetector(detector.encoder, method="forward", calibration=0.4, on_error="skip").fit(IMAGES)
    with pytest.warns(UserWarning, match="skipped"):
        found = skipping.judge(tmp_path)
    assert found.labels[0] == -1
    assert np.isnan([found.scores[0], found.decisions[0], found.p_values[0]]).all()
    assert np.isfinite(found.scores[1])
    assert found.ids.tolist() == ["a.png", "b.png"]
    assert re.fullmatch(r".*a\.png: cannot be read as an image \(unknown format\)", found.reasons[0])
    assert str(found).splitlines()[0] == "0 of 2 flagged, 1 could not be read"
    assert found.ranked.tolist() == [1, 0]
    assert found.table().column("score").to_pylist()[0] is None


def test_a_judgement_is_a_table(detector):
    """Every number of the frame is one of the arrays; what is printed are the ten most atypical, in order."""
    found = detector.judge(IMAGES)
    frame = found.to_frame()
    assert list(frame.columns) == ["id", "score", "decision", "label", "p_value", "reason"]
    for name, values in {"score": found.scores, "decision": found.decisions, "p_value": found.p_values}.items():
        np.testing.assert_array_equal(frame[name], values)
    assert frame["label"].tolist() == found.labels.tolist() == detector.predict(IMAGES).tolist()
    assert frame["id"].tolist() == found.ids.tolist()
    assert (found.flagged == (frame["label"] == -1)).all()
    first, head, *rows = str(found).splitlines()
    assert first == f"{found.flagged.sum()} of 40 flagged; the 10 most atypical, .to_frame() has all"
    assert head.split() == list(frame.columns)
    lowest = frame.sort_values("score")[:10]
    assert [row.split()[:2] for row in rows] == [[str(i), name] for i, name in lowest["id"].items()]
    assert repr(found) == f"Judgement({found.flagged.sum()} of 40 flagged)"
    assert found._repr_html_().count("<tr>") == 11


def test_a_judgement_without_pandas(detector, monkeypatch):
    found = detector.judge(IMAGES[:3])
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "pandas", None)
        with pytest.raises(ImportError, match=r"pip install pandas, or call table\(\)"):
            found.to_frame()
    assert found.table().column("label").to_pylist() == found.labels.tolist()


def test_names_in_a_page_are_escaped():
    rows = np.random.default_rng(0).normal(size=(30, 3))
    found = KNNDetector().fit(rows).judge(rows[:2])
    shown = replace(found, ids=np.array(["<script>", "b"]))._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown


@pytest.mark.parametrize("n_calls", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_memory_is_flat(detector, n_calls):
    def used() -> tuple[int, int]:
        gc.collect()
        return psutil.Process().memory_info().rss, len(gc.get_objects())

    images = np.random.default_rng(1).integers(0, 256, size=(50, 1, 32, 32, 3), dtype=np.uint8)
    for image in images:
        detector.predict(image)
    bytes_before, objects_before = used()
    for i in range(n_calls):
        detector.predict(images[i % 50])
    bytes_after, objects_after = used()
    assert bytes_after - bytes_before < 20 << 20
    assert objects_after - objects_before < 200
