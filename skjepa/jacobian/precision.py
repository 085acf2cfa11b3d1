"""Define named precisions, and run passes in them whatever the process has set elsewhere."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Arithmetic:
    """Describe the floating-point arithmetic that a precision's name stands for.

    Attributes
    ----------
    dtype : torch.dtype
        Type of weights, inputs and rows of the Jacobian.
    eps : float
        Relative rounding error: a zero singular value reads less than ``10 * eps`` times the largest. It is the machine
        epsilon for float64 and float32. For bfloat16 it was measured (docs/results/precision.md), and is sixteen times
        smaller than the machine epsilon, because sums are in float32 and rounding errors average out. TF32 has three
        bits more.
    products : {"ieee", "tf32"}
        How float32 matrix products are computed on hardware that offers lower precision.
    autocast : torch.dtype or None
        Narrower type for the forward and backward passes of the Jacobian; embeddings stay in `dtype`.
    """

    dtype: torch.dtype
    eps: float
    products: str = "ieee"
    autocast: torch.dtype | None = None


PRECISIONS = {
    "float32": Arithmetic(torch.float32, 2.0**-23),
    "float64": Arithmetic(torch.float64, 2.0**-52),
    "tf32": Arithmetic(torch.float32, 2.0**-14, products="tf32"),
    "bfloat16": Arithmetic(torch.float32, 2.0**-11, autocast=torch.bfloat16),
}


_changed = threading.Condition()
_inside: list[tuple[int, str]] = []  # thread and kind of products of each open context, latest last
_before: list[str] = []


@contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """Compute float32 matrix products in a named precision within a ``with`` block.

    A line in a user's script can let torch round them to TF32 or bfloat16, and convolutions on a GPU use TF32 by
    default; float32 scores must not depend on that. The switches belong to the whole process, so a thread waits while
    others use another precision, and the former settings are restored at the end.
    """
    backends: Any = torch.backends
    switches = [backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv]
    thread, products = threading.get_ident(), PRECISIONS[precision].products
    with _changed:
        _changed.wait_for(lambda: all(other == thread or kind == products for other, kind in _inside))
        if not _inside:
            _before[:] = [switch.fp32_precision for switch in switches]
        _inside.append((thread, products))
        for switch in switches:
            switch.fp32_precision = products
    try:
        yield
    finally:
        with _changed:
            # Remove the latest equal entry, since contexts of one thread end in reverse order.
            del _inside[len(_inside) - 1 - _inside[::-1].index((thread, products))]
            after = [_inside[-1][1]] * len(switches) if _inside else _before
            for switch, value in zip(switches, after, strict=True):
                switch.fp32_precision = value
            _changed.notify_all()


def narrowed(function: Callable[[Tensor], Tensor], precision: str, device: str) -> Callable[[Tensor], Tensor]:
    """Return the function to differentiate: under autocast if the precision asks for it."""
    dtype = PRECISIONS[precision].autocast
    if dtype is None:
        return function

    def narrow(x: Tensor) -> Tensor:
        with torch.autocast(torch.device(device).type, dtype):
            return function(x)

    return narrow
