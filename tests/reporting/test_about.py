"""What a table remembers of its run comes back as it was."""

import numpy as np
import pytest
from report_pages import results_of

from skjepa import JEPAScoreDetector, KNNDetector
from skjepa.reporting.about import About, Rule, about_detector, map_of_normal

NORMAL = np.random.default_rng(0).integers(100, 156, size=(24, 32, 32, 3), dtype=np.uint8)


def test_about_survives_json():
    detector = JEPAScoreDetector(target_fpr=0.2, calibration=0.3, random_state=0).fit(NORMAL)
    about = about_detector(detector, folders={"": "/images"})
    n = len(detector.calibration_scores_)
    assert about.rule == Rule(0.2, None, n)
    assert about.encoder
    again = About.from_json(about.to_json())
    assert again == about
    assert again.diagnosed is not None
    assert again.diagnosed.findings == detector.diagnose().findings
    assert "few samples" in {finding.name for finding in again.diagnosed.findings}
    assert again.normal_scores == sorted(detector.calibration_scores_)


def test_without_held_out_samples_those_of_the_fit_are_shown():
    detector = JEPAScoreDetector(contamination=0.1).fit(NORMAL)
    about = about_detector(detector, detector.score_samples(NORMAL))
    assert about.rule == Rule(None, 0.1, 0)
    assert len(about.normal_scores) == 24
    assert about.normal_kind == "normal, fitted on"


def test_scores_of_folds_have_no_histogram_of_their_own():
    """score_samples gives a margin there, held-out scores are of single models."""
    about = about_detector(JEPAScoreDetector(target_fpr=0.2, calibration=3, random_state=0).fit(NORMAL))
    assert about.rule == Rule(0.2, None, 24)
    assert about.normal_scores == []


def test_other_detectors_have_no_diagnosis():
    assert about_detector(KNNDetector().fit(np.random.default_rng(0).normal(size=(24, 5)))).diagnosed is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rule": {}, "colour": 1}', '{"rule": {"speed": 1}}'])
def test_other_text_is_refused(text):
    with pytest.raises(ValueError, match="cannot be read"):
        About.from_json(text)


def test_maps_are_thinned():
    points = np.random.default_rng(0).normal(size=(5000, 2))
    assert np.shape(map_of_normal(points)) == (2000, 2)
    np.testing.assert_allclose(map_of_normal(points[:5]), points[:5], rtol=1e-4)


def test_orders():
    results = results_of(
        5,
        scores=np.array([2.0, np.nan, -1.0, 0.4, 1.0]),
        flagged=np.array([False, True, True, False, False]),
        threshold=0.0,
    )
    assert results.ranked.tolist() == [2, 3, 4, 0]
    assert results.borderline.tolist() == [3, 2, 4, 0]
