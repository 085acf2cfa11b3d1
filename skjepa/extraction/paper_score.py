"""Compute JEPA-SCORE as published (arXiv 2510.05949, Eq. 5 and Listing 1)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from skjepa._utils.validation import check_integer, check_number
from skjepa.encoders.encoder import Encoder
from skjepa.extraction.encoder_pass import extract
from skjepa.extraction.extraction import Extraction
from skjepa.jacobian.directions import Directions
from skjepa.jacobian.pass_method import PassMethod
from skjepa.jacobian.volume import PAPER_FLOOR, combine_views, log_volume, warn_if_floor_is_noise


def jepa_score(
    encoder: Encoder | str, X: Any, *, floor: float = PAPER_FLOOR, rank: int | None = None, **options: Any
) -> NDArray[np.float64]:
    """Compute JEPA-SCORE, the sum of log singular values of the encoder's input Jacobian.

    For comparison with the paper (arXiv 2510.05949, Eq. 5, and Eq. 4 with views). To detect anomalies use
    `skjepa.JEPAScoreDetector`, which also models the embeddings and sets a threshold.

    Parameters
    ----------
    encoder : Encoder or str
        What `load_encoder` returns, or anything that it accepts.
    X : data or Extraction
        Data in any form that `extract` accepts, or its result; then no encoder runs.
    floor : float
        Lower bound of singular values: smaller ones are replaced by it. The default is the paper's.
    rank : int, optional
        Number of largest singular values that are summed, the same for every sample; by default all.
    **options
        Options of `extract`: method, views, transform, device, memory_budget, random_state, progress and others. With
        learned `Directions` as method, the score is the exact score predicted by their correction; with "sketch", it
        is the log-volume of the sketch.

    Returns
    -------
    array of shape (n_samples,), float64
        Scores in nats (natural logarithms); higher = denser = more normal. NaN for a sample skipped by
        ``on_error="skip"``.

    Raises
    ------
    ValueError, TypeError
        As `extract`; also for a floor that is not positive, a rank outside 1 ... min(K, D), or options given together
        with an Extraction.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from skjepa import jepa_score, load_encoder
    >>> A = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    >>> linear = torch.nn.Linear(2, 2)
    >>> linear.weight = torch.nn.Parameter(A)
    >>> np.exp(jepa_score(load_encoder(linear, precision="float64"), [[0.0, 0.0]])).round(12)
    array([6.])
    """
    check_number("floor", floor, above=0.0)
    if rank is not None:
        check_integer("rank", rank, minimum=1)
    if isinstance(X, Extraction):
        if options:
            raise TypeError(
                f"got {', '.join(options)} together with an Extraction, which keeps the settings it was made with: "
                "give those options to extract"
            )
        extraction = X
    else:
        method = options.get("method")
        layers = list(method.layers) if isinstance(method, Directions) else None
        extraction = extract(encoder, X, **{"layers": layers or None, **options})
    directions = options.get("method")
    if isinstance(directions, Directions) and directions.n_exact:
        correction = directions.correction(floor, rank, extraction.layers)
        scores = combine_views(correction.log_volume(extraction.embeddings, extraction.spectra, extraction.layers))
        return extraction.aligned(scores)
    if PassMethod.parse(extraction.meta.get("method")).kind == "subspace":
        raise ValueError(
            f"X was extracted with {extraction.meta['method']!r}, whose score needs the correction of its Directions: "
            "pass the samples and method=directions, or fit a JEPAScoreDetector with method=directions"
        )
    sigma = extraction.spectra
    if rank is not None and rank > sigma.shape[-1]:
        raise ValueError(f"rank must be at most min(K, D) = {sigma.shape[-1]}; got {rank}")
    warn_if_floor_is_noise(sigma, floor=floor, rank=rank, eps=extraction.eps)
    scores = combine_views(log_volume(sigma, floor=floor, rank=rank))
    return scores if extraction is X else extraction.aligned(scores)
