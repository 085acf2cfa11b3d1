"""Fewer passes: m output directions in the place of all K, and a regression that tells what they leave out."""

import hashlib
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skjepa._utils.statistics import affine, spearman
from skjepa._utils.validation import check_integer
from skjepa.jacobian.pass_method import PassMethod
from skjepa.jacobian.volume import PAPER_FLOOR, log_volume
from skjepa.persistence.folder import portable
from skjepa.persistence.schema import Above, Mark

DEFAULT_SHARE = 4
"""m = K / 4 where no number of directions is given; docs/results/fewer-passes.md has the curve."""

MIN_EXACT = 50
"""Exact samples that a correction takes at the least, and `EXACT_A_DIRECTION` for each direction."""

EXACT_A_DIRECTION = 3

_N_FOLDS = 5
_ALPHAS = np.logspace(-2, 4, 13)


@portable
@dataclass(frozen=True, eq=False)
class Correction:
    r"""Exact log-volume from an embedding z and the m singular values of U^T J, by ridge regression.

    The regression is of what the log-volume of U^T J lacks, on z and on the logarithms of the singular values, so that
    with m = K nothing is changed.

    Attributes
    ----------
    floor, rank : float, int
        Of the log-volume that is predicted, and of that of U^T J.
    intercept, coef : float, array of shape (K + m,)
        What is added to the log-volume of U^T J: affine in (z, log singular values).
    residual_ : float
        Root mean square of exact less predicted log-volume, in nats, out of fold.
    spearman_ : float
        Rank correlation of exact and predicted, out of fold.
    """

    floor: Annotated[float, Above(0)]
    rank: Annotated[int, Above(0)]
    intercept: Annotated[float, Mark.FINITE]
    coef: Annotated[NDArray[np.float64], "features", Above(-1e100, below=1e100)]
    residual_: float
    spearman_: float

    def log_volume(self, embeddings: ArrayLike, sigma: ArrayLike) -> NDArray[np.float64]:
        """Predicted exact log-volume in nats, (n, V), of embeddings (n, K) and singular values of U^T J, (n, V, m)."""
        sigma = np.asarray(sigma, dtype=np.float64)
        raw = log_volume(sigma, floor=self.floor, rank=self.rank)
        return raw + self.intercept + _features(embeddings, sigma, self.floor) @ self.coef


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
    view_settings : dict or None
        ``views`` and ``transform`` of those samples, as the meta of their extraction has them.
    """

    components: Annotated[NDArray[np.float64], "K m", Above(-1e6, below=1e6)]
    encoder: str | None = None
    embeddings: Annotated[NDArray[np.float64], "s K"] | None = None
    singular_values: Annotated[NDArray[np.float64], "s V R"] | None = None
    subspace_values: Annotated[NDArray[np.float64], "s V m"] | None = None
    view_settings: ViewSettings | None = None

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

    def correction(self, floor: float = PAPER_FLOOR, rank: int | None = None) -> Correction:
        """Learn the exact log-volume at a floor and rank from z and U^T J: cheap, no pass.

        Parameters
        ----------
        floor : float
        rank : int, optional
            As of `skjepa.jacobian.log_volume`; by default all R.

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
        features = _features(self.embeddings, self.subspace_values, floor)
        lacking, rows = (exact - raw).ravel(), features.reshape(-1, features.shape[-1])
        regression = make_pipeline(StandardScaler(), RidgeCV(alphas=_ALPHAS))
        samples = np.repeat(np.random.default_rng(0).permutation(len(exact)), exact.shape[1])
        folds = GroupKFold(min(_N_FOLDS, len(exact)))  # the views of a sample are not independent
        predicted = raw.ravel() + cross_val_predict(regression, rows, lacking, groups=samples, cv=folds)
        regression.fit(rows, lacking)
        intercept, coef = affine(regression, rows.shape[1])
        residual = float(np.sqrt(np.mean((exact.ravel() - predicted) ** 2)))
        return Correction(floor, rank, intercept, coef, residual, spearman(exact.ravel(), predicted))


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


def _features(embeddings: ArrayLike, sigma: NDArray[np.float64], floor: float) -> NDArray[np.float64]:
    """Embedding and log singular values of each view side by side, (n, V, K + m)."""
    z = np.asarray(embeddings, dtype=np.float64)[:, None]
    logs = np.log(np.maximum(sigma, floor))
    return np.concatenate([np.broadcast_to(z, (*logs.shape[:2], z.shape[2])), logs], axis=2)
