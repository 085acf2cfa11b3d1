"""Train a small JEPA on the rows of a table, in about a second."""

import math
import warnings
from typing import Annotated, Any, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from skjepa._utils.randomness import own_random_numbers
from skjepa._utils.validation import check_choice, check_integer, check_number, seed_from
from skjepa.data.sources import as_source
from skjepa.encoders.encoder import Encoder, load_encoder
from skjepa.encoders.networks import MLP
from skjepa.persistence.folder import portable
from skjepa.persistence.schema import Above, Saved, declared_by
from skjepa.pretraining.augmentations import VectorViewOptions
from skjepa.pretraining.config import PretrainConfig
from skjepa.pretraining.loop import pretrain

OBJECTIVES = ("info_nce", "sigreg", "vicreg")

MIN_ROWS = 50
"""Fewest distinct rows on which a network is trained; with fewer, or with one feature, the embedding is the shortcut
alone."""

ROWS_A_DIMENSION = 8
"""Fewest distinct rows per direction in which rows vary (participation ratio of their covariance). A network trained on
fewer rows overfits, and new normal rows look anomalous to it."""

ROWS_A_FEATURE = 2
"""Fewest distinct rows per feature, if there are more than `SHORTCUT_COMPONENTS` features."""

SHORTCUT_COMPONENTS = 64
"""Longest shortcut; more features are reduced by a random orthogonal projection, which nearly keeps distances."""

NETWORK_SHARE = 0.1
"""Share of the network in the variance of the embedding, small enough that neighbours are mostly those by features."""

_STEPS = (100, 600)  # fewest and most training steps
_BATCH_SIZE = 128
_CONSTANT = 1e-12  # a column that varies by less than this share of its size is constant
_JUNK = 100.0  # quartile ranges from the median; values beyond are clipped


