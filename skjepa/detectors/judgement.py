"""Provide `Judgement`, all results of a detector for some samples from one pass."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from skjepa._utils.shown import SHOWN, html_table, text_table, three_digits

_HEAD = ("", "id", "score", "decision", "label", "p_value", "reason")


@dataclass(frozen=True, eq=False, repr=False)
class Judgement:
    """All results of a detector for n samples: scores, decisions, labels, p-values and reasons.

    The numbers equal the results of `score_samples`, `decision_function`, `predict` and `p_values`. A Judgement prints
    as a table of the most atypical samples, in a notebook too. `to_frame` returns all of it as a pandas DataFrame,
    `table` as a pyarrow Table.

    Attributes
    ----------
    ids : array of shape (n_samples,), str
        Path relative to the folder, path as given, or content hash.
    scores : array of shape (n_samples,)
        Higher = more normal; NaN for an image that could not be read.
    decisions : array of shape (n_samples,)
        Scores minus the threshold: negative where a sample is flagged.
    labels : array of shape (n_samples,)
        +1 = normal, -1 = anomalous, and -1 for an image that could not be read.
    p_values : array of shape (n_samples,) or None
        In (0, 1], small = unlike normal data; None for a detector without calibration samples.
    reasons : sequence of str
        Which terms of the score are unusual, the most unusual first, or why an image could not be read; "" where no
        term is unusual, and for a detector whose score has no terms.
    """

    ids: NDArray[np.str_]
    scores: NDArray[np.float64]
    decisions: NDArray[np.float64]
    labels: NDArray[np.int64]
    p_values: NDArray[np.float64] | None
    reasons: Sequence[str]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def flagged(self) -> NDArray[np.bool_]:
        """Where the label is -1, (n_samples,)."""
        return self.labels == -1

    @property
    def errors(self) -> dict[int, str]:
        """Position -> reason for the samples that could not be read."""
        return {i: self.reasons[i] for i in np.flatnonzero(np.isnan(self.scores)).tolist()}

    @property
    def unusual_terms(self) -> list[str]:
        """The reasons without those of samples that could not be read, which are ""."""
        return ["" if np.isnan(score) else reason for score, reason in zip(self.scores, self.reasons, strict=True)]

    @property
    def ranked(self) -> NDArray[np.intp]:
        """Positions of the samples, the most atypical first, and last those that could not be read; (n_samples,)."""
        return np.argsort(self.scores, kind="stable")

    def to_frame(self) -> Any:
        """Return a pandas DataFrame with the columns id, score, decision, label, p_value and reason, a row per sample.

        Missing numbers are NaN.

        Raises
        ------
        ImportError
            pandas is not installed; `table` needs no pandas.
        """
        try:
            import pandas  # noqa: F401  (pyarrow would name itself in its error)
        except ImportError as error:
            raise ImportError(
                "to_frame() makes a pandas DataFrame, and pandas is not installed: pip install pandas, or call "
                "table(), which makes a pyarrow Table of the same columns"
            ) from error
        return self.table().to_pandas()

    def table(self) -> pa.Table:
        """Return a pyarrow Table with the columns of `to_frame`; missing numbers are null."""
        n = len(self)
        p_values = np.full(n, np.nan) if self.p_values is None else self.p_values
        numbers = {"score": self.scores, "decision": self.decisions, "label": self.labels, "p_value": p_values}
        columns: dict[str, Any] = {"id": pa.array(self.ids.tolist(), pa.string())}
        columns |= {name: pa.array(values, mask=np.isnan(values)) for name, values in numbers.items()}
        return pa.table(columns | {"reason": pa.array(list(self.reasons), pa.string())})

    def __repr__(self) -> str:
        return f"Judgement({self._summary()})"

    def __str__(self) -> str:
        return "\n".join([self._title(), text_table(_HEAD, self._rows())])

    def _repr_html_(self) -> str:
        return html_table(_HEAD, self._rows(), title=self._title())

    def _summary(self) -> str:
        unread = int(np.isnan(self.scores).sum())
        flagged = f"{int(self.flagged.sum()) - unread} of {len(self)} flagged"
        return flagged + (f", {unread} could not be read" if unread else "")

    def _title(self) -> str:
        return self._summary() + ("" if len(self) <= SHOWN else f"; the {SHOWN} most atypical, .to_frame() has all")

    def _rows(self) -> list[tuple[str, ...]]:
        """Return the most atypical samples as rows of text, the most atypical first and unreadable ones last."""
        shown = self.ranked[:SHOWN].tolist()
        p_values = [None] * len(self) if self.p_values is None else self.p_values.tolist()
        return [
            (
                str(i),
                str(self.ids[i]),
                three_digits(self.scores[i]),
                three_digits(self.decisions[i]),
                f"{self.labels[i]:+d}",
                three_digits(p_values[i]),
                self.reasons[i],
            )
            for i in shown
        ]
