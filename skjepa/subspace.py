"""`learn_directions`: m output directions to score with, and what they leave out, learned from exact normal samples."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skjepa._validation import check_choice, check_integer, seed_from
from skjepa.directions import (
    Directions,
    check_number_of_directions,
    exact_samples_needed,
    principal_directions,
    random_directions,
)
from skjepa.encoders import Encoder, load_encoder
from skjepa.engine import extract
from skjepa.extraction import Extraction
from skjepa.sources import Source, as_source

CHOICES = ("random", "principal")

N_EXACT = 300
"""Samples that are measured exactly unless another number is asked for, or fewer where there are fewer."""

# float64 entries converted at once, as in `skjepa.spectrum`.
_CHUNK_ENTRIES = 2**24


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
    """m of K output directions, and a correction, learned from normal samples, for what they leave out.

    Some of X is measured exactly, by K passes a sample and then m.

    Parameters
    ----------
    encoder : Encoder or str
    X : data
        Normal samples, as `extract` takes them.
    n_directions : int, optional
        m, passes that a sample will cost; by default K / 4. With m = K nothing is left out.
    n_exact : int
        Samples to measure exactly, drawn at random; fewer where X has fewer.
    choice : {"random", "principal"}
        Of U. "random": uniformly distributed orthonormal directions, each of which sees a share of all singular
        values. "principal": eigenvectors of the m largest eigenvalues of the mean of J J^T over the exact samples,
        summed up batch by batch in float64, which see the largest. Corrected, the random ones are nearer to the exact
        score (docs/fewer-passes.md).
    random_state : int, RandomState or Generator, optional
        Seeds the draw, the directions and the views.
    **options
        Of `extract`: views, transform, device, memory_budget, n_jobs, on_error, progress.

    Returns
    -------
    Directions
        For ``extract(..., method=)`` and ``JEPAScoreDetector(method=)``. It keeps no sample, only the embeddings and
        singular values of those that were measured.

    Raises
    ------
    ValueError
        Fewer exact samples than `skjepa.directions.exact_samples_needed` says; names the number needed. More directions
        than K.

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
            raise TypeError(f"learn_directions takes no {name}: keep the Directions that it returns")
    check_choice("choice", choice, CHOICES)
    encoder, n_directions = load_encoder(encoder), check_number_of_directions(n_directions)
    seed = seed_from(random_state)
    if isinstance(X, Extraction):
        raise TypeError("directions are learned from samples, X is an Extraction: its Jacobians are gone")
    chosen = _draw(as_source(X), check_integer("n_exact", n_exact, minimum=1), seed)
    _require_enough(len(chosen), n_directions or 1)
    gram = _MeanGram()
    observe = gram.add if choice == "principal" else None
    exact = extract(encoder, chosen, random_state=seed, observe=observe, **options)
    n_directions = check_number_of_directions(n_directions, exact.embeddings.shape[1])
    assert n_directions is not None  # K is known
    _require_enough(len(exact), n_directions)
    if choice == "principal":
        components = principal_directions(gram.mean(), n_directions)
    else:
        components = random_directions(exact.embeddings.shape[1], n_directions, seed=seed).components
    bare = Directions(components, encoder.fingerprint)
    readable = chosen[np.isin(chosen.ids, exact.ids)]
    seen = extract(encoder, readable, random_state=seed, method=bare, **options)
    return replace(
        bare,
        embeddings=exact.embeddings,
        singular_values=exact.singular_values,
        subspace_values=seen.singular_values,
        view_settings={key: exact.meta[key] for key in ("views", "transform")},
    )


class _MeanGram:
    """The mean of J J^T over Jacobians (B, K, D) that come in batches; they are not kept."""

    def __init__(self) -> None:
        self.total: Any = 0
        self.count = 0

    def add(self, jacobians: Tensor) -> None:
        if jacobians.device.type == "mps":  # no float64 there
            jacobians = jacobians.cpu()
        n_samples, n_rows, _ = jacobians.shape
        for chunk in jacobians.split(max(1, _CHUNK_ENTRIES // (n_samples * n_rows)), dim=2):
            wide = chunk.to(torch.float64)
            self.total = self.total + (wide @ wide.mT).sum(0).cpu()
        self.count += n_samples

    def mean(self) -> Any:
        return (self.total / self.count).numpy()


def _draw(source: Source, n: int, seed: int) -> Source:
    """At most n different samples at random, in their own order."""
    first = np.sort(np.unique(source.ids, return_index=True)[1])
    if len(first) > n:
        first = np.sort(np.random.default_rng(seed).choice(first, n, replace=False))
    return source[first]


def _require_enough(n: int, n_directions: int) -> None:
    needed = exact_samples_needed(n_directions)
    if n < needed:
        raise ValueError(
            f"{n_directions} directions and their correction take {needed} different samples, measured exactly; got "
            f"{n}. Give more (n_exact is their number at the most), take fewer directions or method='exact'"
        )
