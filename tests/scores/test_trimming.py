"""Which fit samples are left out: a dense cluster of anomalies, scattered ones, and none where none are there."""

import numpy as np
import pytest

from skjepa.scores.layers import LayerChain
from skjepa.scores.trimming import least_odd

RNG = np.random.default_rng(0)
CLEAN = 3 + RNG.normal(size=(270, 6))


def oddness(chain, found):
    assert isinstance(chain, LayerChain)
    return found["a"].copy()


def kept(junk, share=0.9):
    rows = np.vstack([CLEAN, junk])
    layers = {"a": rows, "b": rows @ np.random.default_rng(1).normal(size=(6, 3))}
    return least_odd(layers, share, False, oddness)


@pytest.mark.parametrize(
    "junk",
    [
        np.full((30, 6), 9.0) + 0.01 * RNG.normal(size=(30, 6)),  # one dense cluster, which a covariance would follow
        3 + 8 * RNG.normal(size=(30, 6)),
        np.vstack([np.full((15, 6), 9.0), np.full((15, 6), -9.0)]) + 0.01 * RNG.normal(size=(30, 6)),
    ],
)
def test_junk_is_left_out(junk):
    assert (kept(junk) >= 270).sum() <= 2  # scattered ones may fall among the others


def test_as_many_are_left_out_as_asked_for():
    assert len(kept(CLEAN[:30])) == 270
    assert len(kept(CLEAN[:30], 0.75)) == 225


def test_two_samples_are_kept_whatever_the_share():
    rows = {"a": CLEAN[:3]}
    assert len(least_odd(rows, 0.51, False, oddness)) == 2


def test_constant_numbers():
    rows = {"a": np.column_stack([CLEAN, np.ones(270)]), "b": np.zeros((270, 2))}
    assert len(least_odd(rows, 0.9, True, oddness)) == 243
