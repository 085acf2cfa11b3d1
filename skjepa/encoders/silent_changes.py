"""Detect changes of weights without reading all of them each time."""

import torch
import xxhash
from torch import Tensor, nn

from skjepa.encoders.fingerprint import Names, once

READ_AT_ONCE = 1 << 24
"""Bytes read per check; weights that take no more are read completely each time."""

_EVERY = 4096  # each check reads one in so many entries of every tensor
_FEWEST = 16  # fewest entries read per tensor


class WeightsWatch:
    """Remember a module's weights and check later whether they changed.

    A check compares the identity, address and torch's version counter of every parameter and buffer, and one entry in
    4096. torch does not count writes through ``.data`` or a shared NumPy array. If such a write misses the sampled
    entries, it is still found later, since each check also reads the next 16 MiB completely.

    Parameters
    ----------
    module : torch.nn.Module
    about : str
        Text that describes everything else that decides an embedding.
    """

    def __init__(self, module: nn.Module, about: str) -> None:
        self._about = about
        names = Names(module)
        self._objects = _objects(names)
        self._counted = [_counted(tensor) for tensor in _weights(names)]
        flat = [_flat(tensor) for tensor in _weights(names)]
        self._sampled = [numbers[:: max(1, min(_EVERY, len(numbers) // _FEWEST))] for numbers in flat]
        self._sample = self._read_sample()
        self._parts = [part for numbers in flat for part in numbers.view(torch.uint8).split(READ_AT_ONCE)]
        self._digests = [_digest(part) for part in self._parts]
        self._next = 0

    def sees_no_change(self, module: nn.Module, about: str) -> bool:
        """Return whether this check finds the module and the text unchanged."""
        names = Names(module)
        if about != self._about or _objects(names) != self._objects:
            return False
        if [_counted(tensor) for tensor in _weights(names)] != self._counted:
            return False
        return self._read_sample() == self._sample and self._next_parts_are_the_same()

    def _read_sample(self) -> bytes:
        return b"".join(part.contiguous().view(torch.uint8).cpu().numpy().tobytes() for part in self._sampled)

    def _next_parts_are_the_same(self) -> bool:
        """Compare the next parts in turn, at most `READ_AT_ONCE` bytes together."""
        read = 0
        for _ in self._parts:
            part = self._parts[self._next]
            read += len(part)
            if read > READ_AT_ONCE:
                break
            if _digest(part) != self._digests[self._next]:
                return False
            self._next = (self._next + 1) % len(self._parts)
        return True


def bytes_of(module: nn.Module) -> int:
    """Return the bytes of all parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _weights(Names(module)))


def can_be_watched(module: nn.Module) -> bool:
    """Return whether every tensor has a version counter and contiguous memory, which a check needs."""
    return all(type(tensor) in (Tensor, nn.Parameter, nn.Buffer) for tensor in _weights(Names(module))) and all(
        tensor.layout == torch.strided and not tensor.is_inference() and _is_dense(tensor)
        for tensor in _weights(Names(module))
    )


def _weights(names: Names) -> list[Tensor]:
    return [tensor for _, tensor in [*once(names.parameters), *once(names.buffers)]]


def _objects(names: Names) -> list[tuple[str, int]]:
    """Return every name of a submodule, parameter or buffer with the id of its object."""
    return [(name, id(item)) for name, item in [*names.modules, *names.parameters, *names.buffers]]


def _counted(tensor: Tensor) -> tuple:
    return id(tensor), tensor.data_ptr(), tensor._version, tensor.dtype, tensor.shape, tensor.stride()


def _flat(tensor: Tensor) -> Tensor:
    """Return a view of a dense tensor in the order of memory."""
    return tensor.detach().as_strided((tensor.numel(),), (1,))


def _is_dense(tensor: Tensor) -> bool:
    """Return whether a tensor fills its memory without gaps."""
    expected = 1
    for stride, size in sorted(pair for pair in zip(tensor.stride(), tensor.shape, strict=True) if pair[1] != 1):
        if stride != expected:
            return tensor.numel() == 0
        expected *= size
    return True


def _digest(part: Tensor) -> int:
    return xxhash.xxh3_64_intdigest(part.cpu().numpy())
