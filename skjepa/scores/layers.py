"""Measure how surprising each layer of an encoder is given the layer before, by Gaussians of pooled statistics."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from sklearn.preprocessing import normalize

from skjepa.persistence.folder import portable
from skjepa.persistence.schema import Above
from skjepa.scores.mahalanobis import ShrunkMahalanobis

_CONSTANT = 1e-3  # smallest deviation of a channel, as a share of the layer's median deviation
LARGEST = 1e60  # value at which rows are clipped, so that squares stay finite

Rows = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class LinearPart:
    """Hold the contribution of one layer's statistics f to a surprise, which is linear in f.

    The contribution to a sample is the sum of ``slope * f - offset``, minus ``constant``.

    Attributes
    ----------
    layer : str
    slope, offset : arrays of shape (n_samples, p)
        The offset is the slope times the usual value of the statistic, so that a usual value contributes nothing.
    constant : array of shape (n_samples,)
    """

    layer: str
    slope: NDArray[np.float64]
    offset: NDArray[np.float64]
    constant: NDArray[np.float64]

    def scaled(self, factor: NDArray[np.float64], less: NDArray[np.float64] | float = 0.0) -> "LinearPart":
        """Return the part with `less` subtracted, times a factor per sample."""
        by_row = factor[:, None]
        return LinearPart(self.layer, by_row * self.slope, by_row * self.offset, factor * (self.constant + less))


@portable
class LayerChain:
    r"""Measure per layer how unlike normal samples a sample is, beyond what the layer before has shown.

    The rows u_l of layer l are its statistics divided by their standard deviations over the fit samples, and brought to
    unit length where `is_unit`. Let m(A) be the squared Mahalanobis distance of A (`ShrunkMahalanobis`) and S_l the
    square root of the total variance of u_l. Then

        c_1 = sqrt(m(u_1)),    c_l = m([u_{l-1} / S_{l-1}, u_l / S_l]) - m(u_{l-1})

    For l > 1, c_l is, up to constants, twice the negative log-density of layer l given the layer before, under one
    Gaussian of both.

    Attributes
    ----------
    is_unit : bool
        Whether rows are brought to unit length. True for images; the layers of a table are compared as they are.
    deviations : dict of name -> array of shape (p,)
        Standard deviations of the statistics.
    spreads : dict of name -> float
        S_l.
    alone : dict of name -> ShrunkMahalanobis
        Gaussian of u_l, for every layer but the last.
    joined : dict of name -> ShrunkMahalanobis
        Gaussian of a layer together with the layer before it, for every layer but the first.
    fit_surprises : dict of name -> array of shape (n_samples,)
        c_l of each fit sample as if it had been left out.
    """

    is_unit: bool
    deviations: dict[str, Annotated[NDArray[np.float64], "_", Above(0)]]
    spreads: dict[str, Annotated[float, Above(0)]]
    alone: dict[str, Annotated[ShrunkMahalanobis, "n"]]
    joined: dict[str, Annotated[ShrunkMahalanobis, "n"]]
    fit_surprises: dict[str, Annotated[NDArray[np.float64], "n"]]

    def __init__(self, *, is_unit: bool) -> None:
        self.is_unit = is_unit

    def fit(self, layers: Mapping[str, NDArray]) -> "LayerChain":
        """Learn from the statistics of each layer, (n_samples, p), in the order of the forward pass."""
        self.deviations = {name: _deviations(np.asarray(rows, np.float64)) for name, rows in layers.items()}
        rows, names = self.rows(layers), list(layers)
        self.spreads = {name: float(np.sqrt(u.var(axis=0).sum())) or 1.0 for name, u in rows.items()}
        self.alone = {name: ShrunkMahalanobis().fit(rows[name]) for name in (names[:-1] or names)}
        self.joined = {
            name: ShrunkMahalanobis().fit(self._both(rows, before, name)) for before, name in pairwise(names)
        }
        self.fit_surprises = self._surprises(
            {name: fitted.fit_distances_ for name, fitted in self.alone.items()},
            {name: fitted.fit_distances_ for name, fitted in self.joined.items()},
        )
        return self

    def surprises(self, layers: Mapping[str, NDArray]) -> Rows:
        """Return c_l of each layer, (n_samples,) each; higher = less like normal samples."""
        rows, names = self.rows(layers), list(self.deviations)
        return self._surprises(
            {name: fitted.distances(rows[name]) for name, fitted in self.alone.items()},
            {
                name: fitted.distances(self._both(rows, before, name))
                for (name, fitted), before in zip(self.joined.items(), names, strict=False)
            },
        )

    def coordinates(self, layers: Mapping[str, NDArray], n_axes: int) -> Rows:
        """Where u_l lies along the widest axes of each layer but the last, see `ShrunkMahalanobis.coordinates`."""
        rows = self.rows(layers)
        return {name: fitted.coordinates(rows[name], n_axes) for name, fitted in self.alone.items()}

    def log_lengths(self, layers: Mapping[str, NDArray]) -> Rows:
        """Logarithm of the length of each row before it was brought to 1, (n_samples,) a layer; none of a table."""
        if not self.is_unit:
            return {}
        return {name: np.log(self._lengths(layers[name], name)) for name in self.deviations}

    def linear_parts(self, layers: Mapping[str, NDArray]) -> dict[str, list[LinearPart]]:
        """Return c_l of each layer as a sum of parts that are linear in statistics, at these samples.

        A squared distance is the inner product of a slope, S^-1 (u - mean), with u - mean. Here u is the statistics
        divided by their deviations and, where `is_unit`, by the length of the row.
        """
        rows, names = self.rows(layers), list(self.deviations)
        lengths = {name: self._lengths(layers[name], name) for name in names}

        def part(name: str, slope: NDArray, location: NDArray, spread: float) -> LinearPart:
            raw = slope / spread / self.deviations[name] / lengths[name][:, None]
            return LinearPart(name, raw, slope * location, np.zeros(len(slope)))

        alone = {
            name: part(name, fitted.slopes(rows[name]), fitted.location_, 1.0) for name, fitted in self.alone.items()
        }
        root = np.sqrt(np.maximum(self.alone[names[0]].distances(rows[names[0]]), 1e-300))
        found = {names[0]: [alone[names[0]].scaled(1 / root)]}
        for before, name in pairwise(names):
            fitted, width = self.joined[name], len(self.deviations[before])
            slopes = fitted.slopes(self._both(rows, before, name))
            found[name] = [
                part(name, slopes[:, width:], fitted.location_[width:], self.spreads[name]),
                part(before, slopes[:, :width], fitted.location_[:width], self.spreads[before]),
                alone[before].scaled(np.full(len(root), -1.0)),
            ]
        return found

    def _lengths(self, values: NDArray, name: str) -> NDArray[np.float64]:
        if not self.is_unit:
            return np.ones(len(values))
        length = np.linalg.norm(np.asarray(values, dtype=np.float64) / self.deviations[name], axis=1)
        return np.where(length > 0, length, 1.0)  # scikit-learn's normalize, too, leaves rows of zeros as they are

    def rows(self, layers: Mapping[str, NDArray]) -> Rows:
        """Return u_l of each layer, (n_samples, p)."""
        found = {}
        for name, deviations in self.deviations.items():
            with np.errstate(over="ignore"):
                scaled = np.asarray(layers[name], dtype=np.float64) / deviations
            scaled = np.clip(scaled, -LARGEST, LARGEST)
            found[name] = normalize(scaled) if self.is_unit else scaled
        return found

    def _both(self, rows: Rows, before: str, name: str) -> NDArray[np.float64]:
        return np.hstack([rows[before] / self.spreads[before], rows[name] / self.spreads[name]])

    def _surprises(self, alone: Rows, joined: Rows) -> Rows:
        names = list(self.deviations)
        found = {names[0]: np.sqrt(alone[names[0]])}
        return found | {name: joined[name] - alone[before] for before, name in pairwise(names)}

    def portable_check(self) -> None:
        if not hasattr(self, "deviations"):
            return
        names = list(self.deviations)
        expected = [list(self.spreads), list(self.fit_surprises), list(self.alone), list(self.joined)]
        if not names or expected != [names, names, names[:-1] or names, names[1:]]:
            raise ValueError(f"the parts of the chain do not belong to the layers {', '.join(names) or '(none)'}")
        widths = {name: len(values) for name, values in self.deviations.items()}
        for name, fitted in self.alone.items():
            _require_width(fitted, widths[name], name)
        for before, name in pairwise(names):
            _require_width(self.joined[name], widths[before] + widths[name], name)


def _require_width(fitted: ShrunkMahalanobis, width: int, name: str) -> None:
    if fitted.location_.shape != (width,):
        raise ValueError(f"layer {name!r} has {width} statistics, its covariance is for {len(fitted.location_)}")


def _deviations(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the standard deviation of each column, raised to a share of the median one where it hardly varies."""
    deviations = rows.std(axis=0)
    varying = deviations[deviations > 0]
    typical = float(np.median(varying)) if len(varying) else 1.0
    return np.maximum(deviations, _CONSTANT * typical)
