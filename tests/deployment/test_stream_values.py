"""What a monitor watches of real detectors: rows in the order of the samples, exact references only."""

import numpy as np
import pytest
from oracles import conv_net, random_images
from PIL import Image

from skjepa.deployment.score_monitor import ScoreMonitor
from skjepa.deployment.stream_values import normal_values, stream_values, term_p_values
from skjepa.detectors.baselines import KNNDetector
from skjepa.detectors.jepa_score import JEPAScoreDetector
from skjepa.encoders.encoder import load_encoder


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(conv_net(), image_size=32)


def test_terms_add_up_and_unreadable_rows_are_nan(encoder, tmp_path):
    detector = JEPAScoreDetector(encoder, calibration=0.4, on_error="skip").fit(random_images(40))
    files = []
    for i, image in enumerate(random_images(4, seed=7)):
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(image).save(files[-1])
    files[1].write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="skipped"):
        values = stream_values(detector, files)
    assert np.isnan(values["score"]).tolist() == [False, True, False, False]
    terms = [part for name, part in values.items() if name != "score"]
    np.testing.assert_allclose(np.sum(terms, axis=0), values["score"], rtol=1e-9)
    monitor = ScoreMonitor.of(detector)
    assert monitor.update(values) == []
    assert monitor.monitor.n == 4
    assert set(monitor.p_values) == set(values)


def test_references_are_of_samples_not_learned_from(encoder):
    images = random_images(40)
    held_out = JEPAScoreDetector(encoder, calibration=0.4).fit(images)
    known = normal_values(held_out)
    assert known["score"].tolist() == held_out.calibration_scores_.tolist()
    assert {len(values) for name, values in known.items() if name != "score"} == {0}
    folds = JEPAScoreDetector(encoder, calibration=2).fit(images)
    assert {len(values) for values in normal_values(folds).values()} == {0}
    fresh = normal_values(held_out, random_images(9, seed=3))
    assert {len(values) for values in fresh.values()} == {9}


def test_p_values_of_terms(encoder):
    detector = JEPAScoreDetector(encoder, calibration=0.4).fit(random_images(40))
    normal, new = random_images(19, seed=3), random_images(5, seed=4)
    p = term_p_values(detector, new, normal)
    fixed = detector.calibrate(normal).p_values(new)
    np.testing.assert_array_equal(p["score"], fixed)
    parts, of_normal = stream_values(detector, new), stream_values(detector, normal)
    for name in p:
        by_hand = [(1 + (of_normal[name] <= value).sum()) / 20 for value in parts[name]]
        np.testing.assert_allclose(p[name], by_hand)


def test_a_detector_without_terms_has_its_score():
    detector = KNNDetector(calibration=0.4).fit(np.random.default_rng(0).normal(size=(30, 4)))
    assert list(stream_values(detector, np.zeros((3, 4)))) == ["score"]
    assert list(normal_values(detector)) == ["score"]
