import numpy as np
import pytest

from skjepa._utils.validation import check_choice, check_integer, check_number, seed_from


def test_choice():
    assert check_choice("score", "a", ("a", "b")) == "a"
    for wrong in ("c", None, ["a"], 3):
        with pytest.raises(ValueError, match="score must be one of 'a', 'b'; got"):
            check_choice("score", wrong, ("a", "b"))


def test_integer():
    assert check_integer("k", np.int64(3), minimum=1) == 3
    for wrong in (2.0, "2", True, None):
        with pytest.raises(TypeError, match="k must be an integer"):
            check_integer("k", wrong, minimum=1)
    with pytest.raises(ValueError, match="k must be at least 1; got 0"):
        check_integer("k", 0, minimum=1)


@pytest.mark.parametrize(
    ("closed", "inside", "outside"),
    [("", [0.5], [0.0, 1.0]), ("<", [0.0, 0.5], [1.0]), (">", [0.5, 1.0], [0.0]), ("<>", [0.0, 1.0], [-0.1, 1.1])],
)
def test_number_and_its_interval(closed, inside, outside):
    for value in inside:
        assert check_number("share", value, above=0, below=1, closed=closed) == value
    for value in [*outside, np.nan, np.inf]:
        with pytest.raises(ValueError, match=r"share must lie in [\[(]0, 1[\])]; got"):
            check_number("share", value, above=0, below=1, closed=closed)
    with pytest.raises(TypeError, match="share must be a number"):
        check_number("share", "half")


def test_seeds():
    assert seed_from(None) == 0
    assert seed_from(7) == 7
    assert seed_from(np.random.RandomState(0)) == seed_from(np.random.RandomState(0))
    assert seed_from(np.random.default_rng(0)) == seed_from(np.random.default_rng(0))
    with pytest.raises(ValueError, match="random_state must be at least 0"):
        seed_from(-1)
