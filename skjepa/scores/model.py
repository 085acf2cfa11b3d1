"""From an `Extraction` to one number a sample: the volume term, the embedding's density, and how they go together."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from skjepa._utils.validation import check_choice, check_integer, check_number
from skjepa.extraction.extraction import Extraction
from skjepa.extraction.store.settings import SettingsMismatchError
from skjepa.jacobian.directions import Correction, Directions
from skjepa.jacobian.pass_method import PassMethod
from skjepa.jacobian.volume import combine_views, log_volume, warn_if_floor_is_noise
from skjepa.persistence.folder import portable
from skjepa.persistence.schema import Above, Saved
from skjepa.scores.densities import (
    ROUNDING,
    AnyDensity,
    ConditionalDensity,
    DirectionDensity,
    GaussianDensity,
    KNNDensity,
    SpectrumDensity,
    out_of_fold_scores,
)
from skjepa.scores.fit_samples import SeenSamples

FORMULAS = ("joint", "density", "jepa")
REFERENCES = {"knn": KNNDensity, "gaussian": GaussianDensity}

AUTO_FLOOR = 1e-2
"""`floor="auto"`: this share of the median largest singular value of the fit samples."""

JOINT_WEIGHTS = {
    "volume": 0.5,
    "density": 1.0,
    "direction": 0.5,
    "volume given embedding": 0.5,
    "spectrum given embedding": 0.5,
}
"""What each standardised term counts; benchmarks/accuracy/joint_forms.py compares this with other forms."""

TERMS = {"joint": set(JOINT_WEIGHTS), "density": {"volume", "density"}, "jepa": {"volume"}}
"""Whose sum each score is."""

Terms = dict[str, NDArray[np.float64]]


@portable
@dataclass
class ScoreModel:
    """What normal samples taught: one floor, one rank, densities, and what each of them counts.

    Attributes
    ----------
    formula : {"joint", "density", "jepa"}
        - "jepa": the log-volume s alone (arXiv 2510.05949, Eq. 5);
        - "density": log q(z) + s, the change of variables with q learned;
        - "joint": weighted sum of s, log q(z), log q(z / norm z), log q(s | z), log q(sigma | z), see `joint_weights`.
    floor, rank
        Of the log-volume, the same for all samples.
    reference, direction, conditional, spectrum
        Fitted densities log q(z), log q(z / norm z), log q(s | z), log q(sigma | z); None where `formula` does without.
    seen : SeenSamples
        The fit samples, which are scored as by a model that had not seen them; None where nothing is learned.
    correction : Correction or None
        From the singular values of a subspace to the exact log-volume, where samples are measured in one.
    location, scale, weight : dict
        Of each term of "joint": mean and standard deviation over the fit samples, out of fold, and what it counts.
    """

    formula: Annotated[str, Saved(Literal["joint", "density", "jepa"])]
    floor: Annotated[float, Above(0)]
    rank: Annotated[int, Above(0)]
    reference: Annotated[Any, Saved(AnyDensity | None), "n K"] = None
    direction: Annotated[Any, Saved(DirectionDensity | None), "K"] = None
    conditional: Annotated[Any, Saved(ConditionalDensity | None), "n K"] = None
    spectrum: Annotated[Any, Saved(SpectrumDensity | None), "n K"] = None
    seen: Annotated[Any, Saved(SeenSamples | None), "n K"] = None
    correction: Correction | None = None
    location: dict[str, float] = field(default_factory=dict)
    scale: dict[str, float] = field(default_factory=dict)
    weight: dict[str, float] = field(default_factory=dict)

    @property
    def term_names(self) -> set[str]:
        return TERMS[self.formula]

    @property
    def fit_moments(self) -> dict[str, tuple[float, float]]:
        """Mean and standard deviation of terms over the fit samples, out of fold, as far as they are known."""
        return {
            name: (0.0, self.weight[name] * scale)
            for name, scale in self.scale.items()
            if name in self.weight and np.isfinite(scale)
        }

    @staticmethod
    def moments(values: NDArray[np.float64]) -> tuple[float, float]:
        """Mean and standard deviation."""
        return float(values.mean()), float(values.std())

    def volumes(self, extraction: Extraction) -> NDArray[np.float64]:
        """Log-volume of each view in nats, (n_samples, V)."""
        if self.correction is not None:
            extraction.require_layers(self.correction.deviation_floors)
            return self.correction.log_volume(extraction.embeddings, extraction.spectra, extraction.layers)
        return log_volume(extraction.spectra, floor=self.floor, rank=self.rank)

    def volume(self, extraction: Extraction) -> NDArray[np.float64]:
        """Log-volume in nats, views combined; (n_samples,)."""
        return combine_views(self.volumes(extraction))

    def log_spectrum(self, extraction: Extraction) -> NDArray[np.float64]:
        """Logs of the singular values that count, none under the floor, mean over views; (n_samples, R)."""
        return np.log(np.maximum(extraction.spectra[..., : self.rank], self.floor)).mean(axis=1)

    def terms(self, extraction: Extraction) -> Terms:
        """The terms whose sum the score is, by name, each (n_samples,); higher = more normal."""
        s = self.volume(extraction)
        if self.formula == "jepa":
            return {"volume": s}
        raw = self.seen.recall(extraction.embeddings, s, lambda others: self.raw_terms(extraction[others], s[others]))
        if self.formula == "density":
            return raw
        return {name: self.weight[name] * (value - self.location[name]) for name, value in raw.items()}

    def raw_terms(self, extraction: Extraction, s: NDArray[np.float64]) -> Terms:
        """Log-volumes s and densities, in nats; those densities are too sure of fit samples."""
        z = extraction.embeddings
        found = {"volume": s, "density": _log_density(self.reference, z)}
        if self.formula == "joint":
            found["direction"] = self.direction.score_samples(z)
            found["volume given embedding"] = self.conditional.score_samples(z, s)
            found["spectrum given embedding"] = self.spectrum.score_samples(z, self.log_spectrum(extraction))
        return found

    def score_samples(self, extraction: Extraction) -> NDArray[np.float64]:
        """One score a sample; (n_samples,), higher = more normal."""
        return np.sum(list(self.terms(extraction).values()), axis=0)

    def portable_check(self) -> None:
        """That what the formula needs is there."""
        learned = {"joint": ("direction", "conditional", "spectrum"), "density": (), "jepa": ()}[self.formula]
        needed = learned if self.formula == "jepa" else ("reference", "seen", *learned)
        for name in ("reference", "seen", "direction", "conditional", "spectrum"):
            if (getattr(self, name) is None) == (name in needed):
                raise ValueError(f"formula {self.formula!r} {'needs' if name in needed else 'has no'} {name}")
        if self.seen is not None and self.seen.values.keys() != TERMS[self.formula]:
            raise ValueError(f"seen has values of {', '.join(self.seen.values)}")
        for name in ("location", "scale", "weight"):
            if getattr(self, name).keys() != (TERMS["joint"] if self.formula == "joint" else set()):
                raise ValueError(f"{name} has the terms {', '.join(getattr(self, name)) or 'none'}")


def joint_weights(terms: Terms, filled: float = 1.0) -> dict[str, float]:
    """What each term of the joint score counts, learned from out-of-fold values of the fit samples.

    Standardised, log q(z) counts 1; the log-volume s, log q(z / norm z), log q(s | z) and log q(sigma | z) count a half
    each. But s and log q(z) are parts of one formula: where normal samples show them opposed, to standardise them is to
    let them cancel. So that sum gives way to sqrt(`filled`) s + log q(z) in nats, standardised as a whole and counting
    as much, by the share c = max(0, -correlation of s and log q(z)). Of R directions s counts, embeddings fill d: the
    root gives s the spread that it would have of d independent ones, and s of many directions does not decide alone.

    Parameters
    ----------
    terms : dict
        Those named in `JOINT_WEIGHTS`, each (n_samples,).
    filled : float
        Share of the directions that s counts which the embeddings fill, see `filled_share`.

    Returns
    -------
    dict
        Of the terms in nats, less their means: the score is their sum so weighted.
    """
    s, log_q = terms["volume"], terms["density"]
    spread = {name: _spread(value) for name, value in terms.items()}
    opposed, part = 0.0, float(np.sqrt(filled))
    if np.isfinite([spread["volume"], spread["density"]]).all():
        opposed = max(0.0, -float(np.corrcoef(s, log_q)[0, 1]))
    weights = {name: (1 - opposed) * share / spread[name] for name, share in JOINT_WEIGHTS.items()}
    whole = opposed * sum(JOINT_WEIGHTS.values()) / _spread(part * s + log_q)
    return weights | {"volume": weights["volume"] + part * whole, "density": weights["density"] + whole}


def filled_share(extraction: Extraction, rank: int, nearest: KNNDensity | None = None) -> float:
    """Intrinsic dimension of the embeddings over the number of directions that the log-volume counts, at most 1.

    s + log q(z) is the log-density of the input where both are of the same directions. Embeddings of real images fill
    few of them, and q(z) knows nothing of what s sums over the others. Of m directions measured each stands for K / m.
    `nearest` is a `KNNDensity` of these embeddings, if there is one.
    """
    is_some = PassMethod.parse(extraction.meta.get("method")).kind != "exact"
    n_directions = rank * (extraction.embeddings.shape[1] / extraction.spectra.shape[-1] if is_some else 1)
    nearest = nearest or KNNDensity().fit(extraction.embeddings)
    return min(1.0, nearest.intrinsic_dim_ / n_directions)


def fit_score_model(
    extraction: Extraction,
    *,
    formula: str,
    reference: Any,
    floor: float | str,
    rank: int | None,
    directions: Directions | None = None,
) -> ScoreModel:
    """Learn a `ScoreModel` from normal samples.

    Parameters
    ----------
    extraction : Extraction
        Of at least two normal samples.
    formula : {"joint", "density", "jepa"}
    reference : {"knn", "gaussian"} or estimator
        Model of log q(z); an estimator needs `fit` and `score_samples` and is cloned.
    floor : float or "auto"
        Absolute floor of the singular values, or `AUTO_FLOOR` times the median largest one.
    rank : int, optional
        Number of singular values that count; by default those whose median over the samples exceeds the floor.
    directions : Directions, optional
        Those that the extraction was made with: floor and rank are learned from their exact samples, and so is the
        correction of the log-volume.

    Raises
    ------
    ValueError, TypeError
        Invalid settings or fewer than two samples.
    SettingsMismatchError
        The extraction was not made with the directions, or with others and none are given.
    """
    check_score_settings(formula, reference, floor, rank)
    if len(extraction) < 2:
        raise ValueError(f"fit needs at least 2 samples; got {len(extraction)} sample")
    sigma = _exact_spectra(extraction, directions)
    floor = _learn_floor(sigma, floor)
    model = ScoreModel(formula, floor, _learn_rank(sigma, floor, rank))
    if directions is not None and directions.n_exact:
        model.correction = directions.correction(floor, model.rank, extraction.layers)
    warn_if_floor_is_noise(sigma, floor=floor, rank=model.rank, eps=extraction.eps)
    if formula == "jepa":
        return model
    z, s = extraction.embeddings, model.volume(extraction)
    density = _resolve_reference(reference, n_components=z.shape[1], rank=sigma.shape[2])
    model.reference = clone(density).fit(z)
    _log_density(model.reference, z[:1])
    out_of_fold = {"volume": s, "density": out_of_fold_scores(model.reference, z)}
    if formula == "joint":
        model.direction = DirectionDensity().fit(z)
        model.conditional = ConditionalDensity().fit(z, s)
        model.spectrum = SpectrumDensity().fit(z, model.log_spectrum(extraction))
        out_of_fold["direction"] = out_of_fold_scores(model.direction, z)
        out_of_fold["volume given embedding"] = model.conditional.fit_scores_
        out_of_fold["spectrum given embedding"] = model.spectrum.fit_scores_
    for name, value in out_of_fold.items():
        if bad := int((~np.isfinite(value)).sum()):
            raise ValueError(f"the term {name!r} is not finite, out of fold, for {bad} of {len(value)} fit samples")
    weights = dict.fromkeys(out_of_fold, 1.0)
    if formula == "joint":
        model.location = {name: float(np.mean(value)) for name, value in out_of_fold.items()}
        model.scale = {name: _spread(value) for name, value in out_of_fold.items()}
        is_named = isinstance(reference, str)  # and so has the settings that `filled_share` takes itself
        nearest = model.reference if is_named and isinstance(model.reference, KNNDensity) else None
        weights = model.weight = joint_weights(out_of_fold, filled_share(extraction, model.rank, nearest))
    model.seen = SeenSamples.learn(z, s, model.raw_terms(extraction, s), out_of_fold, weights)
    return model


def check_score_settings(formula: str, reference: Any, floor: float | str, rank: int | None) -> None:
    """Raise ValueError or TypeError where `fit_score_model` would, as far as can be told without data."""
    check_choice("formula", formula, FORMULAS)
    if isinstance(floor, str):
        check_choice("floor", floor, ("auto",))
    else:
        check_number("floor", floor, above=0.0)
    if rank is not None:
        check_integer("rank", rank, minimum=1)
    if isinstance(reference, str):
        check_choice("reference", reference, REFERENCES)
    elif isinstance(reference, type) or not (hasattr(reference, "fit") and hasattr(reference, "score_samples")):
        raise TypeError(
            f"reference must be one of {', '.join(map(repr, REFERENCES))} or an estimator with fit and score_samples; "
            f"got {reference.__name__ if isinstance(reference, type) else type(reference).__name__}"
        )


def _log_density(reference: Any, z: NDArray[np.float64]) -> NDArray[np.float64]:
    values = np.asarray(reference.score_samples(z), dtype=np.float64)
    if values.shape != (len(z),):
        raise ValueError(
            f"{type(reference).__name__}.score_samples must return one number a sample, ({len(z)},); got {values.shape}"
        )
    return values


def _exact_spectra(extraction: Extraction, directions: Directions | None) -> NDArray[np.float64]:
    """Of the samples themselves, or of those that the directions were learned from."""
    method = extraction.meta.get("method")
    if directions is None:
        if PassMethod.parse(method).kind == "subspace":
            raise SettingsMismatchError(
                f"the samples were measured by method {method!r}: give those Directions as method, which have the "
                "correction of the log-volume"
            )
        return extraction.spectra
    if method != directions.method:
        raise SettingsMismatchError(
            f"the samples were measured by method {method!r}, the directions given are {directions.method!r}"
        )
    for key, value in (directions.view_settings or {}).items():
        if extraction.meta.get(key) != value:
            raise SettingsMismatchError(
                f"the directions were learned with {key}={value!r}, the samples were measured with "
                f"{key}={extraction.meta.get(key)!r}"
            )
    return extraction.spectra if directions.singular_values is None else directions.singular_values


def _spread(values: NDArray[np.float64]) -> float:
    spread = float(np.std(values))
    # A term that is constant up to rounding carries nothing: dividing by its noise would let it decide.
    return spread if spread > ROUNDING * (1 + float(np.abs(values).max())) else np.inf


def _learn_floor(sigma: NDArray[np.float64], floor: float | str) -> float:
    if isinstance(floor, str):
        # All-zero Jacobians are possible (a collapsed encoder); the log needs a positive floor all the same.
        return max(AUTO_FLOOR * float(np.median(sigma[..., 0])), np.finfo(float).tiny)
    return float(floor)


def _learn_rank(sigma: NDArray[np.float64], floor: float, rank: int | None) -> int:
    available = sigma.shape[-1]
    if rank is None:
        return max(1, int((np.median(sigma, axis=(0, 1)) > floor).sum()))
    if rank > available:
        raise ValueError(f"rank must be at most min(K, D) = {available}; got {rank}")
    return int(rank)


def _resolve_reference(reference: Any, *, n_components: int, rank: int) -> Any:
    if not isinstance(reference, str):
        return reference
    # Inputs of D < K dimensions fill a D-dimensional surface: a Gaussian in all K would be singular.
    return GaussianDensity(min(rank, n_components)) if reference == "gaussian" else KNNDensity()
