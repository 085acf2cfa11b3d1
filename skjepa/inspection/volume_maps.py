"""Show as heat maps which patches make the log-volume of an image smaller or larger than in normal images.

The maps cover the volume term alone; the densities of the embedding have no such map. ``inspection.shapley`` computes
the shares.
"""

import os
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skjepa import __version__
from skjepa._utils.shown import SHOWN, html_pictures
from skjepa._utils.validation import check_integer
from skjepa.data.one_picture import listed
from skjepa.encoders.encoder import Encoder, load_encoder
from skjepa.extraction.observation import observed
from skjepa.inspection.heat import heat_picture
from skjepa.inspection.shapley import average_gradient, half_logdet, leading_subspace, lifted
from skjepa.jacobian.volume import log_volume
from skjepa.persistence.folder import portable, read_instance, write_folder
from skjepa.persistence.schema import Above
from skjepa.scores.model import fit_score_model


@dataclass(frozen=True, eq=False, repr=False)
class VolumeMaps:
    """Hold the log-volumes of samples, split into contributions of patches.

    For every sample ``volume = baseline + sum of shares + floor + outside``.

    Attributes
    ----------
    ids : array of shape (n_samples,), str
        Ids of the samples that could be read.
    shares : array of shape (n_samples, rows, columns); for vectors (n_samples, groups of features)
        Contribution of each patch to the log-volume in nats, relative to the patch at the same place in normal samples.
        Negative = the patch makes the sample less normal by the volume term.
    baseline : float
        Mean log-volume of normal samples.
    floor : array of shape (n_samples,)
        Contribution of the floor of the singular values, minus its mean over normal samples; 0 where no singular value
        lies under the floor.
    outside : array of shape (n_samples,)
        Contribution of the `rank` largest singular values outside of the leading subspace, minus its mean over normal
        samples. It is 0 where the rank is full or all Jacobians lack the same directions.
    volume : array of shape (n_samples,)
        Exact log-volume of the sample itself, at the floor and rank of the explainer.
    patch_size : int
        Side of a patch in pixels of the encoder's input, or number of features in a group.
    input_shape : tuple of int
        (3, H, W), or (d,).
    """

    ids: NDArray[np.str_]
    shares: NDArray[np.float64]
    baseline: float
    floor: NDArray[np.float64]
    outside: NDArray[np.float64]
    volume: NDArray[np.float64]
    patch_size: int
    input_shape: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        grid = " x ".join(map(str, self.shares.shape[1:]))
        return f"VolumeMaps({len(self)} samples, {grid} patches of {self.patch_size})"

    def _repr_html_(self) -> str:
        """The maps of the first samples on one scale, in red where a patch makes a sample less normal."""
        shown = self.shares[:SHOWN]
        limit = float(np.abs(shown).max(initial=0.0))
        captions = [
            f"{name[:16]}: {volume - self.baseline:+.1f} nats"
            for name, volume in zip(self.ids.tolist(), self.volume, strict=True)
        ]
        grids = [own if own.ndim == 2 else own[None] for own in shown]
        pictures = [(heat_picture(-own, limit), caption) for own, caption in zip(grids, captions, strict=False)]
        title = f"{len(shown)} of {len(self)} maps, one scale: red makes a sample less normal"
        return html_pictures(pictures, title=title)

    def pixels(self, i: int) -> NDArray[np.float64]:
        """Return the share of each pixel's patch for sample `i`, (H, W), or of each feature's group, (d,)."""
        size = self.input_shape[1:] if len(self.input_shape) == 3 else self.input_shape
        spread = self.shares[i]
        for axis in range(spread.ndim):
            spread = np.repeat(spread, self.patch_size, axis=axis)
        return spread[tuple(slice(n) for n in size)]


