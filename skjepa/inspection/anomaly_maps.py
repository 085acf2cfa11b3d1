"""Split the surprises of hidden layers among positions or columns, to show where a sample is anomalous."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from skjepa._utils.shown import SHOWN, html_pictures, html_table
from skjepa.encoders.stages import INPUT
from skjepa.extraction.batches.positions import LayerPositions
from skjepa.extraction.position_pass import PositionBatch
from skjepa.inspection.heat import heat_picture
from skjepa.scores.layered import OUTPUT, LayeredScore
from skjepa.scores.layers import LinearPart
from skjepa.scores.shares import layer_shares

SMOOTHING = 1 / 14
"""Standard deviation of the smoothing of maps, as a share of the sides of the encoder's input."""

_FINEST = 28  # cells per side, to which finer grids are reduced before they are summed


@dataclass(frozen=True, eq=False, repr=False)
class AnomalyMaps:
    """Contributions of positions or columns to the surprises of hidden layers; higher = more anomalous.

    For every sample, all shares and `outside` add up to the sum over layers of weight (r - log 2), where r is the
    surprise of the layer in the default score. This sum is minus the terms "layer ..." of the score, up to a constant.
    For samples of the fit the surprises are in-sample, and so lower than for new samples.

    Attributes
    ----------
    shares : dict of layer -> array of shape (n_samples, rows, columns) or (n_samples, d)
        In nats: for each layer with a grid of positions an array of the first shape. For a table the only layer is
        "input", with one share per column.
    outside : array of shape (n_samples,)
        Contributions without a position: the embedding, class tokens, and hidden layers of networks on vectors.
    input_size : (int, int) or None
        Height and width of the encoder's input; None for vectors.
    """

    shares: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    outside: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    input_size: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.outside)

    def __repr__(self) -> str:
        return f"AnomalyMaps({len(self)} samples; layers: {', '.join(self.shares) or 'none'})"

    def _repr_html_(self) -> str:
        """Return the combined maps of the first samples on one scale as HTML, red where they are odd."""
        if self.input_size is None or not self.shares:
            return html_table(("AnomalyMaps", ""), [("samples", str(len(self))), ("layers", ", ".join(self.shares))])
        maps = self.combined()[:SHOWN]
        limit = float(np.abs(maps).max(initial=0.0))
        title = f"{len(maps)} of {len(self)} maps, one scale: red is odd"
        pictures = [
            (heat_picture(own, limit), f"{total:.1f} nats") for own, total in zip(maps, self.total, strict=False)
        ]
        return html_pictures(pictures, title=title)

    @property
    def total(self) -> NDArray[np.float64]:
        """Sum of all shares and `outside`, (n_samples,), in nats."""
        sums = [values.reshape(len(values), -1).sum(axis=1) for values in self.shares.values()]
        return np.sum([self.outside, *sums], axis=0)

    def combined(self) -> NDArray[np.float64]:
        """Return the shares of all layers on one grid, smoothed, in nats per cell, (n_samples, rows, columns)."""
        if not self.shares:
            raise ValueError(
                "no layer has a grid of positions: use an encoder with feature maps or tokens, and give layers='auto'"
            )
        rows, columns = (min(_FINEST, max(values.shape[k] for values in self.shares.values())) for k in (1, 2))
        total = np.sum([resampled(values, (rows, columns)) for values in self.shares.values()], axis=0)
        return smoothed(total)


def maps_of_batch(models: Sequence[LayeredScore], batch: PositionBatch, input_size: tuple | None) -> AnomalyMaps:
    """Return the maps of some samples, averaged over models."""
    layers = batch.statistics | {OUTPUT: batch.embeddings}
    shares: dict[str, NDArray] = {}
    outside = np.zeros(len(batch.places))
    for model in models:
        for name, parts in layer_shares(model, {name: layers[name] for name in model.chain.deviations}).items():
            placed, rest = _spread(parts, batch.layers.get(name), layers[name], is_table=input_size is None)
            outside += rest / len(models)
            if placed is not None:
                shares[name] = shares.get(name, 0.0) + placed / len(models)
    return AnomalyMaps(shares, outside, input_size)


