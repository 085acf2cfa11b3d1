"""Explain the score of a sample by its terms, compared with the terms of the fit samples, in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skjepa._utils.shown import SHOWN, html_table, three_digits
from skjepa.scores.model import Terms

UNUSUAL = 0.05
"""Largest p-value at which a term counts as unusual and is named in the words."""

_SHORT = 3
MEANING = {
    "volume": "the log-volume is small: the encoder responds less to changes of this sample than of normal samples",
    "density": "few fit samples have an embedding near this one",
    "direction": "the embedding points in a direction that few fit samples share, whatever its length",
    "neighbours": "the nearest fit samples are far away",
    "local": "some places of the image are unlike the same places of normal samples (`anomaly_map` shows where)",
    "volume given embedding": "the log-volume is unusual for normal samples with such an embedding",
    "spectrum given embedding": "the singular values have unusual proportions for normal samples with such an "
    "embedding",
}
"""What a low value of each term means; for the terms of layers see `meaning`."""


def meaning(term: str) -> str:
    """Return in words what a low value of a term means."""
    if term.startswith("layer "):
        name = term.removeprefix("layer ")
        what = "the embedding" if name == "output" else f"layer {name!r}"
        return f"{what} is unlike normal samples, given the layer before"
    return MEANING.get(term, f"{term} is low")


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """Hold the scores of samples, split into terms and compared with the fit samples.

    Print it to read one line of words per sample. Rows of samples that could not be read are NaN.

    Attributes
    ----------
    ids : array of shape (n_samples,), str
    score : array of shape (n_samples,)
        ``score_samples`` of the detector; higher = more normal. With folds it is the mean score of the models, because
        their joint margin is not a sum of terms.
    decision : array of shape (n_samples,)
        ``decision_function``: negative = flagged.
    parts : dict of name -> array of shape (n_samples,)
        The terms that sum to the score; higher = more normal. In the joint score with layers each term is minus a
        weighted surprise in nats, and so at most 0. In the joint score without layers each term is weighted, and zero
        for a fit sample with the mean value. In the other formulas the terms are in nats.
    deviations : dict of name -> array of shape (n_samples,)
        Difference of a part from its mean over the fit samples, in standard deviations of the fit samples; negative
        below the mean. Zero where the fit samples do not differ.
    p_values : dict of name -> array of shape (n_samples,)
        Share of samples, among the fit samples and this one, whose part is no higher; in (0, 1], small = unusually low.
        The parts of fit samples are out-of-sample values, but these p-values have no guarantee, unlike those of
        `JEPAScoreDetector.p_values` from held-out samples. A fit sample is counted itself.
    columns : array of shape (n_samples, d), or None
        For a table, the contribution of each column to the surprises of the layers, in nats; higher = more anomalous.
    column_names : list of str, or None
        Names of the columns, where the table of the fit had names.
    """

    ids: NDArray[np.str_]
    score: NDArray[np.float64]
    decision: NDArray[np.float64]
    parts: Terms
    deviations: Terms
    p_values: Terms
    columns: NDArray[np.float64] | None = None
    column_names: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def least_normal(self, i: int) -> list[str]:
        """Return the names of the terms of sample `i`, by ascending p-value and then by ascending deviation."""
        return sorted(self.parts, key=lambda name: (self.p_values[name][i], self.deviations[name][i]))

    def reason(self, i: int) -> str:
        """Return the names of at most three unusual terms of sample `i`, the most unusual first; "" where none is."""
        if np.isnan(self.score[i]):
            return ""
        unusual = [term for term in self.least_normal(i) if self.p_values[term][i] <= UNUSUAL]
        return ", ".join(unusual[:_SHORT])

    def words(self, i: int) -> str:
        """Describe in a sentence what makes sample `i` unusual."""
        name = str(self.ids[i])
        if np.isnan(self.score[i]):
            return f"{name}: could not be read"
        verdict = "flagged" if self.decision[i] < 0 else "not flagged"
        ordered = self.least_normal(i)
        unusual = [term for term in ordered if self.p_values[term][i] <= UNUSUAL]
        if not unusual:
            least = self._of(ordered[0], i)
            return f"{name}: score {self.score[i]:.2f}, {verdict}; no term is unusual, least normal {least}"
        told = [f"{self._of(term, i)}: {meaning(term)}" for term in unusual]
        return f"{name}: score {self.score[i]:.2f}, {verdict}; " + "; ".join([*told, *self._told_of_columns(i)])

    def oddest_columns(self, i: int) -> list[str]:
        """Return the names of at most three columns that make sample `i` anomalous, the most anomalous first.

        Each contributes at least half as much as the first. Empty where there are no columns, or none contributes.
        """
        if self.columns is None or not (most := float(self.columns[i].max())) > 0:
            return []
        order = [j for j in np.argsort(-self.columns[i], kind="stable") if self.columns[i][j] >= most / 2]
        names = self.column_names or [f"column {j}" for j in range(self.columns.shape[1])]
        return [str(names[j]) for j in order[:_SHORT]]

    def _told_of_columns(self, i: int) -> list[str]:
        names = self.oddest_columns(i)
        return [f"most unusual columns: {', '.join(names)}"] if names else []

    def _of(self, term: str, i: int) -> str:
        part, deviation, p = self.parts[term][i], self.deviations[term][i], self.p_values[term][i]
        side = "under" if deviation < 0 else "over"
        return f"{term} {part:+.2f} ({abs(deviation):.1f} sd {side} the mean, p = {p:.2g})"

    def __repr__(self) -> str:
        flagged = int((self.decision < 0).sum())
        return f"Explanation({len(self)} samples, {flagged} flagged; terms: {', '.join(self.parts)})"

    def __str__(self) -> str:
        return "\n".join(self.words(i) for i in range(len(self)))

    def _repr_html_(self) -> str:
        """The lowest scores, with each term and its p-value, the unusual ones marked."""
        shown = np.argsort(self.score, kind="stable")[:SHOWN].tolist()
        rows = [
            (
                str(self.ids[i]),
                three_digits(self.score[i]),
                "" if np.isnan(self.score[i]) else "flagged" if self.decision[i] < 0 else "normal",
                *(self._cell(name, i) for name in self.parts),
            )
            for i in shown
        ]
        title = "Terms of the score (p-value among the fit samples); * marks an unusual one"
        if len(self) > SHOWN:
            title = f"{title}. The {SHOWN} lowest scores of {len(self)}"
        return html_table(("id", "score", "", *self.parts), rows, title=title)

    def _cell(self, term: str, i: int) -> str:
        if np.isnan(self.score[i]):
            return ""
        p = self.p_values[term][i]
        return f"{self.parts[term][i]:+.2f} ({p:.2g}){' *' if p <= UNUSUAL else ''}"


def explain_terms(
    ids: NDArray[np.str_], decision: NDArray[np.float64], terms: Sequence[Terms], of_fit: Sequence[Terms]
) -> Explanation:
    """Compare terms with the terms of the fit samples; with several models, average them and pool the fit samples.

    Parameters
    ----------
    ids, decision
        See `skjepa.inspection.Explanation`.
    terms : sequence of dict of name -> array of shape (n_samples,)
        Terms by each model, see `skjepa.scores.ScoreModel.terms`.
    of_fit : sequence of dict of name -> array of shape (n_fit,)
        Terms of the fit samples of each model.
    """
    names = list(terms[0])
    parts = {name: np.mean([by_model[name] for by_model in terms], axis=0) for name in names}
    return Explanation(
        ids,
        np.sum(list(parts.values()), axis=0),
        decision,
        parts,
        {name: _deviations(name, terms, of_fit) for name in names},
        {name: _p_values(name, terms, of_fit) for name in names},
    )


def _deviations(name: str, terms: Sequence[Terms], of_fit: Sequence[Terms]) -> NDArray[np.float64]:
    found = []
    for by_model, fit in zip(terms, of_fit, strict=True):
        mean, spread = float(np.mean(fit[name])), float(np.std(fit[name]))
        constant = spread <= 1e-12 * (1 + abs(mean))
        found.append(np.zeros_like(by_model[name]) if constant else (by_model[name] - mean) / spread)
    return np.mean(found, axis=0)


def _p_values(name: str, terms: Sequence[Terms], of_fit: Sequence[Terms]) -> NDArray[np.float64]:
    n_lower: NDArray[np.float64] = np.zeros(len(terms[0][name]))
    for by_model, fit in zip(terms, of_fit, strict=True):
        n_lower += np.searchsorted(np.sort(fit[name]), by_model[name], side="right")
    p = (1 + n_lower) / (1 + sum(len(fit[name]) for fit in of_fit))
    return np.where(np.isnan(terms[0][name]), np.nan, p)


def sorted_terms(terms: Mapping[str, NDArray[np.float64]]) -> Terms:
    """Return the values of each term in ascending order, so that they no longer identify the samples."""
    return {name: np.sort(values) for name, values in terms.items()}
