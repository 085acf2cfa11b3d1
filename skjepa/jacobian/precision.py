"""Named precisions: in which arithmetic the passes run, whatever the process has set elsewhere."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Arithmetic:
    """What a name stands for.

    Attributes
    ----------
    dtype : torch.dtype
        Of weights, inputs and rows of the Jacobian.
    eps : float
        Ten of them, relative to the largest singular value, are above what a zero singular value reads. For float64
        and float32 the machine epsilon. For bfloat16 it was measured: sums are in float32 and rounding errors average
        out, so that it lies sixteen times below the machine epsilon (docs/results/precision.md); TF32 has three bits
        more.
    products : {"ieee", "tf32"}
        How matrix products of float32 are computed, where the hardware offers less than float32.
    autocast : torch.dtype or None
        Narrower type of the forward and backward passes of the Jacobian; embeddings stay in `dtype`.
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
_inside: list[tuple[int, str]] = []  # thread and kind of products, the last one in at the end
_before: list[str] = []


@contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """Context in which products of float32 matrices are computed as the name says.

    Elsewhere one line in a user's script lets torch round them to TF32 or bfloat16, and convolutions on a GPU are in
    TF32 unless told otherwise: a float32 score must not depend on that. The switches are those of the whole process:
    a thread waits while others compute in another way, and what was set before is set again behind each context.
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
            # The last of the same: contexts of one thread end in the order opposite to that in which they began.
            del _inside[len(_inside) - 1 - _inside[::-1].index((thread, products))]
            after = [_inside[-1][1]] * len(switches) if _inside else _before
            for switch, value in zip(switches, after, strict=True):
                switch.fp32_precision = value
            _changed.notify_all()


def narrowed(function: Callable[[Tensor], Tensor], precision: str, device: str) -> Callable[[Tensor], Tensor]:
    """The function as the Jacobian sees it: under autocast where the precision asks for it."""
    dtype = PRECISIONS[precision].autocast
    if dtype is None:
        return function

    def narrow(x: Tensor) -> Tensor:
        with torch.autocast(torch.device(device).type, dtype):
            return function(x)

    return narrow
