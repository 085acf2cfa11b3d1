"""Read hidden layers: mean and standard deviation per channel over positions or tokens, or every position."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from skjepa.encoders.encoder import Encoder
from skjepa.encoders.in_use import alone_with
from skjepa.encoders.outputs import has_square_sides, position_axes, require_layer, with_layers
from skjepa.encoders.probe import called
from skjepa.encoders.stages import INPUT, POSITIONS, RESERVED, declared_stages, first_tensor, named, stages
from skjepa.extraction.batches.positions import (
    LayerPositions,
    chosen_grid,
    is_readable,
    is_series,
    layer_tensor,
    on_grid,
    positions_of,
)

LAYER_DTYPES = {"float32": torch.float32, "float16": torch.float16}


class _Statistics(NamedTuple):
    """Hold mean and standard deviation over positions, (B, 2 C), or an unpooled vector (B, C)."""

    values: Tensor
    is_pooled: bool


class _Read(NamedTuple):
    """Hold what is kept of a layer's output.

    Statistics are computed at once, because copying a large map to pool it later takes as long. The output itself is
    kept where its positions are read, or where it has no statistics.
    """

    statistics: _Statistics | None
    output: Any


@dataclass(frozen=True)
class Layer:
    """Describe a hidden layer that is read.

    Attributes
    ----------
    name : str
        Name of the layer in results.
    path : str
        Name in ``encoder.module.named_modules()``; "" is the input of the module.
    width : int
        Numbers per sample: 2 C for a feature map or tokens with C channels, C for a vector.
    is_pooled : bool
        Whether it has positions or tokens.
    of : tuple of str
        If positions are read: paths of the layers that are resampled to one grid.
    grid : (int, int) or None
        If positions are read: rows and columns of that grid.
    """

    name: str
    path: str
    width: int
    is_pooled: bool
    of: tuple[str, ...] = ()
    grid: tuple[int, int] | None = None


def chosen_layers(encoder: Encoder, layers: Any, shape: tuple[int, ...]) -> tuple[Layer, ...]:
    """Return the hidden layers to read for inputs of one shape, with the width of each.

    Parameters
    ----------
    encoder : Encoder
    layers : "auto", sequence of str, or None
        See `skjepa.extract`.
    shape : tuple of int
        Shape of one input.

    Raises
    ------
    ValueError, TypeError
        If there is no such layer, it is not used in the forward pass, or it yields no tensor with one row per sample.
    """
    if layers is None:
        return ()
    if not isinstance(layers, str | list | tuple) or (isinstance(layers, str) and layers != "auto"):
        raise ValueError(f"layers must be 'auto', a list of layer names, or None; got {layers!r}")
    known = (encoder.fingerprint, shape, layers if isinstance(layers, str) else tuple(layers))
    if known not in encoder.layers_known:
        plain, has_positions = _without_positions(layers)
        paths = stages(encoder, shape) if plain == "auto" else _paths(encoder, plain)
        widths = [] if not paths else _widths(encoder, list(paths.values()), shape)
        found = tuple(Layer(name, path, *width) for (name, path), width in zip(paths.items(), widths, strict=True))
        if has_positions:
            found = (*found, _grid_of(encoder, found, shape))
        names = tuple(layer.name for layer in found)
        encoder.layers_known[known] = encoder.layers_known[(*known[:2], names)] = found
    return encoder.layers_known[known]


def check_layer_names(encoder: Encoder, names: Sequence[str]) -> None:
    """Raise ValueError if the encoder has no layer of one of these names."""
    _paths(encoder, [name for name in names if not is_positions(name)])


def _without_positions(layers: str | Sequence[str]) -> tuple[Any, bool]:
    """Return the layers to pool, "auto" or a list, and whether positions are read as well."""
    if isinstance(layers, str):
        return layers, False
    pooled = [name for name in layers if not is_positions(name)]
    return ("auto" if pooled == ["auto"] else pooled), len(pooled) < len(layers)


def is_positions(name: Any) -> bool:
    """Return whether a name means positions on a grid, with or without the size of the grid that results add."""
    return isinstance(name, str) and name.split(" ")[0] == POSITIONS and not name.endswith("(module)")


def _grid_of(encoder: Encoder, layers: Sequence[Layer], shape: tuple[int, ...]) -> Layer:
    """Return a layer that reads the positions of these layers on one common grid."""
    x = torch.zeros(2, *shape, dtype=encoder.dtype)
    with torch.no_grad(), encoder.scoring() as function:
        _, found = with_positions(encoder.module, partial(called, function), layers, x)
    grid, names = chosen_grid({name: part.grid for name, part in found.items() if part.grid is not None})
    if grid is None:
        raise ValueError(
            f"{encoder.name} has no feature maps or tokens on a grid among its layers "
            f"({', '.join(layer.name for layer in layers) or 'none'}), so nothing can be located in an image: name "
            "layers that have a grid, or take another image encoder"
        )
    width = on_grid([found[name] for name in names], grid).shape[1]
    paths = {layer.name: layer.path for layer in layers}
    name = f"{POSITIONS} {grid[0]}x{grid[1]}"
    return Layer(name, "", width, True, tuple(paths[part] for part in names), grid)


def _paths(encoder: Encoder, names: Sequence[str]) -> dict[str, str]:
    """Return the module path of each layer that was given by name."""
    if len(set(names)) < len(names) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"layers must be different names; got {list(names)}")
    known = {named(name): path for name, path in (declared_stages(encoder) or {}).items()}
    known |= {named(name): name for name in RESERVED}
    if encoder.input_shape is None:
        known[INPUT] = ""
    for name in names:
        if name in RESERVED and name not in known:
            what = "is the embedding, which is always extracted" if name != INPUT else "exists only for vectors"
            raise ValueError(f"layer {name!r} {what}: leave it out, or give {named(name)!r} for a module of that name")
    paths = {name: known.get(name, name) for name in names}
    for path in filter(None, paths.values()):
        require_layer(encoder.module, path)
    return paths


def _widths(encoder: Encoder, paths: list[str], shape: tuple[int, ...]) -> list[tuple[int, bool]]:
    """Find the width of each layer, and whether it is pooled, by a forward pass of two blank samples."""
    x = torch.zeros(2, *shape, dtype=encoder.dtype)
    with torch.no_grad(), encoder.scoring() as function, alone_with(encoder.module):
        _, reads = _read(encoder.module, partial(called, function), x, pooled=paths)
    found = [_pooled(reads, path, x) for path in paths]
    return [(part.values.shape[1], part.is_pooled) for part in found]


def with_statistics(
    encoder: Encoder, function: Callable[[Tensor], Tensor], layers: Sequence[Layer], x: Tensor, dtype: str
) -> tuple[Tensor, Tensor]:
    """Compute embeddings (B, K) and the statistics of all layers, (B, sum of widths), in one forward pass."""
    with alone_with(encoder.module):  # hooks belong to the module: threads would mix their samples
        output, parts = read_layers(encoder.module, function, layers, x, dtype)
    return output, torch.cat(parts, dim=1)


def read_layers(
    module: nn.Module, function: Callable[[Tensor], Tensor], layers: Sequence[Layer], x: Tensor, dtype: str
) -> tuple[Tensor, list[Tensor]]:
    """Call `function`, which calls the module, and return its output and the layers, (B, width) each."""
    placed = [path for layer in layers for path in layer.of]
    pooled = [layer.path for layer in layers if layer.grid is None]
    output, reads = _read(module, function, x, pooled=pooled, placed=placed)
    parts = [
        _pooled(reads, layer.path, x).values if layer.grid is None else _on_grid(reads, layer, module, x)
        for layer in layers
    ]
    largest = torch.finfo(LAYER_DTYPES[dtype]).max
    # Values beyond the range of this type are clipped to its largest number, so that they stay finite and extreme.
    return output, [part.clamp(-largest, largest).to(LAYER_DTYPES[dtype]) for part in parts]


def with_positions(
    module: nn.Module, function: Callable[[Tensor], Tensor], layers: Sequence[Layer], x: Tensor
) -> tuple[Tensor, dict[str, LayerPositions]]:
    """Compute embeddings (B, K) and the positions of each layer, in one forward pass."""
    with alone_with(module):
        output, reads = _read(module, function, x, placed=[layer.path for layer in layers])
    return output, {layer.name: positions_of(_outputs(reads), layer.path, module, x) for layer in layers}


def _read(
    module: nn.Module,
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    pooled: Collection[str] = (),
    placed: Collection[str] = (),
) -> tuple[Tensor, dict[str, _Read]]:
    """Return the output and, by path, statistics of the layers in `pooled` and copies of the layers in `placed`."""

    def kept(path: str, output: Any) -> _Read:
        value, statistics = first_tensor(output), None
        if path in pooled and is_readable(value, x.shape[0]):
            statistics = _statistics(value, path, module, x)
        if path in placed:
            return _Read(statistics, value.clone() if isinstance(value, Tensor) else value)
        return _Read(statistics, None if statistics is not None else value)

    paths = dict.fromkeys((*pooled, *placed))
    output, reads = with_layers(module, filter(None, paths), lambda: function(x), kept)
    if "" in paths:
        reads[""] = kept("", x)
    return output, reads


def _pooled(reads: dict[str, _Read], path: str, x: Tensor) -> _Statistics:
    if path not in reads or reads[path].statistics is None:
        layer_tensor(reads[path].output if path in reads else None, path, x, is_missing=path not in reads)
        raise AssertionError("layer_tensor has raised for this layer")
    return cast(_Statistics, reads[path].statistics)


def _on_grid(reads: dict[str, _Read], layer: Layer, module: nn.Module, x: Tensor) -> Tensor:
    assert layer.grid is not None
    return on_grid([positions_of(_outputs(reads), path, module, x) for path in layer.of], layer.grid)


def _outputs(reads: dict[str, _Read]) -> dict[str, Any]:
    return {path: read.output for path, read in reads.items()}


def _statistics(value: Tensor, path: str, module: nn.Module, x: Tensor) -> _Statistics:
    axes = (2,) if is_series(value, module, path) else position_axes(value, module, is_square=has_square_sides(x))
    wide = value.to(torch.promote_types(value.dtype, torch.float32))
    if not axes:
        return _Statistics(wide.clone(), False)
    return _Statistics(torch.cat(mean_and_deviation(wide, axes), dim=1), True)


def mean_and_deviation(values: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation over the positions, (B, C) each.

    torch.std and torch.var_mean take ten times as long on a CPU, mostly where channels come last.
    """
    mean = values.mean(axes, keepdim=True)
    return mean.flatten(1), (values - mean).square_().mean(axes).sqrt_()
