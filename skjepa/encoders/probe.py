"""Check an encoder before a long run: output shape, determinism, independence of samples, memory."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from skjepa._utils.hardware import is_out_of_memory
from skjepa._utils.randomness import own_random_numbers
from skjepa.jacobian.repeated_backward import prepared

# Tolerances relative to the largest output. Repeating a pass may change the order of sums on a GPU, and another batch
# size may use another kernel; dropout and mixing of samples change outputs by far more.
_REPEATED, _REBATCHED = 1e-5, 1e-4


_MIXES = "the encoder mixes the samples of a batch"
_HOW = "remove batch statistics, and normalisation or attention over the batch"


class EncoderError(ValueError):
    """Raised when a module cannot be scored; the message names the condition that fails."""


@dataclass(frozen=True)
class Probe:
    """Hold what a pass over two samples shows about an encoder.

    Attributes
    ----------
    n_components : int
        Length K of the embedding.
    n_inputs : int
        Number D of entries of one input.
    graph_bytes : int
        Bytes per sample that the forward pass keeps for the backward passes.
    gflop : float
        10^9 floating-point operations of the forward pass per sample: matrix products and convolutions, counted from
        shapes, so that they are the same on every machine. 0 if they cannot be counted.
    """

    n_components: int
    n_inputs: int
    graph_bytes: int
    gflop: float


def probe(function: Callable[[Tensor], Tensor], shape: tuple[int, ...], *, dtype: torch.dtype, device: str) -> Probe:
    """Check that `function` maps ``(B, *shape)`` to ``(B, K)``, each row from its own sample, the same every time.

    Raises
    ------
    EncoderError
        If the output has a wrong shape, is not floating point, finite or differentiable, is stochastic, or mixes the
        samples of a batch.
    """
    generator = torch.Generator().manual_seed(0)
    first, second, third = torch.randn(3, *shape, generator=generator, dtype=dtype).to(device)
    with own_random_numbers():
        pair = torch.stack([first, second]).requires_grad_(True)
        output, bytes_of_two = _call_and_count(function, pair)
        _check_output(output, pair, n_samples=2)
        with torch.no_grad():
            again, gflop = call_and_count_operations(function, torch.stack([first, second]))
            others = [called(function, torch.stack(batch)) for batch in ([first, third], [third, second])]
    output = output.detach()
    if _differ(output, again, _REPEATED):
        raise EncoderError(
            "the encoder is stochastic: two passes over the same input differ in eval mode. Remove dropout called as a "
            "function, noise or random crops"
        )
    if any(_differ(output[row], other[row], _REBATCHED) for row, other in enumerate(others)):
        raise EncoderError(f"{_MIXES}: one sample's embedding changes with the other samples. In eval mode {_HOW}")
    single = first[None].requires_grad_(True)
    alone, bytes_of_one = _call_and_count(function, single)
    _check_output(alone, single, n_samples=1)
    if _differ(output[0], alone[0].detach(), _REBATCHED):
        raise EncoderError(f"{_MIXES}: one sample's embedding changes with the batch size. In eval mode {_HOW}")
    # Weights are kept once for any number of samples, so the difference is the memory per sample.
    return Probe(output.shape[1], first.numel(), max(0, bytes_of_two - bytes_of_one), gflop)


def _call_and_count(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, int]:
    """Return the output, with its graph, and the bytes that the graph keeps."""
    saved: list[weakref.ref[Tensor]] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(weakref.ref(tensor))
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = called(prepared(function), x)
    # Weak references: tensors saved by inner graphs are freed by now, and their memory may be reused.
    storages = [tensor.untyped_storage() for reference in saved if (tensor := reference()) is not None]
    return output, sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def count_operations(
    function: Callable[[Tensor], Tensor], shape: tuple[int, ...], *, dtype: torch.dtype, device: str
) -> float:
    """Count the 10^9 operations of a forward pass per sample, see `Probe`."""
    with torch.no_grad(), own_random_numbers():
        return call_and_count_operations(function, torch.zeros(2, *shape, dtype=dtype, device=device))[1]


def call_and_count_operations(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, float]:
    """Return the output and the 10^9 operations per sample."""
    counter = _Operations()
    try:
        with counter:
            output = called(function, x)
    except EncoderError:  # compiled or traced modules may not support counting
        return called(function, x), 0.0
    return output, counter.total / len(x) / 1e9


class _Operations(TorchDispatchMode):
    """Count like torch's FlopCounterMode, but without its hooks on modules, about which compiled modules warn."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        self.total += 0 if count is None else count(*args, **(kwargs or {}), out_val=output)
        return output


def called(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return ``function(x)``; errors of the module become an EncoderError."""
    try:
        return function(x)
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError) as error:
        if is_out_of_memory(error):
            raise
        raise EncoderError(f"the encoder fails on an input of shape {tuple(x.shape)}: {error}") from error


def _check_output(output: object, x: Tensor, n_samples: int) -> None:
    if not isinstance(output, Tensor):
        raise EncoderError(
            f"the encoder returned a {type(output).__name__}; it must return a tensor (B, K). Choose a layer or a "
            "callable with output="
        )
    if output.ndim != 2 or output.shape[0] != n_samples or output.shape[1] == 0:
        raise EncoderError(
            f"the encoder returned shape {tuple(output.shape)} for a batch of {n_samples}; it must be (B, K). "
            "Choose a layer or a callable with output="
        )
    if not output.is_floating_point():
        raise EncoderError(f"the encoder's output must be floating point; got {output.dtype}")
    if not torch.isfinite(output).all():
        raise EncoderError("the encoder's output is not finite (NaN or infinity) on random input")
    try:
        with torch.enable_grad():
            depends = output.requires_grad and torch.autograd.grad(output.sum(), x, allow_unused=True)[0] is not None
    except RuntimeError as error:  # a tensor was changed in place, or an operation has no backward rule
        if is_out_of_memory(error):
            raise
        raise EncoderError(f"the encoder has no backward pass: {error}") from error
    if not depends:
        raise EncoderError(
            "the encoder's output does not depend differentiably on its input: remove detach() or no_grad inside it"
        )


def _differ(a: Tensor, b: Tensor, tolerance: float) -> bool:
    scale = a.abs().max().clamp_min(torch.finfo(a.dtype).tiny)
    return bool((a - b).abs().max() > tolerance * scale)
