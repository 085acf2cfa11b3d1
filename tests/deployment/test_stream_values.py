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
    terms = [values[name] for name in detector.models_[0].terms]
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


def test_places_of_layers_are_signed_and_can_be_left_out(encoder):
    """Exact: the coordinates and the length of each row, by hand from what the fit learned."""
    images = random_images(40)
    detector = JEPAScoreDetector(encoder, method="forward").fit(images)
    new = random_images(5, seed=4)
    samples, chain = detector.extract(new), detector.models_[0].model.chain
    values = stream_values(detector, new)
    first = next(iter(chain.alone))
    scaled = samples.layers[first].astype(float) / chain.deviations[first]
    lengths = np.linalg.norm(scaled, axis=1)
    fitted = chain.alone[first]
    widest = np.argsort(fitted.precisions_)[:3]
    along = (
        (scaled / lengths[:, None] - fitted.location_) @ fitted.axes_[:, widest] * np.sqrt(fitted.precisions_[widest])
    )
    for i in range(3):
        np.testing.assert_allclose(values[f"{first} axis {i + 1}"], along[:, i], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(values[f"{first} size"], np.log(lengths), rtol=1e-6)
    assert list(values) == list(normal_values(detector))
    assert list(stream_values(detector, new, axes=0)) == ["score", *detector.models_[0].terms]
    assert list(normal_values(detector, axes=0)) == ["score", *detector.models_[0].terms]


def test_a_change_that_all_share_is_seen_where_no_term_sees_it(encoder):
    """Darker by a fifth: each image stays normal, and the size of the first layer says so."""
    images, rng = random_images(600), np.random.default_rng(0)
    bright = (images * rng.uniform(0.5, 1.0, size=(600, 1, 1, 1))).astype(
        np.uint8
    )  # as light differs among normal ones
    detector = JEPAScoreDetector(encoder, method="forward").fit(bright[:200])
    monitor = ScoreMonitor.of(detector, bright[200:400])
    assert monitor.update(stream_values(detector, bright[400:500])) == []
    darker = (0.8 * bright[500:]).astype(np.uint8)
    alarms = monitor.update(stream_values(detector, darker))
    assert alarms
    assert "size" in alarms[0].stream or "axis" in alarms[0].stream
    told = str(alarms[0])
    assert "a change that samples share" in told
    assert "flags too many or too few samples" in told


def test_a_detector_without_terms_has_its_score():
    detector = KNNDetector(calibration=0.4).fit(np.random.default_rng(0).normal(size=(30, 4)))
    assert list(stream_values(detector, np.zeros((3, 4)))) == ["score"]
    assert list(normal_values(detector)) == ["score"]
