"""Turn the measurements of a detector into findings with advice, by limits that benchmarks have tested."""

import math
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from skjepa._utils.shown import html_table
from skjepa.persistence.folder import portable
from skjepa.persistence.schema import MayLack, Saved

# Limits between healthy and failed; benchmarks/theory/failures.py measures both sides.
COLLAPSED_SPREAD = 0.02  # spread of the embeddings relative to their length
COLLAPSED_RATIO = 0.05  # participation ratio over the number of directions
COLLAPSED_DIRECTIONS = 1.5  # smallest healthy participation ratio, however few directions there are
SHORT_OF_RANK = 0.05  # share of samples whose numerical rank is below the rank counted
AT_FLOOR = 0.25  # share of the counted singular values under the floor
TIED = 0.05  # share of distinct samples with the score of another one
FAITHFUL = 0.5  # Spearman correlation of the log-volume with the full formula
DROWNED = 0.98  # Spearman correlation of one term with the score
RELIABLE = 0.8  # reliability of all views together
SEEDS_AGREE = 0.7  # mean Spearman correlation of two seeds
SHIFTED = 1.0  # standard deviations of the fit, in addition to the shift that chance allows
FAR_OFF_SHARE = 0.09  # share of the fit images; the clean sets measured have .04 to .07, sets with a tenth of junk .12
NEAR_COPIES = 0.1  # share of the samples, where it exceeds chance
FEW = 5  # samples per dimension of the embedding
GAP = 3.0  # ratio of the distance to the next neighbour that is no near copy to the distance of a near copy
MORE_AT_FLOOR = 0.1  # increase over the fit in the share of counted singular values under the floor


_PAIRS_SHOWN = 10
GROUPS_ARE_GIVEN: ContextVar[bool] = ContextVar("groups", default=False)
"""Whether this fit was given groups, so that near copies need no warning."""


@portable
@dataclass(frozen=True)
class Finding:
    """Describe one problem that a diagnosis found, with advice.

    Attributes
    ----------
    name : str
    severity : {"failure", "warning"}
        "failure": the scores are meaningless. "warning": the scores are less reliable than they could be.
    message : str
        The measurement that shows the problem.
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
@dataclass(frozen=True, repr=False)
class Diagnosis:
    """Hold the measurements of a fitted detector on some samples, and the findings that follow from them.

    Print it to read both.

    Attributes
    ----------
    formula : str
        Formula of the detector: "jepa", "density" or "joint".
    n_samples, n_components, n_singular_values, n_views : int
        Number of samples n, of encoder outputs K, of singular values R = min(K, D) per sample with D inputs, and of
        views V. R, V and all measurements of singular values are 0 where no backward pass was made
        (``method="forward"``).
    rank, floor : int, float
        Number of singular values in every score, and their floor.
    numerical_rank, numerical_rank_lowest, numerical_rank_highest : float, int, int
        Number of the R singular values above the rounding noise: median and range over samples.
    short_of_rank : float
        Share of the samples whose numerical rank is below `rank`. Their scores contain rounding errors or the floor.
    at_floor : float
        Share of the counted singular values that lie under the floor.
    relative_spread : float
        Square root of the total variance of the embeddings, over the length of their mean. Near 0 where all embeddings
        are the same.
    near_copies : float
        Share of the samples that lie far closer to a few others than to the rest; 0 where chance explains it.
    far_off : float
        Share of the fit images whose hidden layers are far off from the other images; 0 for tables.
    participation_ratio : float
        Effective number of directions in which embeddings vary, in [1, K]; 0 where they do not vary.
    normality : float
        Distance of the embeddings from an isotropic Gaussian, see `skjepa.encoders.embedding_statistics`.
    intrinsic_dim : float
        Intrinsic dimension of the embeddings, estimated from nearest neighbours.
    score_spread, tied : float
        Standard deviation of the scores, and share of distinct samples that have the score of another one.
    fidelity : float
        Spearman correlation of the log-volume s with s + log q(z), the full change of variables with a
        nearest-neighbour q. High where the volume alone ranks samples as the full formula does.
    term_correlation : dict of str -> float
        Spearman correlation of each pair of terms of the score; empty for "jepa", which has one term.
    decisive : float
        Largest Spearman correlation of a single term with the score; 1 for "jepa".
    terms : dict of str -> (float, float)
        Mean and standard deviation of each term, out of fold for the fit samples of "joint". For terms that are
        surprises: median, and half the distance from the 16 % to the 84 % quantile.
    view_spearman, view_icc : float or None
        Agreement of the log-volumes of single views: mean Spearman correlation of two views, and intraclass
        correlation.
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
            raise ValueError("view_icc and view_spearman must both be present or both be missing")

    @property
    def healthy(self) -> bool:
        """Whether there are no findings."""
        return not self.findings

    @property
    def reliability(self) -> float | None:
        """Reliability of all views together, in [0, 1], by the Spearman-Brown formula; None for one view."""
        if self.view_icc is None:
            return None
        single = max(self.view_icc, 0.0)
        return self.n_views * single / (1 + (self.n_views - 1) * single)

    def to_dict(self) -> dict[str, Any]:
        """Return the measurements and findings as a dict that JSON can hold."""
        return {**asdict(self), "terms": {name: list(value) for name, value in self.terms.items()}}

    def __repr__(self) -> str:
        names = ", ".join(finding.name for finding in self.findings) or "nothing wrong"
        return f"Diagnosis({self.n_samples} samples, formula={self.formula!r}: {names})"

    def __str__(self) -> str:
        lines = [f"  {name:15}  {told}" for name, told in _measurements(self)]
        return "\n".join([_headline(self), *lines, *(str(finding) for finding in self.findings)])

    def _repr_html_(self) -> str:
        found = [(f"{finding.severity}: {finding.name}", finding.message, finding.advice) for finding in self.findings]
        findings = html_table(("finding", "measured", "what to do"), found) if found else ""
        return html_table(("", "measured"), _measurements(self), title=_headline(self)) + findings


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
"""Values of a `Diagnosis` where no backward pass was made."""


