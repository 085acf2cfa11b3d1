"""Read hidden layers position by position, without pooling them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skjepa.encoders.outputs import has_square_sides, position_axes
from skjepa.encoders.stages import first_tensor, thinned

MOST_CELLS = 400
"""Largest number of cells of the grid of positions, since a model per cell takes memory."""

MOST_LAYERS = 4
MOST_CHANNELS = 384
"""Largest number of channels per layer at each cell of the grid."""

_MOST_PREFIX = 8
_FINER, _COARSER = 4, 2  # times the grid: finer layers show edges and noise, coarser ones do not locate


@dataclass(frozen=True)
class LayerPositions:
    """Hold the output of a layer for a batch, one row of channels per position.

    Attributes
    ----------
    values : tensor of shape (B, P, C), float32 or float64
        P is the number of positions; 1 for a vector.
    grid : (int, int) or None
        Rows and columns of the grid in the image that the last ``rows * columns`` positions form; None for vectors and
        series, whose positions lie on no grid.
    is_vector : bool
        Whether the layer has no positions.
    """

    values: Tensor
    grid: tuple[int, int] | None
    is_vector: bool = False

    @property
    def n_outside(self) -> int:
        """Number of positions before the grid, such as the class token and registers of a transformer."""
        rows, columns = self.grid or (0, 0)
        return self.values.shape[1] - rows * columns

    def maps(self) -> Tensor:
        """Return the positions on the grid as feature maps, (B, C, rows, columns)."""
        if self.grid is None:
            raise ValueError("these positions lie on no grid: take a layer with feature maps or tokens")
        return self.values[:, self.n_outside :].transpose(1, 2).unflatten(2, self.grid)


def positions_of(caught: dict[str, Any], path: str, module: nn.Module, x: Tensor) -> LayerPositions:
    """Return the positions of one layer; raises as `layer_tensor` does."""
    value = layer_tensor(first_tensor(caught.get(path)), path, x, is_missing=path not in caught)
    if value.ndim == 2:
        return LayerPositions(value[:, None], None, is_vector=True)
    if is_series(value, module, path):
        return LayerPositions(value.transpose(1, 2), None)
    axes = position_axes(value, module, is_square=has_square_sides(x))
    if value.ndim == 3:
        return LayerPositions(value, token_grid(value.shape[1], module, x.shape[2:]))
    value = value if axes == (1, 2) else value.permute(0, 2, 3, 1)
    rows, columns = value.shape[1:3]
    return LayerPositions(value.flatten(1, 2), (rows, columns) if x.ndim == 4 else None)


def token_grid(n_tokens: int, module: nn.Module, size: Sequence[int]) -> tuple[int, int] | None:
    """Return rows and columns of the tokens of an image of `size`, without prefix tokens.

    The number of prefix tokens (class token, registers) is the module's ``num_prefix_tokens``, as in timm. Without it,
    the smallest number is taken that leaves a grid in the proportions of the image: 197 tokens of a square image are
    1 + 14 x 14. None if no number up to eight does, or the input is not an image.
    """
    if len(size) != 2:
        return None
    said = [getattr(part, "num_prefix_tokens", None) for part in module.modules()]
    declared = [number for number in said if isinstance(number, int)]
    for n_prefix in declared[:1] or range(min(n_tokens, _MOST_PREFIX + 1)):
        n = n_tokens - n_prefix
        rows = round(math.sqrt(n * size[0] / size[1]))
        if rows and rows * round(rows * size[1] / size[0]) == n:
            return rows, n // rows
    return None


def chosen_grid(grids: Mapping[str, tuple[int, int] | None]) -> tuple[tuple[int, int] | None, list[str]]:
    """Choose the common grid of several layers, and which layers to resample to it; (None, []) if none has a grid.

    The grid is the finest one with at most `MOST_CELLS` cells, or the coarsest one, halved until it has no more cells.
    Layers are taken that have at least half and at most four times as many rows; of these at most `MOST_LAYERS`, evenly
    spaced, including the last one.
    """
    known = {name: grid for name, grid in grids.items() if grid is not None and grid[0] * grid[1] > 1}
    if not known:
        return None, []
    few = [grid for grid in known.values() if grid[0] * grid[1] <= MOST_CELLS]
    rows, columns = max(few) if few else min(known.values())
    while rows * columns > MOST_CELLS:
        rows, columns = -(-rows // 2), -(-columns // 2)
    near = [name for name, grid in known.items() if rows <= _COARSER * grid[0] and grid[0] <= _FINER * rows]
    return (rows, columns), thinned(near, MOST_LAYERS)


def on_grid(parts: Sequence[LayerPositions], grid: tuple[int, int]) -> Tensor:
    """Resample layers to one grid and concatenate their channels per cell, (B, rows * columns * channels).

    Each layer is averaged over 3 x 3 of its own positions, and then averaged over the positions of each cell or, if it
    is coarser than the grid, interpolated. More than `MOST_CHANNELS` channels are replaced by that number of random
    sums, the same at each call.
    """
    found = []
    for part in parts:
        maps = nn.functional.avg_pool2d(part.maps(), 3, 1, 1, count_include_pad=False)
        if maps.shape[2] >= grid[0] and maps.shape[3] >= grid[1]:
            maps = nn.functional.adaptive_avg_pool2d(maps, grid)
        else:
            maps = nn.functional.interpolate(maps, grid, mode="bilinear", align_corners=False)
        rows = maps.flatten(2).transpose(1, 2)
        if rows.shape[2] > MOST_CHANNELS:
            rows = rows @ _sums(rows.shape[2]).to(rows)
        found.append(rows)
    return torch.cat(found, dim=2).flatten(1)


@cache
def _sums(n_channels: int) -> Tensor:
    drawn = np.random.default_rng(0).normal(size=(n_channels, MOST_CHANNELS)) / np.sqrt(MOST_CHANNELS)
    return torch.from_numpy(drawn)


def layer_tensor(value: Any, path: str, x: Tensor, *, is_missing: bool = False) -> Tensor:
    """Return a layer's output for a batch `x` in float32 or float64; raises if it has no row per sample."""
    if is_missing:
        raise ValueError(f"layer {path!r} is not used in the forward pass: choose another")
    if not isinstance(value, Tensor):
        raise TypeError(f"layer {path!r} returns {type(value).__name__}, not a tensor: choose another")
    if not is_readable(value, x.shape[0]):
        raise ValueError(
            f"layer {path!r} returns shape {tuple(value.shape)} for {len(x)} samples; a layer must return (B, C), "
            "tokens (B, N, C) or feature maps (B, C, H, W): choose another"
        )
    return value.to(torch.promote_types(value.dtype, torch.float32))


def is_readable(value: Any, n_samples: int) -> bool:
    """Return whether an output is a tensor with a row per sample: (B, C), tokens (B, N, C) or maps (B, C, H, W)."""
    # Not len(), which would fix the batch size in an exported model.
    return isinstance(value, Tensor) and 2 <= value.ndim <= 4 and value.shape[0] == n_samples


def is_series(value: Tensor, module: nn.Module, path: str) -> bool:
    """Return whether an output (B, C, T) is a series with channels first, not tokens (B, N, C)."""
    if value.ndim != 3:
        return False
    kinds = [type(part) for part in module.get_submodule(path).modules()] if path else []
    if any(issubclass(kind, nn.Conv1d | nn.BatchNorm1d) for kind in kinds):
        return not any(issubclass(kind, nn.Linear | nn.LayerNorm) for kind in kinds)
    convolutions = [part for part in module.modules() if isinstance(part, nn.Conv1d)]
    channels = {n for part in convolutions for n in (part.in_channels, part.out_channels)}
    features = {part.out_features for part in module.modules() if isinstance(part, nn.Linear)}
    features |= {part.normalized_shape[-1] for part in module.modules() if isinstance(part, nn.LayerNorm)}
    return value.shape[1] in channels and value.shape[2] not in features
