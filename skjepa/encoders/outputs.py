"""Choose a layer of a module as the embedding, and pool its output to one vector per sample."""

import difflib
import threading
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn


class LayerOutput(nn.Module):
    """Return the output of one named layer, averaged over positions (B, C, H, W) or tokens (B, N, C)."""

    def __init__(self, module: nn.Module, layer: str) -> None:
        super().__init__()
        require_layer(module, layer)
        self.module, self.layer = module, layer

    def forward(self, x: Tensor) -> Tensor:
        _, caught = with_layers(self.module, [self.layer], lambda: self.module(x))
        if self.layer not in caught:
            raise ValueError(f"layer {self.layer!r} is not used in the forward pass: choose another")
        return pooled(caught[self.layer], self.module, self.layer, is_square=has_square_sides(x))


def _copied(_layer: str, output: Any) -> Any:
    """Return a copy of a tensor, since the next layer may work on it in place."""
    return output.clone() if isinstance(output, Tensor) else output


def with_layers(
    module: nn.Module,
    layers: Iterable[str],
    call: Callable[[], Tensor],
    kept: Callable[[str, Any], Any] = _copied,
) -> tuple[Tensor, dict[str, Any]]:
    """Call the module and return its output with the outputs of named layers; layers not called are missing.

    `kept` is called with a layer's name and output, before the next layer runs, and returns what to keep.
    """
    caught: dict[str, Any] = {}
    this_thread = threading.get_ident()  # other threads may call the module directly meanwhile

    def keep(layer: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if threading.get_ident() != this_thread:
                return
            caught.pop(layer, None)  # if a layer is called twice, its last call and position count
            caught[layer] = kept(layer, output)

        return hook

    hooks = [module.get_submodule(layer).register_forward_hook(keep(layer)) for layer in layers]
    try:
        return call(), caught
    finally:
        for hook in hooks:
            hook.remove()


def pooled(value: object, module: nn.Module, layer: str, *, is_square: bool = False) -> Tensor:
    """Average a layer's output over positions or tokens; raises TypeError if it is not a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"layer {layer!r} returns {type(value).__name__}, not a tensor: choose another")
    axes = position_axes(value, module, is_square=is_square)
    return value.mean(axes) if axes else value


def position_axes(value: Tensor, module: nn.Module, *, is_square: bool = False) -> tuple[int, ...]:
    """Return the axes of a layer's output that are positions or tokens; none if it is one vector per sample.

    For square images a feature map has equal sides, so (B, 7, 7, 768) has its channels last.
    """
    if value.ndim == 4:
        _, first, second, third = value.shape
        channels_last = getattr(module, "output_fmt", None) == "NHWC"  # timm's Swin and similar models
        channels_last = channels_last or (is_square and first == second != third)
        return (1, 2) if channels_last else (2, 3)
    return (1,) if value.ndim == 3 else ()


def has_square_sides(x: Tensor) -> bool:
    """Return whether a batch holds square images."""
    return x.ndim == 4 and x.shape[-1] == x.shape[-2]


def require_layer(module: nn.Module, layer: str) -> None:
    """Raise ValueError with close names if the module has no layer of that name."""
    names = [name for name, _ in module.named_modules() if name]
    if layer not in names:
        close = difflib.get_close_matches(layer, names, n=5, cutoff=0.4)
        hint = f" Close names: {', '.join(close)}." if close else " named_modules() lists the names."
        raise ValueError(f"no layer {layer!r} in {type(module).__name__}.{hint}")


class MethodOutput(nn.Module):
    """Return the output of a callable of ``(module, x)``."""

    def __init__(self, module: nn.Module, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.module, x)


def with_output(module: nn.Module, output: str | Callable) -> nn.Module:
    """Wrap a module so that it returns the output of a named layer or of a callable."""
    return LayerOutput(module, output) if isinstance(output, str) else MethodOutput(module, output)
