"""How many samples fit into one batch, and half of them after memory ran out."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skjepa._utils.hardware import is_out_of_memory

MAX_BATCH = 64
"""Beyond this the passes gain nothing; results would only come later."""

ROWS_FOR_AN_IMAGE = 16
"""So many rows of a table take the place of one image: a pass of small networks is mostly its fixed cost."""


MAX_GFLOP_ON_CPU = 50.0
"""Of the forward pass of a batch, 10^9 operations: about a second of one core. Larger batches of large encoders are
not faster there, and their results and the progress bar would only come later."""


def bytes_per_sample(n_components: int, n_inputs: int, graph_bytes: int, itemsize: int) -> int:
    """Peak memory of one sample: its Jacobian, its Gram matrix in float64, the graph and the gradients flowing back."""
    rank = min(n_components, n_inputs)
    return n_components * n_inputs * itemsize + 3 * rank * rank * 8 + 2 * graph_bytes + 4 * n_inputs * itemsize


def batch_size(budget: int, sample_bytes: int, *, is_vector: bool, gflop: float = 0.0, device: str = "cpu") -> int:
    """Samples that fit into so many bytes: from 1 to `MAX_BATCH`, of rows `ROWS_FOR_AN_IMAGE` times so many.

    On the CPU no more than `MAX_GFLOP_ON_CPU` allow, where a sample's forward pass takes `gflop`.
    """
    largest = MAX_BATCH * ROWS_FOR_AN_IMAGE if is_vector else MAX_BATCH
    if device == "cpu" and gflop > 0:
        largest = min(largest, int(MAX_GFLOP_ON_CPU / gflop))
    return max(1, min(largest, budget // sample_bytes))


class Halving:
    """A measurement of batches; a batch that runs out of memory is halved and retried, and later ones are as small.

    Parameters
    ----------
    measure : callable
        Inputs (B, ...), a list of views of the same shape, and how many times B samples have room -> arrays (B, ...).
    batch_size : int
        To start with.
    """

    def __init__(
        self, measure: Callable[[Tensor, list[Tensor], int], tuple[NDArray[np.float64], ...]], batch_size: int
    ) -> None:
        self.measure, self.batch_size = measure, batch_size

    def __call__(self, x: Tensor, views: list[Tensor]) -> tuple[NDArray[np.float64], ...]:
        """What `measure` returns for the whole batch; raises MemoryError where one sample alone does not fit."""
        room = max(1, self.batch_size // len(x))
        try:
            return self.measure(x, views, room)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if len(x) == room == 1:
                raise MemoryError(
                    f"one sample of shape {tuple(x.shape[1:])} does not fit into memory: use a smaller image_size, "
                    "a smaller encoder or a larger device"
                ) from error
        # Outside the except block: the traceback would keep the failed batch alive.
        if x.is_cuda:
            torch.cuda.empty_cache()
        if room > 1:
            self.batch_size = len(x)
            return self(x, views)
        half = (len(x) + 1) // 2
        self.batch_size = min(self.batch_size, half)
        halves = [self(x[part], [view[part] for view in views]) for part in (slice(half), slice(half, None))]
        return tuple(np.concatenate(parts) for parts in zip(*halves, strict=True))
