"""Weighted p-values against their definition and where they must hold; the adaptive level against its bound."""

import numpy as np
import pytest

from skjepa.deployment.shift import AdaptiveLevel, effective_size, likelihood_ratio, weighted_p_values
from skjepa.detectors.conformal import conformal_p_values


def test_equal_weights_are_plain_conformal_p_values():
    rng = np.random.default_rng(0)
    known, new = rng.integers(0, 9, size=30).astype(float), np.append(rng.integers(0, 9, size=20), np.nan)
    weighted = weighted_p_values(known, new, np.full(30, 0.7), np.full(21, 0.7))
    np.testing.assert_allclose(weighted, conformal_p_values(known, new))


def test_the_definition_with_ties():
    rng = np.random.default_rng(1)
    known, new = rng.integers(0, 5, size=12).astype(float), rng.integers(0, 5, size=7).astype(float)
    w, v = rng.exponential(size=12), rng.exponential(size=7)
    by_hand = [(w[known <= s].sum() + own) / (w.sum() + own) for s, own in zip(new, v, strict=True)]
    np.testing.assert_allclose(weighted_p_values(known, new, w, v), by_hand)


@pytest.fixture(scope="module")
def shifted():
    """Share flagged at 10 % of normal samples whose first coordinate, on which the score depends, has moved."""
    plain, weighted, learned = [], [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        old, new = rng.normal(size=(300, 2)), rng.normal(size=(200, 2)) - [0.8, 0]
        s_old, s_new = old[:, 0] + rng.normal(size=300), new[:, 0] + rng.normal(size=200)
        ratio_old, ratio_new = np.exp(-0.8 * old[:, 0]), np.exp(-0.8 * new[:, 0])  # of the densities, up to a factor
        plain.append((conformal_p_values(s_old, s_new) <= 0.1).mean())
        weighted.append((weighted_p_values(s_old, s_new, ratio_old, ratio_new) <= 0.1).mean())
        if seed < 5:
            learned.append((weighted_p_values(s_old, s_new, *likelihood_ratio(old, new)) <= 0.1).mean())
    return plain, weighted, learned


def test_true_weights_hold_the_level_where_plain_p_values_do_not(shifted):
    plain, weighted, _ = shifted
    assert np.mean(plain) > 0.2
    assert np.mean(weighted) <= 0.1 + 3 * np.std(weighted) / np.sqrt(len(weighted))


def test_learned_weights_come_close(shifted):
    plain, _, learned = shifted
    assert abs(np.mean(learned) - 0.1) < 0.05 < abs(np.mean(plain) - 0.1)


def test_the_ratio_follows_the_true_one_and_is_flat_without_a_shift():
    rng = np.random.default_rng(0)
    old, new = rng.normal(size=(400, 3)), rng.normal(size=(300, 3)) + np.eye(3)[0]
    w, v = likelihood_ratio(old, new)
    assert np.corrcoef(np.log(w), old[:, 0])[0, 1] > 0.95
    assert (w > 0).all()
    assert (v > 0).all()
    assert effective_size(w) < 0.6 * 400
    flat, _ = likelihood_ratio(old[:200], old[200:])
    assert effective_size(flat) > 0.8 * 200


def test_wrong_input_is_refused():
    z = np.zeros((20, 2))
    with pytest.raises(ValueError, match="at least 10"):
        likelihood_ratio(z, z[:3])
    with pytest.raises(ValueError, match="shapes"):
        likelihood_ratio(z, z[:, :1])
    with pytest.raises(ValueError, match="NaN"):
        likelihood_ratio(z, z + np.nan)
    with pytest.raises(ValueError, match="one weight per score"):
        weighted_p_values([1.0, 2.0], [1.0], [1.0], [1.0])
    with pytest.raises(ValueError, match="positive"):
        weighted_p_values([1.0, 2.0], [1.0], [1.0, 0.0], [1.0])


def test_effective_size_by_hand():
    assert effective_size([2.0, 2.0, 2.0]) == pytest.approx(3)
    assert effective_size([1.0, 0.0, 0.0]) == pytest.approx(1)


class TestAdaptiveLevel:
    def test_the_bound_holds_on_a_stream_that_drifts_against_it(self):
        """P-values that shrink, jump and come back: the share flagged keeps to the proven bound at every time."""
        rng = np.random.default_rng(0)
        p = rng.random(4000)
        p[1000:2000] *= 0.2
        p[2000:3000] = 1 - 0.2 * p[2000:3000]
        adaptive, flagged = AdaptiveLevel(0.1, gamma=0.02), []
        for value in p:
            flagged.append(bool(adaptive.flags([value])[0]))
            adaptive.update(flagged[-1])
            assert abs(np.mean(flagged) - 0.1) <= (0.9 + 0.02) / (0.02 * len(flagged))
        assert (p[1000:2000] <= 0.1).mean() > 0.4  # a level that stays flags far more
        assert adaptive.n == 4000

    def test_levels_outside_the_unit_interval_flag_all_or_nothing(self):
        assert AdaptiveLevel(0.1, start=1.2).flags([0.5, np.nan]).all()
        assert not AdaptiveLevel(0.1, start=-0.1).flags([1e-9]).any()
        assert AdaptiveLevel(0.1).flags([np.nan, 0.1, 0.11]).tolist() == [True, True, False]

    def test_what_is_no_label_is_refused(self):
        with pytest.raises(TypeError, match="True or False"):
            AdaptiveLevel(0.1).update(0.03)
        with pytest.raises(ValueError, match="gamma"):
            AdaptiveLevel(0.1, gamma=0)
