"""Intervals, paired tests and ranks against scipy, slow references and worked examples."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap as scipy_bootstrap
from scipy.stats import mannwhitneyu

from skjepa.evaluation.comparison import (
    SharedNormals,
    bootstrap,
    critical_difference,
    delong,
    friedman_p_value,
    holm,
    mean_ranks,
    paired_tests,
)
from skjepa.evaluation.metrics import METRICS, detection_metrics


def scores_of(seed=0, n=60, sizes=(50, 40), shifts=(1.0, 0.4)):
    """Two detectors that see the same samples; the first separates better."""
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=n)
    outliers = [rng.normal(-1, 1, size=size) for size in sizes]
    noise = {name: rng.normal(scale=0.5, size=n + sum(sizes)) for name in ("a", "b")}
    known, foreign = {}, {}
    for name, shift in zip(("a", "b"), shifts, strict=True):
        parts = np.split(noise[name], np.cumsum([n, *sizes])[:-1])
        known[name] = normal + parts[0]
        seen = [shift * (out - part) for out, part in zip(outliers, parts[1:], strict=True)]
        foreign[name] = {f"set {i}": part for i, part in enumerate(seen)}
    return SharedNormals.checked(known, foreign)


def test_bootstrap_interval_is_that_of_scipy():
    scores = scores_of()
    normal, outlier = scores.normal["a"], scores.outliers["a"]["set 0"]
    ours = bootstrap(scores, n_resamples=2000).interval("a", "auroc", "set 0")
    theirs = scipy_bootstrap(
        (normal, outlier),
        lambda a, b, axis: mannwhitneyu(a, b, axis=axis).statistic / (a.shape[-1] * b.shape[-1]),
        n_resamples=2000,
        method="percentile",
        rng=0,
    ).confidence_interval
    assert ours == pytest.approx(tuple(theirs), abs=0.012)


def test_every_metric_lies_in_its_interval():
    scores = scores_of()
    drawn = bootstrap(scores, n_resamples=200)
    found = detection_metrics(scores.normal["b"], scores.outliers["b"]["set 1"])
    for metric in METRICS:
        low, high = drawn.interval("b", metric, "set 1")
        assert low <= found[metric] <= high
        assert low < high


def test_bootstrap_does_not_depend_on_its_blocks(monkeypatch):
    scores = scores_of(sizes=(50,))
    monkeypatch.setattr("skjepa.evaluation.comparison._BLOCK", 10 * 110)
    drawn = bootstrap(scores, n_resamples=45)
    assert drawn.draws["auroc"].shape == (2, 1, 45)
    assert np.isfinite(drawn.draws["auroc"]).all()


def test_normal_samples_are_resampled_jointly_over_sets():
    """A set given twice varies as one: its mean is no more certain than itself, but for its outliers."""
    one = scores_of(sizes=(400,), n=20)
    name = {d: {"one": part["set 0"], "two": part["set 0"]} for d, part in one.outliers.items()}
    twice = bootstrap(SharedNormals.checked(one.normal, name), n_resamples=500).draws["auroc"][0]
    assert np.corrcoef(twice)[0, 1] > 0.9


def test_delong_by_hand():
    scores = scores_of()
    auroc, covariance = delong(scores)
    wins = [
        (scores.normal[d][:, None] > scores.outliers[d]["set 0"]).astype(float)
        + 0.5 * (scores.normal[d][:, None] == scores.outliers[d]["set 0"])
        for d in ("a", "b")
    ]
    assert auroc[:, 0] == pytest.approx([win.mean() for win in wins])
    alone = SharedNormals.checked(scores.normal, {d: {"set 0": p["set 0"]} for d, p in scores.outliers.items()})
    by_hand = np.cov([w.mean(axis=1) for w in wins]) / 60 + np.cov([w.mean(axis=0) for w in wins]) / 50
    assert delong(alone)[1] == pytest.approx(by_hand)
    assert covariance.shape == (2, 2)


def test_delong_of_the_mean_agrees_with_the_bootstrap():
    scores = scores_of(n=150, sizes=(120, 130))
    draws = bootstrap(scores, n_resamples=3000).draws["auroc"].mean(axis=1)
    assert delong(scores)[1] == pytest.approx(np.cov(draws), rel=0.12)


def test_the_better_detector_is_told_from_the_worse_and_not_from_itself():
    scores = scores_of(n=300, sizes=(300, 300), shifts=(1.5, 0.2))
    [test] = paired_tests(scores, "a")
    assert test.rival == "b"
    assert test.difference > 0
    assert test.p_value < 1e-3
    same = SharedNormals.checked(
        {"a": scores.normal["a"], "again": 2 * scores.normal["a"]},
        {"a": scores.outliers["a"], "again": {name: 2 * part for name, part in scores.outliers["a"].items()}},
    )
    assert paired_tests(same, "a")[0].p_value == 1.0


def test_p_values_are_uniform_where_detectors_are_alike():
    """Two noisy looks at one signal: five per cent of p-values lie under .05."""
    p = [paired_tests(scores_of(seed, shifts=(0.5, 0.5)), "a")[0].p_value for seed in range(400)]
    assert 0.02 < np.mean(np.array(p) < 0.05) < 0.085


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_as_the_step_down_procedure(p):
    adjusted = holm(p)
    rejected = set()
    for step, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        if p[i] * (len(p) - step) > 0.05:
            break
        rejected.add(i)
    assert {i for i, value in enumerate(adjusted) if value <= 0.05} == rejected


def test_ranks():
    table = [[0.9, 0.8], [0.9, 0.6], [0.5, 0.7]]
    assert mean_ranks(table).tolist() == [1.25, 2.25, 2.5]
    assert critical_difference(5, 30) == pytest.approx(2.728 * np.sqrt(5 * 6 / (6 * 30)), abs=2e-3)
    assert np.isnan(friedman_p_value(table[:2]))
    assert 0 < friedman_p_value(table) < 1


@pytest.mark.parametrize(
    ("normal", "outliers", "message"),
    [
        ({"a": [1.0]}, {"b": {"set": [1.0]}}, "must hold the same detectors"),
        ({"a": [1.0], "b": [1.0, 2.0]}, {"a": {"s": [1.0]}, "b": {"s": [1.0]}}, "must have scored the same samples"),
        ({"a": [1.0]}, {"a": {}}, "outliers holds no sets"),
        ({"a": [np.nan]}, {"a": {"s": [1.0]}}, "normal 'a' scores hold NaN"),
    ],
)
def test_bad_scores_are_named(normal, outliers, message):
    with pytest.raises(ValueError, match=message):
        SharedNormals.checked(normal, outliers)


def test_unknown_detector():
    with pytest.raises(ValueError, match="no scores of detector 'c': give one of 'a', 'b'"):
        paired_tests(scores_of(), "c")
