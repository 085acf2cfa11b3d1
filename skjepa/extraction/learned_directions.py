"""`learn_directions`: m output directions to score with, and what they leave out, learned from exact normal samples."""

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
"""Samples that are measured exactly unless another number is asked for, or fewer where there are fewer."""

_SMALL = 1e-2  # of the median largest singular value: what lies below is not worth a direction


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
    choice : {"learned", "random", "principal"}
        Of U. "learned": those that tell most about the log-volume of the exact samples, by gradient descent from random
        ones, see `skjepa.jacobian.telling_directions`. It holds the matrices J J^T of all exact samples in float32,
        4 n V K^2 bytes, and the out-of-fold error of the correction is too good, for U has seen all of them. "random":
        uniformly distributed orthonormal directions, each of which sees a share of all singular values. "principal":
        eigenvectors of the m largest eigenvalues of the mean of J J^T, summed up batch by batch in float64, which see
        the largest. Random ones, corrected, are nearer to the exact score than principal ones
        (docs/results/fewer-passes.md).
    random_state : int, RandomState or Generator, optional
        Seeds the draw, the directions and the views.
    **options
        Of `extract`: layers, views, transform, device, memory_budget, n_jobs, on_error, progress. Hidden layers, where
        there are any, help the correction of samples whose layers are read as well.

    Returns
    -------
    Directions
        For ``extract(..., method=)`` and ``JEPAScoreDetector(method=)``. It keeps no sample, only the embeddings,
        hidden layers and singular values of those that were measured.

    Raises
    ------
    ValueError
        Fewer exact samples than `skjepa.jacobian.exact_samples_needed` says; names the number needed. More directions
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
    """U (K, m) from exact samples and their J J^T, (n * V, K, K): the views of a sample one after the other."""
    sigma, n_components = exact.spectra, exact.embeddings.shape[1]
    start = random_directions(n_components, n_directions, seed=seed).components
    if n_directions == n_components:
        return start  # any basis sees all
    floor = max(_SMALL * float(np.median(sigma[..., 0])), np.finfo(float).tiny)
    embeddings = np.repeat(exact.embeddings, sigma.shape[1], axis=0)
    return telling_directions(grams, embeddings, log_volume(sigma, floor=floor).ravel(), start, floor=floor, seed=seed)


class _NoGram:
    """Random directions, which need no matrices."""

    def add(self, jacobians: Tensor) -> None:
        pass

    def directions(self, exact: Extraction, n_directions: int, seed: int) -> NDArray[np.float64]:
        return random_directions(exact.embeddings.shape[1], n_directions, seed=seed).components


class _EachGram:
    """J J^T of every sample, in float32, of Jacobians (B, K, D) that come in batches."""

    def __init__(self) -> None:
        self.grams: list[NDArray[np.float32]] = []

    def add(self, jacobians: Tensor) -> None:
        self.grams.extend(gram_matrices(jacobians).to("cpu", torch.float32).numpy())

    def directions(self, exact: Extraction, n_directions: int, seed: int) -> NDArray[np.float64]:
        # Views come in the order of batches, and some twice where memory ran out: they are known by sum sigma^2.
        found = np.array([np.trace(gram, dtype=np.float64) for gram in self.grams])
        wanted = (exact.spectra**2).sum(axis=2).ravel()
        order = np.argsort(found)
        place = np.clip(np.searchsorted(found[order], wanted), 1, len(found) - 1)
        nearer = np.abs(found[order[place - 1]] - wanted) < np.abs(found[order[place]] - wanted)
        grams = np.stack([self.grams[i] for i in order[place - nearer]])
        return learned_directions(exact, grams, n_directions, seed)


class _MeanGram:
    """The mean of J J^T over Jacobians (B, K, D) that come in batches; they are not kept."""

    def __init__(self) -> None:
        self.total: Any = 0
        self.count = 0

    def add(self, jacobians: Tensor) -> None:
        self.total = self.total + gram_matrices(jacobians).sum(0).cpu()
        self.count += len(jacobians)

    def directions(self, exact: Extraction, n_directions: int, seed: int) -> NDArray[np.float64]:
        return principal_directions((self.total / self.count).numpy(), n_directions)


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
