"""Choose how many normal images to hold out for the threshold, and the false-positive rate they can guarantee."""

import math
from dataclasses import dataclass
from typing import Any

from skjepa.detectors.rates import DEFAULT_FOLDS, DEFAULT_SHARE, ENOUGH, n_allowed

ALPHA = 0.05
"""Default false-positive rate."""


@dataclass(frozen=True)
class Calibration:
    """Rule by which a detector sets its threshold.

    Attributes
    ----------
    parameters : dict
        Parameters of `JEPAScoreDetector`: contamination, target_fpr, calibration.
    note : str
        What the user should know about the rule; "" for the default rule.
    """

    parameters: dict[str, Any]
    note: str = ""


def calibration_for(
    n_images: int,
    *,
    alpha: float | None,
    calibration: float | None,
    contamination: float | None,
    strict: bool = True,
    takes_folds: bool = True,
) -> Calibration:
    """Choose the rule of the threshold for a number of distinct normal images.

    Parameters
    ----------
    n_images : int
    alpha, calibration, contamination : float, optional
        Options that the user gave. Without `calibration`, a fifth of the images is held out, if at least five of these
        score below the threshold. Otherwise five folds are used: each image is scored by a model that was not fitted
        on it. If the images are too few for that, the rate is raised, unless `alpha` is given.
    strict : bool
        Whether to raise an error if the requested rate is impossible. Otherwise the lowest possible rate is taken, so
        that a run does not fail after its expensive pass because some images could not be read.
    takes_folds : bool
        Whether the method can be fitted in folds. Otherwise a fifth is held out wherever that allows the rate.

    Raises
    ------
    ValueError
        Too few images for the options; the message names the lowest possible rate and the options to change.
    """
    if contamination is not None:
        return Calibration({"contamination": contamination, "target_fpr": None, "calibration": None})
    if n_images < 3:
        raise ValueError(
            f"{n_images} normal images are too few to hold one out and learn from the rest: give at least 3, or use "
            "--contamination 0.1, which holds none out"
        )
    wanted = ALPHA if alpha is None else alpha
    share = DEFAULT_SHARE if calibration is None else calibration
    n_folds = min(DEFAULT_FOLDS, n_images)
    n_held_out = _held_out(n_images, share)
    is_sharp = calibration is not None or not takes_folds or n_allowed(wanted, n_held_out) >= ENOUGH
    if lowest_rate(n_held_out) <= wanted and is_sharp:
        return _rule(wanted, share, n_images)
    if calibration is None and lowest_rate(n_images) <= wanted:
        return _rule(wanted, n_folds, n_images, _folds_in_words(n_images, n_folds, wanted))
    lowest = lowest_rate(n_images if calibration is None else _held_out(n_images, share))
    if strict and not (alpha is None and calibration is None):
        raise ValueError(_refusal(n_images, wanted, lowest, calibration))
    taken = n_folds if calibration is None else share
    return _rule(lowest, taken, n_images, _raised_in_words(n_images, wanted, lowest))


def lowest_rate(n_held_out: int) -> float:
    """Return the lowest false-positive rate that held-out images can guarantee, rounded up to three digits."""
    return math.ceil(round(1000 / (n_held_out + 1), 6)) / 1000


def _held_out(n_images: int, share: float) -> int:
    return n_images if share >= 2 else math.ceil(n_images * share)


def _needed(rate: float, n_below: int = 1) -> int:
    """Return how many held-out images put so many scores below the threshold."""
    return math.ceil(round(n_below / rate - 1, 9))


def _rule(rate: float, held_out: float, n_images: int, note: str = "") -> Calibration:
    calibration: float | int = held_out
    if held_out >= 2:
        calibration = min(int(held_out), n_images)
    return Calibration({"contamination": 0.1, "target_fpr": rate, "calibration": calibration}, note)


def _folds_in_words(n_images: int, n_folds: int, rate: float) -> str:
    enough = math.floor((_needed(rate, ENOUGH) - 1) / DEFAULT_SHARE) + 1
    return (
        f"{n_images} normal images: a fifth of them is few for --alpha {rate:g}, so the threshold comes from "
        f"{n_folds} folds, where each image is scored by a model that was not fitted on it. About {100 * rate:g} % of "
        f"new normal images are flagged; the proven bound is twice that. With {enough} or more images a single model "
        f"is fitted. --calibration overrides this choice"
    )


def _raised_in_words(n_images: int, wanted: float, lowest: float) -> str:
    return (
        f"{n_images} normal images allow a false-positive rate of {lowest:g} at the lowest, which is used here; "
        f"--alpha {wanted:g} needs {_needed(wanted)} or more images. For a higher rate, give --alpha"
    )


def _refusal(n_images: int, wanted: float, lowest: float, calibration: float | None) -> str:
    needed = _needed(wanted)
    if calibration is None:
        return (
            f"--alpha {wanted:g} needs {needed} held-out normal images; there are {n_images} in all. Give more, or "
            f"--alpha {lowest:g} or higher"
        )
    held_out = _held_out(n_images, calibration)
    return (
        f"--alpha {wanted:g} needs {needed} held-out normal images; --calibration {calibration:g} holds out {held_out} "
        f"of {n_images}. Give --alpha {lowest:g} or higher, a larger --calibration, or folds, such as --calibration "
        f"{DEFAULT_FOLDS}, which hold out every image once"
    )
