"""What a model says of the samples that it was fitted on, in the terms of samples that it had not seen."""

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from skjepa.persistence.folder import portable
from skjepa.scores.known_rows import KnownRows

DENSITY = "density"
"""The term that is there whatever the formula."""

Values = dict[str, NDArray[np.float64]]


@portable
class SeenSamples:
    """The fit samples, known again by embedding and log-volume, and what is said of them.

    Any density is too sure of what it was fitted on, and kernels, of which each fit sample has one to itself, more than
    any: a threshold at a quantile of such scores would flag nearly every new sample. So the values of fit samples keep
    their order, which tells outliers among them well, and are made to be distributed like those of samples not seen.

    Parameters
    ----------
    embeddings : array of shape (n_samples, K)
    log_volumes : array of shape (n_samples,)
    values : dict of name -> array of shape (n_samples,)
        What is said of these samples.
    """

    embeddings: Annotated[NDArray[np.float64], "n K"]
    log_volumes: Annotated[NDArray[np.float64], "n"]
    values: dict[str, Annotated[NDArray[np.float64], "n"]]

    def __init__(self, embeddings: NDArray[np.float64], log_volumes: NDArray[np.float64], values: Values) -> None:
        self.embeddings, self.log_volumes, self.values = embeddings, log_volumes, values
        self._known = KnownRows(embeddings, log_volumes)

    @classmethod
    def learn(
        cls,
        embeddings: NDArray[np.float64],
        log_volumes: NDArray[np.float64],
        in_sample: Values,
        out_of_fold: Values,
        weights: dict[str, float],
    ) -> "SeenSamples":
        """From the values by densities that had seen the samples, and by such that had not; (n_samples,) each.

        Each term keeps its order, and so does the sum that they have with these weights: what it takes beyond the
        terms goes to the density of the embedding.
        """
        values = {name: _moved(known, out_of_fold[name]) for name, known in in_sample.items()}
        if weights[DENSITY] > 0:
            whole = _moved(_total(in_sample, weights), _total(out_of_fold, weights))
            values[DENSITY] += (whole - _total(values, weights)) / weights[DENSITY]
        return cls(embeddings, log_volumes, values)

    def recall(
        self,
        embeddings: NDArray[np.float64],
        log_volumes: NDArray[np.float64],
        of_others: Callable[[NDArray[np.bool_]], Values],
    ) -> Values:
        """By name, (n_samples,) each: values of samples seen at fit, and what `of_others` says of the rest, a mask."""
        places = self._known.places(embeddings, log_volumes)
        known = places >= 0
        recalled = {name: np.empty(len(places)) for name in self.values}
        others = {} if known.all() else of_others(~known)
        for name, values in self.values.items():
            recalled[name][known] = values[places[known]]
            if others:
                recalled[name][~known] = others[name]
        return recalled

    @property
    def known(self) -> KnownRows:
        """The fit samples, to be known again."""
        return self._known

    def portable_state(self) -> dict[str, Any]:
        return {"embeddings": self.embeddings, "log_volumes": self.log_volumes, "values": self.values}

    @classmethod
    def from_portable_state(cls, state: dict[str, Any], given: dict[str, Any]) -> "SeenSamples":
        return cls(**state)


def _moved(known: NDArray[np.float64], unseen: NDArray[np.float64]) -> NDArray[np.float64]:
    """The values of the second in the order of the first."""
    return np.interp(rankdata(known) - 1, np.arange(len(unseen)), np.sort(unseen))


def _total(values: Values, weights: dict[str, float]) -> NDArray[np.float64]:
    return np.sum([weights[name] * value for name, value in values.items()], axis=0)