def findings_at_fit(d: Diagnosis) -> Iterator[Finding]:
    """Yield the findings about an encoder and its scores from the fit samples of a detector."""
    yield from _collapse(d)
    yield from _degenerate_spectrum(d)
    yield from _terms_at_odds(d)
    if d.near_copies > NEAR_COPIES:
        yield Finding(
            "near copies",
            "warning",
            f"{d.near_copies:.0%} of the samples are near copies of a few others (frames, exposures, augmentations). "
            "They make the threshold too strict, and too many new normal samples are flagged",
            "fit on one sample of each, or give calibration= and call fit with groups=, a name per sample that is the "
            "same for samples that belong together",
        )
    if d.far_off > FAR_OFF_SHARE:
        yield Finding(
            "anomalies among the fit samples",
            "warning",
            f"{d.far_off:.0%} of the samples have hidden layers far off from the others, and {FAR_OFF_SHARE:.0%} or "
            "less are usual: anomalies among them would be learned as normal",
            "inspect the samples with the lowest scores and remove the anomalies among them, or give trim=0.1",
        )
    if d.formula != "jepa" and d.n_samples < FEW * d.n_components:
        yield Finding(
            "few samples",
            "warning",
            f"{d.n_samples} samples are fewer than {FEW} for each of the {d.n_components} dimensions of the embedding, "
            "so covariance, intrinsic dimension and the volume expected for an embedding are uncertain",
            f'fit on {FEW * d.n_components} samples or more, or give formula="jepa", which learns none of these',
        )
    if d.reliability is not None and d.reliability < RELIABLE:
        yield Finding(
            "disagreement of views",
            "warning",
            f"the log-volumes of single views have an intraclass correlation of {d.view_icc:.2f}, and the score of "
            f"{d.n_views} views a reliability of {d.reliability:.2f}: much of the score depends on the random views",
            "give a milder view_transform or more views; views=1 without a transform scores the sample itself",
        )


def _collapse(d: Diagnosis) -> Iterator[Finding]:
    if d.relative_spread < COLLAPSED_SPREAD:
        yield Finding(
            "complete collapse",
            "failure",
            f"embeddings vary by {d.relative_spread:.1e} of their length: the encoder maps all samples to nearly one "
            "point",
            "use another encoder or output, or train with an objective against collapse (sigreg, vicreg, info_nce)",
        )
    directions = min(d.n_components, d.n_samples - 1)
    if directions >= 2 and d.participation_ratio < max(COLLAPSED_DIRECTIONS, COLLAPSED_RATIO * directions):
        yield Finding(
            "dimensional collapse",
            "failure",
            f"embeddings vary in {d.participation_ratio:.1f} of {directions} directions (participation ratio)",
            "train with more weight on the term against collapse, or score another layer of it; if samples are "
            "nearly copies of one another, fit on more varied ones",
        )
    if d.tied > TIED:
        yield Finding(
            "tied scores",
            "failure" if d.tied > 0.5 else "warning",
            f"{d.tied:.0%} of the samples have the same score as another",
            "the encoder is constant or linear around them, as piecewise with ReLU: use a smooth activation (SiLU, "
            'GELU), or formula="joint"; if every singular value is at the floor, lower the floor',
        )


