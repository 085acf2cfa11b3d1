"""Learn m output directions and a correction, so that later samples need m backward passes instead of K."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skjepa._utils.validation import check_choice, check_integer, seed_from
from skjepa.data.sources import Source, as_source
from skjepa.encoders.encoder import Encoder, load_encoder
from skjepa.extraction.encoder_pass import extract
from skjepa.extraction.extraction import Extraction
from skjepa.jacobian.direction_search import telling_directions
from skjepa.jacobian.directions import (
    Directions,
    ViewSettings,
    check_number_of_directions,
    exact_samples_needed,
    principal_directions,
    random_directions,
)
from skjepa.jacobian.spectrum import gram_matrices
from skjepa.jacobian.volume import log_volume

CHOICES = ("learned", "random", "principal")

N_EXACT = 300
"""Default number of samples that are measured exactly; fewer where X has fewer."""

_SMALL = 1e-2  # share of the median largest singular value; the search ignores smaller singular values


def learn_directions(
    encoder: Encoder | str,
    X: Any,
    n_directions: int | None = None,
    *,
    n_exact: int = N_EXACT,
    choice: str = "random",
    random_state: Any = None,
    **options: Any,
) -> Directions:
    """Learn m output directions and a correction, so that scoring takes m backward passes instead of K.

    K is the number of encoder outputs. Some normal samples are measured exactly, by K passes and then m passes each;
    a regression on them predicts the exact log-volume from the m directions.

    Parameters
    ----------
    encoder : Encoder or str
        What `load_encoder` returns, or anything that it accepts.
    X : data
        Normal samples, in any form that `extract` accepts.
    n_directions : int, optional
        Number m of directions, which is the number of backward passes per sample; by default K / 4. With m = K the
        score is exact.
    n_exact : int
        Number of samples to measure exactly, drawn at random; fewer where X has fewer.
    choice : {"learned", "random", "principal"}
        How the directions U are chosen.

        - "random": uniformly distributed orthonormal directions. With the correction they come closer to the exact
          score than principal ones (docs/results/fewer-passes.md);
        - "principal": eigenvectors of the m largest eigenvalues of the mean of J J^T, summed in float64;
        - "learned": the directions that predict the log-volume of the exact samples best, found by gradient descent,
          see `skjepa.jacobian.telling_directions`. Holds J J^T of all exact samples in float32, 4 n V K^2 bytes. The
          out-of-fold error of the correction is then too small, since U was fitted on all exact samples.
    random_state : int, RandomState or Generator, optional
        Seed of the draw of samples, the directions and the views.
    **options
        Options of `extract`: layers, views, transform, device, memory_budget, n_jobs, on_error, progress. Hidden
        layers improve the correction for samples whose layers are read as well.

    Returns
    -------
    Directions
        For ``extract(..., method=)`` and ``JEPAScoreDetector(method=)``. It keeps the embeddings, hidden layers and
        singular values of the measured samples, but not the samples.

    Raises
    ------
    ValueError
        If there are fewer exact samples than `skjepa.jacobian.exact_samples_needed` returns (the message gives the
        number), or more directions than K.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from skjepa import extract, learn_directions, load_encoder
    >>> X, _ = np.random.default_rng(0).normal(size=(80, 6)), torch.manual_seed(0)
    >>> encoder = load_encoder(torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4)))
    >>> directions = learn_directions(encoder, X, 2)
    >>> extract(encoder, X, method=directions).singular_values.shape
    (80, 1, 2)
    """
    for name in ("method", "store", "memory", "observe"):
        if name in options:
            raise TypeError(f"learn_directions does not take {name}: save and reuse the Directions that it returns")
    check_choice("choice", choice, CHOICES)
    encoder, n_directions = load_encoder(encoder), check_number_of_directions(n_directions)
    seed = seed_from(random_state)
    if isinstance(X, Extraction):
        raise TypeError("X is an Extraction, which keeps no Jacobians: give the samples themselves")
    chosen = _draw(as_source(X), check_integer("n_exact", n_exact, minimum=1), seed)
    _require_enough(len(chosen), n_directions or 1)
    kinds: dict[str, type[_NoGram | _EachGram | _MeanGram]] = {"learned": _EachGram, "principal": _MeanGram}
    grams = kinds.get(choice, _NoGram)()
    exact = extract(encoder, chosen, random_state=seed, observe=grams.add, **options)
    n_directions = check_number_of_directions(n_directions, exact.embeddings.shape[1])
    assert n_directions is not None  # K is known
    _require_enough(len(exact), n_directions)
    components = grams.directions(exact, n_directions, seed)
    bare = Directions(components, encoder.fingerprint)
    readable = chosen[np.isin(chosen.ids, exact.ids)]
    seen = extract(encoder, readable, random_state=seed, method=bare, **{**options, "layers": None})
    has_deviations = exact.meta.get("layers_pooled", False)  # layers of tables have none
    return replace(
        bare,
        embeddings=exact.embeddings,
        singular_values=exact.spectra,
        subspace_values=seen.spectra,
        view_settings=ViewSettings(views=exact.meta["views"], transform=exact.meta["transform"]),
        layers={name: values.astype(np.float32) for name, values in exact.layers.items() if has_deviations},
    )


def learned_directions(
    exact: Extraction, grams: NDArray[np.floating], n_directions: int, seed: int
) -> NDArray[np.float64]:
    """Return directions (K, m) found by gradient descent on exact samples.

    `grams` holds J J^T, (n * V, K, K), with the views of a sample next to each other.
    """
    sigma, n_components = exact.spectra, exact.embeddings.shape[1]
    start = random_directions(n_components, n_directions, seed=seed).components
    if n_directions == n_components:
        return start  # K directions span all outputs, whichever they are
    floor = max(_SMALL * float(np.median(sigma[..., 0])), np.finfo(float).tiny)
    embeddings = np.repeat(exact.embeddings, sigma.shape[1], axis=0)
    return telling_directions(grams, embeddings, log_volume(sigma, floor=floor).ravel(), start, floor=floor, seed=seed)


class _NoGram:
    """Draw random directions, which need no matrices."""

    def add(self, jacobians: Tensor) -> None:
        pass

    def directions(self, exact: Extraction, n_directions: int, seed: int) -> NDArray[np.float64]:
        return random_directions(exact.embeddings.shape[1], n_directions, seed=seed).components


class _EachGram:
    """Keep J J^T of every sample in float32, from batches of Jacobians (B, K, D)."""

    def __init__(self) -> None:
        self.grams: list[NDArray[np.float32]] = []

    def add(self, jacobians: Tensor) -> None:
        self.grams.extend(gram_matrices(jacobians).to("cpu", torch.float32).numpy())

    def directions(self, exact: Extraction, n_directions: int, seed: int) -> NDArray[np.float64]:
        # Matrices arrive batch by batch and, after a lack of memory, some twice: match them by trace = sum sigma^2.
        found = np.array([np.trace(gram, dtype=np.float64) for gram in self.grams])
        wanted = (exact.spectra**2).sum(axis=2).ravel()
        order = np.argsort(found)
        place = np.clip(np.searchsorted(found[order], wanted), 1, len(found) - 1)
        nearer = np.abs(found[order[place - 1]] - wanted) < np.abs(found[order[place]] - wanted)
        grams = np.stack([self.grams[i] for i in order[place - nearer]])
        return learned_directions(exact, grams, n_directions, seed)


class _MeanGram:
    """Keep the mean of J J^T over batches of Jacobians (B, K, D)."""

    def __init__(self) -> None:
        self.total: Any = 0
        self.count = 0

    def add(self, jacobians: Tensor) -> None:
        self.total = self.total + gram_matrices(jacobians).sum(0).cpu()
        self.count += len(jacobians)

    def directions(self, exact: Extraction, n_directions: int, seed: int) -> NDArray[np.float64]:
        return principal_directions((self.total / self.count).numpy(), n_directions)


def _draw(source: Source, n: int, seed: int) -> Source:
    """Draw at most n different samples at random, in their original order."""
    first = np.sort(np.unique(source.ids, return_index=True)[1])
    if len(first) > n:
        first = np.sort(np.random.default_rng(seed).choice(first, n, replace=False))
    return source[first]


def _require_enough(n: int, n_directions: int) -> None:
    needed = exact_samples_needed(n_directions)
    if n < needed:
        raise ValueError(
            f"got {n} different samples; {n_directions} directions and their correction need {needed} exact ones. Give "
            "more samples, a larger n_exact, fewer directions, or method='exact'"
        )
