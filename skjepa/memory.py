"""How much memory there is, how much a batch needs, and what running out of it looks like."""

import psutil
import torch

MAX_BATCH = 64
"""Beyond this the passes gain nothing; results would only come later."""

_SHARE_OF_FREE = 0.5


def default_budget(device: str) -> int:
    """Half of the memory now free on `device`, in bytes."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0] * _SHARE_OF_FREE)
    return int(psutil.virtual_memory().available * _SHARE_OF_FREE)


def bytes_per_sample(n_components: int, n_inputs: int, graph_bytes: int, itemsize: int) -> int:
    """Peak memory of one sample: its Jacobian, its Gram matrix in float64, the graph and the gradients flowing back."""
    rank = min(n_components, n_inputs)
    return n_components * n_inputs * itemsize + 3 * rank * rank * 8 + 2 * graph_bytes + 4 * n_inputs * itemsize


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that an allocation failed, on the CPU or on a GPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in message or "can't allocate memory" in message)
