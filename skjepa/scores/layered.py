"""Compute the default score: a weighted sum of surprises from hidden layers, the embedding and the Jacobian."""

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
from skjepa.scores.local import LocalModel, folds_apart, image_values, positions_of
from skjepa.scores.mahalanobis import ShrunkMahalanobis
from skjepa.scores.model import ScoreModel, Terms, check_score_settings, fit_score_model
from skjepa.scores.tail import UPPER, Tail
from skjepa.scores.trimming import least_odd, oddness_to_most

OUTPUT = "output"
"""Name of the embedding, the last layer of the chain."""

FEWEST_NEIGHBORS, MOST_NEIGHBORS = 5, 50
"""Limits of the number of neighbours in the term "neighbours", which is the square root of the number of fit samples.
With fewer neighbours, a small cluster of anomalies among the fit samples would be close to itself and look normal."""

OUTPUT_WEIGHT = 0.5
"""Weight of the terms of the embedding together, direction and neighbours; the layers together have the weight 1."""

VOLUME_WEIGHT = 0.125
"""Weight of the terms of the Jacobian together, where backward passes were made."""

LOCAL_WEIGHT = 8.0
"""Weight of the most anomalous positions of an image, where positions are read. It is large because positions are read
to find small defects."""

FAR_OFF = 10.0
"""Mean surprise of the layers, in nats, above which a fit sample counts as far off."""

DIRECTION, NEIGHBOURS, LOCAL = "direction", "neighbours", "local"
VOLUME, SPECTRUM = "volume given embedding", "spectrum given embedding"


