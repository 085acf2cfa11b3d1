"""Find devices and free memory, and recognise errors of memory and devices."""

import platform
from pathlib import Path

import psutil
import torch

_SHARE_OF_FREE = 0.5
# Parts of torch's messages, for the CPU on Linux and on Windows, for CUDA and its libraries.
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "_status_alloc_failed")
_DEVICE_FAILED = ("CUDA error", "CUDNN_STATUS_", "CUBLAS_STATUS_", "HIP error", "device-side assert")


def default_budget(device: str) -> int:
    """Return half of the memory that is free on `device` now, in bytes."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0] * _SHARE_OF_FREE)
    return int(psutil.virtual_memory().available * _SHARE_OF_FREE)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means that memory ran out, on the CPU or on a GPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in message for words in _NO_MEMORY)


def is_device_failure(error: BaseException) -> bool:
    """Return whether an exception means that a GPU failed, so that this process cannot use it any more."""
    if is_out_of_memory(error) or not isinstance(error, RuntimeError):
        return False
    is_said = isinstance(error, getattr(torch, "AcceleratorError", ()))  # since torch 2.8
    return is_said or any(words in str(error) for words in _DEVICE_FAILED)


class DeviceError(OSError):
    """Raised when a GPU fails during a run; this process cannot continue, but a store keeps finished samples."""


def resolve_device(device: str) -> str:
    """Return the device that "auto" stands for, or the named one; raises if it is not available."""
    if not isinstance(device, str):
        raise TypeError(f"device must be a name such as 'auto', 'cpu' or 'cuda:0'; got {device!r}")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device {device!r} is not available here ({str(error).splitlines()[0]}): give 'auto' or 'cpu'"
        ) from error
    return str(device)


def device_name(device: str) -> str:
    """Return the name of the hardware."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor() or device


def has_bfloat16(device: str | torch.device) -> bool:
    """Return whether the device multiplies in bfloat16 natively; emulation is slower than float32."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def processor() -> str:
    """Return the name of the processor, if the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
