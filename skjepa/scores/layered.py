"""The default score: hidden layers, the embedding, and the volume terms where backward passes were made, as one sum."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.preprocessing import normalize

from skjepa.extraction.batches.pooling import is_positions
from skjepa.extraction.extraction import Extraction
from skjepa.jacobian.directions import Correction, Directions
from skjepa.persistence.folder import portable
from skjepa.persistence.schema import Above, MayLack, Saved
from skjepa.scores.densities import (
    ROUNDING,
    AnyDensity,
    ConditionalDensity,
    GaussianDensity,
    NearestRows,
    SpectrumDensity,
    out_of_fold_scores,
)
from skjepa.scores.fit_samples import SeenSamples
from skjepa.scores.layers import LayerChain
from skjepa.scores.local import LocalModel, image_values, positions_of
from skjepa.scores.mahalanobis import ShrunkMahalanobis
from skjepa.scores.model import ScoreModel, Terms, check_score_settings, fit_score_model
from skjepa.scores.tail import UPPER, Tail
from skjepa.scores.trimming import least_odd, oddness_to_most

OUTPUT = "output"
"""The embedding itself, the last layer of the chain."""

FEWEST_NEIGHBORS, MOST_NEIGHBORS = 5, 50
"""The term "neighbours" takes the square root of the number of fit samples, within these limits: fewer would find a
small cluster of anomalies among the fit samples close to itself, and so normal."""

OUTPUT_WEIGHT = 0.5
"""Of the terms of the embedding together, direction and neighbours; the layers together count 1."""

VOLUME_WEIGHT = 0.125
"""Of the terms of the Jacobian together, where backward passes were made."""

LOCAL_WEIGHT = 8.0
"""Of the oddest positions of a picture, where positions are read: whoever reads them looks for what is small."""

FAR_OFF = 10.0
"""Mean surprise of the layers, in nats, from which on a fit sample is far off."""

DIRECTION, NEIGHBOURS, LOCAL = "direction", "neighbours", "local"
VOLUME, SPECTRUM = "volume given embedding", "spectrum given embedding"


@portable
@dataclass
class LayeredScore:
    r"""What normal samples taught about every layer of an encoder; the score is minus a weighted sum of surprises.

    With r(E) = -log P(E' >= E), `Tail`, of a value E among those of fit samples that were left out,

        score = -[ mean over layers of r(c_l)  +  1/2 mean(r(direction), r(neighbours))
                   +  1/8 mean(r(-log q(s given z)), r(-log q(sigma given z)))  +  8 r(local) ]

    c_l: `LayerChain`, whose last layer is the embedding z. Direction: Mahalanobis distance of z / norm z. Neighbours:
    mean distance from z / norm z to the nearest fit samples, sqrt(n) of n, from 5 to 50. The third: what
    the singular values sigma and their log-volume s are, given z, where backward passes were made. Local: the log of
    the mean distance of the oddest positions, `LocalModel`, where positions were read. Of tables the only
    term beside the chain is the mean distance from the rows themselves to their nearest.

    Attributes
    ----------
    chain : LayerChain
    direction : ShrunkMahalanobis or None
        None for tables.
    neighbours : NearestRows or density
        A density where `reference` is not "knn".
    neighbours_of : str or None
        The layer whose rows have neighbours: of tables; None for the direction of the embedding.
    volume_model : ScoreModel or None
        Floor, rank and correction of the log-volume; None where no backward pass was made.
    conditional, spectrum : ConditionalDensity, SpectrumDensity or None
        log q(s given z) and log q(sigma given z).
    tails : dict of name -> Tail
        By term.
    weight : dict of name -> float
        What each surprise counts.
    seen : SeenSamples
        The fit samples, which are scored as if each had been left out.
    local : LocalModel or None
        Of each position of a picture; None where positions were not read.
    """

    formula: ClassVar[str] = "joint"
    chain: Annotated[LayerChain, "n"]
    direction: Annotated[ShrunkMahalanobis, "n p=K"] | None
    neighbours: Annotated[Any, Saved(NearestRows | AnyDensity)]
    neighbours_of: str | None
    volume_model: ScoreModel | None
    conditional: Annotated[ConditionalDensity, "n K"] | None
    spectrum: Annotated[SpectrumDensity, "n K"] | None
    tails: dict[str, Tail] = field(default_factory=dict)
    weight: dict[str, Annotated[float, Above(-1)]] = field(default_factory=dict)
    seen: Annotated[Any, Saved(SeenSamples), "n K"] = None
    local: MayLack[Annotated[LocalModel, "n"] | None] = None

    @property
    def term_names(self) -> set[str]:
        return set(self.tails)

    @property
    def floor(self) -> float:
        return self._volumes.floor

    @property
    def rank(self) -> int:
        return self._volumes.rank

    @property
    def correction(self) -> Correction | None:
        return None if self.volume_model is None else self.volume_model.correction

    @property
    def reference(self) -> Any:
        return self.neighbours

    @property
    def fit_moments(self) -> dict[str, tuple[float, float]]:
        """`moments` of each term over the fit samples, each left out."""
        return {name: self.moments(values) for name, values in self.seen.values.items()}

    @staticmethod
    def moments(values: NDArray[np.float64]) -> tuple[float, float]:
        """Median, and half the distance from the 16 % to the 84 % quantile: surprises have long tails."""
        low, median, high = np.quantile(values, [1 - UPPER, 0.5, UPPER])
        return float(median), float(high - low) / 2

    @property
    def _volumes(self) -> ScoreModel:
        if self.volume_model is None:
            raise AttributeError(
                "method='forward' makes no backward pass: there are no singular values, and no floor or rank of them"
            )
        return self.volume_model

    def volumes(self, extraction: Extraction) -> NDArray[np.float64]:
        """Log-volume of each view in nats, (n_samples, V)."""
        return self._volumes.volumes(extraction)

    def volume(self, extraction: Extraction) -> NDArray[np.float64]:
        """Log-volume in nats, views combined; (n_samples,)."""
        return self._volumes.volume(extraction)

    def terms(self, extraction: Extraction) -> Terms:
        """The terms whose sum the score is, by name, each (n_samples,), at most 0; higher = more normal."""
        found = self._surprises(extraction)
        first = found[next(iter(found))]
        weighted = {name: -self.weight[name] * self.tails[name].surprise(value) for name, value in found.items()}
        return self.seen.recall(
            extraction.embeddings, first, lambda others: {name: value[others] for name, value in weighted.items()}
        )

    def score_samples(self, extraction: Extraction) -> NDArray[np.float64]:
        """One score a sample; (n_samples,), higher = more normal."""
        return np.sum(list(self.terms(extraction).values()), axis=0)

    def _surprises(self, extraction: Extraction) -> Terms:
        """Values of which the higher are the more unusual, by term; those of fit samples are too low."""
        layers = layers_of(extraction, list(self.chain.deviations))
        found = {term_of(name): value for name, value in self.chain.surprises(layers).items()}
        direction = normalize(extraction.embeddings)
        if self.direction is not None:
            found[DIRECTION] = np.sqrt(self.direction.distances(direction))
        if not isinstance(self.neighbours, NearestRows):
            found[NEIGHBOURS] = -np.asarray(self.neighbours.score_samples(extraction.embeddings))
        else:
            rows = direction if self.neighbours_of is None else self.chain.rows(layers)[self.neighbours_of]
            found[NEIGHBOURS] = self.neighbours.distances(rows).mean(axis=1)
        if self.conditional is not None and self.spectrum is not None:
            z, volumes = extraction.embeddings, self._volumes
            found[VOLUME] = -self.conditional.score_samples(z, volumes.volume(extraction))
            found[SPECTRUM] = -self.spectrum.score_samples(z, volumes.log_spectrum(extraction))
        if self.local is not None:
            found[LOCAL] = image_values(self.local.log_distances(positions_of(extraction)[1]))
        return found

    def portable_check(self) -> None:
        if self.seen.values.keys() != self.tails.keys() or self.weight.keys() != self.tails.keys():
            raise ValueError("tails, weight and seen are not of the same terms")
        expected = {term_of(name) for name in self.chain.deviations} | {NEIGHBOURS}
        expected |= {DIRECTION} if self.direction is not None else set()
        parts = [self.volume_model is None, self.conditional is None, self.spectrum is None]
        if len(set(parts)) > 1:
            raise ValueError("volume_model, conditional and spectrum go together")
        expected |= set() if parts[0] else {VOLUME, SPECTRUM}
        expected |= set() if self.local is None else {LOCAL}
        if self.tails.keys() != expected:
            raise ValueError(f"these are not the terms of the layers: {', '.join(self.tails)}")
        if self.neighbours_of not in (None, *self.chain.deviations):
            raise ValueError(f"neighbours_of is no layer of the chain: {self.neighbours_of}")


AnyScore = ScoreModel | LayeredScore
"""What a fit can have learned."""


def layers_of(extraction: Extraction, names: list[str] | None = None) -> dict[str, NDArray[Any]]:
    """The layers of an Extraction in the order of the forward pass, the embedding last; those named, where given.

    Raises
    ------
    ValueError
        A layer that it does not have.
    """
    if OUTPUT in extraction.layers:
        raise ValueError(f"a layer cannot be called {OUTPUT!r}, the name of the embedding")
    layers = {**extraction.layers, OUTPUT: extraction.embeddings}
    extraction.require_layers(name for name in names or () if name != OUTPUT)
    return {name: layers[name] for name in (names or layers) if not is_positions(name)}


def fit_score(
    extraction: Extraction,
    *,
    formula: str,
    reference: Any,
    floor: float | str,
    rank: int | None,
    directions: Directions | None = None,
    trim: float = 0.0,
    apart: NDArray | None = None,
) -> AnyScore:
    """Learn the score of a formula from normal samples; "joint" reads the hidden layers where there are any.

    Parameters
    ----------
    extraction : Extraction
        Of at least two normal samples.
    formula, reference, floor, rank, directions
        See `skjepa.scores.fit_score_model`. An Extraction without layers and with singular values has the "joint"
        score of that.
    trim : float in [0, 0.5)
        Share of the samples, those that look least like the others, that the fit leaves out, see
        `skjepa.scores.trimming`.
    apart : array of shape (n_samples,), optional
        Names of what belongs together, for a local model: no member of a group is judged by a model of the others.

    Raises
    ------
    ValueError, TypeError
        Invalid settings, fewer than two samples, no singular values where the formula needs them, or `trim` with a
        score that reads no layers.
    """
    check_score_settings(formula, reference, floor, rank)
    settings: dict[str, Any] = {"reference": reference, "floor": floor, "rank": rank, "directions": directions}
    if formula != "joint" or (extraction.singular_values is not None and not extraction.layers):
        if trim > 0:
            raise ValueError('trim needs formula="joint" on hidden layers: give layers="auto", or trim=0')
        return fit_score_model(extraction, formula=formula, **settings)
    if len(extraction) < 2:
        raise ValueError(f"fit needs at least 2 samples; got {len(extraction)} sample")
    if trim > 0:
        kept = least_odd(_varying(extraction), 1 - trim, not extraction.is_table, _mean_surprise)
        extraction, apart = extraction[kept], None if apart is None else apart[kept]
    return _fit_layered(extraction, settings, apart)


def share_far_off(extraction: Extraction) -> float:
    """Share of images that are far off to the layers of three quarters of them, at least `FAR_OFF` nats."""
    odd = oddness_to_most(_varying(extraction), not extraction.is_table, _mean_surprise)
    return float((odd > FAR_OFF).mean())


def _mean_surprise(chain: LayerChain, found: Terms) -> NDArray[np.float64]:
    return np.mean([Tail.learn(chain.fit_surprises[name]).surprise(value) for name, value in found.items()], axis=0)


def _varying(extraction: Extraction) -> Terms:
    """The layers that differ between samples; the embedding where none does, for something must be compared."""
    layers = {name: np.asarray(rows, dtype=np.float64) for name, rows in layers_of(extraction).items()}
    varying = {
        name: rows
        for name, rows in layers.items()
        if (np.ptp(rows, axis=0) > ROUNDING * np.abs(rows).max(axis=0, initial=0.0)).any()
    }
    return varying or {OUTPUT: layers[OUTPUT]}


def _fit_layered(extraction: Extraction, settings: dict[str, Any], apart: NDArray | None) -> LayeredScore:
    chain = LayerChain(is_unit=not extraction.is_table).fit(_varying(extraction))
    model = LayeredScore(chain, None, None, None, None, None, None)
    unseen = {term_of(name): value for name, value in chain.fit_surprises.items()}
    unseen |= _fit_output(model, extraction, settings["reference"])
    if extraction.singular_values is not None:
        unseen |= _fit_volume(model, extraction, settings)
    if any(map(is_positions, extraction.layers)):
        grid, rows = positions_of(extraction)
        model.local = LocalModel().fit(rows, grid, apart)
        unseen[LOCAL] = model.local.image_surprises
    for name, value in unseen.items():
        if bad := int((~np.isfinite(value)).sum()):
            raise ValueError(f"the term {name!r} is not finite for {bad} of {len(value)} fit samples that are left out")
    model.tails = {name: Tail.learn(value) for name, value in unseen.items()}
    model.weight = _weights(list(unseen))
    values = {name: -model.weight[name] * model.tails[name].surprise(value) for name, value in unseen.items()}
    first = model._surprises(extraction)[next(iter(unseen))]
    model.seen = SeenSamples(extraction.embeddings, first, values)
    return model


def _fit_output(model: LayeredScore, extraction: Extraction, reference: Any) -> Terms:
    """Learn where embeddings lie, of tables the rows; the values of fit samples that are left out, by term."""
    z, found = extraction.embeddings, {}
    rows = normalize(z)
    if extraction.is_table:
        model.neighbours_of = next(iter(model.chain.deviations))
        rows = model.chain.rows(layers_of(extraction))[model.neighbours_of]
    else:
        model.direction = ShrunkMahalanobis().fit(rows)
        found[DIRECTION] = np.sqrt(model.direction.fit_distances_)
    if isinstance(reference, str) and reference == "knn":
        model.neighbours = NearestRows(rows, _n_neighbors(len(rows)))
        return found | {NEIGHBOURS: model.neighbours.distances().mean(axis=1)}
    density = GaussianDensity() if isinstance(reference, str) else clone(reference)
    model.neighbours, model.neighbours_of = density.fit(z), None
    return found | {NEIGHBOURS: -np.asarray(out_of_fold_scores(model.neighbours, z), dtype=np.float64)}


def _fit_volume(model: LayeredScore, extraction: Extraction, settings: dict[str, Any]) -> Terms:
    """Learn which log-volume and singular values belong to an embedding; the values of samples left out, by term."""
    model.volume_model = volumes = fit_score_model(extraction, formula="jepa", **settings)
    z, s, log_sigma = extraction.embeddings, volumes.volume(extraction), volumes.log_spectrum(extraction)
    model.conditional, model.spectrum = ConditionalDensity().fit(z, s), SpectrumDensity().fit(z, log_sigma)
    return {VOLUME: -model.conditional.fit_scores_, SPECTRUM: -model.spectrum.fit_scores_}


def _n_neighbors(n_samples: int) -> int:
    return min(max(FEWEST_NEIGHBORS, math.isqrt(n_samples)), MOST_NEIGHBORS, n_samples - 1)


def _weights(names: list[str]) -> dict[str, float]:
    """What each surprise counts: of each group of terms the mean counts what the group does."""
    outputs, volumes, local = (DIRECTION, NEIGHBOURS), (VOLUME, SPECTRUM), (LOCAL,)
    layers = tuple(name for name in names if name not in (*outputs, *volumes, *local))
    groups = {layers: 1.0, outputs: OUTPUT_WEIGHT, volumes: VOLUME_WEIGHT, local: LOCAL_WEIGHT}
    present = {group: [name for name in names if name in group] for group in groups}
    weight = {name: groups[group] / len(members) for group, members in present.items() for name in members}
    return {name: weight[name] for name in names}


def term_of(layer: str) -> str:
    """The name of a layer's term."""
    return f"layer {layer}"
