"""Fewer passes: m output directions in the place of all K, and a regression that tells what they leave out."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import cross_val_predict

from skjepa._utils.statistics import affine, spearman
from skjepa._utils.validation import check_integer
from skjepa.jacobian.control_variate import TwoStageRidge, activations, deviation_floors, folds
from skjepa.jacobian.pass_method import PassMethod
from skjepa.jacobian.volume import PAPER_FLOOR, log_volume
from skjepa.persistence.folder import portable
from skjepa.persistence.schema import Above, Mark, MayLack

DEFAULT_SHARE = 4
"""m = K / 4 where no number of directions is given; docs/results/fewer-passes.md has the curve."""

MIN_EXACT = 50
"""Exact samples that a correction takes at the least, and `EXACT_A_DIRECTION` for each direction."""

EXACT_A_DIRECTION = 3


@portable
@dataclass(frozen=True, eq=False)
class Correction:
    r"""Exact log-volume from an embedding z and the m singular values of U^T J, by ridge regression.

    The regression is of what the log-volume of U^T J lacks, on z and on the logarithms of the singular values, so that
    with m = K nothing is changed. Where hidden layers were read, a second one tells from them what the first leaves.

    Attributes
    ----------
    floor, rank : float, int
        Of the log-volume that is predicted, and of that of U^T J.
    intercept, coef : float, array of shape (K + m + W,)
        What is added to the log-volume of U^T J: affine in z, log singular values, and of each layer the means and the
        logarithms of deviations of its channels.
    residual_ : float
        Root mean square of exact less predicted log-volume, in nats, out of fold.
    spearman_ : float
        Rank correlation of exact and predicted, out of fold.
    deviation_floors : dict of layer -> float
        The layers that are used, and what their deviations are at the least; empty where none are.
    """

    floor: Annotated[float, Above(0)]
    rank: Annotated[int, Above(0)]
    intercept: Annotated[float, Mark.FINITE]
    coef: Annotated[NDArray[np.float64], "features", Above(-1e100, below=1e100)]
    residual_: float
    spearman_: float
    deviation_floors: MayLack[dict[str, Annotated[float, Above(0)]]] = field(default_factory=dict)

    @classmethod
    def from_portable_state(cls, state: dict[str, Any], given: dict[str, Any]) -> "Correction":
        return cls(**state)  # those of earlier versions lack the last attribute

    def log_volume(
        self, embeddings: ArrayLike, sigma: ArrayLike, layers: Mapping[str, NDArray[Any]] | None = None
    ) -> NDArray[np.float64]:
        """Predicted exact log-volume in nats, (n, V).

        Parameters
        ----------
        embeddings : array of shape (n, K)
        sigma : array of shape (n, V, m)
            Singular values of U^T J.
        layers : dict of layer -> array of shape (n, 2 C), optional
            Those of `skjepa.Extraction`, where the correction uses some.
        """
        sigma = np.asarray(sigma, dtype=np.float64)
        raw = log_volume(sigma, floor=self.floor, rank=self.rank)
        rows = _features(embeddings, sigma, self.floor, layers or {}, self.deviation_floors)
        return raw + self.intercept + rows @ self.coef


class ViewSettings(TypedDict):
    """Of the samples that directions were learned from."""

    views: int
    transform: str | None


@portable
@dataclass(frozen=True, eq=False, repr=False)
class Directions:
    """Orthonormal output directions U of one encoder: the singular values of U^T J take m passes, those of J take K.

    Made by `skjepa.learn_directions`, and frozen: whoever shares them shares extractions made with them.

    Attributes
    ----------
    components : array of shape (K, m), float64
        U.
    encoder : str or None
        Fingerprint of the encoder they are for; None for random ones, which fit any of K outputs.
    embeddings : array of shape (n, K), or None
        Of the samples that were measured exactly, as all arrays below. None where there were none: such directions
        have no correction.
    singular_values, subspace_values : arrays of shape (n, V, R) and (n, V, m), or None
        Of J, and of U^T J.
    layers : dict of layer -> array of shape (n, 2 C)
        Hidden layers of those samples, as `skjepa.Extraction` has them; empty where none were read.
    view_settings : dict or None
        ``views`` and ``transform`` of those samples, as the meta of their extraction has them.
    """

    components: Annotated[NDArray[np.float64], "K m", Above(-1e6, below=1e6)]
    encoder: str | None = None
    embeddings: Annotated[NDArray[np.float64], "s K"] | None = None
    singular_values: Annotated[NDArray[np.float64], "s V R"] | None = None
    subspace_values: Annotated[NDArray[np.float64], "s V m"] | None = None
    view_settings: ViewSettings | None = None
    layers: MayLack[dict[str, Annotated[NDArray[np.float32], "s _"]]] = field(default_factory=dict)

    @classmethod
    def from_portable_state(cls, state: dict[str, Any], given: dict[str, Any]) -> "Directions":
        return cls(**state)  # those of earlier versions lack the last attribute

    @property
    def n_directions(self) -> int:
        """m, the passes that a view costs."""
        return self.components.shape[1]

    @property
    def fingerprint(self) -> str:
        """Of U and the encoder: extractions with equal ones may be mixed."""
        content = np.ascontiguousarray(self.components, dtype="<f8").tobytes()
        return hashlib.sha256(f"{self.encoder} {self.components.shape} ".encode() + content).hexdigest()

    @property
    def method(self) -> str:
        """What `Extraction.meta` calls a pass with these directions."""
        return str(PassMethod("subspace", self.n_directions, self.fingerprint[:16]))

    @property
    def n_exact(self) -> int:
        """Samples that were measured exactly."""
        return 0 if self.embeddings is None else len(self.embeddings)

    def __repr__(self) -> str:
        n_components, n_directions = self.components.shape
        return f"Directions({n_directions} of {n_components}, {self.n_exact} exact samples, {self.fingerprint[:12]})"

    def __sklearn_clone__(self) -> "Directions":
        return self

    def __copy__(self) -> "Directions":
        return self

    def __deepcopy__(self, memo: dict) -> "Directions":
        return self

    def correction(
        self, floor: float = PAPER_FLOOR, rank: int | None = None, layers: Mapping[str, Any] | None = None
    ) -> Correction:
        """Learn the exact log-volume at a floor and rank from z and U^T J: cheap, no pass.

        Parameters
        ----------
        floor : float
        rank : int, optional
            As of `skjepa.jacobian.log_volume`; by default all R.
        layers : dict of layer -> array, optional
            Of samples to come: hidden layers are used if these have all that the directions were learned with.

        Raises
        ------
        ValueError
            Random directions, for which nothing was measured exactly.
        """
        if self.embeddings is None or self.singular_values is None or self.subspace_values is None:
            raise ValueError("these directions have no correction: no sample was measured exactly to learn it from")
        rank = self.singular_values.shape[2] if rank is None else rank
        exact = log_volume(self.singular_values, floor=floor, rank=rank)
        raw = log_volume(self.subspace_values, floor=floor, rank=rank)
        floors = deviation_floors(self.layers) if self.layers.keys() <= set(layers or ()) else {}
        features = _features(self.embeddings, self.subspace_values, floor, self.layers, floors)
        lacking, rows = (exact - raw).ravel(), features.reshape(-1, features.shape[-1])
        samples = np.repeat(np.random.default_rng(0).permutation(len(exact)), exact.shape[1])
        regression = TwoStageRidge(sum(self.components.shape))
        known = {"params": {"samples": samples}, "groups": samples, "cv": folds(samples)}
        predicted = raw.ravel() + cross_val_predict(regression, rows, lacking, **known)
        regression.fit(rows, lacking, samples=samples)
        intercept, coef = affine(regression, rows.shape[1])
        residual = float(np.sqrt(np.mean((exact.ravel() - predicted) ** 2)))
        return Correction(floor, rank, intercept, coef, residual, spearman(exact.ravel(), predicted), floors)

    def has_made(self, correction: Correction) -> bool:
        """Whether a correction is of so many directions and layers as these have."""
        if not correction.deviation_floors.keys() <= self.layers.keys():
            return False
        n_activations = sum(self.layers[name].shape[1] for name in correction.deviation_floors)
        return len(correction.coef) == sum(self.components.shape) + n_activations


def random_directions(n_components: int, n_directions: int, *, seed: int = 0) -> Directions:
    """m random orthonormal directions of K, uniformly distributed: a sketch, which needs no data.

    The log-volume of a sketch is not the exact one, nor does its mean over seeds tend to it: with m < K it is the
    volume of a random shadow of the Jacobian. It ranks samples, and compares with the same sketch of others only.

    Parameters
    ----------
    n_components, n_directions : int
        K and m, 1 <= m <= K.
    seed : int

    Raises
    ------
    ValueError
        m > K.
    """
    check_number_of_directions(n_directions, n_components)
    gaussian = np.random.default_rng(seed).normal(size=(n_components, n_directions))
    orthonormal, triangle = np.linalg.qr(gaussian)
    return Directions(orthonormal * np.sign(np.diag(triangle)))


def principal_directions(gram: ArrayLike, n_directions: int) -> NDArray[np.float64]:
    """Eigenvectors of the m largest eigenvalues of E[J J^T], largest first: (K, m), signs fixed.

    Of all m directions they keep the most of the mean squared singular values, tr(U^T E[J J^T] U).
    """
    _, vectors = np.linalg.eigh(np.asarray(gram, dtype=np.float64))
    chosen = vectors[:, ::-1][:, :n_directions]
    largest = np.abs(chosen).argmax(axis=0)
    return chosen * np.sign(chosen[largest, np.arange(n_directions)])


def exact_samples_needed(n_directions: int) -> int:
    """Fewest samples that directions and their correction are learned from."""
    return max(MIN_EXACT, EXACT_A_DIRECTION * n_directions)


def check_number_of_directions(n_directions: Any, n_components: int | None = None) -> int | None:
    """Return it as an int, K // 4 where it is None and K is known; raise where it is no number from 1 to K."""
    if n_directions is None:
        return None if n_components is None else max(1, n_components // DEFAULT_SHARE)
    n_directions = check_integer("n_directions", n_directions, minimum=1)
    if n_components is not None and n_directions > n_components:
        raise ValueError(f"n_directions must be at most K = {n_components}; got {n_directions}")
    return n_directions


def _features(
    embeddings: ArrayLike,
    sigma: NDArray[np.float64],
    floor: float,
    layers: Mapping[str, NDArray[Any]],
    floors: Mapping[str, float],
) -> NDArray[np.float64]:
    """Embedding, log singular values and activations of each view side by side, (n, V, K + m + W)."""
    z = np.asarray(embeddings, dtype=np.float64)
    logs = np.log(np.maximum(sigma, floor))
    parts = (z[:, None], logs, activations(layers, floors, len(z))[:, None])
    return np.concatenate([np.broadcast_to(part, (*logs.shape[:2], part.shape[2])) for part in parts], axis=2)
