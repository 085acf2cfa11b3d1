"""Hold out-of-sample scores for the fit samples."""

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from skjepa.persistence.folder import portable
from skjepa.scores.known_rows import KnownRows

DENSITY = "density"
"""Name of the term that every formula with learned densities has."""

Values = dict[str, NDArray[np.float64]]


@portable
class SeenSamples:
    """Hold the fit samples with out-of-sample values, and recognise them by embedding and log-volume.

    Every density is too high at the samples that it was fitted on, and most of all a kernel density, which has a kernel
    at each of them. A threshold at a quantile of such scores would flag nearly every new sample. The values of fit
    samples therefore keep their order, which ranks outliers among them well, and take the distribution of the values of
    samples that the model was not fitted on.

    Parameters
    ----------
    embeddings : array of shape (n_samples, K)
    log_volumes : array of shape (n_samples,)
    values : dict of name -> array of shape (n_samples,)
        Out-of-sample values of these samples by term.
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
        """Combine the order of the in-sample values with the distribution of the out-of-fold values.

        Each term keeps its order, and so does the weighted sum of the terms: the correction that the sum needs is added
        to the term "density". All arrays are (n_samples,).
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
        """Return the values of all samples by term, (n_samples,) each.

        Fit samples get their stored values. `of_others` is called with the mask of the other samples and returns their
        values.
        """
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
        """The fit samples, in the form that recognises them."""
        return self._known

    def portable_state(self) -> dict[str, Any]:
        return {"embeddings": self.embeddings, "log_volumes": self.log_volumes, "values": self.values}

    @classmethod
    def from_portable_state(cls, state: dict[str, Any], given: dict[str, Any]) -> "SeenSamples":
        return cls(**state)


def _moved(known: NDArray[np.float64], unseen: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the values of `unseen` in the order of `known`."""
    return np.interp(rankdata(known) - 1, np.arange(len(unseen)), np.sort(unseen))


def _total(values: Values, weights: dict[str, float]) -> NDArray[np.float64]:
    return np.sum([weights[name] * value for name, value in values.items()], axis=0)
