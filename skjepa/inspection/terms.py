"""Why a sample scores as it does: the terms of its score, which add up, beside those of the fit samples, in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skjepa.scores.model import Terms

UNUSUAL = 0.05
"""A term whose p-value is no larger is named in the words."""

_SHORT = 3
MEANING = {
    "volume": "the log-volume is small: the encoder answers changes of this sample less than those of normal ones",
    "density": "few fit samples have an embedding near this one",
    "direction": "the embedding points where those of few fit samples do, whatever its length",
    "neighbours": "the nearest fit samples are far away",
    "local": "some places of the picture are unlike the same places of normal samples (`anomaly_map` shows where)",
    "volume given embedding": "the log-volume is not that of normal samples with such an embedding",
    "spectrum given embedding": "the singular values are not in the proportions of normal samples with such an "
    "embedding",
}
"""What it says of a sample that a term is low; see `meaning` for those of layers."""


def meaning(term: str) -> str:
    """What it says of a sample that a term is low."""
    if term.startswith("layer "):
        name = term.removeprefix("layer ")
        what = "the embedding is" if name == "output" else f"what the layer {name!r} sees is"
        return f"{what} unlike normal samples, given what the layer before it sees"
    return MEANING.get(term, f"{term} is low")


@dataclass(frozen=True, eq=False)
class Explanation:
    """The scores of n samples taken apart.

    Attributes
    ----------
    ids : array of shape (n_samples,), str
    score : array of shape (n_samples,)
        ``score_samples`` of the detector; higher = more normal. With folds the mean of the models' scores: their joint
        margin is no sum of terms.
    decision : array of shape (n_samples,)
        ``decision_function``: negative = flagged.
    parts : dict of name -> array of shape (n_samples,)
        The terms of the score, which sum to it; higher = more normal. Of the joint score with layers each is minus a
        weighted surprise in nats, at most 0; without layers each is weighted, and zero for a fit sample of the mean
        value; of the other formulas they are in nats.
    deviations : dict of name -> array of shape (n_samples,)
        Standard deviations of the fit samples by which a part lies above (below: negative) their mean; zero where the
        fit samples do not differ.
    p_values : dict of name -> array of shape (n_samples,)
        Share of the fit samples, and this one, whose part is no higher; in (0, 1], small = unusually low. Densities
        judge fit samples as if they had not seen them, but it is the fit samples all the same: the promise of
        `JEPAScoreDetector.p_values`, on samples held out, is not made here. Of a sample of the fit it counts itself.

    columns : array of shape (n_samples, d), or None
        Of a table, what each column adds to the surprises of the layers in nats; higher = more anomalous.
    column_names : list of str, or None

    Rows of samples that could not be read are NaN. `str` of an Explanation is its words, a line a sample.
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
        """Names of the terms of sample `i`, the most unusual first: smallest p-value, then lowest deviation."""
        return sorted(self.parts, key=lambda name: (self.p_values[name][i], self.deviations[name][i]))

    def reason(self, i: int) -> str:
        """The unusual terms of sample `i`, the most unusual first and at most three; "" where none is."""
        if np.isnan(self.score[i]):
            return ""
        unusual = [term for term in self.least_normal(i) if self.p_values[term][i] <= UNUSUAL]
        return ", ".join(unusual[:_SHORT])

    def words(self, i: int) -> str:
        """What makes sample `i` odd, in a sentence."""
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
        """Names of the columns of sample `i` that add at least half as much as the one that adds most; at most three.

        The oddest first; empty where there are no columns, or none adds anything.
        """
        if self.columns is None or not (most := float(self.columns[i].max())) > 0:
            return []
        order = [j for j in np.argsort(-self.columns[i], kind="stable") if self.columns[i][j] >= most / 2]
        names = self.column_names or [f"column {j}" for j in range(self.columns.shape[1])]
        return [str(names[j]) for j in order[:_SHORT]]

    def _told_of_columns(self, i: int) -> list[str]:
        names = self.oddest_columns(i)
        return [f"odd most of all: {', '.join(names)}"] if names else []

    def _of(self, term: str, i: int) -> str:
        part, deviation, p = self.parts[term][i], self.deviations[term][i], self.p_values[term][i]
        side = "under" if deviation < 0 else "over"
        return f"{term} {part:+.2f} ({abs(deviation):.1f} sd {side} the mean, p = {p:.2g})"

    def __str__(self) -> str:
        return "\n".join(self.words(i) for i in range(len(self)))


def explain_terms(
    ids: NDArray[np.str_], decision: NDArray[np.float64], terms: Sequence[Terms], of_fit: Sequence[Terms]
) -> Explanation:
    """Terms beside those of the fit samples; of several models, their means, and p-values from all their fit samples.

    Parameters
    ----------
    ids, decision
        Of the `Explanation`.
    terms : sequence of dict of name -> array of shape (n_samples,)
        By each model, see `skjepa.scores.ScoreModel.terms`.
    of_fit : sequence of dict of name -> array of shape (n_fit,)
        The same of each model's fit samples.
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
    """What a model keeps of its fit samples' terms: their values in ascending order, nothing of who had them."""
    return {name: np.sort(values) for name, values in terms.items()}