def column_shares(model: LayeredScore, layers: Mapping[str, NDArray]) -> NDArray[np.float64] | None:
    """Return the contribution of each column of a table to the surprises of the layers, (n_samples, d).

    Return None where the score does not read the rows themselves.

    Parameters
    ----------
    model : LayeredScore
    layers : dict of name -> array of shape (n_samples, p)
        Layers of a table, with the embedding under the name "output".
    """
    if INPUT not in model.chain.deviations:
        return None
    return _by_column(layer_shares(model, layers)[INPUT], layers[INPUT])


def joined(parts: Sequence[AnomalyMaps]) -> AnomalyMaps:
    """Join the maps of several batches; of none, the result is empty."""
    if not parts:
        return AnomalyMaps()
    shares = {name: np.concatenate([part.shares[name] for part in parts]) for name in parts[0].shares}
    return AnomalyMaps(shares, np.concatenate([part.outside for part in parts]), parts[0].input_size)


def _spread(
    parts: Sequence[LinearPart], layer: LayerPositions | None, statistics: NDArray, *, is_table: bool
) -> tuple[NDArray[np.float64] | None, NDArray[np.float64]]:
    """Return the shares on the grid of a layer, or in the columns of a table, and the sum of all others."""
    if is_table and parts[0].layer == INPUT:
        return _by_column(parts, statistics), np.zeros(len(statistics))
    slope, constant = _summed(parts)
    if layer is None or layer.grid is None:
        return None, (slope * statistics).sum(axis=1) - constant
    found = position_shares(layer.values, slope, statistics, constant)
    n = layer.n_outside
    return found[:, n:].reshape(len(found), *layer.grid), found[:, :n].sum(axis=1)


def _summed(parts: Sequence[LinearPart]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the total slope of all parts of a layer, (n_samples, p), and their total offset, (n_samples,)."""
    slope = np.sum([part.slope for part in parts], axis=0)
    return slope, np.sum([part.offset.sum(axis=1) + part.constant for part in parts], axis=0)


def _by_column(parts: Sequence[LinearPart], rows: NDArray) -> NDArray[np.float64]:
    """Return the share of each column relative to its usual value; parts without a column are split evenly."""
    shares = np.sum([part.slope * rows - part.offset for part in parts], axis=0)
    return shares - np.sum([part.constant for part in parts], axis=0)[:, None] / rows.shape[1]


def position_shares(values: Tensor, slope: NDArray, statistics: NDArray, constant: NDArray) -> NDArray[np.float64]:
    """Split ``slope @ statistics - constant`` into shares of the positions, (B, P), which sum to it.

    The statistics of a channel are its mean m and its standard deviation s over P positions. Position p with value x_p
    contributes x_p / P to m and (x_p - m)^2 / (P s) to s.

    Parameters
    ----------
    values : tensor of shape (B, P, C)
    slope, statistics : arrays of shape (B, 2 C)
    constant : array of shape (B,)
    """
    n_positions = values.shape[1]
    mean, spread = np.hsplit(np.asarray(statistics), 2)
    of_mean, of_spread = np.hsplit(slope, 2)
    of_square = np.divide(of_spread, spread, out=np.zeros_like(of_spread), where=spread > 0)

    def column(numbers: NDArray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(numbers)).to(values.device, values.dtype)

    centred = values - column(mean)[:, None]
    found = torch.bmm(centred, column(of_mean)[:, :, None]) + torch.bmm(centred**2, column(of_square)[:, :, None])
    level = (of_mean * mean).sum(axis=1) - constant
    return (found[:, :, 0].cpu().double().numpy() + level[:, None]) / n_positions


def resampled(maps: NDArray, grid: tuple[int, int]) -> NDArray[np.float64]:
    """Resample maps of amounts per cell, (n, rows, columns), to another grid.

    Finer cells are averaged, and coarser ones interpolated linearly. The sum of a map stays, except for amounts that
    interpolation moves over the border.
    """
    rows, columns = maps.shape[1:]
    tensor = torch.from_numpy(np.ascontiguousarray(maps, dtype=np.float64))[:, None]
    if (rows, columns) != grid:
        tensor = torch.nn.functional.interpolate(tensor, grid, mode="bilinear", antialias=True, align_corners=False)
    return tensor[:, 0].numpy() * (rows * columns) / (grid[0] * grid[1])


def smoothed(maps: NDArray[np.float64], share: float = SMOOTHING) -> NDArray[np.float64]:
    """Smooth maps (n, rows, columns) by a Gaussian whose standard deviation is this share of their sides."""
    _, rows, columns = maps.shape
    return gaussian_filter(maps, (0, share * rows, share * columns), mode="nearest")
