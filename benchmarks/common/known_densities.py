"""Distributions whose density is known exactly, to hold scores against.

    distribution("rings").sample(1000, rng)          # (1000, 2) float64
    distribution("rings").log_density(X)             # (n,) in nats

Mixtures of Gaussians in any dimension; in the plane rings and moons: arcs, uniform along the arc, convolved with
isotropic Gaussian noise. A full circle has its density in closed form through a Bessel function, a part of one by
quadrature.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ive, logsumexp
from scipy.stats import multivariate_normal, ortho_group

Floats = NDArray[np.float64]
NAMES = ("mixture", "rings", "moons")
N_NODES = 400
"""Gauss-Legendre nodes on an arc: the relative error stays under 1e-12 for radius times distance up to 500 noise^2."""


class Distribution(Protocol):
    """What `distribution` returns."""

    n_features: int

    def sample(self, n: int, rng: np.random.Generator) -> Floats:
        """Independent samples, (n, n_features)."""

    def log_density(self, X: ArrayLike) -> Floats:
        """Exact log p of each row, in nats; (n,)."""


@dataclass(frozen=True)
class GaussianMixture:
    """Weights (m,), means (m, d), covariances (m, d, d)."""

    weights: Floats
    means: Floats
    covariances: Floats

    @property
    def n_features(self) -> int:
        return self.means.shape[1]

    def sample(self, n: int, rng: np.random.Generator) -> Floats:
        component = rng.choice(len(self.weights), size=n, p=self.weights)
        standard = rng.standard_normal((n, self.n_features))
        factors = np.linalg.cholesky(self.covariances)
        return self.means[component] + np.einsum("nij,nj->ni", factors[component], standard)

    def log_density(self, X: ArrayLike) -> Floats:
        X = np.asarray(X, dtype=np.float64).reshape(-1, self.n_features)
        parts = [
            np.log(weight) + np.atleast_1d(multivariate_normal(mean, covariance).logpdf(X))
            for weight, mean, covariance in zip(self.weights, self.means, self.covariances, strict=True)
        ]
        return logsumexp(parts, axis=0)


@dataclass(frozen=True)
class Arc:
    """Part of a circle from angle `start` to `end` (radians), with Gaussian noise of this standard deviation."""

    centre: tuple[float, float]
    radius: float
    noise: float
    start: float = 0.0
    end: float = 2 * np.pi

    def sample(self, n: int, rng: np.random.Generator) -> Floats:
        angle = rng.uniform(self.start, self.end, n)
        points = self.radius * np.column_stack([np.cos(angle), np.sin(angle)])
        return np.asarray(self.centre) + points + self.noise * rng.standard_normal((n, 2))

    def log_density(self, X: ArrayLike) -> Floats:
        """The noise around the point at angle t, exp(-(rho^2 + r^2 - 2 rho r cos(t - phi)) / 2 s^2), averaged."""
        offset = np.asarray(X, dtype=np.float64).reshape(-1, 2) - self.centre
        rho, phi = np.hypot(*offset.T), np.arctan2(offset[:, 1], offset[:, 0])
        kappa = rho * self.radius / self.noise**2
        # The largest possible exponent is split off, so that nothing overflows however far X lies.
        constant = -((rho - self.radius) ** 2) / (2 * self.noise**2) - np.log(2 * np.pi * self.noise**2)
        if np.isclose(self.end - self.start, 2 * np.pi):
            return constant + np.log(ive(0, kappa))
        nodes, weights = np.polynomial.legendre.leggauss(N_NODES)
        angle = self.start + (self.end - self.start) * (nodes + 1) / 2
        exponent = kappa[:, None] * (np.cos(angle - phi[:, None]) - 1)
        return constant + logsumexp(exponent, b=weights / 2, axis=1)


@dataclass(frozen=True)
class Arcs:
    """A mixture of arcs in the plane."""

    weights: Floats
    arcs: tuple[Arc, ...]
    n_features: int = 2

    def sample(self, n: int, rng: np.random.Generator) -> Floats:
        counts = rng.multinomial(n, self.weights)
        return rng.permutation(
            np.concatenate([arc.sample(count, rng) for arc, count in zip(self.arcs, counts, strict=True)])
        )

    def log_density(self, X: ArrayLike) -> Floats:
        parts = [np.log(weight) + arc.log_density(X) for weight, arc in zip(self.weights, self.arcs, strict=True)]
        return logsumexp(parts, axis=0)


def distribution(name: str, n_features: int = 2, seed: int = 0) -> Distribution:
    """A distribution with exact density.

    Parameters
    ----------
    name : {"mixture", "rings", "moons"}
        "mixture": five Gaussians whose weights, means, axes and spreads follow from `seed`. "rings": circles of radius
        1 and 2, equally often, noise 0.1. "moons": scikit-learn's two half circles, noise 0.1.
    n_features : int
        2 for rings and moons.
    seed : int
        Of the mixture; rings and moons are always the same.

    Raises
    ------
    ValueError
        Unknown name, or rings or moons outside the plane.
    """
    if name not in NAMES:
        raise ValueError(f"name must be one of {', '.join(map(repr, NAMES))}; got {name!r}")
    if name == "mixture":
        return _mixture(n_features, seed)
    if n_features != 2:
        raise ValueError(f"{name} lie in the plane: n_features must be 2; got {n_features}")
    if name == "rings":
        # As many on the inner ring as on the outer: it is twice as dense.
        return Arcs(np.array([0.5, 0.5]), (Arc((0.0, 0.0), 1.0, 0.1), Arc((0.0, 0.0), 2.0, 0.1)))
    upper = Arc((0.0, 0.0), 1.0, 0.1, 0.0, np.pi)
    lower = Arc((1.0, 0.5), 1.0, 0.1, np.pi, 2 * np.pi)
    return Arcs(np.array([0.5, 0.5]), (upper, lower))


def _mixture(n_features: int, seed: int, n_components: int = 5) -> GaussianMixture:
    rng = np.random.default_rng([seed, n_features])
    direction = rng.standard_normal((n_components, n_features))
    means = 4 * direction / np.linalg.norm(direction, axis=1, keepdims=True) * rng.uniform(0.5, 1, (n_components, 1))
    spread = np.exp(rng.uniform(np.log(0.3), 0.0, (n_components, n_features)))
    covariances = []
    for deviation in spread:
        axes = ortho_group.rvs(n_features, random_state=rng) if n_features > 1 else np.eye(1)
        covariances.append(axes * deviation**2 @ axes.T)
    return GaussianMixture(rng.dirichlet(np.full(n_components, 5.0)), means, np.array(covariances))