def _degenerate_spectrum(d: Diagnosis) -> Iterator[Finding]:
    if d.short_of_rank > SHORT_OF_RANK:
        yield Finding(
            "rank deficiency",
            "warning",
            f"{d.short_of_rank:.0%} of the samples have fewer singular values above the rounding noise (median "
            f"{d.numerical_rank:.0f}, from {d.numerical_rank_lowest} to {d.numerical_rank_highest}) than the {d.rank} "
            "that every score counts",
            'score the output before its last LayerNorm, L2 normalisation or ReLU (load_encoder(..., output="NAME")), '
            f"or give rank={max(d.numerical_rank_lowest, 1)}",
        )
    if d.at_floor > AT_FLOOR:
        yield Finding(
            "values at the floor",
            "warning",
            f"{d.at_floor:.0%} of the counted singular values lie under the floor of {d.floor:.2g}",
            'the floor decides these scores: give floor="auto" or a smaller rank',
        )


def _terms_at_odds(d: Diagnosis) -> Iterator[Finding]:
    if d.formula == "jepa" and d.fidelity < FAITHFUL:
        yield Finding(
            "unfaithful volume",
            "warning",
            f"the log-volume has a Spearman correlation of {d.fidelity:.2f} with the full formula, log-volume + log "
            "q(z): embeddings are not uniform, and the volume alone is not a density",
            'give formula="density" or "joint", or an encoder that was trained longer',
        )
    if d.formula == "density" and d.decisive > DROWNED:
        yield Finding(
            "drowned term",
            "warning",
            f"one term alone has a Spearman correlation of {d.decisive:.3f} with the score: the other term varies too "
            "little to matter",
            'give formula="joint", which standardises the terms',
        )


def findings_of_new(new: Diagnosis, fit: Diagnosis) -> Iterator[Finding]:
    """Yield the findings about new samples that the fit samples do not have."""
    known = {finding.name for finding in fit.findings}
    yield from (finding for finding in _degenerate_spectrum(new) if finding.name not in known)
    foreign = "these samples differ from the fit samples: if they are normal, fit on samples like them"
    shifts = {name: (new.terms[name][0] - mean) / spread for name, (mean, spread) in fit.terms.items() if spread > 0}
    name = max(shifts, key=lambda term: abs(shifts[term]), default="")
    chance = 4 * math.sqrt(1 / fit.n_samples + 1 / new.n_samples)
    if name and abs(shifts[name]) > SHIFTED + chance:
        yield Finding(
            "shifted scores",
            "warning",
            f"the term {name!r} lies on average {abs(shifts[name]):.1f} standard deviations "
            f"{'above' if shifts[name] > 0 else 'below'} its value over the fit samples",
            foreign,
        )
    if new.at_floor > fit.at_floor + MORE_AT_FLOOR:
        yield Finding(
            "more values at the floor",
            "warning",
            f"{new.at_floor:.0%} of the counted singular values lie under the floor, and {fit.at_floor:.0%} at fit",
            foreign,
        )


def _headline(d: Diagnosis) -> str:
    found = {0: "nothing wrong", 1: "1 finding"}.get(len(d.findings), f"{len(d.findings)} findings")
    return f'{found} in {d.n_samples} samples, formula="{d.formula}"'


def _measurements(d: Diagnosis) -> Iterator[tuple[str, str]]:
    """What is measured, and the numbers."""
    yield (
        "embeddings",
        f"K = {d.n_components}, participation ratio {d.participation_ratio:.1f}, intrinsic "
        f"dimension {d.intrinsic_dim:.1f}, relative spread {d.relative_spread:.2g}, normality {d.normality:.4f}",
    )
    if d.n_singular_values:
        yield (
            "singular values",
            f"{d.rank} of {d.n_singular_values} counted, numerical rank {d.numerical_rank:.0f} "
            f"({d.numerical_rank_lowest} to {d.numerical_rank_highest}), {d.at_floor:.1%} under the floor "
            f"{d.floor:.2g}, {d.short_of_rank:.1%} of samples short of rank",
        )
    fidelity = f", fidelity {d.fidelity:.2f}" if d.n_singular_values else ""
    yield "scores", f"standard deviation {d.score_spread:.2f}, {d.tied:.1%} tied{fidelity}"
    if d.term_correlation:
        strongest = sorted(d.term_correlation.items(), key=lambda pair: -abs(pair[1]))[:_PAIRS_SHOWN]
        rest = len(d.term_correlation) - len(strongest)
        shown = ", ".join(f"{pair} {value:.2f}" for pair, value in strongest)
        yield "terms", f"{shown}{f', and {rest} pairs less alike' if rest else ''}"
    if d.view_icc is not None:
        yield (
            "views",
            f"{d.n_views}, Spearman {d.view_spearman:.2f}, intraclass correlation {d.view_icc:.2f}, "
            f"reliability {d.reliability:.2f}",
        )


def seeds_disagree(mean: float, lowest: float) -> Finding:
    """Return the finding that encoders of different seeds disagree."""
    return Finding(
        "seed disagreement",
        "warning",
        f"encoders that differ in their seed alone agree with a mean Spearman correlation of {mean:.2f} (lowest "
        f"{lowest:.2f}): much of a score depends on the random seed of the training",
        "train longer or on more samples, or average the standardised scores of several seeds",
    )
