"""`WeightsWatch`: whether weights are still what they were, for much less than reading them all."""

import torch
import xxhash
from torch import Tensor, nn

from skjepa.encoders.fingerprint import Names, once

READ_AT_ONCE = 1 << 24
"""Bytes that a look reads: weights of no more than that are read whole each time."""

_EVERY = 4096  # one entry in so many of every tensor is read in each look
_FEWEST = 16  # of a tensor, so that one of few entries is not judged by one


class WeightsWatch:
    """What a module's weights were at one moment, and looks whether they are that still.

    A look compares, of every parameter and buffer, which tensor it is, where its numbers lie, torch's counter of
    changes and one entry in 4096. What torch does not count (writes through ``.data`` or a shared NumPy array) and the
    sample does not meet is found because each look also reads the next 16 MiB whole: after as many looks as the
    weights have parts of that size at the latest.

    Parameters
    ----------
    module : torch.nn.Module
    about : str
        Whatever else decides an embedding, in words.
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
        """Whether module and words are, as far as this look sees, what they were."""
        names = Names(module)
        if about != self._about or _objects(names) != self._objects:
            return False
        if [_counted(tensor) for tensor in _weights(names)] != self._counted:
            return False
        return self._read_sample() == self._sample and self._next_parts_are_the_same()

    def _read_sample(self) -> bytes:
        return b"".join(part.contiguous().view(torch.uint8).cpu().numpy().tobytes() for part in self._sampled)

    def _next_parts_are_the_same(self) -> bool:
        """Of the parts whose turn it is, at most `READ_AT_ONCE` bytes together."""
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
    """Bytes of all parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _weights(Names(module)))


def can_be_watched(module: nn.Module) -> bool:
    """Whether torch counts the changes of every tensor, and its numbers lie side by side and can be read in place."""
    return all(type(tensor) in (Tensor, nn.Parameter, nn.Buffer) for tensor in _weights(Names(module))) and all(
        tensor.layout == torch.strided and not tensor.is_inference() and _is_dense(tensor)
        for tensor in _weights(Names(module))
    )


def _weights(names: Names) -> list[Tensor]:
    return [tensor for _, tensor in [*once(names.parameters), *once(names.buffers)]]


def _objects(names: Names) -> list[tuple[str, int]]:
    """Every name of a module, parameter or buffer, and which object it is."""
    return [(name, id(item)) for name, item in [*names.modules, *names.parameters, *names.buffers]]


def _counted(tensor: Tensor) -> tuple:
    return id(tensor), tensor.data_ptr(), tensor._version, tensor.dtype, tensor.shape, tensor.stride()


def _flat(tensor: Tensor) -> Tensor:
    """The numbers of a dense tensor where they lie, in the order of memory."""
    return tensor.detach().as_strided((tensor.numel(),), (1,))


def _is_dense(tensor: Tensor) -> bool:
    """Whether the numbers fill a stretch of memory without a gap."""
    expected = 1
    for stride, size in sorted(pair for pair in zip(tensor.stride(), tensor.shape, strict=True) if pair[1] != 1):
        if stride != expected:
            return tensor.numel() == 0
        expected *= size
    return True


def _digest(part: Tensor) -> int:
    return xxhash.xxh3_64_intdigest(part.cpu().numpy())
