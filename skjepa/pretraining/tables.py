"""`VectorJEPA`: a small JEPA for tables, trained in about a second on the rows it is given."""

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
"""With fewer distinct rows, or with one feature, no network is trained and the shortcut alone is the embedding."""

ROWS_A_DIMENSION = 8
"""So many distinct rows for each direction in which rows vary (participation ratio of their covariance), or none is
trained: a network of fewer rows knows them by heart, and new normal rows look foreign to it."""

ROWS_A_FEATURE = 2
"""And so many for each feature, where there are more than `SHORTCUT_COMPONENTS`."""

SHORTCUT_COMPONENTS = 64
"""Rows of more features reach the shortcut by a random orthogonal projection, which nearly keeps distances."""

NETWORK_SHARE = 0.1
"""Of the network in the variance of the embedding. The neighbours of a row are mostly those it has in its features."""

_STEPS = (100, 600)  # of training, at the least and at the most
_BATCH_SIZE = 128
_CONSTANT = 1e-12  # share of its size by which a constant column may vary
_JUNK = 100.0  # ranges of the quartiles from the median


@portable
class VectorJEPA(BaseEstimator):
    """A JEPA of vectors that trains on X itself: two noisy views of a row get close embeddings, rows get distinct ones.

    The embedding has two parts: the unit-normalised output of a small MLP, and a shortcut, the features themselves,
    standardised and compressed by asinh. The shortcut keeps apart what the network, which never saw it, may map to one
    place.

    Parameters
    ----------
    n_components : int
        Outputs of the network. K is this plus the length of the shortcut, at most `SHORTCUT_COMPONENTS`.
    widths : sequence of int
        Hidden layers.
    objective : {"info_nce", "sigreg", "vicreg"}
    noise : float
        Standard deviation of the noise that makes the views, in standard deviations of the features.
    mask : float in [0, 1)
        Share of the features, drawn for each row and view, that are replaced by those of other rows.
    temperature : float
        Of InfoNCE.
    n_steps : int, optional
        Steps of training; by default one for every ten rows, at least 100 and at most 600, and none where distinct
        rows are fewer than `MIN_ROWS`, than `ROWS_A_DIMENSION` for each direction in which they vary or, of more than
        64 features, than `ROWS_A_FEATURE` for each. With 0 there is no network.
    learning_rate, weight_decay : float
        AdamW.
    random_state : int, RandomState or Generator, optional
        None means 0, or the seed of the detector that trains it.

    Attributes
    ----------
    encoder_ : Encoder
        Of rows as they come, K outputs, float64. Its Jacobian is taken with respect to standardised features, or the
        units of the features would decide the score.
    history_ : list of dict
        What `skjepa.pretraining.pretrain` returned; empty where there was nothing to train.
    n_features_in_ : int

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
        """Train on rows.

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
            Bad data or parameters.
        """
        self._check_parameters()
        source = as_source(X)
        if not source.is_vector:
            raise ValueError("VectorJEPA trains on vectors (n_samples, n_features), X holds images")
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
        """Whether there is a network: with `n_steps` given, whenever it can be trained at all."""
        if self.n_steps == 0 or compressed.shape[1] < 2:
            return False
        dimension = _effective_dimension(compressed)
        n_features = compressed.shape[1]
        needed = max(MIN_ROWS, math.ceil(ROWS_A_DIMENSION * dimension))
        if n_features > SHORTCUT_COMPONENTS:  # the shortcut leaves directions out, of which the network alone tells
            needed = max(needed, ROWS_A_FEATURE * n_features)
        if self.n_steps is None or n_distinct < 2:
            return n_distinct >= needed
        if n_distinct < needed and n_features > SHORTCUT_COMPONENTS:
            warnings.warn(
                f"VectorJEPA trains {self.n_steps} steps on {n_distinct} distinct rows, which vary in "
                f"{dimension:.0f} directions: it may know them by heart, and then new normal rows are flagged. Give "
                f"{needed} rows, or n_steps=None to train no network on fewer",
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
    """What a `VectorJEPA` makes: rows standardised, then the shortcut and, where it was trained, the network."""

    @property
    def input_units(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the features: the Jacobian is one of standardised features."""
        standardise: Any = self[0]
        return standardise.centre, standardise.scale

    @property
    def stages(self) -> dict[str, str]:
        """Name -> path of the layers that are read beside the embedding: the rows, standardised, and hidden layers.

        Where there is no network and all features are in the shortcut, the embedding is the rows, and nothing is beside
        it.
        """
        parts: Any = self[1].parts
        network = parts[1].network.features if len(parts) > 1 else ()
        if len(parts) == 1 and parts[0].projection.shape[0] == parts[0].projection.shape[1]:
            return {}
        hidden = [f"1.parts.1.network.features.{i}" for i, part in enumerate(network) if isinstance(part, nn.SiLU)]
        return {"rows": "0"} | {f"hidden {i + 1}": path for i, path in enumerate(hidden)}

    def portable_state(self) -> dict[str, Any]:
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
        tensors = {name: torch.from_numpy(array) for name, array in state["tensors"].items()}
        width, widths = state["n_features"], state["widths"]
        if len(tensors["0.centre"]) != width or len(widths or ()) > len(tensors):
            raise ValueError(f"the tensors are not those of {width} features and the layers {widths}")
        # Of the right sizes, but without memory, which a forged size could exhaust: every number in it is replaced.
        parts: list[tuple[nn.Module, float]] = [(_Shortcut(width, seed=0).to("meta"), 1.0)]
        if widths is not None:
            with torch.device("meta"):
                parts.append((_UnitNorm(MLP(width, widths, state["n_components"]).double()), 1.0))
        rows = torch.zeros(2, width, dtype=torch.float64, device="meta")
        made = cls(_Standardise(np.zeros((2, width))), _SideBySide(parts, rows))
        made.load_state_dict(tensors, assign=True)
        return made.requires_grad_(False).eval()


