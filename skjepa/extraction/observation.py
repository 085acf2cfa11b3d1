"""Whatever else is to be learned from Jacobians before they are dropped: each seen once, and whose it was."""

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
    """`extract` of samples as they are, which shows every Jacobian once.

    Parameters
    ----------
    encoder, X, method
        Of `skjepa.extract`.
    see : callable
        Is given the Jacobians (B, K, D), or (B, m, D), of each batch; either all of a batch are taken or, where it
        raises, none.
    options : dict
        Of `skjepa.extract`, from the user: memory_budget, device, n_jobs, on_error, progress, ids.

    Returns
    -------
    extraction : Extraction
    places : array of shape (n_samples,)
        Which of the Jacobians that were seen is that of each sample: equal samples are measured once.

    Raises
    ------
    TypeError
        An option that does not go with it.
    MemoryError
        A batch was seen that ran out of memory after all.
    """
    for name in (*_FIXED, "method"):
        if name in options:
            raise TypeError(f"{name} is not for this: the Jacobian is that of each sample as it is, measured anew")
    if isinstance(X, Extraction):
        raise TypeError("X is an Extraction, whose Jacobians are gone: give the samples themselves")
    count = 0

    def observe(jacobians: Tensor) -> None:
        nonlocal count
        see(jacobians)
        count += len(jacobians)

    extraction = extract(encoder, X, method=method, layers=None, observe=observe, **options)
    place = {name: i for i, name in enumerate(dict.fromkeys(extraction.ids.tolist()))}
    if len(place) != count:
        raise MemoryError("memory ran out amid a batch: give a smaller memory_budget")
    return extraction, np.array([place[name] for name in extraction.ids.tolist()])
