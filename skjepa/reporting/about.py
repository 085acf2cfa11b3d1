"""What a report says about a run: settings, threshold, diagnosis, map of the normal samples."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skjepa.inspection.findings import Diagnosis, Finding

_KEPT = 2000
"""Of normal scores and of normal points on the map: enough for a picture, and a small table."""


@dataclass(frozen=True)
class Rule:
    """How a threshold came about.

    Attributes
    ----------
    target_fpr : float or None
        Share of new normal samples that may be flagged, kept by held-out samples.
    contamination : float or None
        Share of the samples fitted on that is flagged, where there is no `target_fpr`.
    n_calibration : int
        Held-out normal samples, 0 without.
    """

    target_fpr: float | None = None
    contamination: float | None = None
    n_calibration: int = 0


@dataclass(frozen=True)
class About:
    """What a table of scores cannot say in its rows; travels with it as JSON.

    Attributes
    ----------
    detector, encoder, formula : str
        "" where unknown.
    n_fit : int
        Normal samples learned from, 0 where unknown.
    rule : Rule
    normal_scores : list of float
        Of normal samples, at most 2,000, evenly over their order.
    normal_kind : str
        Where these are from, in words.
    normal_map : list of [float, float]
        Normal samples on the map `pca_1`, `pca_2`, at most 2,000.
    folders : dict of group -> folder
        Where the images lie; one group without a name where ids have no prefix.
    normal_folder : str
    diagnosis : dict or None
        As `skjepa.inspection.Diagnosis.to_dict`.
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
        """Raises ValueError where the text is of another kind or version."""
        try:
            given = json.loads(text)
            return cls(**{**given, "rule": Rule(**given["rule"])})
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"what the table says about its run cannot be read ({error})") from error

    @property
    def diagnosed(self) -> Diagnosis | None:
        """The diagnosis, read back."""
        if self.diagnosis is None:
            return None
        nan = {name: float("nan") for name, value in self.diagnosis.items() if value is None and "view" not in name}
        terms = {name: tuple(value) for name, value in self.diagnosis["terms"].items()}
        findings = tuple(Finding(**finding) for finding in self.diagnosis["findings"])
        return Diagnosis(**{**self.diagnosis, **nan, "terms": terms, "findings": findings})


def about_detector(detector: Any, normal_scores: Any = (), **known: Any) -> About:
    """What a fitted detector says about itself.

    Parameters
    ----------
    detector : CalibratedDetector
    normal_scores : array of shape (n_normal,)
        Of samples it was fitted on: shown where it has held none out.
    known : other attributes of `About`
    """
    held_out = detector.calibration_scores_
    n_calibration = 0 if held_out is None else len(held_out)
    promised = held_out is not None and detector.target_fpr is not None
    model = getattr(detector.models_[0], "model", None)
    encoder = getattr(detector, "encoder_", None)
    # Scores out of fold are not scores as `score_samples` gives them.
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
    """Few enough of them, in few enough digits."""
    return [[float(f"{x:.5g}"), float(f"{y:.5g}")] for x, y in thinned(points)]


def thinned(values: NDArray[np.float64]) -> NDArray[np.float64]:
    if len(values) <= _KEPT:
        return values
    return values[np.round(np.linspace(0, len(values) - 1, _KEPT)).astype(int)]


def without_nan(value: Any) -> Any:
    """JSON has no NaN: null in its place."""
    if isinstance(value, dict):
        return {name: without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value
