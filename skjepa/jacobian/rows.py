"""Compute the Jacobians of a batch, row by row in reverse mode or column by column in forward mode.

The function must treat the samples of a batch independently, which `skjepa.encoders.probe` checks. Then one pass with
the same output direction for every sample yields one row of every Jacobian, as in Listing 1 of arXiv 2510.05949.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from skjepa._utils.hardware import is_out_of_memory
from skjepa._utils.validation import check_choice
from skjepa.jacobian.repeated_backward import prepared

_ROWS_OF_A_PASS = 2048
_PASSES_A_COPY = 8
_HAS_COMPILED: list[bool] = []
# Entries of a batch beyond which a larger one is not faster: on a CPU 85 images of 32x32 or one of 224x224.
_FULL, _FULL_ON_GPU = 2**18, 2**23


def jacobian(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    mode: str = "auto",
    directions: Tensor | None = None,
    copies: int = 1,
    on_pass: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute outputs and Jacobians J of a function at a batch of inputs, or U^T J for output directions U.

    Parameters
    ----------
    function : callable
        Maps ``(B, *input_shape)`` to ``(B, K)``, each row from its own sample only.
    x : Tensor of shape (B, *input_shape)
        Inputs at which to differentiate; D is the number of entries of one sample.
    mode : {"auto", "reverse", "forward"}
        Reverse mode takes K backward passes (m with `directions`), forward mode D forward passes; "auto" takes the
        smaller number.
    directions : Tensor of shape (K, m), optional
        Matrix U, whose columns are the output directions to differentiate; by default the K unit vectors.
    copies : int
        Number of copies of the batch that go through the function together in reverse mode, so that one pass yields as
        many rows. Speeds up small batches, and multiplies the memory of the graph.
    on_pass : callable, optional
        Called after each pass with the numbers of finished and of all rows (columns in forward mode).

    Returns
    -------
    outputs : Tensor of shape (B, K)
        Detached outputs.
    jacobians : Tensor of shape (B, K, D), or (B, m, D)
        Detached Jacobians, in the dtype of the inputs.

    Examples
    --------
    >>> import torch
    >>> A = torch.tensor([[1.0, 2.0], [0.0, 3.0]])
    >>> z, J = jacobian(lambda x: x @ A.T, torch.zeros(1, 2))
    >>> J[0].tolist()
    [[1.0, 2.0], [0.0, 3.0]]
    """
    check_choice("mode", mode, ("auto", "reverse", "forward"))
    x = x.detach()
    with torch.enable_grad():
        if mode == "forward":
            return _forward(function, x, directions, on_pass)
        leaf = x.repeat(copies, *[1] * (x.ndim - 1)).requires_grad_(True)
        outputs = prepared(function)(leaf)
        if directions is not None:
            directions = directions.to(outputs)
        n_passes = outputs.shape[1] if directions is None else directions.shape[1]
        if mode == "auto" and x[0].numel() < n_passes:
            try:
                return _forward(function, x, directions, on_pass)
            except (RuntimeError, NotImplementedError) as error:
                # Some operations have no forward-mode rule; all that can be trained have a backward pass.
                if is_out_of_memory(error):
                    raise
        return outputs[: len(x)].detach(), _reverse(outputs, leaf, directions, n_passes, copies, on_pass)


def worthwhile_copies(x: Tensor, n_passes: int, room: int) -> int:
    """Return how many copies of a batch to differentiate together, if `room` of them fit into memory.

    As many as fill the machine, but at most an eighth of the passes: the forward pass of a copy costs about as much as
    a backward pass.
    """
    if x[0].numel() < n_passes:  # forward mode
        return 1
    filling = (_FULL_ON_GPU if x.is_cuda else _FULL) // x.numel()
    return max(1, min(room, filling, n_passes // _PASSES_A_COPY))


@contextmanager
def first_forward_pass() -> Iterator[None]:
    """Ignore the deprecation warning that torch gives about itself in the first forward-mode pass of a process.

    Only that pass is filtered, since changing filters resets Python's record of warnings already shown.
    """
    if _HAS_COMPILED:
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit.script`", category=FutureWarning)
        yield
    _HAS_COMPILED.append(True)


def _reverse(
    outputs: Tensor,
    leaf: Tensor,
    directions: Tensor | None,
    n_rows: int,
    copies: int,
    on_pass: Callable[[int, int], None] | None,
) -> Tensor:
    n_samples = len(outputs) // copies
    rows = leaf.new_empty(n_samples, n_rows, *leaf.shape[1:])
    for start in range(0, n_rows, copies):
        stop = min(start + copies, n_rows)
        cotangents = torch.zeros_like(outputs)
        for copy, k in enumerate(range(start, stop)):
            of_copy = cotangents[copy * n_samples : (copy + 1) * n_samples]
            if directions is None:
                of_copy[:, k] = 1
            else:
                of_copy[:] = directions[:, k]
        (gradient,) = torch.autograd.grad(outputs, leaf, cotangents, retain_graph=stop < n_rows)
        # One copy, whatever the layout of the gradient.
        rows[:, start:stop] = gradient.unflatten(0, (copies, n_samples))[: stop - start].transpose(0, 1)
        if on_pass is not None:
            on_pass(stop, n_rows)
    return rows.flatten(2)


def _forward(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    directions: Tensor | None = None,
    on_pass: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    n_samples = len(x)
    columns = []
    outputs: Tensor = x
    # For small vectors many directions share a pass, to spread its fixed cost.
    shared = max(1, _ROWS_OF_A_PASS // n_samples) if x.ndim == 2 else 1
    # Fused attention kernels have no forward-mode rule; the unfused one computes the same function.
    with sdpa_kernel(SDPBackend.MATH), first_forward_pass():
        for units in torch.eye(x[0].numel(), dtype=x.dtype, device=x.device).split(shared):
            repeated = torch.cat([x] * len(units))
            tangents = units.repeat_interleave(n_samples, dim=0).view_as(repeated)
            both: Any = torch.func.jvp(function, (repeated,), (tangents,))
            outputs, derivatives = both
            if directions is not None:
                derivatives = derivatives @ directions.to(derivatives)
            columns.append(derivatives.detach().unflatten(0, (len(units), n_samples)))
            if on_pass is not None:
                on_pass(sum(map(len, columns)), x[0].numel())
    return outputs[:n_samples].detach(), torch.cat(columns).permute(1, 2, 0).contiguous()
