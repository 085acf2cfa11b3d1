"""Build small encoders, and write and read the file format that holds them.

A file is safetensors whose header holds, under the key ``skjepa``, everything needed to rebuild the module and to
prepare its input. Reading it runs no code from the file.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from skjepa._utils.files import written_whole

FORMAT = 1
_MOST_LAYERS = 10_000  # in a file, since an untrusted file could state any number


class _Block(nn.Module):
    """Apply two 3x3 convolutions with a residual path; SiLU keeps the Jacobian smooth."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.SiLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            # Pooling before the 1x1 convolution keeps every pixel in the shortcut; a strided one would drop most.
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride, ceil_mode=True),
                nn.Conv2d(inputs, outputs, 1, bias=False),
                nn.BatchNorm2d(outputs),
            )
        self.activation = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.residual(x) + self.shortcut(x))


class _Trunk(nn.Sequential):
    """Apply stem and blocks, and return the means over positions after the blocks in `pooled`."""

    def __init__(self, *layers: nn.Module, pooled: set[int]) -> None:
        super().__init__(*layers)
        self.pooled = pooled

    def forward(self, x: Tensor) -> Tensor:
        pools = []
        for place, layer in enumerate(self):
            x = layer(x)
            if place in self.pooled:
                pools.append(x.mean((2, 3)))
        return torch.cat(pools, 1)


