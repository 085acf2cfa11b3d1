"""Describe a run for a report: settings, threshold, diagnosis, and map of the normal samples."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skjepa.inspection.findings import Diagnosis, Finding

_KEPT = 2000
"""Largest number of normal scores, and of normal points on the map, that is kept: enough for a figure."""


@dataclass(frozen=True)
class Rule:
    """The rule by which a threshold was set.

    Attributes
    ----------
    target_fpr : float or None
        Share of new normal samples that may be flagged, where the threshold comes from held-out samples.
    contamination : float or None
        Share of the fit samples that is flagged, where there is no `target_fpr`.
    n_calibration : int
        Number of held-out normal samples; 0 where there are none.
    """

    target_fpr: float | None = None
    contamination: float | None = None
    n_calibration: int = 0


@dataclass(frozen=True)
class About:
    """Facts about a run that the rows of a table of scores do not hold; the table stores them as JSON.

    Attributes
    ----------
    detector, encoder, formula : str
        Names; "" where unknown.
    n_fit : int
        Number of normal samples learned from; 0 where unknown.
    rule : Rule
    normal_scores : list of float
        Scores of normal samples, thinned evenly over their order to at most 2,000.
    normal_kind : str
        Description of these samples in words.
    normal_map : list of [float, float]
        Normal samples on the map `pca_1`, `pca_2`, at most 2,000.
    folders : dict of group -> folder
        Folders of the images. Where ids have no prefix, the only group is "".
    normal_folder : str
        Folder of the normal images; "" where unknown.
    diagnosis : dict or None
        The result of `skjepa.inspection.Diagnosis.to_dict`.
    """

    detector: str = ""
    encoder: str = ""
    formula: str = ""
    n_fit: int = 0
    rule: Rule = field(default_factory=Rule)
    normal_scores: list[float] = field(default_factory=list)
    normal_kind: str = ""
    normal_map: list[list[float]] = field(default_factory=list)
    folders: dict[str, str] = field(default_factory=dict)
    normal_folder: str = ""
    diagnosis: dict[str, Any] | None = None

    def to_json(self) -> str:
        return json.dumps(without_nan(asdict(self)))

    @classmethod
    def from_json(cls, text: str | bytes) -> "About":
        """Read the JSON text; raise ValueError where it is of another kind or version."""
        try:
            given = json.loads(text)
            return cls(**{**given, "rule": Rule(**given["rule"])})
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(
                f"the table's metadata about its run cannot be read ({error}): score the images again with this version"
            ) from error

    @property
    def diagnosed(self) -> Diagnosis | None:
        """The diagnosis as an object; None where there is none."""
        if self.diagnosis is None:
            return None
        nan = {name: float("nan") for name, value in self.diagnosis.items() if value is None and "view" not in name}
        terms = {name: tuple(value) for name, value in self.diagnosis["terms"].items()}
        findings = tuple(Finding(**finding) for finding in self.diagnosis["findings"])
        return Diagnosis(**{**self.diagnosis, **nan, "terms": terms, "findings": findings})


def about_detector(detector: Any, normal_scores: Any = (), **known: Any) -> About:
    """Describe a fitted detector.

    Parameters
    ----------
    detector : CalibratedDetector
    normal_scores : array of shape (n_normal,)
        Scores of the fit samples, which are shown where the detector held no samples out.
    known : other attributes of `About`
    """
    held_out = detector.calibration_scores_
    n_calibration = 0 if held_out is None else len(held_out)
    promised = held_out is not None and detector.target_fpr is not None
    model = getattr(detector.models_[0], "model", None)
    encoder = getattr(detector, "encoder_", None)
    # Out-of-fold scores are not on the scale of `score_samples`, so they are not shown.
    shows_given = held_out is None or detector.is_cross_calibrated
    values = np.asarray(normal_scores if shows_given else held_out, dtype=np.float64)
    diagnosis = detector.diagnose() if hasattr(detector, "diagnose") else None
    return About(
        detector=type(detector).__name__,
        formula=getattr(model, "formula", ""),
        n_fit=int(detector.n_samples_fit_),
        rule=Rule(
            detector.target_fpr if promised else None, None if promised else detector.contamination, n_calibration
        ),
        normal_scores=thinned(np.sort(values[np.isfinite(values)])).tolist(),
        normal_kind="normal, fitted on" if shows_given else "normal, held out",
        diagnosis=None if diagnosis is None else without_nan(diagnosis.to_dict()),
        **{"encoder": getattr(encoder, "name", ""), **known},
    )


def map_of_normal(points: NDArray[np.float64]) -> list[list[float]]:
    """Return the points of the map, thinned and rounded to five digits."""
    return [[float(f"{x:.5g}"), float(f"{y:.5g}")] for x, y in thinned(points)]


def thinned(values: NDArray[np.float64]) -> NDArray[np.float64]:
    if len(values) <= _KEPT:
        return values
    return values[np.round(np.linspace(0, len(values) - 1, _KEPT)).astype(int)]


def without_nan(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by None."""
    if isinstance(value, dict):
        return {name: without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value
