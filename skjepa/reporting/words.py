"""A report's sentences: the result, the threshold, what the diagnosis means."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.stats import betabinom

from skjepa.inspection.findings import AT_FLOOR, COLLAPSED_RATIO, FAITHFUL, SHORT_OF_RANK, Diagnosis
from skjepa.reporting.about import Rule
from skjepa.reporting.results import Results


@dataclass(frozen=True)
class Verdict:
    """One measurement in words."""

    heading: str
    sentence: str


def result_in_words(results: Results) -> list[str]:
    """What was scored, and how many are odd."""
    read, flagged = int(results.readable.sum()), int((results.flagged & results.readable).sum())
    lines = [
        f"{_count(read, 'image was', 'images were')} scored; {_count(flagged, 'is', 'are')} flagged as unlike the "
        f"normal images ({flagged / max(read, 1):.1%})."
    ]
    if failed := len(results) - read:
        lines.append(
            f"{_count(failed, 'image', 'images')} could not be read and {'has' if failed == 1 else 'have'} no score."
        )
    rule = results.about.rule
    if rule.target_fpr is not None and rule.n_calibration and read:
        chance = _chance_of(flagged, read, rule)
        lines.append(
            f"If all of them were normal, {rule.target_fpr * read:,.0f} at most would be flagged on average; "
            + (
                f"so many flagged, or more, would then be a chance of {chance:.2g}."
                if chance >= 1e-6
                else "so many flagged would then be next to impossible."
            )
        )
    return lines


def _chance_of(flagged: int, n: int, rule: Rule) -> float:
    """Of that many flagged or more where all n are normal: the held-out scores, too, are of chance."""
    assert rule.target_fpr is not None
    allowed = max(1, int(round(rule.target_fpr * (rule.n_calibration + 1), 9)))
    return float(betabinom.sf(flagged - 1, n, allowed, max(1, rule.n_calibration + 1 - allowed)))


def threshold_in_words(results: Results) -> list[str]:
    """Where the line was drawn, and what it promises."""
    rule, threshold = results.about.rule, results.threshold
    lines = ["The higher its score, the more an image is like the normal ones."]
    if threshold is None:
        return [*lines, "The table names no threshold."]
    lines.append(f"Images that score below {threshold:.4g} are flagged.")
    if rule.target_fpr is not None:
        lines.append(
            f"That threshold comes from {rule.n_calibration:,} normal images that the detector had not learned from: "
            f"of new normal images at most {100 * rule.target_fpr:.3g} % are flagged on average."
        )
    elif rule.contamination is not None:
        lines.append(
            f"That threshold leaves {rule.contamination:.1%} of the normal images below it that the detector learned "
            "from. It promises nothing about new ones; held-out images (--alpha) would."
        )
    if results.p_values is not None:
        lines.append(
            "The p-value of an image is the share of held-out normal images that are no more typical, the image itself "
            "counted in."
        )
        if n := rule.n_calibration:
            lines.append(f"With {n:,} held-out images no p-value can be below {1 / (n + 1):.2g}.")
    return lines


def diagnosis_in_words(d: Diagnosis) -> Iterator[Verdict]:
    """What was measured on the samples the detector learned from, each with what would be wrong."""
    counted = d.numerical_rank_lowest >= d.rank
    yield Verdict(
        "Rank of the Jacobian",
        f"Every score counts {d.rank} of {d.n_singular_values} singular values. "
        + (
            "All of them stand above rounding noise in every image."
            if counted
            else f"{d.short_of_rank:.1%} of the images have fewer above rounding noise (median "
            f"{d.numerical_rank:.0f}, from {d.numerical_rank_lowest} to {d.numerical_rank_highest}); above "
            f"{SHORT_OF_RANK:.0%} the score would be doubtful."
        ),
    )
    yield Verdict(
        "Share at the floor",
        f"{d.at_floor:.1%} of the counted singular values lie under the floor of {d.floor:.2g} and were lifted to it; "
        f"above {AT_FLOOR:.0%} the floor, not the image, would decide.",
    )
    yield Verdict(
        "Isotropy of the embeddings",
        f"Of {d.n_components} directions about {d.participation_ratio:.1f} are in use (participation ratio; below "
        f"{max(COLLAPSED_RATIO * d.n_components, 1.5):.1f} the encoder would be collapsed). The theory asks for an "
        f"isotropic Gaussian: all {d.n_components} and a normality statistic of about 0; it is {d.normality:.4f}.",
    )
    yield Verdict(
        "Intrinsic dimension",
        f"By nearest neighbours the embeddings fill about {d.intrinsic_dim:.1f} dimensions.",
    )
    yield Verdict(
        "Volume and full formula",
        f"The log-volume alone (JEPA-SCORE) ranks the images as the whole change of variables does with a Spearman "
        f"correlation of {d.fidelity:.2f}; below {FAITHFUL:.1f} the volume alone would be no density.",
    )
    yield Verdict("Ties", f"{d.tied:.1%} of the images share their score with a different image.")


def status_of(results: Results, i: int) -> str:
    """One word."""
    if not results.readable[i]:
        return "unreadable"
    return "flagged" if results.flagged[i] else "normal"


def p_in_words(results: Results, i: int) -> str:
    """The p-value as a caption has it; "" where there is none."""
    if results.p_values is None or np.isnan(results.p_values[i]):
        return ""
    return f"{results.p_values[i]:.3g}"


def size_in_words(n_bytes: int) -> str:
    """Bytes as people say them."""
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 1e5 else f"{n_bytes / 1e3:.0f} kB"


def _count(n: int, one: str, many: str) -> str:
    return f"{n:,} {one if n == 1 else many}"
