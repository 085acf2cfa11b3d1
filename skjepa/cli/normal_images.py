"""Measure normal images and fit a detector on them, for `skjepa fit` and `skjepa score`."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from skjepa.cli.calibration import Calibration, calibration_for

if TYPE_CHECKING:
    from skjepa.data.sources import Source
    from skjepa.detectors.jepa_score import JEPAScoreDetector
    from skjepa.encoders.encoder import Encoder
    from skjepa.extraction.extraction import Extraction

_stderr = Console(stderr=True)


@dataclass(frozen=True)
class Threshold:
    """Options --alpha, --calibration and --contamination; None if not given."""

    alpha: float | None
    calibration: float | None
    contamination: float | None

    def check(self) -> None:
        """Raise if the options exclude each other."""
        if self.contamination is not None and not self.alpha == self.calibration is None:
            given = "--alpha" if self.alpha is not None else "--calibration"
            raise ValueError(
                f"--contamination sets the threshold without held-out images: give it or {given}, and not both"
            )

    def of(self, n_images: int, *, method: str = "auto", strict: bool = True) -> Calibration:
        """Return the rule of the threshold for a number of distinct normal images, see `calibration_for`."""
        return calibration_for(
            n_images,
            alpha=self.alpha,
            calibration=self.calibration,
            contamination=self.contamination,
            strict=strict,
            takes_folds=method != "subspace",
        )

    def check_subspace(self, method: str, rule: Calibration) -> None:
        """Raise if the method is subspace and folds are used, since each fold would need its own pass."""
        if method == "subspace" and isinstance(rule.parameters["calibration"], int):
            raise ValueError(
                "--method subspace does not work with folds: give more normal images, --calibration as a share such as "
                "0.5 with a higher --alpha, or --method sketch"
            )


def n_images(folder: Path, limit: int | None) -> int:
    """Return how many images of a folder will be used, without reading one."""
    from skjepa.data.folders import IMAGE_SUFFIXES, files_below

    found = sum(file.suffix.lower() in IMAGE_SUFFIXES for file in files_below(folder))
    return found if limit is None else min(found, limit)


def check_what_is_measured(
    formula: str,
    method: str,
    layers: str,
    directions: int | None,
    *,
    local: bool = False,
    tiles: int | list[int] | None = None,
    store: Path | None = None,
) -> None:
    """Raise if options of what is measured do not work together."""
    check_store(tiles, store)
    if formula != "joint" and method == "forward":
        raise ValueError(
            f"--formula {formula} needs backward passes, and --method forward makes none: give --method exact or "
            "sketch, or --formula joint"
        )
    if local and (formula != "joint" or layers == "none"):
        raise ValueError("--local reads hidden layers: give --formula joint, and not --layers none")
    if directions is not None and method in ("auto", "forward", "exact"):
        raise ValueError(f"--directions needs --method sketch or subspace; got --method {method}")


def check_store(tiles: int | list[int] | None, store: Path | None) -> None:
    """Raise if images are cut into tiles, which no store keeps."""
    if tiles is not None and store is not None:
        raise ValueError("--store keeps one row per image, and the tiles of --tiles are not kept: leave --store out")


@dataclass(frozen=True)
class NormalPass:
    """What the fit of a command read.

    Attributes
    ----------
    n_images : int
        Normal images that could be read.
    n_unreadable : int
    measured : Extraction or None
        None with tiles.
    """

    n_images: int
    n_unreadable: int
    measured: "Extraction | None"


def unfitted(encoder: "Encoder", rule: Calibration, **settings: Any) -> "JEPAScoreDetector":
    """Return an unfitted detector with the options of a command."""
    from skjepa.detectors.jepa_score import JEPAScoreDetector

    return JEPAScoreDetector(encoder, **rule.parameters, **settings)


def fitted(
    detector: "JEPAScoreDetector",
    source: "Source",
    folder: Path,
    threshold: Threshold,
    *,
    store: Path | None,
    reason: str | None,
) -> NormalPass:
    """Measure the normal images, fit the detector on those that can be read, and return the measurements.

    The rule of the threshold is chosen again for the number of distinct images that could be read.
    """
    import numpy as np

    from skjepa.inspection.appearance import learn_appearance, sampled

    _stderr.print(f"fit: {len(source)} normal images of {escape(str(folder))}", soft_wrap=True)
    normal_pass = None
    if detector.tiles is not None:
        n_before, source = len(source), readable(source, detector.on_error)
        rule = threshold.of(len(np.unique(source.identities)), method=str(detector.method), strict=False)
        detector.set_params(**rule.parameters).fit(source)
        found = NormalPass(len(source), n_before - len(source), None)
    elif detector.method == "subspace":  # whose directions are learned by the fit itself
        rule = threshold.of(len(source), method="subspace")
        normal_pass = detector.fit(source).extract(source, store=store)
    else:
        normal_pass = detector.extract(source, store=store)
        normal_pass.meta["method_reason"] = reason or normal_pass.meta.get("method_reason")
        rule = threshold.of(len(np.unique(normal_pass.identities)), strict=False)
        detector.set_params(**rule.parameters).fit(normal_pass)
    detector.appearance_ = learn_appearance(sampled(source, int(detector.random_state or 0)))
    if normal_pass is not None:
        found = NormalPass(len(normal_pass), len(normal_pass.errors), normal_pass)
    if rule.note:
        _stderr.print(f"[yellow]note:[/yellow] {escape(rule.note)}.", highlight=False, soft_wrap=True)
    return found


def readable(source: "Source", on_error: str) -> "Source":
    """Return the images that can be read, with a warning for each other one; all if these stop the command anyway."""
    from skjepa.data.images import ImageReadError

    def is_readable(i: int) -> bool:
        try:
            source.load(i)
        except ImageReadError as error:
            warnings.warn(f"skipped {source.ids[i]}: {error}", stacklevel=2)
            return False
        return True

    return source if on_error == "raise" else source[[i for i in range(len(source)) if is_readable(i)]]


def rule_of(detector: "JEPAScoreDetector") -> str:
    """Return the rule by which a detector flags, in short."""
    if detector.calibration_scores_ is not None and detector.target_fpr is not None:
        return f"conformal p <= {detector.target_fpr:g}"
    return f"contamination {detector.contamination:g}"


def rule_in_words(detector: "JEPAScoreDetector") -> str:
    """Return the rule by which a detector flags, with its guarantee, as a sentence."""
    if detector.calibration_scores_ is None or detector.target_fpr is None:
        return (
            f"an image is flagged if it scores below all but {100 * detector.contamination:g} % of the normal images; "
            "this is no guarantee about new images"
        )
    share = f"{100 * detector.target_fpr:g} %"
    promise = f"about {share}" if detector.is_cross_calibrated else f"on average at most {share}"
    return f"images with a p-value of at most {detector.target_fpr:g} are flagged: {promise} of new normal images"
