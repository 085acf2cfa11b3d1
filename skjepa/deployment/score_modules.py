"""Compute the layered score by torch modules in float64, which `export_onnx` writes.

Each module repeats a class of `skjepa.scores` operation by operation; those classes are the reference.
"""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skjepa.deployment.normal_tail import minus_log_upper_tail
from skjepa.scores.densities import GaussianDensity, NearestRows
from skjepa.scores.fit_samples import SeenSamples
from skjepa.scores.layered import DIRECTION, NEIGHBOURS, OUTPUT, LayeredScore, term_of
from skjepa.scores.layers import LARGEST, LayerChain
from skjepa.scores.mahalanobis import ShrunkMahalanobis
from skjepa.scores.tail import FARTHEST

_TINY = 10 * float(np.finfo(np.float64).eps)  # scikit-learn does not normalise shorter rows


class Numbers(nn.Module):
    """Base class of modules with fixed numbers."""

    def hold(self, **arrays: NDArray | list[float]) -> None:
        """Keep arrays as float64 buffers."""
        for name, values in arrays.items():
            self.register_buffer(name, torch.tensor(np.asarray(values, dtype=np.float64)))


def unit_rows(rows: Tensor) -> Tensor:
    """Bring rows, (n, p), to unit length, as `sklearn.preprocessing.normalize` does."""
    norms = torch.sqrt((rows * rows).sum(1, keepdim=True))
    return rows / torch.where(norms < _TINY, torch.ones_like(norms), norms)


class MahalanobisModule(Numbers):
    """Compute `ShrunkMahalanobis.distances`."""

    location_: Tensor
    axes_: Tensor
    precisions_: Tensor

    def __init__(self, fitted: ShrunkMahalanobis) -> None:
        super().__init__()
        self.hold(location_=fitted.location_, axes_=fitted.axes_, precisions_=fitted.precisions_)
        self.others = float(fitted.other_precision_)

    def forward(self, rows: Tensor) -> Tensor:
        centred = rows - self.location_
        along = centred @ self.axes_
        squares = along * along
        found = squares @ self.precisions_
        if self.others:
            rest = (centred * centred).sum(1) - squares.sum(1)
            found = found + self.others * torch.relu(rest)
        return found


