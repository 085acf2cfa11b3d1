"""Explain a score in words that need no knowledge of the method, each with the number behind it."""

from collections.abc import Sequence
from dataclasses import dataclass

from skjepa.inspection.appearance import Remark
from skjepa.inspection.terms import UNUSUAL, Explanation

_DEPTHS = (
    "odd in the early layers: texture, edges and colours",
    "odd in the middle layers: patterns and parts",
    "odd in the late layers: content",
)
_TERMS = {
    "layer output": "odd in the output of the encoder: content as a whole",
    "neighbours": "unlike even the most similar normal images",
    "density": "unlike even the most similar normal images",
    "direction": "its content is of a kind that few normal images have",
    "local": "odd at some places of the image",
    "volume": "the encoder responds less to small changes of it than to those of normal images",
    "volume given embedding": "small changes of it have another effect than those of similar normal images",
    "spectrum given embedding": "small changes of it have another effect than those of similar normal images",
}


@dataclass(frozen=True)
class Reason:
    """One thing that is odd about an image.

    Attributes
    ----------
    words : str
    numbers : str
        What was measured, compared with the normal images.
    """

    words: str
    numbers: str


def reasons_in_words(explained: Explanation, i: int, remarks: Sequence[Remark] = ()) -> list[Reason]:
    """Return what is odd about one image: first how it looks, then which terms of its score are low.

    Parameters
    ----------
    explained : Explanation
    i : int
        Position of the image.
    remarks : sequence of Remark
        How it looks different from the normal images, see `NormalAppearance.remarks`.

    Returns
    -------
    list of Reason
        The remarks, then the terms of the score with p-values of at most 0.05. Terms with the same words become one
        reason. Empty if nothing is odd.
    """
    reasons = [Reason(remark.words, remark.numbers) for remark in remarks]
    numbers: dict[str, list[str]] = {}
    for term in explained.least_normal(i):
        if explained.p_values[term][i] <= UNUSUAL:
            numbers.setdefault(term_in_words(term, list(explained.parts)), []).append(_numbers(explained, term, i))
    return reasons + [Reason(words, "; ".join(told)) for words, told in numbers.items()]


def term_in_words(term: str, terms: Sequence[str]) -> str:
    """Return in words what a low term of the score means; a layer is early, middle or late among those in `terms`."""
    if term in _TERMS:
        return _TERMS[term]
    layers = [name for name in terms if name.startswith("layer ") and name != "layer output"]
    if term not in layers:
        return f"odd in the term {term!r} of the score"
    return _DEPTHS[len(_DEPTHS) * layers.index(term) // len(layers)]


def _numbers(explained: Explanation, term: str, i: int) -> str:
    deviation = explained.deviations[term][i]
    side = "below" if deviation < 0 else "above"
    p_value = explained.p_values[term][i]
    return f"{term}: {abs(deviation):.1f} standard deviations {side} the mean of the normal images, p = {p_value:.2g}"