class _Standardise(nn.Module):
    """Rows to features of mean 0 and variance 1, compressed by asinh, and to mean 0 and variance 1 again.

    asinh is linear near 0 and logarithmic in the tails. Features of two values, which it would shrink where one of them
    is rare, get their size back.
    """

    centre: Tensor
    scale: Tensor
    compressed_centre: Tensor
    compressed_scale: Tensor

    def __init__(self, rows: NDArray[np.float64]) -> None:
        super().__init__()
        scaler = StandardScaler().fit(_without_junk(rows))
        if not np.isfinite(scaler.scale_).all():
            raise ValueError(f"X holds values too large to standardise: up to {np.abs(rows).max():.3g} in size")
        size = np.abs(rows).max(axis=0)
        is_constant = np.ptp(rows, axis=0) <= _CONSTANT * size
        # A constant has no unit: a change is told by its share of the value.
        scale = np.where(is_constant, np.where(size > 0, 1e-6 * size, _CONSTANT), scaler.scale_)
        compressed = StandardScaler().fit(np.arcsinh((rows - scaler.mean_) / scale))
        for name, centre, spread in (("", scaler.mean_, scale), ("compressed_", compressed.mean_, compressed.scale_)):
            self.register_buffer(f"{name}centre", torch.from_numpy(centre))
            self.register_buffer(f"{name}scale", torch.from_numpy(spread))

    def forward(self, x: Tensor) -> Tensor:
        standard = ((x - self.centre) / self.scale).detach()
        # The value is that of `standard`, the derivative that of x: the Jacobian is one of standardised features.
        standard = standard + (x - x.detach())
        return (torch.asinh(standard) - self.compressed_centre) / self.compressed_scale


def _without_junk(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows with cells beyond 100 quartile ranges brought back to there: one of 1e9 would hide its whole column."""
    quarter, median, three_quarters = np.quantile(rows, [0.25, 0.5, 0.75], axis=0)
    spread = three_quarters - quarter
    apart = np.abs(rows - median)
    # A column that is mostly one value: by the others.
    rare = np.ma.median(np.ma.masked_equal(apart, 0), axis=0).filled(0.0) if (spread == 0).any() else spread
    reach = _JUNK * np.where(spread > 0, spread, rare)
    return np.clip(rows, median - reach, median + reach)


def _effective_dimension(samples: Tensor) -> float:
    """Participation ratio of the covariance: directions in which rows vary, between 1 and d."""
    centred = samples - samples.mean(0)
    products = centred @ centred.T if len(centred) < centred.shape[1] else centred.T @ centred
    total = products.square().sum()
    return float(products.trace() ** 2 / total) if total > 0 else 1.0


class _Shortcut(nn.Module):
    """The features, or a random orthogonal projection of many."""

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
    """Outputs on the unit sphere, where InfoNCE spreads them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.network(x), dim=1)


class _SideBySide(nn.Module):
    """Outputs of several modules, each centred and scaled to its share of the variance over the training rows."""

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
