"""Sentences of a report say what the numbers say."""

import numpy as np
import pytest
from report_pages import results_of
from scipy.stats import binomtest

from skjepa import JEPAScoreDetector
from skjepa.reporting.about import About, Rule
from skjepa.reporting.words import (
    diagnosis_in_words,
    reason_in_words,
    result_in_words,
    size_in_words,
    threshold_in_words,
)


def words(n_flagged, rule, n=100):
    flagged = np.arange(n) < n_flagged
    results = results_of(n, scores=np.where(flagged, -1.0, 1.0), flagged=flagged, threshold=0.0, about=About(rule=rule))
    return " ".join(result_in_words(results)), " ".join(threshold_in_words(results))


def test_counts_and_promise():
    result, threshold = words(40, Rule(0.05, None, 199))
    assert "100 images were scored; 40 are flagged" in result
    assert "(40.0%)" in result
    assert (
        "at most 5 would be flagged on average. The probability of this number or more would be below one in" in result
    )
    assert "199 normal images" in threshold
    assert "at most 5 % are flagged" in threshold
    assert "no p-value can be below 0.005" in threshold


def test_chance_is_the_binomial_one_for_many_held_out():
    result, _ = words(9, Rule(0.05, None, 10**6 - 1))
    chance = float(result.rpartition("would be ")[2].rstrip("."))
    assert chance == pytest.approx(binomtest(9, 100, 0.05, alternative="greater").pvalue, rel=0.05)


def test_contamination_promises_nothing():
    result, threshold = words(1, Rule(None, 0.1, 0))
    assert "1 is flagged" in result
    assert "probability" not in result
    assert "10.0%" in threshold
    assert "makes no guarantee about new images" in threshold


def test_unreadable_images_are_counted():
    assert "1 image could not be read and has no score." in result_in_words(results_of(10))
    one = results_of(2, scores=np.array([1.0, np.nan]), flagged=np.array([False, True]), threshold=0.0)
    assert result_in_words(one)[0].startswith("1 image was scored; 0 are flagged")


def test_diagnosis_in_words_has_its_numbers():
    rng = np.random.default_rng(0)
    diagnosis = JEPAScoreDetector().fit(rng.integers(0, 256, size=(20, 32, 32, 3), dtype=np.uint8)).diagnose()
    said = {verdict.heading: verdict.sentence for verdict in diagnosis_in_words(diagnosis)}
    assert f"{diagnosis.rank} of {diagnosis.n_singular_values} singular values" in said["Rank of the Jacobian"]
    assert f"{diagnosis.at_floor:.1%}" in said["Share at the floor"]
    assert f"{diagnosis.participation_ratio:.1f}" in said["Isotropy of the embeddings"]


@pytest.mark.parametrize(("n", "said"), [(900, "1 kB"), (52_000, "52 kB"), (2_345_678, "2.3 MB")])
def test_sizes(n, said):
    assert size_in_words(n) == said


def test_reasons_are_told_by_what_terms_mean():
    terms = ["layer stage1", "layer stage2", "layer stage3", "layer output", "neighbours", "local"]
    assert reason_in_words("layer stage3, local, layer output", terms) == (
        "odd in the late layers: content; odd at some places of the image; odd in the output of the encoder: content "
        "as a whole"
    )
    assert reason_in_words("layer stage1", terms) == "odd in the early layers: texture, edges and colours"
    assert reason_in_words("", terms) == ""
    assert reason_in_words("layer stage3, local", []) == "layer stage3; local"  # a table that does not say its terms
