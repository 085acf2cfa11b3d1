"""Hidden layers position by position: what `pooling` takes the mean and the standard deviation of."""

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
"""Of the grid of positions: a model of each costs memory."""

MOST_LAYERS = 4
MOST_CHANNELS = 384
"""Of each layer, at each cell of the grid."""

_MOST_PREFIX = 8
_FINER, _COARSER = 4, 2  # times: what is finer shows edges and noise, what is coarser no place


@dataclass(frozen=True)
class LayerPositions:
    """What a layer returned of a batch, one row of channels for each position.

    Attributes
    ----------
    values : tensor of shape (B, P, C), float32 or float64
        Of a vector P is 1.
    grid : (int, int) or None
        Rows and columns of the last ``rows * columns`` positions in the picture; None where positions lie on no grid:
        vectors, series.
    is_vector : bool
        Whether the layer has no positions, and is read as it is.
    """

    values: Tensor
    grid: tuple[int, int] | None
    is_vector: bool = False

    @property
    def n_outside(self) -> int:
        """Positions that are no place of the picture: the class token and registers of a transformer come first."""
        rows, columns = self.grid or (0, 0)
        return self.values.shape[1] - rows * columns

    def maps(self) -> Tensor:
        """The positions on the grid as feature maps, (B, C, rows, columns)."""
        if self.grid is None:
            raise ValueError("these positions lie on no grid")
        return self.values[:, self.n_outside :].transpose(1, 2).unflatten(2, self.grid)


def positions_of(caught: dict[str, Any], path: str, module: nn.Module, x: Tensor) -> LayerPositions:
    """Of one layer; raises as the pooled layer does where it yields no tensor with a row per sample."""
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
    """Rows and columns of the tokens of a picture of `size`, less those that stand before them.

    The module says how many these are (timm's ``num_prefix_tokens``), or else as few as leave a grid in the proportions
    of the picture: 197 tokens of a square picture are 1 + 14 x 14. None where none of the first eight counts does, or
    the input is no picture.
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
    """The grid to which layers are brought, and which of them: None and no layer where none has a grid.

    The finest of at most `MOST_CELLS` cells, or the coarsest halved until it has no more; the layers that are at most
    four times as fine and not below half as fine, at most `MOST_LAYERS` at even distances, the last one among them.
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
    """The channels of several layers side by side at each cell of a grid, (B, rows * columns * channels).

    Each layer is averaged over 3 x 3 of its own positions, and then over the positions of a cell, or interpolated. Of
    more than `MOST_CHANNELS` channels so many random sums take the place, the same at each call.
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
    """What a layer returned of a batch `x`, float32 or float64; raises where it is no tensor with a row per sample."""
    if is_missing:
        raise ValueError(f"layer {path!r} takes no part in the forward pass")
    if not isinstance(value, Tensor):
        raise TypeError(f"layer {path!r} returns {type(value).__name__}, not a tensor; choose another")
    if not is_readable(value, x.shape[0]):
        raise ValueError(
            f"layer {path!r} returns shape {tuple(value.shape)} for {len(x)} samples; a layer must return (B, C), "
            "tokens (B, N, C) or feature maps (B, C, H, W): choose another"
        )
    return value.to(torch.promote_types(value.dtype, torch.float32))


def is_readable(value: Any, n_samples: int) -> bool:
    """Whether a layer's output is a tensor with a row per sample: (B, C), tokens (B, N, C) or maps (B, C, H, W)."""
    # Not by len(), which would fix the size of an exported batch.
    return isinstance(value, Tensor) and 2 <= value.ndim <= 4 and value.shape[0] == n_samples


def is_series(value: Tensor, module: nn.Module, path: str) -> bool:
    """Whether an output (B, C, T) has its channels first, as those of one-dimensional convolutions; tokens are last."""
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
