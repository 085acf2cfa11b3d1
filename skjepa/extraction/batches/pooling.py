"""Hidden layers as numbers: the mean and standard deviation of each channel over positions or tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from skjepa.encoders.encoder import Encoder
from skjepa.encoders.in_use import alone_with
from skjepa.encoders.outputs import has_square_sides, position_axes, require_layer, with_layers
from skjepa.encoders.probe import called
from skjepa.encoders.stages import INPUT, RESERVED, declared_stages, first_tensor, named, stages

LAYER_DTYPES = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True)
class Layer:
    """A hidden layer that is read.

    Attributes
    ----------
    name : str
        What results call it.
    path : str
        As in ``encoder.module.named_modules()``; "" is the input of the module.
    width : int
        Numbers per sample: 2 C of a feature map or of tokens with C channels, C of a vector.
    is_pooled : bool
        Whether it has positions or tokens.
    """

    name: str
    path: str
    width: int
    is_pooled: bool


class _Statistics(NamedTuple):
    """Of one layer: mean and standard deviation over positions, (B, 2 C); a vector (B, C) as it is, and False."""

    values: Tensor
    is_pooled: bool


def chosen_layers(encoder: Encoder, layers: Any, shape: tuple[int, ...]) -> tuple[Layer, ...]:
    """The hidden layers that are read of inputs of one shape, and how many numbers each yields.

    Parameters
    ----------
    encoder : Encoder
    layers : "auto", sequence of str, or None
        See `skjepa.extract`.
    shape : tuple of int
        Of one input.

    Raises
    ------
    ValueError, TypeError
        No such layer, one that takes no part in the forward pass, or one that yields no tensor of a row per sample.
    """
    if layers is None:
        return ()
    if not isinstance(layers, str | list | tuple) or (isinstance(layers, str) and layers != "auto"):
        raise ValueError(f"layers must be 'auto', a list of layer names, or None; got {layers!r}")
    known = (encoder.fingerprint, shape, layers if isinstance(layers, str) else tuple(layers))
    if known not in encoder.layers_known:
        paths = stages(encoder, shape) if isinstance(layers, str) else _paths(encoder, layers)
        widths = [] if not paths else _widths(encoder, list(paths.values()), shape)
        found = tuple(Layer(name, path, *width) for (name, path), width in zip(paths.items(), widths, strict=True))
        encoder.layers_known[known] = encoder.layers_known[(*known[:2], tuple(paths))] = found
    return encoder.layers_known[known]


def _paths(encoder: Encoder, names: Sequence[str]) -> dict[str, str]:
    """Of layers that were asked for by name."""
    if len(set(names)) < len(names) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"layers must be different names; got {list(names)}")
    known = {named(name): path for name, path in (declared_stages(encoder) or {}).items()}
    known |= {named(name): name for name in RESERVED}
    if encoder.input_shape is None:
        known[INPUT] = ""
    for name in names:
        if name in RESERVED and name not in known:
            what = "the embedding, which every score has" if name != INPUT else "for vectors"
            raise ValueError(f"layer {name!r} is {what}; a module of that name is read as {named(name)!r}")
    paths = {name: known.get(name, name) for name in names}
    for path in filter(None, paths.values()):
        require_layer(encoder.module, path)
    return paths


def _widths(encoder: Encoder, paths: list[str], shape: tuple[int, ...]) -> list[tuple[int, bool]]:
    """Numbers that each layer yields, and whether they are pooled, found by a pass of two blank samples."""
    x = torch.zeros(2, *shape, dtype=encoder.dtype)
    with torch.no_grad(), encoder.scoring() as function:
        found = _read(encoder.module, partial(called, function), paths, x)[1]
    return [(part.values.shape[1], part.is_pooled) for part in found]


def with_statistics(
    encoder: Encoder, function: Callable[[Tensor], Tensor], layers: Sequence[Layer], x: Tensor, dtype: str
) -> tuple[Tensor, Tensor]:
    """Embeddings (B, K) and the statistics of all layers side by side, (B, sum of widths), from one forward pass."""
    output, parts = _read(encoder.module, function, [layer.path for layer in layers], x)
    largest = torch.finfo(LAYER_DTYPES[dtype]).max
    # What is too large for these numbers stays the largest of them, and as odd as it was.
    return output, torch.cat([part.values for part in parts], dim=1).clamp(-largest, largest).to(LAYER_DTYPES[dtype])


def _read(
    module: nn.Module, function: Callable[[Tensor], Tensor], paths: Sequence[str], x: Tensor
) -> tuple[Tensor, list[_Statistics]]:
    def kept(path: str, output: Any) -> Any:
        """The statistics at once: a copy of a large map, to pool later, costs as much as they do."""
        value = first_tensor(output)
        return _statistics(value, path, module, x) if _is_readable(value, len(x)) else value

    with alone_with(module):  # hooks are of the module, and would tell one thread of another's samples
        output, caught = with_layers(module, filter(None, paths), lambda: function(x), kept)
    if "" in paths:
        caught[""] = kept("", x)
    for path in paths:
        _require_statistics(caught, path, len(x))
    return output, [caught[path] for path in paths]


def _is_readable(value: Any, n_samples: int) -> bool:
    return isinstance(value, Tensor) and 2 <= value.ndim <= 4 and len(value) == n_samples


def _require_statistics(caught: dict[str, Any], path: str, n_samples: int) -> None:
    if path not in caught:
        raise ValueError(f"layer {path!r} takes no part in the forward pass")
    value = caught[path]
    if isinstance(value, Tensor):
        raise ValueError(
            f"layer {path!r} returns shape {tuple(value.shape)} for {n_samples} samples; a layer must return (B, C), "
            "tokens (B, N, C) or feature maps (B, C, H, W): choose another"
        )
    if not isinstance(value, _Statistics):
        raise TypeError(f"layer {path!r} returns {type(value).__name__}, not a tensor; choose another")


def _statistics(value: Tensor, path: str, module: nn.Module, x: Tensor) -> _Statistics:
    axes = (2,) if _is_series(value, module, path) else position_axes(value, module, is_square=has_square_sides(x))
    wide = value.to(torch.promote_types(value.dtype, torch.float32))
    if not axes:
        return _Statistics(wide.clone(), False)
    # torch.std and torch.var_mean take ten times as long on a CPU, mostly where channels come last.
    mean = wide.mean(axes, keepdim=True)
    deviation = (wide - mean).square_().mean(axes).sqrt_()
    return _Statistics(torch.cat([mean.flatten(1), deviation], dim=1), True)


def _is_series(value: Tensor, module: nn.Module, path: str) -> bool:
    """Whether an output (B, C, T) has its channels first, as those of one-dimensional convolutions; tokens are last."""
    if value.ndim != 3:
        return False
    kinds = [type(part) for part in module.get_submodule(path).modules()] if path else []
    if any(issubclass(kind, nn.Conv1d | nn.BatchNorm1d) for kind in kinds):
        return not any(issubclass(kind, nn.Linear | nn.LayerNorm) for kind in kinds)
    convolutions = [part for part in module.modules() if isinstance(part, nn.Conv1d)]
    channels = {n for part in convolutions for n in (part.in_channels, part.out_channels)}
    features = {part.out_features for part in module.modules() if isinstance(part, nn.Linear)}
    features |= {part.normalized_shape[-1] for part in module.modules() if isinstance(part, nn.LayerNorm)}
    return value.shape[1] in channels and value.shape[2] not in features