class ChainModule(Numbers):
    """Compute `LayerChain.rows` and `LayerChain.surprises`."""

    def __init__(self, chain: LayerChain) -> None:
        super().__init__()
        self.names, self.is_unit, self.spreads = list(chain.deviations), chain.is_unit, dict(chain.spreads)
        self.hold(**{f"deviations_{i}": chain.deviations[name] for i, name in enumerate(self.names)})
        # Lists, because names of layers may hold characters that names of modules may not.
        self.alone = nn.ModuleList(MahalanobisModule(fitted) for fitted in chain.alone.values())
        self.joined = nn.ModuleList(MahalanobisModule(fitted) for fitted in chain.joined.values())

    def rows(self, layers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for i, name in enumerate(self.names):
            scaled = torch.clamp(layers[name] / self.get_buffer(f"deviations_{i}"), -LARGEST, LARGEST)
            found[name] = unit_rows(scaled) if self.is_unit else scaled
        return found

    def forward(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        alone = [module(rows[name]) for module, name in zip(self.alone, self.names, strict=False)]
        found = {self.names[0]: torch.sqrt(alone[0])}
        for i, (before, name) in enumerate(pairwise(self.names)):
            both = torch.cat([rows[before] / self.spreads[before], rows[name] / self.spreads[name]], dim=1)
            found[name] = self.joined[i](both) - alone[i]
        return found


class NearestModule(Numbers):
    """Compute the mean of `NearestRows.distances`."""

    rows: Tensor
    centre: Tensor

    def __init__(self, nearest: NearestRows) -> None:
        super().__init__()
        centre = np.median(nearest.rows, axis=0)
        self.hold(rows=nearest.rows - centre, centre=centre)
        self.n_neighbors = int(nearest.n_neighbors)

    def forward(self, rows: Tensor) -> Tensor:
        squares = squared_distances(rows - self.centre, self.rows)
        nearest = torch.topk(squares, self.n_neighbors, dim=1, largest=False).values
        return torch.sqrt(nearest).mean(1)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return squared distances between rows (n, p) and (m, p), (n, m), none below 0."""
    return torch.relu((a * a).sum(1, keepdim=True) - 2 * (a @ b.T) + (b * b).sum(1))


class GaussianModule(Numbers):
    """Compute `GaussianDensity.score_samples`."""

    location: Tensor
    whitening: Tensor

    def __init__(self, density: GaussianDensity) -> None:
        super().__init__()
        cholesky = density.cholesky
        whitening = np.linalg.solve(cholesky, density.components_)
        self.hold(location=density.location_, whitening=whitening.T)
        self.constant = float(np.log(np.diag(cholesky)).sum() + 0.5 * len(cholesky) * np.log(2 * np.pi))

    def forward(self, embeddings: Tensor) -> Tensor:
        whitened = (embeddings - self.location) @ self.whitening
        return -0.5 * (whitened * whitened).sum(1) - self.constant


class SeenModule(Numbers):
    """Compute `SeenSamples.recall` of the score, which gives fit samples their out-of-sample score."""

    rows: Tensor
    centre: Tensor
    reach: Tensor
    numbers: Tensor
    tolerance: Tensor
    scores: Tensor

    def __init__(self, seen: SeenSamples) -> None:
        super().__init__()
        known = seen.known.as_arrays()
        scores = np.sum(list(seen.values.values()), axis=0)
        self.hold(**{name: known[name] for name in ("rows", "centre", "reach", "numbers", "tolerance")}, scores=scores)
        self.weight = float(known["weight"])

    def forward(self, embeddings: Tensor, numbers: Tensor, otherwise: Tensor) -> Tensor:
        squares = squared_distances(embeddings - self.centre, self.rows)
        apart = torch.abs(numbers[:, None] - self.numbers)
        is_known = (torch.sqrt(squares) <= self.reach) & (apart <= self.tolerance)
        far = torch.full_like(squares, float("inf"))
        nearest = torch.where(is_known, squares + (self.weight * apart) ** 2, far).argmin(1)
        return torch.where(is_known.any(1), self.scores[nearest], otherwise)


class SurprisesModule(Numbers):
    """Compute the weighted sum of `Tail.surprise` for values (n_samples, n_terms)."""

    median: Tensor
    scale: Tensor
    weight: Tensor

    def __init__(self, model: LayeredScore, names: list[str]) -> None:
        super().__init__()
        tails = [model.tails[name] for name in names]
        self.hold(
            median=[tail.median for tail in tails],
            scale=[tail.scale for tail in tails],
            weight=[model.weight[name] for name in names],
        )

    def forward(self, values: Tensor) -> Tensor:
        away = torch.clamp((values - self.median) / self.scale, -FARTHEST, FARTHEST)
        return minus_log_upper_tail(away) @ self.weight


class LayeredModule(nn.Module):
    """Compute `LayeredScore.score_samples` without volume terms, from layers by name in float64."""

    def __init__(self, model: LayeredScore) -> None:
        super().__init__()
        names = [term_of(name) for name in model.chain.deviations]
        names += [NEIGHBOURS] if model.direction is None else [DIRECTION, NEIGHBOURS]
        self.surprises = SurprisesModule(model, names)
        self.chain, self.seen = ChainModule(model.chain), SeenModule(model.seen)
        self.direction = None if model.direction is None else MahalanobisModule(model.direction)
        nearest = model.neighbours
        is_near = isinstance(nearest, NearestRows)
        self.neighbours = NearestModule(nearest) if is_near else GaussianModule(nearest)
        self.is_density, self.neighbours_of = not is_near, model.neighbours_of

    def forward(self, layers: Mapping[str, Tensor]) -> Tensor:
        rows, embeddings = self.chain.rows(layers), layers[OUTPUT]
        found = list(self.chain(rows).values())
        direction = unit_rows(embeddings)
        if self.direction is not None:
            found.append(torch.sqrt(self.direction(direction)))
        if self.is_density:
            found.append(-self.neighbours(embeddings))
        else:
            found.append(self.neighbours(direction if self.neighbours_of is None else rows[self.neighbours_of]))
        return self.seen(embeddings, found[0], -self.surprises(torch.stack(found, dim=1)))
