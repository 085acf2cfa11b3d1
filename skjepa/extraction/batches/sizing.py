"""Choose how many samples fit into a batch, and halve the batch when memory runs out."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skjepa._utils.hardware import is_out_of_memory

MAX_BATCH = 64
"""Largest batch of images; larger ones are not faster, and their results come later."""

ROWS_FOR_AN_IMAGE = 16
"""Factor by which batches of table rows are larger than batches of images, since small networks mostly cost a fixed
time per call."""


MAX_GFLOP_ON_CPU = 50.0
"""Most operations, in 10^9, of the forward pass of one batch on a CPU: about a second of one core. Larger batches are
not faster there, and their results come later."""


def bytes_per_sample(n_components: int, n_inputs: int, graph_bytes: int, itemsize: int) -> int:
    """Estimate the peak memory of one sample: Jacobian, float64 Gram matrix, autograd graph and gradients."""
    rank = min(n_components, n_inputs)
    return n_components * n_inputs * itemsize + 3 * rank * rank * 8 + 2 * graph_bytes + 4 * n_inputs * itemsize


def batch_size(budget: int, sample_bytes: int, *, is_vector: bool, gflop: float = 0.0, device: str = "cpu") -> int:
    """Return how many samples fit into `budget` bytes.

    At least 1, at most `MAX_BATCH`, for table rows `ROWS_FOR_AN_IMAGE` times as many. On the CPU the forward pass of
    the batch takes at most `MAX_GFLOP_ON_CPU`, where one sample takes `gflop`.
    """
    largest = MAX_BATCH * ROWS_FOR_AN_IMAGE if is_vector else MAX_BATCH
    if device == "cpu" and gflop > 0:
        largest = min(largest, int(MAX_GFLOP_ON_CPU / gflop))
    return max(1, min(largest, budget // sample_bytes))


class Halving:
    """Measure batches; halve and retry a batch that runs out of memory, and keep later batches as small.

    Parameters
    ----------
    measure : callable
        Returns arrays (B, ...) for inputs (B, ...), a list of views of the same shape, and the number of copies of the
        batch that fit into memory.
    batch_size : int
        Size of the first batch.
    """

    def __init__(
        self, measure: Callable[[Tensor, list[Tensor], int], tuple[NDArray[np.float64], ...]], batch_size: int
    ) -> None:
        self.measure, self.batch_size = measure, batch_size

    def __call__(self, x: Tensor, views: list[Tensor]) -> tuple[NDArray[np.float64], ...]:
        """Return what `measure` returns for the batch; raises MemoryError if one sample alone does not fit."""
        room = max(1, self.batch_size // len(x))
        try:
            return self.measure(x, views, room)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if len(x) == room == 1:
                raise MemoryError(
                    f"one sample of shape {tuple(x.shape[1:])} does not fit into memory: give a smaller image_size, "
                    "a smaller encoder or a device with more memory"
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
