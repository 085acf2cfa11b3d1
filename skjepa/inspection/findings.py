"""What measurements of a detector point to: findings with the number and advice, and the limits they go by."""

import math
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from skjepa.persistence.folder import portable
from skjepa.persistence.schema import MayLack, Saved

# Limits between healthy and failed; benchmarks/theory/failures.py measures both sides.
COLLAPSED_SPREAD = 0.02  # of the embeddings, relative to their length
COLLAPSED_RATIO = 0.05  # participation ratio over the number of directions
COLLAPSED_DIRECTIONS = 1.5  # the least participation ratio, however few directions there are
SHORT_OF_RANK = 0.05  # share of samples whose numerical rank is below the rank counted
AT_FLOOR = 0.25  # share of the counted singular values
TIED = 0.05  # share of distinct samples
FAITHFUL = 0.5  # Spearman of the log-volume with the full formula
DROWNED = 0.98  # Spearman of one term with the sum
RELIABLE = 0.8  # reliability of the views together
SEEDS_AGREE = 0.7  # mean Spearman of two seeds
SHIFTED = 1.0  # standard deviations of the fit, beyond what chance allows
FAR_OFF_SHARE = 0.09  # of the fit images; clean sets at hand have .04 to .07, those with a tenth of junk .12
NEAR_COPIES = 0.1  # share of the samples, beyond what chance brings
FEW = 5  # samples a dimension of the embedding
GAP = 3.0  # times as far is the next neighbour that is no near copy
MORE_AT_FLOOR = 0.1  # share of the counted singular values, beyond that of the fit


_PAIRS_SHOWN = 10
GROUPS_ARE_GIVEN: ContextVar[bool] = ContextVar("groups", default=False)
"""Whether the user has said in this fit what belongs together, so that near copies are no news."""


@portable
@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes
    ----------
    name : str
    severity : {"failure", "warning"}
        Failure: the scores mean nothing. Warning: they mean less than they could.
    message : str
        What was measured, with the number.
    advice : str
        What to do.
    """

    name: str
    severity: Annotated[str, Saved(Literal["failure", "warning"])]
    message: str
    advice: str

    def __str__(self) -> str:
        return f"{self.severity.upper()} {self.name}: {self.message}.\n    {self.advice}."


@portable
@dataclass(frozen=True)
class Diagnosis:
    """Measurements of a fitted detector on some samples, and what they point to.

    Attributes
    ----------
    formula : str
        The detector's, "jepa", "density" or "joint".
    n_samples, n_components, n_singular_values, n_views : int
        n, K, R = min(K, D) and V. R and V, and all below that singular values tell, are 0 where no backward pass was
        made (``method="forward"``).
    rank, floor : int, float
        Singular values counted in every score, and their floor.
    numerical_rank, numerical_rank_lowest, numerical_rank_highest : float, int, int
        Singular values above the rounding noise: median and range over samples, of R.
    short_of_rank : float
        Share of the samples whose numerical rank is below `rank`: their scores count rounding errors or the floor.
    at_floor : float
        Share of the counted singular values that lie under the floor.
    relative_spread : float
        Root of the embeddings' total variance over the length of their mean; near 0 where all are the same.
    near_copies : float
        Share of the samples which a few others lie far closer to than all the rest, beyond what chance brings.
    far_off : float
        Share of the fit images whose hidden layers are far off to those of the other images; 0 of tables.
    participation_ratio : float
        Effective number of directions in which embeddings vary, in [1, K]; 0 where none does.
    normality : float
        Distance of the embeddings from an isotropic Gaussian, see `skjepa.encoders.embedding_statistics`.
    intrinsic_dim : float
        Dimension of the embeddings by nearest neighbours.
    score_spread, tied : float
        Standard deviation of the scores; share of distinct samples whose score another one has, too.
    fidelity : float
        Spearman correlation between the log-volume s and s + log q(z), the whole change of variables with a
        nearest-neighbour q: does the volume alone rank samples as the full formula does?
    term_correlation : dict
        Spearman correlation of each two terms of the score; empty for "jepa", which has one.
    decisive : float
        Largest Spearman correlation of a single term with the score; 1 for "jepa".
    terms : dict
        Mean and standard deviation of each term; of the fit samples and for "joint", those of out-of-fold values. Of
        terms that are surprises, median and half the distance from the 16 % to the 84 % quantile.
    view_spearman, view_icc : float or None
        Agreement of the log-volumes of single views: mean Spearman correlation of two, and intraclass correlation.
    findings : tuple of Finding
        Empty where nothing is wrong.
    """

    formula: str
    n_samples: Annotated[int, "n"]
    n_components: Annotated[int, "K"]
    n_singular_values: int
    n_views: int
    rank: int
    floor: float
    numerical_rank: float
    numerical_rank_lowest: int
    numerical_rank_highest: int
    short_of_rank: float
    at_floor: float
    relative_spread: float
    participation_ratio: float
    normality: float
    intrinsic_dim: float
    score_spread: float
    tied: float
    fidelity: float
    term_correlation: dict[str, float]
    decisive: float
    terms: dict[str, tuple[float, float]]
    view_spearman: float | None = None
    view_icc: float | None = None
    near_copies: MayLack[float] = 0.0
    far_off: MayLack[float] = 0.0
    findings: tuple[Finding, ...] = field(default=())

    def portable_check(self) -> None:
        if (self.view_icc is None) != (self.view_spearman is None):
            raise ValueError("view_icc and view_spearman go together")

    @property
    def healthy(self) -> bool:
        """Nothing was found."""
        return not self.findings

    @property
    def reliability(self) -> float | None:
        """Of the views together, in [0, 1], by Spearman and Brown's formula; None for one view."""
        if self.view_icc is None:
            return None
        single = max(self.view_icc, 0.0)
        return self.n_views * single / (1 + (self.n_views - 1) * single)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {**asdict(self), "terms": {name: list(value) for name, value in self.terms.items()}}

    def __str__(self) -> str:
        return "\n".join([*_lines(self), *(str(finding) for finding in self.findings)])


