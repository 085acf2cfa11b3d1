"""Estimate how long `extract` would take on some data."""

from typing import Any

from skjepa._utils.validation import check_integer
from skjepa.data.sources import as_source
from skjepa.encoders.automatic import automatic_encoder
from skjepa.encoders.encoder import Encoder
from skjepa.extraction.batches.measurement import Measurement, scoring
from skjepa.extraction.batches.options import RunOptions
from skjepa.extraction.batches.ready import input_shape
from skjepa.extraction.cost.bill import Bill
from skjepa.extraction.cost.pass_cost import PassCost
from skjepa.extraction.processes.pools import active_pool, own_device


def estimate_cost(
    encoder: Encoder | str,
    X: Any,
    *,
    views: int = 1,
    memory_budget: int | None = None,
    device: str = "auto",
    n_jobs: int | None = None,
    n_samples: int | None = None,
    has_passes: bool = True,
) -> PassCost:
    """Estimate the seconds that `extract` would take for any number of backward passes.

    The estimate is measured on this machine, on the first samples of X.

    Parameters
    ----------
    encoder, X, views, memory_budget, device, n_jobs
        As for `extract`.
    n_samples : int, optional
        Number of samples to estimate for; by default the number in X.
    has_passes : bool
        If False, only the forward pass is timed, which is quicker; backward passes then cost NaN.

    Returns
    -------
    PassCost
        ``cost.seconds(n_passes)`` returns seconds; n_passes is 0 for ``method="forward"``, K (``cost.n_components``)
        for "exact", and m for a sketch.

    Raises
    ------
    ValueError, TypeError
        As `extract`; also if none of the first samples can be read.

    Examples
    --------
    >>> import numpy as np
    >>> from skjepa import estimate_cost
    >>> cost = estimate_cost("bundled", np.zeros((20, 32, 32, 3), np.uint8), n_samples=1_000_000)
    >>> cost.n_components
    64
    >>> cost.seconds(0) < cost.seconds(64)
    True
    """
    source, pool = as_source(X), active_pool(device)
    encoder = automatic_encoder(encoder, source)
    run, n_views = RunOptions(device, memory_budget, n_jobs), check_integer("views", views, minimum=1)
    input_shape(encoder, source)
    own = own_device(device, pool)
    with encoder.unchanging(), scoring(encoder, own) as function:
        measurement = Measurement(encoder, 0, 0, views=n_views, run=run)
        cost = Bill(measurement, function, source, range(len(source)), own, pool).measured(has_passes=has_passes)
    if cost is None:
        raise ValueError(
            f"the encoder cannot be timed on these {len(source)} samples: the first ones cannot be read, or the "
            "encoder fails on them. Call extract on the first few to see the error"
        )
    return cost if n_samples is None else cost.of(check_integer("n_samples", n_samples, minimum=1))