@portable
@dataclass
class LayeredScore:
    r"""Score samples by how unusual every layer of an encoder is, compared with normal samples.

    The score is minus a weighted sum of surprises. The surprise of a value E is r(E) = -log P(E' >= E) (`Tail`), where
    E' is the value of a normal sample that the fit left out (with a local model in whole groups, if groups were given):

        score = -[ mean over layers of r(c_l)  +  1/2 mean(r(direction), r(neighbours))
                   +  1/8 mean(r(-log q(s given z)), r(-log q(sigma given z)))  +  8 r(local) ]

    - c_l measures how unusual layer l is given the layer before (`LayerChain`); the last layer is the embedding z.
    - direction is the Mahalanobis distance of z / norm z.
    - neighbours is the mean distance from z / norm z to the sqrt(n) nearest of n fit samples, from 5 to 50.
    - log q(s given z) and log q(sigma given z) are low where the log-volume s and the singular values sigma are unusual
      for the embedding. They are present where backward passes were made.
    - local is the log of the mean distance of the most anomalous positions (`LocalModel`), where positions were read.

    For tables the only term beside the chain is the mean distance from the rows themselves to the nearest fit rows.

    Attributes
    ----------
    chain : LayerChain
    direction : ShrunkMahalanobis or None
        None for tables.
    neighbours : NearestRows or density
        A density where `reference` is not "knn".
    neighbours_of : str or None
        For tables, the layer whose rows have neighbours; None for the direction of the embedding.
    volume_model : ScoreModel or None
        Floor, rank and correction of the log-volume; None where no backward pass was made.
    conditional, spectrum : ConditionalDensity, SpectrumDensity or None
        log q(s given z) and log q(sigma given z).
    tails : dict of name -> Tail
        Distribution of the values of each term.
    weight : dict of name -> float
        Weight of the surprise of each term.
    seen : SeenSamples
        The terms of the fit samples, as if each had been left out.
    local : LocalModel or None
        Model of each position of an image; None where positions were not read.
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
        """The `moments` of each term over the fit samples, as if each had been left out."""
        return {name: self.moments(values) for name, values in self.seen.values.items()}

    @staticmethod
    def moments(values: NDArray[np.float64]) -> tuple[float, float]:
        """Return the median and half the distance from the 16 % to the 84 % quantile; surprises have long tails."""
        low, median, high = np.quantile(values, [1 - UPPER, 0.5, UPPER])
        return float(median), float(high - low) / 2

    @property
    def _volumes(self) -> ScoreModel:
        if self.volume_model is None:
            raise AttributeError(
                "this score has no singular values, and no floor or rank, because method='forward' makes no backward "
                "passes: fit with method='exact' or 'sketch'"
            )
        return self.volume_model

    def volumes(self, extraction: Extraction) -> NDArray[np.float64]:
        """Return the log-volume of each view in nats, (n_samples, V)."""
        return self._volumes.volumes(extraction)

    def volume(self, extraction: Extraction) -> NDArray[np.float64]:
        """Return the log-volume in nats with views combined, (n_samples,)."""
        return self._volumes.volume(extraction)

    def terms(self, extraction: Extraction) -> Terms:
        """Return the terms that add up to the score, by name, each (n_samples,) and at most 0; higher = more normal."""
        found = self._surprises(extraction)
        first = found[next(iter(found))]
        weighted = {name: -self.weight[name] * self.tails[name].surprise(value) for name, value in found.items()}
        return self.seen.recall(
            extraction.embeddings, first, lambda others: {name: value[others] for name, value in weighted.items()}
        )

    def score_samples(self, extraction: Extraction) -> NDArray[np.float64]:
        """Return one score per sample, (n_samples,); higher = more normal."""
        return np.sum(list(self.terms(extraction).values()), axis=0)

    def _surprises(self, extraction: Extraction) -> Terms:
        """Return the values of each term, higher = more unusual; for fit samples they are too low."""
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
            raise ValueError("tails, weight and seen must have the same terms")
        expected = {term_of(name) for name in self.chain.deviations} | {NEIGHBOURS}
        expected |= {DIRECTION} if self.direction is not None else set()
        parts = [self.volume_model is None, self.conditional is None, self.spectrum is None]
        if len(set(parts)) > 1:
            raise ValueError("volume_model, conditional and spectrum must all be present or all be missing")
        expected |= set() if parts[0] else {VOLUME, SPECTRUM}
        expected |= set() if self.local is None else {LOCAL}
        if self.tails.keys() != expected:
            raise ValueError(f"the terms {', '.join(self.tails)} do not belong to the layers of the chain")
        if self.neighbours_of not in (None, *self.chain.deviations):
            raise ValueError(f"neighbours_of={self.neighbours_of!r} is not a layer of the chain")
        if isinstance(self.neighbours, NearestRows):
            name = self.neighbours_of or OUTPUT
            found, expected_width = self.neighbours.rows.shape[1], len(self.chain.deviations[name])
            if found != expected_width:
                raise ValueError(f"the neighbours have {found} columns, layer {name!r} has {expected_width}")


AnyScore = ScoreModel | LayeredScore
"""The score models that a fit can produce."""


def layers_of(extraction: Extraction, names: list[str] | None = None) -> dict[str, NDArray[Any]]:
    """Return the layers of an Extraction in the order of the forward pass, the embedding last.

    With `names`, return these layers alone.

    Raises
    ------
    ValueError
        The Extraction lacks one of the layers.
    """
    if OUTPUT in extraction.layers:
        raise ValueError(f"a layer cannot be called {OUTPUT!r}, which is the name of the embedding: rename the layer")
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
    pictures: NDArray | None = None,
) -> AnyScore:
    """Learn the score of a formula from normal samples; "joint" reads the hidden layers where there are any.

    Parameters
    ----------
    extraction : Extraction
        At least two normal samples.
    formula, reference, floor, rank, directions
        See `fit_score_model`, which also learns "joint" for an Extraction with singular values and without layers.
    trim : float in [0, 0.5)
        Share of the samples that the fit leaves out: the samples that are least like the others, see
        `skjepa.scores.trimming`.
    apart : array of shape (n_samples,), optional
        Name of each sample's group, for a fit with a local model. The samples of a group are scored by models fitted
        without the whole group.
    pictures : array of shape (n_samples,), optional
        Position of the image that each sample is a tile of, for a local model. By default each sample is a whole image.

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
            raise ValueError(
                f'trim={trim:g} needs formula="joint" on hidden layers: give formula="joint" and layers="auto", or '
                "trim=0"
            )
        return fit_score_model(extraction, formula=formula, **settings)
    if len(extraction) < 2:
        raise ValueError(f"fit needs at least 2 samples; got {len(extraction)} sample")
    if trim > 0:
        kept = least_odd(_varying(extraction), 1 - trim, not extraction.is_table, _mean_surprise)
        extraction = extraction[kept]
        apart, pictures = (None if names is None else names[kept] for names in (apart, pictures))
    return _fit_layered(extraction, settings, apart, pictures)


def share_far_off(extraction: Extraction) -> float:
    """Return the share of samples with layers more than `FAR_OFF` nats unusual to three quarters of all samples."""
    odd = oddness_to_most(_varying(extraction), not extraction.is_table, _mean_surprise)
    return float((odd > FAR_OFF).mean())


def _mean_surprise(chain: LayerChain, found: Terms) -> NDArray[np.float64]:
    return np.mean([Tail.learn(chain.fit_surprises[name]).surprise(value) for name, value in found.items()], axis=0)


