"""Score an `Extraction` by the log-volume, the density of the embedding, or both."""

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
"""With `floor="auto"`, the floor is this share of the median largest singular value of the fit samples."""

JOINT_WEIGHTS = {
    "volume": 0.5,
    "density": 1.0,
    "direction": 0.5,
    "volume given embedding": 0.5,
    "spectrum given embedding": 0.5,
}
"""Weight of each standardised term; benchmarks/accuracy/joint_forms.py compares them with other weights."""

TERMS = {"joint": set(JOINT_WEIGHTS), "density": {"volume", "density"}, "jepa": {"volume"}}
"""The terms that add up to the score of each formula."""

Terms = dict[str, NDArray[np.float64]]


@portable
@dataclass
class ScoreModel:
    """Score samples by formulas of the embedding and the Jacobian, with parameters learned from normal samples.

    z is the embedding, sigma are the singular values of the Jacobian, and s is the log-volume, the sum of their logs.

    Attributes
    ----------
    formula : {"joint", "density", "jepa"}
        - "jepa": the log-volume s alone (arXiv 2510.05949, Eq. 5);
        - "density": log q(z) + s, the change of variables with a learned q;
        - "joint": weighted sum of s, log q(z), log q(z / norm z), log q(s | z) and log q(sigma | z), see
          `skjepa.scores.joint_weights`.
    floor, rank
        Smallest singular value, to which smaller ones are raised, and number of singular values in the log-volume. They
        are the same for all samples.
    reference, direction, conditional, spectrum
        Fitted densities log q(z), log q(z / norm z), log q(s | z) and log q(sigma | z); None where `formula` has none.
    seen : SeenSamples
        Out-of-sample scores for the fit samples; None where nothing is learned.
    correction : Correction or None
        Maps the singular values in a subspace to the exact log-volume; None where all directions are measured.
    location, scale, weight : dict
        For each term of "joint": out-of-fold mean and standard deviation over the fit samples, and its weight.
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
        """Out-of-fold mean and standard deviation of each term over the fit samples, for "joint" alone."""
        return {
            name: (0.0, self.weight[name] * scale)
            for name, scale in self.scale.items()
            if name in self.weight and np.isfinite(scale)
        }

    @staticmethod
    def moments(values: NDArray[np.float64]) -> tuple[float, float]:
        """Return mean and standard deviation."""
        return float(values.mean()), float(values.std())

    def volumes(self, extraction: Extraction) -> NDArray[np.float64]:
        """Return the log-volume of each view in nats, (n_samples, V)."""
        if self.correction is not None:
            extraction.require_layers(self.correction.deviation_floors)
            return self.correction.log_volume(extraction.embeddings, extraction.spectra, extraction.layers)
        return log_volume(extraction.spectra, floor=self.floor, rank=self.rank)

    def volume(self, extraction: Extraction) -> NDArray[np.float64]:
        """Return the log-volume in nats with views combined, (n_samples,)."""
        return combine_views(self.volumes(extraction))

    def log_spectrum(self, extraction: Extraction) -> NDArray[np.float64]:
        """Return the logs of the R counted singular values, floored and averaged over views, (n_samples, R)."""
        return np.log(np.maximum(extraction.spectra[..., : self.rank], self.floor)).mean(axis=1)

    def terms(self, extraction: Extraction) -> Terms:
        """Return the terms that add up to the score, by name, each (n_samples,); higher = more normal."""
        s = self.volume(extraction)
        if self.formula == "jepa":
            return {"volume": s}
        raw = self.seen.recall(extraction.embeddings, s, lambda others: self.raw_terms(extraction[others], s[others]))
        if self.formula == "density":
            return raw
        return {name: self.weight[name] * (value - self.location[name]) for name, value in raw.items()}

    def raw_terms(self, extraction: Extraction, s: NDArray[np.float64]) -> Terms:
        """Return log-volumes s and log-densities in nats; for fit samples the densities are too high."""
        z = extraction.embeddings
        found = {"volume": s, "density": _log_density(self.reference, z)}
        if self.formula == "joint":
            found["direction"] = self.direction.score_samples(z)
            found["volume given embedding"] = self.conditional.score_samples(z, s)
            found["spectrum given embedding"] = self.spectrum.score_samples(z, self.log_spectrum(extraction))
        return found

    def score_samples(self, extraction: Extraction) -> NDArray[np.float64]:
        """Return one score per sample, (n_samples,); higher = more normal."""
        return np.sum(list(self.terms(extraction).values()), axis=0)

    def portable_check(self) -> None:
        """Check that every part that the formula needs is present."""
        learned = {"joint": ("direction", "conditional", "spectrum"), "density": (), "jepa": ()}[self.formula]
        needed = learned if self.formula == "jepa" else ("reference", "seen", *learned)
        for name in ("reference", "seen", "direction", "conditional", "spectrum"):
            if (getattr(self, name) is None) == (name in needed):
                raise ValueError(f"formula {self.formula!r} {'needs' if name in needed else 'has no'} {name}")
        if self.seen is not None and self.seen.values.keys() != TERMS[self.formula]:
            raise ValueError(f"formula {self.formula!r} does not have the terms of seen: {', '.join(self.seen.values)}")
        for name in ("location", "scale", "weight"):
            if getattr(self, name).keys() != (TERMS["joint"] if self.formula == "joint" else set()):
                raise ValueError(
                    f"{name} has the terms {', '.join(getattr(self, name)) or 'none'}, which formula {self.formula!r} "
                    "does not have"
                )


def joint_weights(terms: Terms, filled: float = 1.0) -> dict[str, float]:
    """Return the weight of each term of the joint score, learned from out-of-fold values of the fit samples.

    After standardising, log q(z) has the weight 1. The log-volume s, log q(z / norm z), log q(s | z) and
    log q(sigma | z) have the weight 1/2 each.

    s and log q(z) are parts of one formula, however. Where they are negatively correlated over normal samples, they
    would cancel once standardised. A share c = max(0, -correlation of s and log q(z)) of the total weight is therefore
    given to sqrt(`filled`) s + log q(z), in nats and standardised as a whole. s sums over R directions, of which the
    embeddings fill d. The factor sqrt(`filled`) gives s the spread that it would have over d independent directions, so
    that s over many directions does not decide alone.

    Parameters
    ----------
    terms : dict of name -> array of shape (n_samples,)
        Out-of-fold values of "volume", "density", "direction", "volume given embedding" and "spectrum given embedding".
    filled : float
        d / R, the share of the directions that the embeddings fill.

    Returns
    -------
    dict of name -> float
        Weight of each term in nats, minus its mean. The weighted sum is the score.
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
    """Return the intrinsic dimension of the embeddings over the number of directions in the log-volume, at most 1.

    s + log q(z) is the log-density of the input where both cover the same directions. Embeddings of real images fill
    few of the directions, and q(z) does not cover what s sums over the others. Where m of K directions are measured,
    each stands for K / m. `nearest` is a `KNNDensity` fitted on these embeddings, if there is one.
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
        At least two normal samples.
    formula : {"joint", "density", "jepa"}
    reference : {"knn", "gaussian"} or estimator
        Model of log q(z); an estimator needs `fit` and `score_samples` and is cloned.
    floor : float or "auto"
        Smallest singular value, absolute. "auto": `AUTO_FLOOR` times the median largest singular value.
    rank : int, optional
        Number of singular values in the log-volume. By default the values whose median over the samples exceeds the
        floor.
    directions : Directions, optional
        The directions that the extraction was made with. Floor, rank and the correction of the log-volume are then
        learned from the samples that the directions measured exactly.

    Raises
    ------
    ValueError, TypeError
        Invalid settings or fewer than two samples.
    SettingsMismatchError
        The extraction was not made with `directions`, or it was made with directions and none are given.
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
            raise ValueError(
                f"the out-of-fold term {name!r} is not finite for {bad} of {len(value)} fit samples: X holds values "
                "that are too large, so scale it, or `reference` fails there, so choose another one"
            )
    weights = dict.fromkeys(out_of_fold, 1.0)
    if formula == "joint":
        model.location = {name: float(np.mean(value)) for name, value in out_of_fold.items()}
        model.scale = {name: _spread(value) for name, value in out_of_fold.items()}
        is_named = isinstance(reference, str)  # only then does it have the settings that `filled_share` needs
        nearest = model.reference if is_named and isinstance(model.reference, KNNDensity) else None
        weights = model.weight = joint_weights(out_of_fold, filled_share(extraction, model.rank, nearest))
    model.seen = SeenSamples.learn(z, s, model.raw_terms(extraction, s), out_of_fold, weights)
    return model


def check_score_settings(formula: str, reference: Any, floor: float | str, rank: int | None) -> None:
    """Raise ValueError or TypeError for settings that `fit_score_model` would refuse whatever the data."""
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
            f"{type(reference).__name__}.score_samples must return one number per sample, shape ({len(z)},); got shape "
            f"{values.shape}"
        )
    return values


def _exact_spectra(extraction: Extraction, directions: Directions | None) -> NDArray[np.float64]:
    """Return the exact singular values of the samples, or of the samples that the directions were learned from."""
    method = extraction.meta.get("method")
    if directions is None:
        if PassMethod.parse(method).kind == "subspace":
            raise SettingsMismatchError(
                f"the samples were measured by method {method!r}, and the log-volume needs the correction that those "
                "Directions hold: give the Directions as method"
            )
        return extraction.spectra
    if method != directions.method:
        raise SettingsMismatchError(
            f"the samples were measured by method {method!r}, and the directions given are {directions.method!r}: give "
            "the Directions of the extraction, or extract again with these"
        )
    for key, value in (directions.view_settings or {}).items():
        if extraction.meta.get(key) != value:
            raise SettingsMismatchError(
                f"the directions were learned with {key}={value!r}, and the samples were measured with "
                f"{key}={extraction.meta.get(key)!r}: use the same {key} for both"
            )
    return extraction.spectra if directions.singular_values is None else directions.singular_values


def _spread(values: NDArray[np.float64]) -> float:
    spread = float(np.std(values))
    # A term that is constant up to rounding carries no information, and dividing by its noise would let it decide.
    return spread if spread > ROUNDING * (1 + float(np.abs(values).max())) else np.inf


def _learn_floor(sigma: NDArray[np.float64], floor: float | str) -> float:
    if isinstance(floor, str):
        # The Jacobians of a collapsed encoder are zero, and the log needs a positive floor.
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
    # Inputs of D < K dimensions fill a D-dimensional surface, and a Gaussian in all K dimensions would be singular.
    return GaussianDensity(min(rank, n_components)) if reference == "gaussian" else KNNDensity()
