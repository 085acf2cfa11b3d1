"""An encoder made ready for a pass: on its device, looked at, with the memory that a sample takes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from torch import Tensor

from skjepa.data.sources import Source
from skjepa.encoders.encoder import Encoder
from skjepa.encoders.probe import Probe, count_operations, probe
from skjepa.extraction.batches.measurement import scoring
from skjepa.extraction.batches.sizing import bytes_per_sample


@contextmanager
def ready(encoder: Encoder, shape: tuple[int, ...], device: str) -> Iterator[tuple[Callable[[Tensor], Tensor], Probe]]:
    """The encoder as a function on the device, and what a look at it on inputs of this shape tells."""
    with scoring(encoder, device) as function:
        yield function, probe(function, shape, dtype=encoder.dtype, device=device)


def probed_once(encoder: Encoder, function: Callable[[Tensor], Tensor], shape: tuple[int, ...], device: str) -> Probe:
    """What `probe` tells, asked once of an encoder as it is, inputs of one shape and a device."""
    known = (encoder.fingerprint, shape, device)
    if known not in encoder.probes:
        encoder.probes[known] = probe(function, shape, dtype=encoder.dtype, device=device)
    return encoder.probes[known]


def forward_gflop(encoder: Encoder, shape: tuple[int, ...], device: str) -> float:
    """10^9 operations of a forward pass per sample, see `skjepa.encoders.probe.Probe`, without the whole look."""
    known = (encoder.fingerprint, shape, "gflop")
    if known not in encoder.probes:
        with scoring(encoder, device) as function:
            encoder.probes[known] = count_operations(function, shape, dtype=encoder.dtype, device=device)
    return encoder.probes[known]


def input_shape(encoder: Encoder, source: Source) -> tuple[int, ...]:
    """Shape of one input of the encoder; raises ValueError for images where it takes vectors, and vice versa."""
    if encoder.input_shape is None:
        if not source.is_vector:
            raise ValueError(f"{encoder.name} encodes vectors, X holds images; give load_encoder an image_size")
        return np.shape(source.load(0))
    if source.is_vector:
        raise ValueError(f"{encoder.name} encodes images, X holds vectors (2-D numeric arrays are always vectors)")
    return encoder.input_shape


def sample_bytes(encoder: Encoder, probed: Probe, n_passes: int) -> int:
    """Memory that one sample of a batch takes."""
    if n_passes == 0:  # no graph is kept, but all of its tensors at once are more than any moment holds
        return probed.graph_bytes + 4 * probed.n_inputs * encoder.dtype.itemsize
    return bytes_per_sample(probed.n_components, probed.n_inputs, probed.graph_bytes, encoder.dtype.itemsize)