NO_SPECTRUM: dict[str, Any] = {
    "n_singular_values": 0,
    "n_views": 0,
    "rank": 0,
    "floor": 0.0,
    "numerical_rank": 0.0,
    "numerical_rank_lowest": 0,
    "numerical_rank_highest": 0,
    "short_of_rank": 0.0,
    "at_floor": 0.0,
}
"""What a `Diagnosis` has where no backward pass was made."""


def findings_at_fit(d: Diagnosis) -> Iterator[Finding]:
    """What is wrong with an encoder or its scores, told from the samples that a detector was fitted on."""
    yield from _collapse(d)
    yield from _degenerate_spectrum(d)
    yield from _terms_at_odds(d)
    if d.near_copies > NEAR_COPIES:
        yield Finding(
            "near copies",
            "warning",
            f"{d.near_copies:.0%} of the samples are near copies of a few others (frames, exposures, augmentations): "
            "they make a threshold from the same samples too strict, and new normal samples are flagged",
            "fit on one of each, or give fit groups=, one name for what belongs together, and calibration=",
        )
    if d.far_off > FAR_OFF_SHARE:
        yield Finding(
            "anomalies among the fit samples",
            "warning",
            f"{d.far_off:.0%} of the samples are far off to the hidden layers of the others, where {FAR_OFF_SHARE:.0%} "
            "or less are usual: what is odd there is learned as normal",
            "look at the samples that score lowest; take out what does not belong, or give trim=0.1",
        )
    if d.formula != "jepa" and d.n_samples < FEW * d.n_components:
        yield Finding(
            "few samples",
            "warning",
            f"{d.n_samples} samples are fewer than {FEW} for each of the {d.n_components} dimensions of the embedding: "
            "covariance, intrinsic dimension and the volume expected of an embedding are uncertain",
            f'fit on {FEW * d.n_components} samples or more; formula="jepa" learns none of these',
        )
    if d.reliability is not None and d.reliability < RELIABLE:
        yield Finding(
            "disagreement of views",
            "warning",
            f"the log-volumes of single views have an intraclass correlation of {d.view_icc:.2f}, and the score of "
            f"{d.n_views} views a reliability of {d.reliability:.2f}: much of it is the luck of the view",
            "take a milder transform or more views; views=1 without a transform scores the sample itself",
        )


def _collapse(d: Diagnosis) -> Iterator[Finding]:
    if d.relative_spread < COLLAPSED_SPREAD:
        yield Finding(
            "complete collapse",
            "failure",
            f"embeddings vary by {d.relative_spread:.1e} of their length: the encoder maps all samples to nearly one "
            "point",
            "use another encoder or output, or train with a term against collapse (sigreg, vicreg, info_nce)",
        )
    directions = min(d.n_components, d.n_samples - 1)
    if directions >= 2 and d.participation_ratio < max(COLLAPSED_DIRECTIONS, COLLAPSED_RATIO * directions):
        yield Finding(
            "dimensional collapse",
            "failure",
            f"embeddings vary in {d.participation_ratio:.1f} of {directions} directions (participation ratio)",
            "give the term against collapse more weight, or score another layer of the encoder; if the samples are "
            "nearly copies of one another, fit on more varied ones",
        )
    if d.tied > TIED:
        yield Finding(
            "tied scores",
            "failure" if d.tied > 0.5 else "warning",
            f"{d.tied:.0%} of the samples have the same score as another",
            "the encoder is constant or linear around them, in pieces with ReLU: use a smooth activation (SiLU, GELU), "
            'or formula="joint"; if every value is at the floor, lower the floor',
        )


