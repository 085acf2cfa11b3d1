"""Prepare a forward pass for many backward passes, by keeping what each of them would compute again.

torch's backward rules are made for training, with one backward pass per forward pass: they keep inputs and recompute
derivatives. A Jacobian takes K backward passes. The rules here give the same products, up to rounding.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from skjepa.jacobian import input_gradients

_MANY_TOKENS = 8
_LONGEST_KEPT = 2048  # most tokens for which attention weights, a square matrix per head, are kept


def prepared(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return the same function with a graph that is faster to traverse many times.

    - Smooth activations (GELU, SiLU and others) keep their derivative, so that a pass only multiplies.
    - Batch normalisation in eval mode is one factor per channel, which is merged into the convolution before it.
    - Convolutions with a batch normalisation or few channels (a stem, a patch embedding), and linear layers of tokens,
      use backward kernels whose weights are laid out once.
    - On the CPU, attention keeps its weights instead of recomputing them in every pass.
    - On the CPU, a linear layer of tokens skips tokens that no gradient reaches: all others if the output is the class
      token.

    A rule is not used if a weight depends on the input. If a rule fails, as in functions that differentiate inside
    themselves, the function is called without rules.

    Parts that run under `torch.no_grad` are differentiated as well, since their values depend on the input.
    """

    def called(x: Tensor) -> Tensor:
        try:
            with _ManyPasses():
                return function(x)
        except RuntimeError:
            pass
        # Outside the except block: the traceback would keep the failed graph alive.
        try:
            with _ThroughNoGrad():
                return function(x)
        except RuntimeError:
            pass
        return function(x)

    return called


class _ThroughNoGrad(TorchFunctionMode):
    """Compute gradients also through parts that the function runs under `no_grad`."""

    def __init__(self) -> None:
        super().__init__()
        self.is_wanted = torch.is_grad_enabled()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.is_wanted and _is_checkpointed():
            raise RuntimeError("a checkpointed part must repeat its first computation exactly, without these rules")
        is_as_wanted = torch.is_grad_enabled() or not self.is_wanted
        if is_as_wanted or torch.is_inference_mode_enabled() or _keeps_off(func, kwargs):
            return self.called(func, args, kwargs)
        with torch.enable_grad():
            return self.called(func, args, kwargs)

    def called(self, func: Callable, args: Any, kwargs: dict[str, Any]) -> Any:
        # torch 2.14's own rule is wrong on the CPU for batches of one in some layouts.
        result = _plain_batch_norm(*args, **kwargs) if func is F.batch_norm and torch.is_grad_enabled() else None
        return func(*args, **kwargs) if result is None else result


def _is_checkpointed() -> bool:
    """Return whether `torch.utils.checkpoint` is active, which compares a second forward pass with the first."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks is not None and "_checkpoint_hook" in getattr(hooks[0], "__qualname__", "")


def _keeps_off(func: Callable, kwargs: dict[str, Any]) -> bool:
    """Return whether a call switches the gradient mode or writes in place, as updates of statistics do."""
    name = getattr(func, "__name__", "")
    is_in_place = name.endswith("_") and not name.endswith("__")
    return is_in_place or "out" in kwargs or name in ("_set_grad_enabled", "set_grad_enabled", "__set__", "__setitem__")


class _ManyPasses(_ThroughNoGrad):
    def called(self, func: Callable, args: Any, kwargs: dict[str, Any]) -> Any:
        if func in _WATCHES and getattr(args[0], "_is_passed_by", False):
            raise RuntimeError("a hook needs a gradient that these rules do not compute")
        rule = _RULES.get(func)
        result = None if rule is None or not torch.is_grad_enabled() else rule(func, *args, **kwargs)
        return func(*args, **kwargs) if result is None else result


_WATCHES = (Tensor.register_hook, Tensor.retain_grad, Tensor.register_post_accumulate_grad_hook)


def _elementwise(func: Callable, input: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
    if not input.requires_grad or (args and func is not F.gelu) or kwargs.get("inplace"):
        return None

    def with_derivative(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            output = func(leaf, *args, **kwargs)
            (derivative,) = torch.autograd.grad(output, leaf, torch.ones_like(output))
        return output.detach(), derivative

    return _Scaled.apply(input, with_derivative)


def _batch_norm(
    func: Callable,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    if training or running_var is None or not input.requires_grad or _depend(running_mean, running_var, weight, bias):
        return None

    scale = _scale_of(running_var, weight, eps)
    output = func(input.detach(), running_mean, running_var, weight, bias, training, momentum, eps)
    x, kernel, how, versions = cast(Any, getattr(input, "_convolution", (None, None, None, None)))
    # Not if a tensor was changed in place since, or a hook needs the gradient in between.
    if versions is not None and versions == (x._version, input._version) and not _is_watched(input):
        cast(Any, input)._is_passed_by = True
        return _Convolution.apply(x, kernel * scale[:, None, None, None], how, lambda _: output)
    return _Scaled.apply(input, lambda _: (output, scale.view(-1, *[1] * (input.ndim - 2)).to(output.dtype)))


def _scale_of(running_var: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Return the factor of each channel in eval mode."""
    scale = torch.rsqrt(running_var + eps)
    return scale if weight is None else scale * weight


