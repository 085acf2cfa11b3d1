"""Write the sentences of a report: the result, the threshold, and the diagnosis."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import betabinom

from skjepa.inspection.findings import AT_FLOOR, COLLAPSED_RATIO, FAITHFUL, SHORT_OF_RANK, Diagnosis
from skjepa.inspection.plain_words import term_in_words
from skjepa.reporting.about import Rule
from skjepa.reporting.results import Results


@dataclass(frozen=True)
class Verdict:
    """One measurement in words."""

    heading: str
    sentence: str


def reason_in_words(reason: str, terms: Sequence[str]) -> str:
    """Describe the unusual terms of a score, named as in the column `reason`, by what they mean.

    Names that are not among `terms`, all terms of the score in their order, stay as they are.
    """
    named = [term for term in reason.split(", ") if term]
    return "; ".join(dict.fromkeys(term_in_words(term, terms) if term in terms else term for term in named))


def result_in_words(results: Results) -> list[str]:
    """Describe how many images were scored and how many were flagged."""
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
            f"If all of them were normal, at most {rule.target_fpr * read:,.0f} would be flagged on average. "
            + (
                f"The probability of this number or more would be {chance:.2g}."
                if chance >= 1e-6
                else "The probability of this number or more would be below one in a million."
            )
        )
    return lines


def _chance_of(flagged: int, n: int, rule: Rule) -> float:
    """Return the probability that this many or more are flagged if all n are normal, over draws of both sets."""
    assert rule.target_fpr is not None
    allowed = max(1, int(round(rule.target_fpr * (rule.n_calibration + 1), 9)))
    return float(betabinom.sf(flagged - 1, n, allowed, max(1, rule.n_calibration + 1 - allowed)))


def threshold_in_words(results: Results) -> list[str]:
    """Describe the threshold and its guarantee."""
    rule, threshold = results.about.rule, results.threshold
    lines = ["The higher its score, the more an image is like the normal images."]
    if threshold is None:
        return [*lines, "The table holds no threshold."]
    lines.append(f"Images with a score below {threshold:.4g} are flagged.")
    if rule.target_fpr is not None:
        lines.append(
            f"This threshold comes from {rule.n_calibration:,} normal images that the detector did not learn from: of "
            f"new normal images at most {100 * rule.target_fpr:.3g} % are flagged on average."
        )
    elif rule.contamination is not None:
        lines.append(
            f"{rule.contamination:.1%} of the normal images that the detector learned from lie below this threshold. "
            "It makes no guarantee about new images; a threshold from held-out images (--alpha) would."
        )
    if results.p_values is not None:
        lines.append(
            "The p-value of an image is the share of held-out normal images, and this image, with a score that is no "
            "higher."
        )
        if n := rule.n_calibration:
            lines.append(f"With {n:,} held-out images no p-value can be below {1 / (n + 1):.2g}.")
    return lines


def diagnosis_in_words(d: Diagnosis) -> Iterator[Verdict]:
    """Yield the measurements on the fit samples in words, each with the limit beyond which it would be a problem."""
    counted = d.numerical_rank_lowest >= d.rank
    yield Verdict(
        "Rank of the Jacobian",
        f"Every score counts {d.rank} of {d.n_singular_values} singular values. "
        + (
            "All of them lie above the rounding noise in every image."
            if counted
            else f"{d.short_of_rank:.1%} of the images have fewer above the rounding noise (median "
            f"{d.numerical_rank:.0f}, from {d.numerical_rank_lowest} to {d.numerical_rank_highest}). If it were more "
            f"than {SHORT_OF_RANK:.0%} of the images, the score would be doubtful."
        ),
    )
    yield Verdict(
        "Share at the floor",
        f"{d.at_floor:.1%} of the counted singular values lie under the floor of {d.floor:.2g} and were raised to it. "
        f"Above {AT_FLOOR:.0%} the floor would decide, and not the image.",
    )
    yield Verdict(
        "Isotropy of the embeddings",
        f"The embeddings use about {d.participation_ratio:.1f} of {d.n_components} directions (participation ratio). "
        f"Below {max(COLLAPSED_RATIO * d.n_components, 1.5):.1f} the encoder would be collapsed. The theory assumes an "
        f"isotropic Gaussian, which uses all {d.n_components} directions and has a normality statistic near 0; here "
        f"it is {d.normality:.4f}.",
    )
    yield Verdict(
        "Intrinsic dimension",
        f"The embeddings fill about {d.intrinsic_dim:.1f} dimensions, estimated from nearest neighbours.",
    )
    yield Verdict(
        "Volume and full formula",
        f"The ranking by the log-volume alone (JEPA-SCORE) has a Spearman correlation of {d.fidelity:.2f} with the "
        f"ranking by the full change of variables. Below {FAITHFUL:.1f} the volume alone would not be a density.",
    )
    yield Verdict("Ties", f"{d.tied:.1%} of the images share their score with a different image.")


def status_of(results: Results, i: int) -> str:
    """Return the status of an image in one word."""
    if not results.readable[i]:
        return "unreadable"
    return "flagged" if results.flagged[i] else "normal"


def p_in_words(results: Results, i: int) -> str:
    """Return the p-value for a caption; "" where there is none."""
    if results.p_values is None or np.isnan(results.p_values[i]):
        return ""
    return f"{results.p_values[i]:.3g}"


def size_in_words(n_bytes: int) -> str:
    """Return a number of bytes in kB or MB."""
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 1e5 else f"{n_bytes / 1e3:.0f} kB"


def _count(n: int, one: str, many: str) -> str:
    return f"{n:,} {one if n == 1 else many}"
