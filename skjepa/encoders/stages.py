"""The stages of an encoder, whose ends are the hidden layers worth reading: found by structure and one forward pass."""

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
"""Of more stages so many are taken at even distances, the last one among them."""

INPUT = "input"
"""The name of the rows themselves among the layers of an encoder of vectors."""

POSITIONS = "positions"
"""The name under which the positions of several layers are asked for."""

RESERVED = (INPUT, "output", POSITIONS)
"""What scores call the rows, the embedding and positions; a module of that name is read as ``"NAME (module)"``."""

_PROBES = 5  # inputs: few networks have as many tokens or time steps, which may come first as well
_FEW = 3  # ends of stages of different shape: fewer say that the network keeps one shape throughout


def stages(encoder: Encoder, shape: tuple[int, ...]) -> dict[str, str]:
    """Names and module paths of the layers that ``layers="auto"`` reads, in the order of the forward pass.

    Those that the module declares itself by an attribute `stages`, a dict of name -> path; else those of timm's
    ``feature_info``; else the last child of each shape of feature map; else, where all feature maps have one shape,
    the blocks of the transformer. Of an encoder of vectors first the rows, and then the same, or the outputs of its
    hidden layers where it has neither tokens nor feature maps.

    Parameters
    ----------
    encoder : Encoder
    shape : tuple of int
        Of one input.

    Returns
    -------
    dict of name -> path
        At most `MAX_STAGES`, for a module of the user's none where nothing of it can be hooked. The path of the rows
        themselves is "".
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
    if maps and hidden:  # what is called before any weights is the row itself in another shape
        called = list(outputs)
        hidden = [path for path in found if called.index(path) >= called.index(hidden[0])]
    hidden = [path for path in hidden if not _is_output(outputs, path)]
    return {INPUT: ""} | {named(path): path for path in thinned(hidden, MAX_STAGES - 1)}


def named(path: str) -> str:
    """What a layer is called; not like the rows or the embedding."""
    return f"{path} (module)" if path in RESERVED else path


def declared_stages(encoder: Encoder) -> dict[str, str] | None:
    """Name -> path of the stages that a module declares itself; None where its `stages`, if any, are something else."""
    prefix, module = _inside(encoder)
    declared = getattr(module, "stages", None)
    paths = {path for path, _ in module.named_modules()}
    if not isinstance(declared, dict) or not all(isinstance(name, str) for name in (*declared, *declared.values())):
        return None
    return {name: prefix + path for name, path in declared.items()} if paths >= set(declared.values()) else None


def _inside(encoder: Encoder) -> tuple[str, nn.Module]:
    """The module without the choice of its output, and where it lies."""
    whole = encoder.module
    return ("module.", whole.module) if isinstance(whole, LayerOutput | MethodOutput) else ("", whole)


def _outputs(encoder: Encoder, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """What each submodule returns for some random inputs, by path, in the order of the calls; "": the encoder's output.

    Less what is no tensor with a row per input.
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
    """What a layer returned; of several things the first, as blocks of Hugging Face's return their tokens."""
    return output[0] if isinstance(output, tuple | list) and output else output


def _of_timm(module: nn.Module, prefix: str) -> list[str]:
    """The stages that a timm model lists, whether it is the module itself or a part of it."""
    for path, part in module.named_modules():
        listed = getattr(part, "feature_info", None)
        listed = getattr(listed, "info", listed)
        if isinstance(listed, list) and listed and all(isinstance(entry, dict) for entry in listed):
            inner = f"{prefix}{path}." if path else prefix
            return [inner + str(entry.get("module")) for entry in listed]
    return []


def _ends(module: nn.Module, prefix: str, maps: dict[str, Tensor]) -> list[str]:
    """The last child of each shape of feature map; where they have one or two shapes, the blocks of a transformer.

    Of the outermost submodule whose children show either, else of the one with most children.
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
    """For each submodule, its children whose output is a feature map; a list of modules stands for what it holds."""
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
    """Of a network of vectors, what each of its weights makes: the last output before the next weights."""
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
    """At most so many, at even distances, the last one among them."""
    if len(paths) <= most:
        return paths
    places = np.linspace(len(paths) / most - 1, len(paths) - 1, most)
    return [paths[round(place)] for place in places]