def _plain_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    """Compute batch normalisation in eval mode by products and sums."""
    if training or running_mean is None or running_var is None or not input.requires_grad:
        return None
    shape = (-1, *[1] * (input.ndim - 2))
    scale = _scale_of(running_var, weight, eps)
    output = (input - running_mean.view(shape)) * scale.view(shape)
    return output if bias is None else output + bias.view(shape)


def _conv2d(
    func: Callable,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    plain = input.ndim == 4 and not isinstance(padding, str)
    if not plain or not input.requires_grad or _depend(weight, bias):
        return None
    sizes = {"stride": stride, "padding": padding, "dilation": dilation}
    how: dict[str, Any] = {name: _pair(size) for name, size in sizes.items()} | {"groups": groups}

    def convolved(x: Tensor) -> Tensor:
        return func(x, weight, bias, **how)

    few = input_gradients.has_few_channels(weight, groups)
    output: Any = _Convolution.apply(input, weight, how, convolved) if few else convolved(input)
    # For a batch normalisation that may follow.
    output._convolution = (input, weight, how, (input._version, output._version))
    return output


def _pair(size: Any) -> Any:
    """Return a pair for height and width, for which torch also accepts one number or a sequence of one."""
    return tuple(size) * (2 // len(size)) if isinstance(size, tuple | list) else (size, size)


def _is_watched(tensor: Tensor) -> bool:
    return bool(tensor._backward_hooks) or tensor.retains_grad


def _linear(func: Callable, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    tokens = input.ndim >= 3 and input.shape[1:-1].numel() >= _MANY_TOKENS and not input.is_cuda
    if not tokens or not input.requires_grad or _depend(weight, bias):
        return None
    return _Tokens.apply(input, func, weight, bias)


def _attention(
    func: Callable,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    plain = attn_mask is None and not dropout_p and not is_causal and not enable_gqa
    if not plain or query.is_cuda or key.shape[-2] > _LONGEST_KEPT:
        return None
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return torch.softmax((query * scale) @ key.transpose(-2, -1), dim=-1) @ value


def _depend(*tensors: Tensor | None) -> bool:
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)


_RULES: dict[Callable, Callable] = {
    F.batch_norm: _batch_norm,
    F.conv2d: _conv2d,
    F.linear: _linear,
    F.scaled_dot_product_attention: _attention,
    **dict.fromkeys([F.gelu, F.silu, F.mish, F.hardswish, F.softplus, F.elu, F.celu, F.selu], _elementwise),
}


def _refuse_second_derivatives() -> None:
    # The rules keep constants, so differentiating again would silently give wrong results.
    if torch.is_grad_enabled():
        raise RuntimeError("a graph prepared for many backward passes has no second derivatives")


class _Scaled(torch.autograd.Function):
    """Apply a function whose derivative is one factor per entry or per channel."""

    @staticmethod
    def forward(ctx, input, with_derivative):
        output, derivative = with_derivative(input)
        ctx.save_for_backward(derivative)
        return output

    @staticmethod
    def backward(ctx, gradient):
        _refuse_second_derivatives()
        (derivative,) = ctx.saved_tensors
        return gradient * derivative, None


class _Convolution(torch.autograd.Function):
    """Apply a convolution with a given output, alone or merged with the scale of a batch normalisation."""

    @staticmethod
    def forward(ctx, input, weight, how, output_of):
        output = output_of(input)
        ctx.below = input_gradients.of_convolution(weight.to(output.dtype), input.shape, how)
        ctx.dtype = input.dtype
        return output

    @staticmethod
    def backward(ctx, gradient):
        _refuse_second_derivatives()
        return ctx.below(gradient).to(ctx.dtype), None, None, None


class _Tokens(torch.autograd.Function):
    """Apply a linear layer to tokens (B, N, C) or positions (B, H, W, C)."""

    @staticmethod
    def forward(ctx, input, func, weight, bias):
        output = func(input, weight, bias)
        ctx.product = input_gradients.of_linear(weight.to(output.dtype))
        ctx.width, ctx.dtype, ctx.dense = weight.shape[1], input.dtype, False
        return output

    @staticmethod
    def backward(ctx, gradient):
        _refuse_second_derivatives()
        if not ctx.dense:
            # Which tokens the output uses depends only on the network: if the first pass reaches most of them, later
            # passes do not check again.
            reached = gradient.abs().amax(-1) != 0
            ctx.dense = int(reached.sum()) > reached.numel() // 2
        if ctx.dense:
            return ctx.product(gradient).to(ctx.dtype), None, None, None
        below = gradient.new_zeros(*gradient.shape[:-1], ctx.width, dtype=ctx.dtype)
        below[reached] = ctx.product(gradient[reached]).to(ctx.dtype)
        return below, None, None, None
