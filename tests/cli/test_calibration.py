"""Which false-positive rate a number of normal images can guarantee, and how they are held out."""

import numpy as np
import pytest

from skjepa.cli.calibration import calibration_for, lowest_rate
from skjepa.detectors.conformal import conformal_offset

NOTHING = {"alpha": None, "calibration": None, "contamination": None}


@pytest.mark.parametrize(
    ("n", "rate", "calibration"),
    [(1000, 0.05, 0.2), (491, 0.05, 0.2), (490, 0.05, 5), (19, 0.05, 5), (18, 0.053, 5), (3, 0.25, 3)],
)
def test_defaults(n, rate, calibration):
    rule = calibration_for(n, **NOTHING)
    assert rule.parameters == {"contamination": 0.1, "target_fpr": rate, "calibration": calibration}
    assert bool(rule.note) == (n < 491)
    assert n not in (490, 19) or "With 491 or more images" in rule.note


def test_without_folds_a_fifth_is_held_out_wherever_it_allows_the_rate():
    assert calibration_for(91, **NOTHING, takes_folds=False).parameters["calibration"] == 0.2
    assert calibration_for(90, **NOTHING, takes_folds=False).parameters["calibration"] == 5


@pytest.mark.parametrize("n", [100, 490, 491, 800])
def test_the_command_line_and_python_choose_alike(n):
    from skjepa.detectors.held_out import chosen_calibration

    names = np.arange(n).astype(str)
    assert calibration_for(n, **NOTHING).parameters["calibration"] == chosen_calibration(names, 0.05, None)


@pytest.mark.parametrize("n", [*range(3, 200), *range(480, 500)])
def test_the_rate_can_be_kept(n):
    rule = calibration_for(n, **NOTHING).parameters
    held_out = int(np.ceil(n * rule["calibration"])) if rule["calibration"] < 1 else n
    conformal_offset(np.zeros(held_out), rule["target_fpr"])  # raises where it is too low
    assert lowest_rate(held_out) <= rule["target_fpr"]


def test_the_note_names_rate_and_option():
    assert "--alpha 0.05" in calibration_for(30, **NOTHING).note
    assert "the proven bound is twice that" in calibration_for(30, **NOTHING).note
    assert "allow a false-positive rate of 0.091 at the lowest" in calibration_for(10, **NOTHING).note


def test_what_was_asked_for_is_refused_before_the_pass_and_lowered_after_it():
    asked = NOTHING | {"alpha": 0.01}
    with pytest.raises(ValueError, match=r"--alpha 0\.01 needs 99 .* there are 30 in all.*--alpha 0\.033"):
        calibration_for(30, **asked)
    assert calibration_for(30, **asked, strict=False).parameters["target_fpr"] == 0.033
    with pytest.raises(ValueError, match=r"--calibration 0\.2 holds out 6 of 30.*--alpha 0\.143 or higher"):
        calibration_for(30, **NOTHING | {"calibration": 0.2})
    with pytest.raises(ValueError, match="too few to hold one out"):
        calibration_for(2, **NOTHING)


def test_contamination_holds_nothing_out():
    rule = calibration_for(10, alpha=None, calibration=None, contamination=0.2).parameters
    assert rule == {"contamination": 0.2, "target_fpr": None, "calibration": None}