@portable
@dataclass(frozen=True, eq=False, repr=False)
class VolumeExplainer:
    """Explain the volume term patch by patch, relative to normal samples.

    `learn_volume_explainer` and `JEPAScoreDetector.volume_explainer` make it. The share of a patch is its
    Aumann-Shapley value relative to the mean Gram matrix of normal samples, minus the mean of this value over normal
    samples. The mean is subtracted because patches in the middle of an image, which influence the encoder more, have
    the largest values whatever they show.

    Attributes
    ----------
    encoder : Encoder
    grams : array of shape (n_patches, K, K), float64
        Mean of J_p J_p^T over normal samples, where J_p holds the columns of the Jacobian for patch p.
    expected : array of shape (n_patches + 3,)
        Means over normal samples of the shares of all patches, the contribution of the floor, the contribution outside
        of the leading subspace, and the log-volume.
    patch_size : int
        Side of a patch in pixels of the encoder's input, or number of features in a group.
    input_shape : tuple of int
        (3, H, W), or (d,).
    floor, rank : float, int
        Floor and number of the singular values in the log-volume.
    n_samples : int
        Number of normal samples learned from.
    """

    encoder: Encoder
    grams: Annotated[NDArray[np.float64], "patches K K"]
    expected: Annotated[NDArray[np.float64], "means"]
    patch_size: Annotated[int, Above(0)]
    input_shape: tuple[Annotated[int, Above(0)], ...]
    floor: Annotated[float, Above(0)]
    rank: Annotated[int, Above(0)]
    n_samples: int

    def __repr__(self) -> str:
        grid = " x ".join(map(str, patch_grid(self.input_shape, self.patch_size)))
        return f"VolumeExplainer({self.encoder.name!r}, {grid} patches, {self.n_samples} normal samples)"

    @cached_property
    def _subspace(self) -> NDArray[np.float64]:
        return leading_subspace(self.grams.sum(axis=0), self.rank)

    @cached_property
    def _base_parts(self) -> NDArray[np.float64]:
        """The matrices of all patches in the leading subspace, (n_patches, rank, rank)."""
        return self._subspace.T @ self.grams @ self._subspace

    @cached_property
    def _base(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The mean Gram matrix in the leading subspace with the floor, and the part that the floor added."""
        base = self._base_parts.sum(axis=0)
        with_floor = lifted(base, self.floor)
        return with_floor, with_floor - base

    def explain(self, X: Any, **options: Any) -> VolumeMaps:
        """Compute heat maps of samples.

        Each sample takes K backward passes, where K is the number of encoder outputs. The maps are exact and show the
        sample itself, whatever `method` and `views` the detector has.

        Parameters
        ----------
        X : images or vectors
        **options
            memory_budget, device, n_jobs, on_error and progress, see `skjepa.extract`.

        Returns
        -------
        skjepa.inspection.VolumeMaps

        Raises
        ------
        ValueError, TypeError, MemoryError
            For the reasons listed at `skjepa.extract`, or because inputs have another shape than the normal samples.
        """
        ids, parts = self._parts(X, options)
        own = parts - self.expected
        shares = own[:, :-3]
        return VolumeMaps(
            ids,
            shares.reshape(len(shares), *patch_grid(self.input_shape, self.patch_size)),
            float(self.expected[-1]),
            own[:, -3],
            own[:, -2],
            parts[:, -1],
            self.patch_size,
            self.input_shape,
        )

    def _parts(self, X: Any, options: dict[str, Any]) -> tuple[NDArray[np.str_], NDArray[np.float64]]:
        """Return the ids and the contributions whose mean is `expected`, (n_samples, n_patches + 3)."""
        collected = _Shares(self)
        extraction, places = observed(self.encoder, X, collected.add, options)
        parts = np.stack(collected.rows)[places]
        volume = log_volume(extraction.spectra[:, 0], floor=self.floor, rank=self.rank)
        parts[:, -1] = volume - parts[:, -1]
        return extraction.ids, np.column_stack([parts, volume])

    def share(self, jacobian: Tensor) -> NDArray[np.float64]:
        """Return the contributions of one Jacobian J, (K, D), to the log-volume.

        They are the shares of all patches, the contribution of the floor, and the log-volume in the leading subspace,
        (n_patches + 2,).
        """
        J = _wide(jacobian)
        inner = torch.from_numpy(self._subspace.T).to(J) @ J
        gram = (inner @ inner.T).cpu().numpy()
        base, base_floor = self._base
        with_floor = lifted(gram, self.floor)
        S = average_gradient(with_floor, base)
        energy = 0.5 * ((torch.from_numpy(S.T.copy()).to(J) @ inner) ** 2).sum(dim=0).cpu().numpy()
        labels = patch_labels(self.input_shape, self.patch_size)
        own = np.bincount(labels, weights=energy, minlength=len(self.grams))
        gradient = S @ S.T
        normal = 0.5 * np.tensordot(self._base_parts, gradient, axes=2)
        floor = 0.5 * np.sum(gradient * (with_floor - gram - base_floor))
        return np.concatenate([own - normal, [floor, half_logdet(with_floor)]])

    def save(self, path: str | os.PathLike) -> Path:
        """Write a folder of JSON and safetensors, without pickle, as `JEPAScoreDetector.save` does.

        It takes 8 P K^2 bytes for P patches.
        """
        return write_folder(self, path, versions={"skjepa": __version__})

    @classmethod
    def load(cls, path: str | os.PathLike, *, encoder: Encoder | str | None = None) -> Self:
        """Load an explainer that `save` wrote; `encoder` is needed where `JEPAScoreDetector.load` needs it.

        Raises
        ------
        ValueError, FileNotFoundError
            The folder is damaged, holds another class, or needs `encoder`.
        skjepa.encoders.FingerprintError
            The encoder is not the encoder of the saved explainer.
        """
        return read_instance(cls, path, {} if encoder is None else {"encoder": load_encoder(encoder)})

    def portable_state(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def portable_check(self) -> None:
        if self.encoder.input_shape not in (None, self.input_shape):
            raise ValueError(f"the encoder takes inputs {self.encoder.input_shape}, the explainer {self.input_shape}")
        if int(np.prod(patch_grid(self.input_shape, self.patch_size))) != len(self.grams):
            raise ValueError(f"{len(self.grams)} patches of {self.patch_size} do not fill inputs {self.input_shape}")
        if len(self.expected) != len(self.grams) + 3:
            raise ValueError(f"expected must hold {len(self.grams) + 3} means; got {len(self.expected)}")
        if self.rank > self.grams.shape[1]:
            raise ValueError(f"rank must be at most K = {self.grams.shape[1]}; got {self.rank}")
        np.linalg.cholesky(self._base[0])  # raises where the mean Gram matrix is not positive definite


def learn_volume_explainer(
    encoder: Encoder | str,
    X: Any,
    *,
    patch_size: int | None = None,
    floor: float | str = "auto",
    rank: int | None = None,
    **options: Any,
) -> VolumeExplainer:
    """Learn from normal samples what each patch usually contributes to the volume term.

    Use the result to draw heat maps of the volume term for new samples. It takes 2 K backward passes per sample, where
    K is the number of encoder outputs. `JEPAScoreDetector.volume_explainer` calls this function with the encoder, the
    floor and the rank of a fitted detector.

    Parameters
    ----------
    encoder : Encoder or str
        An encoder, or a name that `skjepa.load_encoder` takes.
    X : images or vectors
        Normal samples; a hundred are enough for a mean.
    patch_size : int, optional
        Side of a patch in pixels of the encoder's input, by default an eighth of the longer side. Patches at the right
        and bottom are smaller where it does not divide the sides. For vectors it is the number of features in a group,
        by default 1.
    floor : float or "auto"
        Smallest singular value in the log-volume, by default learned from X as `JEPAScoreDetector` does.
    rank : int, optional
        Number of singular values in the log-volume, by default learned from X as well.
    **options
        memory_budget, device, n_jobs, on_error and progress, see `skjepa.extract`. A batch needs at least the memory of
        the Jacobian of one image. The matrices of P patches take another 8 P K^2 bytes.

    Returns
    -------
    skjepa.inspection.VolumeExplainer

    Raises
    ------
    ValueError, TypeError, MemoryError
        For the reasons listed at `skjepa.extract`, or because X holds fewer than two samples.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from skjepa import learn_volume_explainer, load_encoder
    >>> X, _ = np.random.default_rng(0).normal(size=(50, 6)), torch.manual_seed(0)
    >>> net = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))
    >>> explainer = learn_volume_explainer(load_encoder(net, precision="float64"), X)
    >>> maps = explainer.explain(X[:3])
    >>> bool(np.allclose(maps.baseline + maps.shares.sum(axis=1) + maps.floor + maps.outside, maps.volume))
    True
    """
    encoder = load_encoder(encoder)
    if patch_size is not None:
        check_integer("patch_size", patch_size, minimum=1)
    X = listed(X)  # it is read twice
    collected = _MeanGrams(encoder, patch_size)
    extraction, _ = observed(encoder, X, collected.add, options)
    model = fit_score_model(extraction, formula="jepa", reference="knn", floor=floor, rank=rank)
    grams = collected.total.numpy() / collected.count
    made = VolumeExplainer(
        encoder,
        grams,
        np.zeros(len(grams) + 3),
        collected.patch_size,
        collected.input_shape,
        model.floor,
        model.rank,
        collected.count,
    )
    return replace(made, expected=made._parts(X, options)[1].mean(axis=0))


def patch_grid(input_shape: tuple[int, ...], patch_size: int) -> tuple[int, ...]:
    """Return the rows and columns of patches in an image (3, H, W), or the number of groups in a vector (d,)."""
    size = input_shape[1:] if len(input_shape) == 3 else input_shape
    return tuple(-(-side // patch_size) for side in size)


def patch_labels(input_shape: tuple[int, ...], patch_size: int) -> NDArray[np.intp]:
    """Return the number of the patch that each of the D entries of an input belongs to, (D,)."""
    grid = patch_grid(input_shape, patch_size)
    numbers = np.arange(np.prod(grid)).reshape(grid)
    size = input_shape[1:] if len(input_shape) == 3 else input_shape
    for axis in range(numbers.ndim):
        numbers = np.repeat(numbers, patch_size, axis=axis)
    numbers = numbers[tuple(slice(side) for side in size)]
    return np.broadcast_to(numbers, input_shape).ravel()


def _wide(jacobian: Tensor) -> Tensor:
    return (jacobian.cpu() if jacobian.device.type == "mps" else jacobian).to(torch.float64)


class _Shares:
    """Collect the rows of `VolumeExplainer.share` for Jacobians (B, K, D) that come in batches."""

    def __init__(self, explainer: VolumeExplainer) -> None:
        self.explainer = explainer
        self.rows: list[NDArray[np.float64]] = []

    def add(self, jacobians: Tensor) -> None:
        expected = int(np.prod(self.explainer.input_shape))
        if jacobians.shape[2] != expected:
            raise ValueError(
                f"the inputs of X have {jacobians.shape[2]} entries, and this explainer learned from inputs with "
                f"{expected}: give inputs of shape {self.explainer.input_shape}"
            )
        self.rows += [self.explainer.share(J) for J in jacobians]


class _MeanGrams:
    """Sum J_p J_p^T of every patch over samples, for Jacobians (B, K, D) that come in batches."""

    def __init__(self, encoder: Encoder, patch_size: int | None) -> None:
        self.input_shape = encoder.input_shape or ()
        self.chosen = patch_size
        self.patch_size, self.count = patch_size or 1, 0
        self.total = torch.zeros(0)

    def add(self, jacobians: Tensor) -> None:
        if not self.count:
            self._begin(jacobians)
        added = torch.zeros_like(self.total, device=self.device)
        for J in jacobians:
            columns = _wide(J)[:, self.order].split(self.sizes, dim=1)
            for gram, part in zip(added, columns, strict=True):
                gram.addmm_(part, part.T)
        self.total += added.cpu()  # added last, because a batch that runs out of memory is repeated in smaller ones
        self.count += len(jacobians)

    def _begin(self, jacobians: Tensor) -> None:
        """Set up the patches, once the first Jacobian shows the width of vectors."""
        n_components, n_inputs = jacobians.shape[1:]
        self.input_shape = self.input_shape or (n_inputs,)
        if self.chosen is None and len(self.input_shape) == 3:
            self.patch_size = max(1, -(-max(self.input_shape[1:]) // 8))
        labels = patch_labels(self.input_shape, self.patch_size)
        self.device = "cpu" if jacobians.device.type == "mps" else jacobians.device
        self.order = torch.from_numpy(np.argsort(labels, kind="stable")).to(self.device)
        self.sizes = np.bincount(labels).tolist()
        self.total = torch.zeros(len(self.sizes), n_components, n_components, dtype=torch.float64)