@portable
class VectorJEPA(BaseEstimator):
    """Train a small JEPA encoder on the rows of a table.

    Give it to a detector as the encoder of vectors; `fit` of the detector trains it. Two noisy views of a row get close
    embeddings, different rows distinct ones. The embedding has two parts: the unit-normalised output of a small MLP,
    and a shortcut, the features themselves, standardised and compressed by asinh. The shortcut separates rows unlike
    any training row, which the network may map to the same place.

    Parameters
    ----------
    n_components : int
        Number of outputs of the network. The length K of the embedding is this plus the length of the shortcut, which
        is at most 64.
    widths : sequence of int
        Widths of the hidden layers.
    objective : {"info_nce", "sigreg", "vicreg"}
        Loss of the training.
    noise : float
        Standard deviation of the noise that makes the views, in standard deviations of the features.
    mask : float in [0, 1)
        Share of the features, drawn per row and view, that are replaced by the features of other rows.
    temperature : float
        Temperature of InfoNCE.
    n_steps : int, optional
        Number of training steps. By default one per ten rows, at least 100 and at most 600. By default no network is
        trained on fewer than 50 distinct rows, on fewer than 8 per direction in which rows vary, or, with more than 64
        features, on fewer than 2 per feature. With 0 there is no network.
    learning_rate, weight_decay : float
        Settings of AdamW.
    random_state : int, RandomState or Generator, optional
        Seed of weights, views and batches. None means 0, or the seed of the detector that trains it.

    Attributes
    ----------
    encoder_ : Encoder
        Encoder of unscaled rows with K outputs, in float64. Its Jacobian is taken with respect to standardised
        features, so that the units of the features do not affect the score.
    history_ : list of dict
        Statistics per epoch from `skjepa.pretraining.pretrain`; empty if no network was trained.
    n_features_in_ : int
        Number of features of the training rows.

    Examples
    --------
    >>> import numpy as np
    >>> from skjepa import JEPAScoreDetector, VectorJEPA
    >>> X = np.random.default_rng(0).normal(size=(200, 5))
    >>> detector = JEPAScoreDetector(VectorJEPA(n_components=8), contamination=0.1).fit(X)
    >>> detector.predict(X).tolist().count(-1)
    20
    """

    n_components: int
    widths: Annotated[Any, Saved(tuple[int, ...] | list[int] | NDArray[np.int64])]
    objective: str
    noise: float
    mask: float
    temperature: float
    n_steps: int | None
    learning_rate: float
    weight_decay: float
    random_state: Annotated[Any, Saved(int | None)]
    encoder_: Annotated[Encoder, "d"]
    history_: list[dict[str, float]]
    n_features_in_: Annotated[int, "d"]

    def __init__(
        self,
        n_components: int = 16,
        *,
        widths: tuple[int, ...] = (64, 64),
        objective: str = "info_nce",
        noise: float = 0.6,
        mask: float = 0.2,
        temperature: float = 0.2,
        n_steps: int | None = None,
        learning_rate: float = 2e-3,
        weight_decay: float = 0.05,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.widths = widths
        self.objective = objective
        self.noise = noise
        self.mask = mask
        self.temperature = temperature
        self.n_steps = n_steps
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.random_state = random_state

    def fit(self, X: Any, y: object = None) -> "VectorJEPA":
        """Train the encoder on rows.

        Parameters
        ----------
        X : array, list or data frame of shape (n_samples, n_features)
            Finite numbers of any scale.
        y : ignored

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            If data or a parameter is not usable; the message names which.
        """
        self._check_parameters()
        source = as_source(X)
        if not source.is_vector:
            raise ValueError(
                "X holds images, but VectorJEPA trains on vectors (n_samples, n_features): use train_encoder for images"
            )
        seed = seed_from(self.random_state)
        rows = source.rows()
        standardise = _Standardise(rows)
        compressed = standardise(torch.from_numpy(rows))
        parts: list[tuple[nn.Module, float]] = [(_Shortcut(rows.shape[1], seed), 1 - NETWORK_SHARE)]
        history: list[dict[str, float]] = []
        if self._trains(len(np.unique(source.ids)), compressed):
            network, history = self._trained(compressed, seed)
            parts.append((network, NETWORK_SHARE))
        module = RowNetwork(standardise, _SideBySide(parts, compressed))
        self.encoder_ = load_encoder(module.requires_grad_(False).eval(), precision="float64")
        self.encoder_.name = type(self).__name__
        self.history_ = history
        self.n_features_in_ = rows.shape[1]
        return self

    def _trains(self, n_distinct: int, compressed: Tensor) -> bool:
        """Return whether to train a network; with `n_steps` given, whenever it is possible."""
        if self.n_steps == 0 or compressed.shape[1] < 2:
            return False
        dimension = _effective_dimension(compressed)
        n_features = compressed.shape[1]
        needed = max(MIN_ROWS, math.ceil(ROWS_A_DIMENSION * dimension))
        if n_features > SHORTCUT_COMPONENTS:  # the shortcut leaves directions out, which only the network covers
            needed = max(needed, ROWS_A_FEATURE * n_features)
        if self.n_steps is None or n_distinct < 2:
            return n_distinct >= needed
        if n_distinct < needed and n_features > SHORTCUT_COMPONENTS:
            warnings.warn(
                f"VectorJEPA trains {self.n_steps} steps on {n_distinct} distinct rows, which vary in "
                f"{dimension:.0f} directions: it may overfit, so that new normal rows are flagged. Give {needed} rows, "
                "or n_steps=None, which trains no network on fewer",
                stacklevel=3,
            )
        return True

    def _check_parameters(self) -> None:
        check_integer("n_components", self.n_components, minimum=2)
        if not isinstance(self.widths, tuple | list | np.ndarray):
            raise TypeError(f"widths must be a sequence of integers; got {self.widths!r}")
        for width in self.widths:
            check_integer("widths", width, minimum=1)
        check_choice("objective", self.objective, OBJECTIVES)
        check_number("noise", self.noise, above=0.0, closed="<")
        check_number("mask", self.mask, above=0.0, below=1.0, closed="<")
        check_number("temperature", self.temperature, above=0.0)
        check_number("learning_rate", self.learning_rate, above=0.0)
        check_number("weight_decay", self.weight_decay, above=0.0, closed="<")
        if self.n_steps is not None:
            check_integer("n_steps", self.n_steps, minimum=0)

    def _trained(self, samples: Tensor, seed: int) -> tuple[nn.Module, list[dict[str, float]]]:
        config = self._config(len(samples), seed)
        with own_random_numbers(seed):
            network = MLP(samples.shape[1], tuple(self.widths), self.n_components)
        history = pretrain(network, samples.float(), config)
        return _UnitNorm(network.double()), history

    def _config(self, n_samples: int, seed: int) -> PretrainConfig:
        batch_size = min(_BATCH_SIZE, n_samples)
        steps = self.n_steps or int(np.clip(n_samples // 10, *_STEPS))
        epochs = max(1, round(steps / (n_samples // batch_size)))
        return PretrainConfig(
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            warmup=0.05 * epochs,
            decay=0.5,
            objective=self.objective,
            temperature=self.temperature,
            views=VectorViewOptions(self.noise, self.mask),
            precision="float32",
            n_watched=0,
            seed=seed,
        )


class _RowNetworkState(TypedDict):
    n_features: Annotated[int, Above(0), "d"]
    widths: tuple[Annotated[int, Above(0)], ...] | None
    n_components: Annotated[int, Above(0)] | None
    tensors: dict[str, NDArray[np.float64]]


@portable
@declared_by(_RowNetworkState)
class RowNetwork(nn.Sequential):
    """Standardise rows, then apply the shortcut and, if it was trained, the network of a `VectorJEPA`."""

    @property
    def input_units(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the features; the Jacobian is taken in these units."""
        standardise: Any = self[0]
        return standardise.centre, standardise.scale

    @property
    def stages(self) -> dict[str, str]:
        """Name -> path of the layers that are read beside the embedding: standardised rows and hidden layers.

        Empty if there is no network and the shortcut holds all features, since the embedding is then the rows.
        """
        parts: Any = self[1].parts
        network = parts[1].network.features if len(parts) > 1 else ()
        if len(parts) == 1 and parts[0].projection.shape[0] == parts[0].projection.shape[1]:
            return {}
        hidden = [f"1.parts.1.network.features.{i}" for i, part in enumerate(network) if isinstance(part, nn.SiLU)]
        return {"rows": "0"} | {f"hidden {i + 1}": path for i, path in enumerate(hidden)}

    def portable_state(self) -> dict[str, Any]:
        """Return the attributes that are saved without pickle."""
        parts: Any = self[1].parts
        network = parts[1].network if len(parts) > 1 else None
        return {
            "n_features": len(self.state_dict()["0.centre"]),
            "widths": network and tuple(part.out_features for part in network.features if isinstance(part, nn.Linear)),
            "n_components": network and network.head.out_features,
            "tensors": {name: tensor.numpy() for name, tensor in self.state_dict().items()},
        }

    @classmethod
    def from_portable_state(cls, state: dict[str, Any], given: dict[str, Any]) -> "RowNetwork":
        """Rebuild the network from saved attributes; raises ValueError if they do not fit together."""
        tensors = {name: torch.from_numpy(array) for name, array in state["tensors"].items()}
        width, widths = state["n_features"], state["widths"]
        if len(tensors["0.centre"]) != width or len(widths or ()) > len(tensors):
            raise ValueError(f"the tensors do not fit {width} features and hidden layers of widths {widths}")
        # On the meta device, which takes no memory: a forged size could exhaust it. All numbers are replaced.
        parts: list[tuple[nn.Module, float]] = [(_Shortcut(width, seed=0).to("meta"), 1.0)]
        if widths is not None:
            with torch.device("meta"):
                parts.append((_UnitNorm(MLP(width, widths, state["n_components"]).double()), 1.0))
        rows = torch.zeros(2, width, dtype=torch.float64, device="meta")
        made = cls(_Standardise(np.zeros((2, width))), _SideBySide(parts, rows))
        made.load_state_dict(tensors, assign=True)
        return made.requires_grad_(False).eval()


class _Standardise(nn.Module):
    """Standardise features to mean 0 and variance 1, compress them by asinh, and standardise again.

    asinh is linear near 0 and logarithmic in the tails. The second step restores the size of features with two values,
    one of them rare, which asinh shrinks.
    """

    centre: Tensor
    scale: Tensor
    compressed_centre: Tensor
    compressed_scale: Tensor

    def __init__(self, rows: NDArray[np.float64]) -> None:
        super().__init__()
        scaler = StandardScaler().fit(_without_junk(rows))
        if not np.isfinite(scaler.scale_).all():
            raise ValueError(f"X holds values up to {np.abs(rows).max():.3g}, too large to standardise: rescale it")
        size = np.abs(rows).max(axis=0)
        is_constant = np.ptp(rows, axis=0) <= _CONSTANT * size
        # A constant column has no deviation, so its unit is a small share of its value.
        scale = np.where(is_constant, np.where(size > 0, 1e-6 * size, _CONSTANT), scaler.scale_)
        compressed = StandardScaler().fit(np.arcsinh((rows - scaler.mean_) / scale))
        for name, centre, spread in (("", scaler.mean_, scale), ("compressed_", compressed.mean_, compressed.scale_)):
            self.register_buffer(f"{name}centre", torch.from_numpy(centre))
            self.register_buffer(f"{name}scale", torch.from_numpy(spread))

    def forward(self, x: Tensor) -> Tensor:
        standard = ((x - self.centre) / self.scale).detach()
        # Keeps the value but has the derivative of x, so that the Jacobian is taken in standardised features.
        standard = standard + (x - x.detach())
        return (torch.asinh(standard) - self.compressed_centre) / self.compressed_scale


def _without_junk(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Clip values beyond 100 quartile ranges, since a single 1e9 would flatten the rest of its column."""
    quarter, median, three_quarters = np.quantile(rows, [0.25, 0.5, 0.75], axis=0)
    spread = three_quarters - quarter
    apart = np.abs(rows - median)
    # If a column is mostly one value, use the median distance of the others.
    rare = np.ma.median(np.ma.masked_equal(apart, 0), axis=0).filled(0.0) if (spread == 0).any() else spread
    reach = _JUNK * np.where(spread > 0, spread, rare)
    return np.clip(rows, median - reach, median + reach)


def _effective_dimension(samples: Tensor) -> float:
    """Return the participation ratio of the covariance, the number of directions in which rows vary, from 1 to d."""
    centred = samples - samples.mean(0)
    products = centred @ centred.T if len(centred) < centred.shape[1] else centred.T @ centred
    total = products.square().sum()
    return float(products.trace() ** 2 / total) if total > 0 else 1.0


class _Shortcut(nn.Module):
    """Return the features, or a random orthogonal projection of many features."""

    projection: Tensor

    def __init__(self, n_features: int, seed: int) -> None:
        super().__init__()
        projection = torch.eye(n_features, dtype=torch.float64)
        if n_features > SHORTCUT_COMPONENTS:
            gaussian = np.random.default_rng(seed).normal(size=(n_features, SHORTCUT_COMPONENTS))
            projection = torch.from_numpy(np.linalg.qr(gaussian)[0])
        self.register_buffer("projection", projection)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.projection


class _UnitNorm(nn.Module):
    """Normalise outputs to the unit sphere, on which InfoNCE spreads them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.network(x), dim=1)


class _SideBySide(nn.Module):
    """Concatenate outputs of several modules, centred and scaled to their shares of the variance of training rows."""

    centre: Tensor
    factor: Tensor

    def __init__(self, parts: list[tuple[nn.Module, float]], samples: Tensor) -> None:
        super().__init__()
        self.parts = nn.ModuleList(part for part, _ in parts)
        centres, factors = [], []
        for part, share in parts:
            with torch.no_grad():
                outputs = part(samples)
            variance = outputs.var(0, correction=0).sum()
            factor = torch.where(variance > 0, share / variance, 1.0).sqrt()
            centres.append(outputs.mean(0))
            factors.append(factor.expand(outputs.shape[1]))
        self.register_buffer("centre", torch.cat(centres))
        self.register_buffer("factor", torch.cat(factors))

    def forward(self, x: Tensor) -> Tensor:
        return (torch.cat([part(x) for part in self.parts], dim=1) - self.centre) * self.factor