def _varying(extraction: Extraction) -> Terms:
    """Return the layers that differ between samples; the embedding where none does, so that a score exists."""
    layers = {name: np.asarray(rows, dtype=np.float64) for name, rows in layers_of(extraction).items()}
    varying = {
        name: rows
        for name, rows in layers.items()
        if (np.ptp(rows, axis=0) > ROUNDING * np.abs(rows).max(axis=0, initial=0.0)).any()
    }
    return varying or {OUTPUT: layers[OUTPUT]}


def _fit_layered(
    extraction: Extraction, settings: dict[str, Any], apart: NDArray | None, pictures: NDArray | None
) -> LayeredScore:
    chain = LayerChain(is_unit=not extraction.is_table).fit(_varying(extraction))
    model = LayeredScore(chain, None, None, None, None, None, None)
    unseen = {term_of(name): value for name, value in chain.fit_surprises.items()}
    unseen |= _fit_output(model, extraction, settings["reference"])
    if extraction.singular_values is not None:
        unseen |= _fit_volume(model, extraction, settings)
    if any(map(is_positions, extraction.layers)):
        grid, rows = positions_of(extraction)
        if apart is not None and 1 < len(np.unique(apart)) < len(apart):
            unseen = _judged_apart(unseen, extraction, settings, apart)
        model.local = LocalModel().fit(rows, grid, apart, pictures)
        unseen[LOCAL] = model.local.image_surprises
    for name, value in unseen.items():
        if bad := int((~np.isfinite(value)).sum()):
            raise ValueError(
                f"the out-of-fold term {name!r} is not finite for {bad} of {len(value)} fit samples: X holds values "
                "that are too large, so scale it, or `reference` fails there, so choose another one"
            )
    model.tails = {name: Tail.learn(value) for name, value in unseen.items()}
    model.weight = _weights(list(unseen))
    values = {name: -model.weight[name] * model.tails[name].surprise(value) for name, value in unseen.items()}
    first = model._surprises(extraction)[next(iter(unseen))]
    model.seen = SeenSamples(extraction.embeddings, first, values)
    return model


def _judged_apart(unseen: Terms, extraction: Extraction, settings: dict[str, Any], apart: NDArray) -> Terms:
    """Return the values of all terms except "local", each from a model fitted without the sample's group.

    The local model does the same. Otherwise the fit would compare each sample with near copies from its group. A new
    part, which has none, would then look tens of nats odd by the layers, and this would hide its local defects.
    """
    whole = extraction.narrowed([name for name in extraction.layers if not is_positions(name)])
    found = {name: values.copy() for name, values in unseen.items()}
    for held in folds_apart(apart):
        if (~held).sum() < 2:
            continue
        model = _fit_layered(whole[~held], settings, None, None)
        values = model._surprises(whole[held])
        for name in values.keys() & found.keys():  # a layer may be constant among the other samples
            found[name][held] = values[name]
    return found


def _fit_output(model: LayeredScore, extraction: Extraction, reference: Any) -> Terms:
    """Learn where embeddings lie, or the rows of a table; return out-of-sample values of the fit samples by term."""
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
    """Learn which volumes and spectra belong to an embedding; return out-of-sample values of fit samples by term."""
    model.volume_model = volumes = fit_score_model(extraction, formula="jepa", **settings)
    z, s, log_sigma = extraction.embeddings, volumes.volume(extraction), volumes.log_spectrum(extraction)
    model.conditional, model.spectrum = ConditionalDensity().fit(z, s), SpectrumDensity().fit(z, log_sigma)
    return {VOLUME: -model.conditional.fit_scores_, SPECTRUM: -model.spectrum.fit_scores_}


def _n_neighbors(n_samples: int) -> int:
    return min(max(FEWEST_NEIGHBORS, math.isqrt(n_samples)), MOST_NEIGHBORS, n_samples - 1)


def _weights(names: list[str]) -> dict[str, float]:
    """Return the weight of each surprise: the weight of its group, shared evenly among the terms of the group."""
    outputs, volumes, local = (DIRECTION, NEIGHBOURS), (VOLUME, SPECTRUM), (LOCAL,)
    layers = tuple(name for name in names if name not in (*outputs, *volumes, *local))
    groups = {layers: 1.0, outputs: OUTPUT_WEIGHT, volumes: VOLUME_WEIGHT, local: LOCAL_WEIGHT}
    present = {group: [name for name in names if name in group] for group in groups}
    weight = {name: groups[group] / len(members) for group, members in present.items() for name in members}
    return {name: weight[name] for name in names}


def term_of(layer: str) -> str:
    """Return the name of the term of a layer."""
    return f"layer {layer}"