def _degenerate_spectrum(d: Diagnosis) -> Iterator[Finding]:
    if d.short_of_rank > SHORT_OF_RANK:
        yield Finding(
            "rank deficiency",
            "warning",
            f"{d.short_of_rank:.0%} of the samples have fewer singular values above the rounding noise (median "
            f"{d.numerical_rank:.0f}, from {d.numerical_rank_lowest} to {d.numerical_rank_highest}) than the {d.rank} "
            "that every score counts",
            'score the output before its last LayerNorm, L2 normalisation or ReLU (load_encoder(..., output="NAME")); '
            f"else count rank={max(d.numerical_rank_lowest, 1)} values",
        )
    if d.at_floor > AT_FLOOR:
        yield Finding(
            "values at the floor",
            "warning",
            f"{d.at_floor:.0%} of the counted singular values lie under the floor of {d.floor:.2g}",
            'the floor decides these scores: take floor="auto", or count fewer (rank)',
        )


def _terms_at_odds(d: Diagnosis) -> Iterator[Finding]:
    if d.formula == "jepa" and d.fidelity < FAITHFUL:
        yield Finding(
            "unfaithful volume",
            "warning",
            f"the log-volume has a Spearman correlation of {d.fidelity:.2f} with the full formula, log-volume + log "
            "q(z): embeddings are not uniform, and the volume alone is no density",
            'take formula="density" or "joint", or an encoder trained longer',
        )
    if d.formula == "density" and d.decisive > DROWNED:
        yield Finding(
            "drowned term",
            "warning",
            f"one term alone has a Spearman correlation of {d.decisive:.3f} with the score: the other is too small to "
            "count",
            'take formula="joint", whose terms are standardised',
        )


def findings_of_new(new: Diagnosis, fit: Diagnosis) -> Iterator[Finding]:
    """Where new samples are not like those of the fit; what was wrong there already is no news about these."""
    known = {finding.name for finding in fit.findings}
    yield from (finding for finding in _degenerate_spectrum(new) if finding.name not in known)
    foreign = "these samples are not like those of the fit: fit on samples like them if they are normal"
    shifts = {name: (new.terms[name][0] - mean) / spread for name, (mean, spread) in fit.terms.items() if spread > 0}
    name = max(shifts, key=lambda term: abs(shifts[term]), default="")
    chance = 4 * math.sqrt(1 / fit.n_samples + 1 / new.n_samples)
    if name and abs(shifts[name]) > SHIFTED + chance:
        yield Finding(
            "shifted scores",
            "warning",
            f"the term {name!r} lies {abs(shifts[name]):.1f} standard deviations of the fit "
            f"{'above' if shifts[name] > 0 else 'below'} it on average",
            foreign,
        )
    if new.at_floor > fit.at_floor + MORE_AT_FLOOR:
        yield Finding(
            "more values at the floor",
            "warning",
            f"{new.at_floor:.0%} of the counted singular values lie under the floor, {fit.at_floor:.0%} at fit",
            foreign,
        )


def _lines(d: Diagnosis) -> Iterator[str]:
    found = {0: "nothing wrong", 1: "1 finding"}.get(len(d.findings), f"{len(d.findings)} findings")
    yield f'{found} in {d.n_samples} samples, formula="{d.formula}"'
    yield (
        f"  embeddings       K = {d.n_components}, participation ratio {d.participation_ratio:.1f}, intrinsic "
        f"dimension {d.intrinsic_dim:.1f}, relative spread {d.relative_spread:.2g}, normality {d.normality:.4f}"
    )
    if d.n_singular_values:
        yield (
            f"  singular values  {d.rank} of {d.n_singular_values} counted, numerical rank {d.numerical_rank:.0f} "
            f"({d.numerical_rank_lowest} to {d.numerical_rank_highest}), {d.at_floor:.1%} under the floor "
            f"{d.floor:.2g}, {d.short_of_rank:.1%} of samples short of rank"
        )
    fidelity = f", fidelity {d.fidelity:.2f}" if d.n_singular_values else ""
    yield f"  scores           standard deviation {d.score_spread:.2f}, {d.tied:.1%} tied{fidelity}"
    if d.term_correlation:
        strongest = sorted(d.term_correlation.items(), key=lambda pair: -abs(pair[1]))[:_PAIRS_SHOWN]
        rest = len(d.term_correlation) - len(strongest)
        shown = ", ".join(f"{pair} {value:.2f}" for pair, value in strongest)
        yield f"  terms            {shown}{f', and {rest} pairs less alike' if rest else ''}"
    if d.view_icc is not None:
        yield (
            f"  views            {d.n_views}, Spearman {d.view_spearman:.2f}, intraclass correlation {d.view_icc:.2f}, "
            f"reliability {d.reliability:.2f}"
        )


def seeds_disagree(mean: float, lowest: float) -> Finding:
    return Finding(
        "seed disagreement",
        "warning",
        f"encoders that differ in their seed alone agree with a mean Spearman correlation of {mean:.2f} (lowest "
        f"{lowest:.2f}): much of a score is the luck of the training",
        "train longer or on more samples, or average the standardised scores of several seeds",
    )
