"""Score with m output directions instead of all K, with a regression that corrects the log-volume."""

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
"""By default m = K / 4; docs/results/fewer-passes.md shows accuracy by m."""

MIN_EXACT = 50
"""Fewest exact samples for a correction; it also needs `EXACT_A_DIRECTION` per direction."""

EXACT_A_DIRECTION = 3


@portable
@dataclass(frozen=True, eq=False)
class Correction:
    r"""Predict the exact log-volume from an embedding z and the m singular values of U^T J.

    A ridge regression on z and the log singular values predicts the difference between the exact log-volume and the
    log-volume of U^T J; with m = K the difference is zero. If hidden layers were read, a second regression on them
    predicts the remainder.

    Attributes
    ----------
    floor, rank : float, int
        Floor and rank of both log-volumes.
    intercept, coef : float, array of shape (K + m + W,)
        Affine function that is added to the log-volume of U^T J. Its inputs are z, the log singular values and, per
        layer, means and log standard deviations of the channels.
    residual_ : float
        Root mean square error of the predicted log-volume, in nats, out of fold.
    spearman_ : float
        Rank correlation of exact and predicted log-volume, out of fold.
    deviation_floors : dict of layer -> float
        Layers that are used, with the lower bound of their standard deviations; empty if none are used.
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
        """Return the saved correction; files of earlier versions lack the last attribute."""
        return cls(**state)

    def log_volume(
        self, embeddings: ArrayLike, sigma: ArrayLike, layers: Mapping[str, NDArray[Any]] | None = None
    ) -> NDArray[np.float64]:
        """Predict the exact log-volume in nats, (n, V).

        Parameters
        ----------
        embeddings : array of shape (n, K)
        sigma : array of shape (n, V, m)
            Singular values of U^T J.
        layers : dict of layer -> array of shape (n, 2 C), optional
            Layers as in `skjepa.Extraction`; needed if the correction uses any.
        """
        sigma = np.asarray(sigma, dtype=np.float64)
        raw = log_volume(sigma, floor=self.floor, rank=self.rank)
        rows = _features(embeddings, sigma, self.floor, layers or {}, self.deviation_floors)
        return raw + self.intercept + rows @ self.coef


class ViewSettings(TypedDict):
    """Hold the view settings of the samples that directions were learned from."""

    views: int
    transform: str | None


@portable
@dataclass(frozen=True, eq=False, repr=False)
class Directions:
    """Hold m orthonormal output directions U of an encoder, with the samples for their correction.

    The singular values of U^T J take m backward passes instead of the K passes of the exact Jacobian J. Made by
    `skjepa.learn_directions` or `skjepa.jacobian.random_directions`, and never changed.

    Attributes
    ----------
    components : array of shape (K, m), float64
        Matrix U.
    encoder : str or None
        Fingerprint of the encoder that they belong to; None for random directions, which fit any encoder of K outputs.
    embeddings : array of shape (n, K), or None
        Embeddings of the n samples that were measured exactly. None if there were none: such directions have no
        correction.
    singular_values, subspace_values : arrays of shape (n, V, R) and (n, V, m), or None
        Singular values of J and of U^T J for these samples.
    layers : dict of layer -> array of shape (n, 2 C)
        Hidden layers of these samples, as in `skjepa.Extraction`; empty if none were read.
    view_settings : dict or None
        ``views`` and ``transform`` of these samples, as in the meta of their extraction.
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
        """Return the saved directions; files of earlier versions lack the last attribute."""
        return cls(**state)

    @property
    def n_directions(self) -> int:
        """Number m of directions, which is the number of backward passes per view."""
        return self.components.shape[1]

    @property
    def fingerprint(self) -> str:
        """Hash of U and the encoder; extractions with equal ones may be mixed."""
        content = np.ascontiguousarray(self.components, dtype="<f8").tobytes()
        return hashlib.sha256(f"{self.encoder} {self.components.shape} ".encode() + content).hexdigest()

    @property
    def method(self) -> str:
        """Name of a pass with these directions in ``Extraction.meta["method"]``."""
        return str(PassMethod("subspace", self.n_directions, self.fingerprint[:16]))

    @property
    def n_exact(self) -> int:
        """Number of samples that were measured exactly."""
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
        """Fit the regression that predicts the exact log-volume at a floor and rank; runs no encoder.

        Parameters
        ----------
        floor : float
            See `skjepa.jacobian.log_volume`.
        rank : int, optional
            See `skjepa.jacobian.log_volume`; by default all R.
        layers : dict of layer -> array, optional
            Layers of the samples to score. Hidden layers are used if all that the directions were learned with are
            among them.

        Raises
        ------
        ValueError
            If no samples were measured exactly, as for random directions.
        """
        if self.embeddings is None or self.singular_values is None or self.subspace_values is None:
            raise ValueError(
                "these directions have no correction, because no samples were measured exactly: make directions with "
                "learn_directions"
            )
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
        """Return whether a correction fits the numbers of directions and layers here."""
        if not correction.deviation_floors.keys() <= self.layers.keys():
            return False
        n_activations = sum(self.layers[name].shape[1] for name in correction.deviation_floors)
        return len(correction.coef) == sum(self.components.shape) + n_activations


def random_directions(n_components: int, n_directions: int, *, seed: int = 0) -> Directions:
    """Draw m random orthonormal output directions of K, uniformly distributed: a sketch, which needs no data.

    With m < K the log-volume of a sketch is that of a random projection of the Jacobian. It is not the exact
    log-volume, and its mean over seeds does not approach it. Compare it only between samples with the same sketch.

    Parameters
    ----------
    n_components, n_directions : int
        Number K of encoder outputs and number m of directions, 1 <= m <= K.
    seed : int

    Returns
    -------
    Directions
        Without a correction.

    Raises
    ------
    ValueError
        If m > K.
    """
    check_number_of_directions(n_directions, n_components)
    gaussian = np.random.default_rng(seed).normal(size=(n_components, n_directions))
    orthonormal, triangle = np.linalg.qr(gaussian)
    return Directions(orthonormal * np.sign(np.diag(triangle)))


def principal_directions(gram: ArrayLike, n_directions: int) -> NDArray[np.float64]:
    """Return the eigenvectors of the m largest eigenvalues of E[J J^T], largest first, (K, m), with fixed signs.

    Of all m directions they keep the largest share of the mean squared singular values, tr(U^T E[J J^T] U).
    """
    _, vectors = np.linalg.eigh(np.asarray(gram, dtype=np.float64))
    chosen = vectors[:, ::-1][:, :n_directions]
    largest = np.abs(chosen).argmax(axis=0)
    return chosen * np.sign(chosen[largest, np.arange(n_directions)])


def exact_samples_needed(n_directions: int) -> int:
    """Return the fewest exact samples from which m directions and their correction can be learned."""
    return max(MIN_EXACT, EXACT_A_DIRECTION * n_directions)


def check_number_of_directions(n_directions: Any, n_components: int | None = None) -> int | None:
    """Return the number as an int, K // 4 if it is None and K is known; raise if it is not between 1 and K."""
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
    """Concatenate embedding, log singular values and layers of each view, (n, V, K + m + W)."""
    z = np.asarray(embeddings, dtype=np.float64)
    logs = np.log(np.maximum(sigma, floor))
    parts = (z[:, None], logs, activations(layers, floors, len(z))[:, None])
    return np.concatenate([np.broadcast_to(part, (*logs.shape[:2], part.shape[2])) for part in parts], axis=2)
