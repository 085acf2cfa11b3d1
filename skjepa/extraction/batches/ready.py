"""Prepare an encoder for a run: move it to its device, probe it, estimate the memory per sample."""

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
    """Yield the encoder as a function on the device, and the result of probing it with inputs of this shape."""
    with scoring(encoder, device) as function:
        yield function, probe(function, shape, dtype=encoder.dtype, device=device)


def probed_once(encoder: Encoder, function: Callable[[Tensor], Tensor], shape: tuple[int, ...], device: str) -> Probe:
    """Return the result of `probe`, computed once for each encoder, input shape and device."""
    known = (encoder.fingerprint, shape, device)
    if known not in encoder.probes:
        encoder.probes[known] = probe(function, shape, dtype=encoder.dtype, device=device)
    return encoder.probes[known]


def forward_gflop(encoder: Encoder, shape: tuple[int, ...], device: str) -> float:
    """Count the 10^9 operations of a forward pass per sample, without the other steps of `probe`."""
    known = (encoder.fingerprint, shape, "gflop")
    if known not in encoder.probes:
        with scoring(encoder, device) as function:
            encoder.probes[known] = count_operations(function, shape, dtype=encoder.dtype, device=device)
    return encoder.probes[known]


def input_shape(encoder: Encoder, source: Source) -> tuple[int, ...]:
    """Return the shape of one input; raises ValueError if X and the encoder are not both of images or of vectors."""
    if encoder.input_shape is None:
        if not source.is_vector:
            raise ValueError(f"X holds images, but {encoder.name} encodes vectors: give load_encoder an image_size")
        return np.shape(source.load(0))
    if source.is_vector:
        raise ValueError(
            f"X holds vectors, but {encoder.name} encodes images: give images, for example an array (n, H, W, 3); 2-D "
            "numeric arrays are always vectors"
        )
    return encoder.input_shape


def sample_bytes(encoder: Encoder, probed: Probe, n_passes: int) -> int:
    """Estimate the memory that one sample of a batch takes, in bytes."""
    if n_passes == 0:  # no graph is kept: all its tensors together are an upper bound
        return probed.graph_bytes + 4 * probed.n_inputs * encoder.dtype.itemsize
    return bytes_per_sample(probed.n_components, probed.n_inputs, probed.graph_bytes, encoder.dtype.itemsize)