class ConvNet(nn.Module):
    """Build a small residual network for images with a linear output.

    Parameters
    ----------
    widths, depths : sequence of int
        Channels and blocks of each stage. The stem and every stage after the first halve the resolution.
    n_components : int
        Length K of the embedding.
    n_pooled : int
        Number of last stages whose pooled outputs are the features.

    Attributes
    ----------
    features : nn.Module
        (n_samples, 3, H, W) normalised images -> (n_samples, sum(widths[-n_pooled:])) pooled features, for probes and
        neighbours.
    head : nn.Linear
        Features -> (n_samples, n_components). Nothing follows it, since a normalisation or rectifier would make some
        singular values of the Jacobian exactly zero.
    """

    def __init__(
        self,
        widths: tuple[int, ...] = (32, 64, 128, 256),
        depths: tuple[int, ...] = (1, 1, 1, 1),
        n_components: int = 64,
        n_pooled: int = 1,
    ) -> None:
        super().__init__()
        if len(widths) != len(depths) or not widths:
            raise ValueError(f"widths and depths need the same positive length; got {widths} and {depths}")
        if not 1 <= n_pooled <= len(widths):
            raise ValueError(f"n_pooled must be between 1 and {len(widths)}, the number of stages; got {n_pooled}")
        layers: list[nn.Module] = [
            nn.Conv2d(3, widths[0], 4, 2, 1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.SiLU(),
        ]
        inputs, ends = widths[0], []
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            for block in range(depth):
                layers.append(_Block(inputs, width, stride=2 if stage > 0 and block == 0 else 1))
                inputs = width
            ends.append(len(layers) - 1)
        self._ends = ends
        self.features = _Trunk(*layers, pooled=set(ends[-n_pooled:]))
        self.head = nn.Linear(sum(widths[-n_pooled:]), n_components)

    @property
    def stages(self) -> dict[str, str]:
        """Name -> path of the hidden layers that are read beside the embedding."""
        return {f"stage {i + 1}": f"features.{end}" for i, end in enumerate(self._ends)}

    def forward(self, x: Tensor) -> Tensor:
        """Return embeddings (n_samples, n_components) for normalised images (n_samples, 3, H, W)."""
        return self.head(self.features(x))


class ViT(nn.Module):
    """Build a small vision transformer of timm's with a linear output.

    Parameters
    ----------
    image_size, patch_size : int
        Position embeddings are for `image_size` and are interpolated for other sizes.
    width, depth, n_heads : int
        Channels of the tokens, number of transformer blocks, attention heads per block.
    n_components : int
        Length K of the embedding.

    Attributes
    ----------
    features : nn.Module
        (n_samples, 3, H, W) normalised images -> (n_samples, width), the mean of the normalised tokens.
    head : nn.Linear
    """

    def __init__(self, image_size=32, patch_size=4, width=128, depth=6, n_heads=4, n_components=64) -> None:
        super().__init__()
        # Imported here, since vectors and convolutional networks need no timm.
        from timm.models.vision_transformer import VisionTransformer

        self.features = VisionTransformer(
            img_size=image_size,
            patch_size=patch_size,
            embed_dim=width,
            depth=depth,
            num_heads=n_heads,
            num_classes=0,
            class_token=False,
            global_pool="avg",
            fc_norm=False,
            dynamic_img_size=True,
        )
        self.head = nn.Linear(width, n_components)

    def forward(self, x: Tensor) -> Tensor:
        """Return embeddings (n_samples, n_components) for normalised images (n_samples, 3, H, W)."""
        return self.head(self.features(x))


class MLP(nn.Module):
    """Build a small smooth network for vectors with a linear output.

    Parameters
    ----------
    n_features : int
        Length d of a vector.
    widths : sequence of int
        Widths of the hidden layers.
    n_components : int
        Length K of the embedding.

    Attributes
    ----------
    features : nn.Module
        (n_samples, d) standardised vectors -> (n_samples, widths[-1]).
    head : nn.Linear

    Notes
    -----
    It uses SiLU, not ReLU: a piecewise linear network gives all samples of one piece the same log-volume.
    """

    def __init__(self, n_features: int, widths: tuple[int, ...] = (128, 128), n_components: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = n_features
        for width in widths:
            layers += [nn.Linear(inputs, width), nn.SiLU()]
            inputs = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, n_components)

    def forward(self, x: Tensor) -> Tensor:
        """Return embeddings (n_samples, n_components) for standardised vectors (n_samples, d)."""
        return self.head(self.features(x))


_NETWORKS: dict[str, Callable[..., nn.Module]] = {"convnet": ConvNet, "mlp": MLP, "vit": ViT}


def build_network(name: str, **kwargs: Any) -> nn.Module:
    """Create a newly initialised network by its registered name.

    Parameters
    ----------
    name : str
        ``"convnet"``, ``"mlp"`` or ``"vit"``.
    **kwargs
        Arguments of the network; must be representable in JSON.

    Returns
    -------
    nn.Module
        In training mode, float32. Its `recipe` attribute is ``{"network": name, "kwargs": kwargs}``, which
        `save_network` writes.

    Raises
    ------
    ValueError
        If the name is unknown.
    """
    if name not in _NETWORKS:
        raise ValueError(f"got unknown network {name!r}; known are {', '.join(sorted(_NETWORKS))}")
    module = _NETWORKS[name](**kwargs)
    module.recipe = {"network": name, "kwargs": kwargs}  # type: ignore[assignment]
    return module


def save_network(module: nn.Module, path: str | os.PathLike, *, metadata: Mapping[str, Any]) -> None:
    """Write weights and description of a network to one safetensors file, atomically.

    Parameters
    ----------
    module : nn.Module
        A network made by `build_network`; its tensors are written in their own dtype.
    path : path-like
        The file appears under this name when it is complete, or not at all.
    metadata : mapping
        Values that a reader needs beside the network, representable in JSON: ``image_size`` (pixels), ``mean`` and
        ``std`` (three numbers each, of pixels in [0, 1]), and any notes on the training.

    Raises
    ------
    ValueError
        If the module was not made by `build_network`.
    """
    recipe = getattr(module, "recipe", None)
    if recipe is None:
        raise ValueError(f"{type(module).__name__} has no recipe: only networks made by build_network can be saved")
    header = {"format": FORMAT, **recipe, **metadata}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    with written_whole(path) as partial:
        save_file(tensors, partial, metadata={"skjepa": json.dumps(header, sort_keys=True)})


def read_network(path: str | os.PathLike) -> tuple[nn.Module, dict[str, Any]]:
    """Rebuild a network written by `save_network`.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    module : nn.Module
        In evaluation mode, on the CPU, with the dtype it was saved in.
    metadata : dict
        The whole header: ``format``, ``network``, ``kwargs`` and what was given to `save_network`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is not safetensors, was not written by skjepa, is of an unknown format or network, or its tensors
        do not fit the network. The message names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no network file {path}: give a file that `skjepa pretrain` wrote")
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get("skjepa")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    if header is None:
        raise ValueError(f"{path} holds no 'skjepa' metadata: give a file that `skjepa pretrain` or save_network wrote")
    try:
        metadata = json.loads(header)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: the 'skjepa' metadata is not JSON: {error}") from error
    if not isinstance(metadata, dict):
        raise ValueError(f"{path}: the 'skjepa' metadata is a {type(metadata).__name__}, not a JSON object")
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} has format {metadata.get('format')!r}; this version of skjepa reads format {FORMAT}")
    try:
        module = _with_tensors(metadata["network"], metadata["kwargs"], tensors)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{path} does not fit the network it names: {error}") from error
    return module.eval(), metadata


def _with_tensors(name: str, kwargs: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    """Build a network from these tensors, allocating memory for them only, whatever sizes the file states."""
    depths = [kwargs.get("depth", 0), *kwargs.get("depths", ()), len(kwargs.get("widths", ()))]
    if sum(depths) > _MOST_LAYERS:
        raise ValueError(f"got {sum(depths)} layers; at most {_MOST_LAYERS} are allowed")
    with torch.device("meta"):
        module = build_network(name, **kwargs)
    module.load_state_dict(tensors, assign=True)
    return module
