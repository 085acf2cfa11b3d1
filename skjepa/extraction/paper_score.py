"""JEPA-SCORE as the paper publishes it (arXiv 2510.05949, Eq. 5 and Listing 1)."""

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
    """JEPA-SCORE: the sum of log singular values of the encoder's input Jacobian (arXiv 2510.05949, Eq. 5 and Eq. 4).

    Parameters
    ----------
    encoder : Encoder or str
    X : data or Extraction
        Data as `extract` takes them, or what it returned (then no encoder runs).
    floor : float
        Singular values below it count as `floor`; the default is the paper's.
    rank : int, optional
        Only the `rank` largest values count, in every sample.
    **options
        Of `extract`: method, views, transform, device, memory_budget, random_state, progress ... With learned
        `Directions` as method the score is the exact one as their correction predicts it; with "sketch" it is the
        log-volume of the sketch.

    Returns
    -------
    array of shape (n_samples,), float64
        In nats; higher = denser = more normal. NaN for a sample skipped by ``on_error="skip"``.

    Raises
    ------
    ValueError, TypeError
        As `extract`; a floor that is not positive, a rank outside 1 ... min(K, D), options beside an Extraction.

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
            raise TypeError(f"{', '.join(options)}: an Extraction keeps the settings it was made with")
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
            f"X was measured by method {extraction.meta['method']!r}: the correction of those Directions predicts its "
            "exact score, in a detector with method=directions say"
        )
    sigma = extraction.spectra
    if rank is not None and rank > sigma.shape[-1]:
        raise ValueError(f"rank must be at most min(K, D) = {sigma.shape[-1]}; got {rank}")
    warn_if_floor_is_noise(sigma, floor=floor, rank=rank, eps=extraction.eps)
    scores = combine_views(log_volume(sigma, floor=floor, rank=rank))
    return scores if extraction is X else extraction.aligned(scores)
