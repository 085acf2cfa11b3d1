"""Run `extract` and pass every Jacobian once to a callback, before it is dropped."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from skjepa.encoders.encoder import Encoder
from skjepa.extraction.encoder_pass import extract
from skjepa.extraction.extraction import Extraction

_FIXED = ("n_directions", "layers", "views", "transform", "store", "memory", "observe", "random_state")


def observed(
    encoder: Encoder, X: Any, see: Callable[[Tensor], None], options: dict[str, Any], *, method: Any = "exact"
) -> tuple[Extraction, NDArray[np.intp]]:
    """Extract untransformed samples and call `see` once with every Jacobian.

    Parameters
    ----------
    encoder, X, method
        As for `skjepa.extract`.
    see : callable
        Called with the Jacobians (B, K, D), or (B, m, D), of each batch. If it raises, it must not have kept any of
        the batch.
    options : dict
        Options of `skjepa.extract` that the user gave: memory_budget, device, n_jobs, on_error, progress, ids.

    Returns
    -------
    extraction : Extraction
    places : array of shape (n_samples,)
        Index of each sample's Jacobian among those passed to `see`; equal samples are measured once.

    Raises
    ------
    TypeError
        If an option is not supported here.
    MemoryError
        If a batch ran out of memory after `see` had been called with it.
    """
    for name in (*_FIXED, "method"):
        if name in options:
            raise TypeError(
                f"got {name}, which is not supported here: the Jacobians of the untransformed samples are always "
                f"recomputed. Leave {name} out"
            )
    if isinstance(X, Extraction):
        raise TypeError("X is an Extraction, which keeps no Jacobians: give the samples themselves")
    count = 0

    def observe(jacobians: Tensor) -> None:
        nonlocal count
        see(jacobians)
        count += len(jacobians)

    extraction = extract(encoder, X, method=method, layers=None, observe=observe, **options)
    place = {name: i for i, name in enumerate(dict.fromkeys(extraction.ids.tolist()))}
    if len(place) != count:
        raise MemoryError("memory ran out in the middle of a batch: give a smaller memory_budget")
    return extraction, np.array([place[name] for name in extraction.ids.tolist()])
