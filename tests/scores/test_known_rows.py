"""`KnownRows`: fit samples are known again, and nothing else is taken for one."""

import numpy as np
import pytest

from skjepa.scores.known_rows import KnownRows

ROWS = np.random.default_rng(0).normal(size=(300, 5))
NEW = np.random.default_rng(1).normal(size=(200, 5))


@pytest.mark.parametrize("shift", [0.0, 1e3, 1e8])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_rows_are_known_and_new_ones_are_not(shift, scale):
    known = KnownRows(scale * ROWS + shift)
    np.testing.assert_array_equal(known.places(scale * ROWS + shift), np.arange(300))
    assert (known.places(scale * NEW + shift) == -1).all()


def test_rounding_of_float32_is_forgiven():
    rows = ROWS.astype(np.float32).astype(np.float64)
    np.testing.assert_array_equal(KnownRows(ROWS).places(rows), np.arange(300))


@pytest.mark.parametrize("junk", [1e6, 1e9, 1e15])
def test_one_huge_row_does_not_widen_the_others(junk):
    rows = ROWS.copy()
    rows[0] = junk
    known = KnownRows(rows)
    np.testing.assert_array_equal(known.places(rows), np.arange(300))
    assert (known.places(NEW) == -1).all()
    assert known.places(rows[:1] * (1 + 1e-7)) == [0]  # by its own rounding


def test_a_number_has_to_agree_unless_it_is_rounding():
    z, s = np.zeros((50, 3)), np.arange(50.0)
    np.testing.assert_array_equal(KnownRows(z, s).places(z, s), np.arange(50))
    assert (KnownRows(z, s).places(z, s + 0.5) == -1).all()
    apart, rounding = np.arange(150.0).reshape(50, 3), 1e-9 * s
    np.testing.assert_array_equal(KnownRows(apart, s).places(apart, s + 1), np.full(50, -1))
    np.testing.assert_array_equal(KnownRows(apart, rounding).places(apart, rounding[::-1]), np.arange(50))


@pytest.mark.parametrize("value", [0.0, 1.0, 1e9])
def test_rows_that_are_all_the_same(value):
    rows = np.full((20, 3), value)
    assert (KnownRows(rows).places(rows) >= 0).all()
    assert (KnownRows(rows).places(rows + 1 + value) == -1).all()


def test_most_rows_are_copies():
    rows = np.concatenate([np.repeat(ROWS[:5], 50, axis=0), ROWS])
    assert (KnownRows(rows).places(NEW) == -1).all()
    assert (KnownRows(rows).places(rows) >= 0).all()
