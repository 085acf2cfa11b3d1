import psutil
import pytest
import torch

from skjepa._utils.hardware import default_budget, is_out_of_memory
from skjepa.extraction.batches.sizing import bytes_per_sample


def test_budget_leaves_room_for_others():
    assert 0 < default_budget("cpu") < psutil.virtual_memory().total


def test_a_sample_costs_at_least_its_jacobian():
    assert bytes_per_sample(384, 3 * 224 * 224, 0, 4) > 384 * 3 * 224 * 224 * 4
    assert bytes_per_sample(64, 3072, 10**6, 4) - bytes_per_sample(64, 3072, 0, 4) >= 10**6


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_running_out_looks_like(error, expected):
    assert is_out_of_memory(error) is expected


def test_the_allocator_of_the_cpu_speaks_as_expected():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)
