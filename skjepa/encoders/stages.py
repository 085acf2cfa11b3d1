"""Find the stages of an encoder, whose ends are the hidden layers that are read by default."""

from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skjepa.encoders.encoder import Encoder
from skjepa.encoders.in_use import alone_with
from skjepa.encoders.outputs import LayerOutput, MethodOutput, with_layers
from skjepa.encoders.probe import called

MAX_STAGES = 8
"""Largest number of stages that are read; of more stages, evenly spaced ones, including the last."""

INPUT = "input"
"""Name of the input rows among the layers of an encoder of vectors."""

POSITIONS = "positions"
"""Name by which the positions of several layers on one grid are requested."""

RESERVED = (INPUT, "output", POSITIONS)
"""Names of input rows, embedding and positions in scores; a module of such a name is called ``"NAME (module)"``."""

_PROBES = 5  # inputs: an unusual number of tokens or time steps, so that their axis is not taken for the batch
_FEW = 3  # with fewer different shapes the network counts as one that keeps its shape throughout


def stages(encoder: Encoder, shape: tuple[int, ...]) -> dict[str, str]:
    """Return names and module paths of the layers that ``layers="auto"`` reads, in forward order.

    The first of these that exists: stages that the module declares in a dict attribute ``stages`` (name -> path); the
    entries of timm's ``feature_info``; the last child module of each shape of feature map; the blocks of a transformer,
    if all feature maps have one shape. For an encoder of vectors the input rows come first, and a network with neither
    tokens nor feature maps adds the outputs of its hidden layers.

    Parameters
    ----------
    encoder : Encoder
    shape : tuple of int
        Shape of one input.

    Returns
    -------
    dict of name -> path
        At most `MAX_STAGES` entries; empty if no submodule of a user's module can be hooked. The path of the input rows
        is "".
    """
    if (declared := declared_stages(encoder)) is not None:
        return {named(name): path for name, path in declared.items()}
    prefix, module = _inside(encoder)
    outputs = _outputs(encoder, shape)
    maps = {path: value for path, value in outputs.items() if path and value.shape[2:].numel() > 1}
    found = [path for path in _of_timm(module, prefix) if path in maps] or _ends(module, prefix, maps)
    if encoder.input_shape is not None:
        return {named(path): path for path in thinned(found, MAX_STAGES)}
    hidden = _hidden(module, prefix, outputs)
    if maps and hidden:  # layers before any weights only reshape the row
        called = list(outputs)
        hidden = [path for path in found if called.index(path) >= called.index(hidden[0])]
    hidden = [path for path in hidden if not _is_output(outputs, path)]
    return {INPUT: ""} | {named(path): path for path in thinned(hidden, MAX_STAGES - 1)}


def named(path: str) -> str:
    """Return the name of a layer, different from the reserved names."""
    return f"{path} (module)" if path in RESERVED else path


def declared_stages(encoder: Encoder) -> dict[str, str] | None:
    """Return name -> path of the stages that a module declares; None if it has no valid `stages` attribute."""
    prefix, module = _inside(encoder)
    declared = getattr(module, "stages", None)
    paths = {path for path, _ in module.named_modules()}
    if not isinstance(declared, dict) or not all(isinstance(name, str) for name in (*declared, *declared.values())):
        return None
    return {name: prefix + path for name, path in declared.items()} if paths >= set(declared.values()) else None


def _inside(encoder: Encoder) -> tuple[str, nn.Module]:
    """Return the path and the module without the wrapper that chooses its output."""
    whole = encoder.module
    return ("module.", whole.module) if isinstance(whole, LayerOutput | MethodOutput) else ("", whole)


