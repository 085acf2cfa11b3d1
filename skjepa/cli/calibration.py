"""How many normal images are held out to set the threshold, and which false-positive rate so many can promise."""

import math
from dataclasses import dataclass
from typing import Any

ALPHA, SHARE, FOLDS = 0.05, 0.2, 5
"""Defaults: false-positive rate, share held out, and folds where that share is too small for the rate."""


@dataclass(frozen=True)
class Calibration:
    """Where a detector takes its threshold from.

    Attributes
    ----------
    parameters : dict
        Of `JEPAScoreDetector`: contamination, target_fpr, calibration.
    note : str
        What the user should know about it; "" where it is the default.
    """

    parameters: dict[str, Any]
    note: str = ""


def calibration_for(
    n_images: int, *, alpha: float | None, calibration: float | None, contamination: float | None, strict: bool = True
) -> Calibration:
    """Choose the threshold's rule for so many different normal images.

    Parameters
    ----------
    n_images : int
    alpha, calibration, contamination : float, optional
        What the user gave. Without `calibration`, a fifth is held out, or with fewer images five folds calibrate, each
        image by a model that has not learned from it; with still fewer the rate is raised where `alpha` is not given.
    strict : bool
        Whether what the user asked for is refused where it cannot be kept. Else the lowest possible rate is taken:
        after the expensive pass nothing may fail because some images could not be read.

    Raises
    ------
    ValueError
        Too few images for what was given; names the lowest rate and the options.
    """
    if contamination is not None:
        return Calibration({"contamination": contamination, "target_fpr": None, "calibration": None})
    if n_images < 3:
        raise ValueError(
            f"{n_images} normal images are too few to hold one out and learn from the rest: give at least 3, or "
            "flag by --contamination 0.1, which holds none out"
        )
    wanted = ALPHA if alpha is None else alpha
    share = SHARE if calibration is None else calibration
    n_folds = min(FOLDS, n_images)
    if lowest_rate(_held_out(n_images, share)) <= wanted:
        return _rule(wanted, share, n_images)
    if calibration is None and lowest_rate(n_images) <= wanted:
        return _rule(wanted, n_folds, n_images, _folds_in_words(n_images, n_folds, wanted))
    lowest = lowest_rate(n_images if calibration is None else _held_out(n_images, share))
    if strict and not (alpha is None and calibration is None):
        raise ValueError(_refusal(n_images, wanted, lowest, calibration))
    taken = n_folds if calibration is None else share
    return _rule(lowest, taken, n_images, _raised_in_words(n_images, wanted, lowest))


def lowest_rate(n_held_out: int) -> float:
    """Return the lowest false-positive rate that so many held-out images can promise, rounded up to three digits."""
    return math.ceil(round(1000 / (n_held_out + 1), 6)) / 1000


def _held_out(n_images: int, share: float) -> int:
    return n_images if share >= 2 else math.ceil(n_images * share)


def _needed(rate: float) -> int:
    return math.ceil(round(1 / rate - 1, 9))


def _rule(rate: float, held_out: float, n_images: int, note: str = "") -> Calibration:
    calibration: float | int = held_out
    if held_out >= 2:
        calibration = min(int(held_out), n_images)
    return Calibration({"contamination": 0.1, "target_fpr": rate, "calibration": calibration}, note)


def _folds_in_words(n_images: int, n_folds: int, rate: float) -> str:
    enough = math.floor((_needed(rate) - 1) / SHARE) + 1
    return (
        f"{n_images} normal images: a fifth of them is too few for --alpha {rate:g}, so {n_folds} folds calibrate, "
        f"each image by a model that has not learned from it. About {100 * rate:g} % of new normal images are flagged; "
        f"proven is at most twice that. From {enough} images on one model is fitted. --calibration chooses otherwise"
    )


def _raised_in_words(n_images: int, wanted: float, lowest: float) -> str:
    return (
        f"{n_images} normal images can promise a false-positive rate of {lowest:g} at the lowest, which is taken; "
        f"--alpha {wanted:g} needs {_needed(wanted)} or more. --alpha chooses a higher rate"
    )


def _refusal(n_images: int, wanted: float, lowest: float, calibration: float | None) -> str:
    needed = _needed(wanted)
    if calibration is None:
        return (
            f"--alpha {wanted:g} needs {needed} normal images that are held out; there are {n_images} in all. Give "
            f"more, or --alpha {lowest:g} or higher"
        )
    held_out = _held_out(n_images, calibration)
    return (
        f"--alpha {wanted:g} needs {needed} normal images that are held out; --calibration {calibration:g} holds out "
        f"{held_out} of {n_images}. Give --alpha {lowest:g} or higher, a larger --calibration, or folds, such as "
        f"--calibration {FOLDS}, which hold out all in turn"
    )
