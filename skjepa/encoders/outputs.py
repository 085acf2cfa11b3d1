"""Which layer of a module is the embedding, and how its output becomes one vector per sample."""

import difflib
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class LayerOutput(nn.Module):
    """The output of one named layer, averaged over positions (B, C, H, W) or tokens (B, N, C)."""

    def __init__(self, module: nn.Module, layer: str) -> None:
        super().__init__()
        require_layer(module, layer)
        self.module, self.layer = module, layer

    def forward(self, x: Tensor) -> Tensor:
        caught: list[Tensor] = []
        layer = self.module.get_submodule(self.layer)
        hook = layer.register_forward_hook(lambda *call: caught.append(as_it_is(call[-1])))
        try:
            self.module(x)
        finally:
            hook.remove()
        if not caught:
            raise ValueError(f"layer {self.layer!r} takes no part in the forward pass")
        return pooled(caught[-1], self.module, self.layer, is_square=x.ndim == 4 and x.shape[-1] == x.shape[-2])


def as_it_is(output: Any) -> Any:
    """What a layer returned, before the next one works on it in place."""
    return output.clone() if isinstance(output, Tensor) else output


def pooled(value: object, module: nn.Module, layer: str, *, is_square: bool = False) -> Tensor:
    """What a layer of the module returned, averaged over positions or tokens; raises TypeError for no tensor.

    Of square images the two sides of a feature map are equal: (B, 7, 7, 768) has its channels last.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"layer {layer!r} returns {type(value).__name__}, not a tensor; choose another")
    if value.ndim == 4:
        _, first, second, third = value.shape
        channels_last = getattr(module, "output_fmt", None) == "NHWC"  # timm's Swin and its kin
        channels_last = channels_last or (is_square and first == second != third)
        return value.mean(dim=(1, 2) if channels_last else (2, 3))
    return value.mean(dim=1) if value.ndim == 3 else value


def require_layer(module: nn.Module, layer: str) -> None:
    """Raise ValueError, with close names, where the module has no layer of that name."""
    names = [name for name, _ in module.named_modules() if name]
    if layer not in names:
        close = difflib.get_close_matches(layer, names, n=5, cutoff=0.4)
        hint = f" Close: {', '.join(close)}." if close else ""
        raise ValueError(f"no layer {layer!r} in {type(module).__name__}.{hint}")


class MethodOutput(nn.Module):
    """The output of a callable of ``(module, x)``."""

    def __init__(self, module: nn.Module, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.module, x)


def with_output(module: nn.Module, output: str | Callable) -> nn.Module:
    return LayerOutput(module, output) if isinstance(output, str) else MethodOutput(module, output)