def _outputs(encoder: Encoder, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Return the output of each submodule for random inputs, by path, in the order of the calls.

    The path "" is the encoder's output. Outputs that are not a tensor with one row per input are left out.
    """
    paths = [path for path, _ in encoder.module.named_modules() if path]
    x = torch.randn(_PROBES, *shape, generator=torch.Generator().manual_seed(0), dtype=encoder.dtype)
    with torch.no_grad(), encoder.scoring() as function, alone_with(encoder.module):
        output, caught = with_layers(encoder.module, paths, lambda: called(function, x))
    tensors = {path: first_tensor(value) for path, value in caught.items()} | {"": output}
    return {
        path: value
        for path, value in tensors.items()
        if isinstance(value, Tensor) and value.is_floating_point() and 2 <= value.ndim <= 4 and len(value) == _PROBES
    }


def first_tensor(output: Any) -> Any:
    """Return a layer's output; of a tuple or list the first item, which in Hugging Face blocks holds the tokens."""
    return output[0] if isinstance(output, tuple | list) and output else output


def _of_timm(module: nn.Module, prefix: str) -> list[str]:
    """Return the stages that a timm model lists, whether it is the module itself or a part of it."""
    for path, part in module.named_modules():
        listed = getattr(part, "feature_info", None)
        listed = getattr(listed, "info", listed)
        if isinstance(listed, list) and listed and all(isinstance(entry, dict) for entry in listed):
            inner = f"{prefix}{path}." if path else prefix
            return [inner + str(entry.get("module")) for entry in listed]
    return []


def _ends(module: nn.Module, prefix: str, maps: dict[str, Tensor]) -> list[str]:
    """Return the last child module of each shape of feature map, or the blocks of a transformer.

    The outermost submodule is searched whose children have at least three shapes or are at least three blocks of one
    class; if there is none, the submodule with most children.
    """
    order, parts = list(maps), dict(module.named_modules())
    rows = [sorted(row, key=order.index) for row in _rows_of_children(module, prefix, maps) if row]
    for row in sorted(rows, key=lambda row: row[0].count(".")):
        ends = _last_of_each_shape(row, maps)
        if len(ends) >= _FEW:
            return ends
        blocks = [path for path in row if any(parts[path.removeprefix(prefix)].children())]
        kinds = Counter(type(parts[path.removeprefix(prefix)]) for path in blocks)
        kind, n = kinds.most_common(1)[0] if kinds else (None, 0)
        if n >= _FEW:
            return [path for path in blocks if type(parts[path.removeprefix(prefix)]) is kind]
    return _last_of_each_shape(max(rows, key=len, default=[]), maps)


def _last_of_each_shape(row: list[str], maps: dict[str, Tensor]) -> list[str]:
    return [list(run)[-1] for _, run in groupby(row, key=lambda path: maps[path].shape[1:])]


def _rows_of_children(module: nn.Module, prefix: str, maps: dict[str, Tensor]) -> Iterator[list[str]]:
    """Yield, for each submodule, its children that return feature maps; module lists are replaced by their items."""
    for path, part in module.named_modules():
        if isinstance(part, nn.ModuleList | nn.ModuleDict):
            continue
        inner = f"{prefix}{path}." if path else prefix
        yield [name for name in _children(part, inner) if name in maps]


def _children(module: nn.Module, prefix: str) -> Iterator[str]:
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from _children(child, f"{prefix}{name}.")
        else:
            yield prefix + name


def _hidden(module: nn.Module, prefix: str, outputs: dict[str, Tensor]) -> list[str]:
    """Return, for a network of vectors, the last layer before each next layer with weights."""
    leaves = {prefix + path: part for path, part in module.named_modules() if path and not any(part.children())}
    ends: list[str] = []
    for path in filter(leaves.__contains__, outputs):
        if any(parameter.ndim > 1 for parameter in leaves[path].parameters(recurse=False)):
            ends.append(path)
        elif ends:
            ends[-1] = path
    return ends


def _is_output(outputs: dict[str, Tensor], path: str) -> bool:
    return "" in outputs and outputs[path].shape == outputs[""].shape and torch.equal(outputs[path], outputs[""])


def thinned(paths: list[str], most: int) -> list[str]:
    """Return at most `most` evenly spaced items, including the last one."""
    if len(paths) <= most:
        return paths
    places = np.linspace(len(paths) / most - 1, len(paths) - 1, most)
    return [paths[round(place)] for place in places]
