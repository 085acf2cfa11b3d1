"""Measure batches of samples, in this process or, pickled, in another."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skjepa._utils.hardware import DeviceError, device_name, is_device_failure
from skjepa.data.sources import Source
from skjepa.encoders.encoder import Encoder
from skjepa.extraction.batches.loader import Loader
from skjepa.extraction.batches.options import RunOptions
from skjepa.extraction.batches.pooling import Layer, with_statistics
from skjepa.extraction.batches.sizing import Halving, batch_size
from skjepa.extraction.batches.views import Transform
from skjepa.jacobian.precision import narrowed
from skjepa.jacobian.rows import jacobian, worthwhile_copies
from skjepa.jacobian.spectrum import singular_values

_NAMED = 8
Arrays = tuple[NDArray[Any], ...]
"""Embeddings (B, K), singular values (B, V, R) and concatenated layers (B, W) of B samples; R or W is 0 if a run does
not measure them."""
Measured = Generator[tuple[list[int], Arrays], None, None]
Observer = Callable[[Tensor], None]
OnPass = Callable[[int, int], None]
"""Called with the numbers of finished and of all backward passes of a batch; (0, 0) if other processes measure."""


@dataclass(frozen=True, eq=False)
class Measurement:
    """Describe what is measured; samples, device and batch size are given separately.

    Attributes
    ----------
    encoder : Encoder
    n_passes : int
        Backward passes per view: K, or m with directions; 0 for the forward pass alone.
    sample_bytes : int
        Memory that one sample of a batch takes, in bytes.
    sample_gflop : float
        Operations of the forward pass per sample in 10^9, see `skjepa.encoders.probe.Probe`.
    directions : tensor of shape (K, m), optional
        Output directions to measure instead of all K outputs.
    layers : tuple of Layer
        Hidden layers to read in the forward pass.
    layers_dtype : {"float32", "float16"}
    views, transform, seed
        Random views, see `skjepa.extract`.
    run : RunOptions
    is_quiet : bool
        Whether samples that cannot be read are skipped without a warning.
    """

    encoder: Encoder
    n_passes: int
    sample_bytes: int
    sample_gflop: float = 0.0
    directions: Tensor | None = None
    layers: tuple[Layer, ...] = ()
    layers_dtype: str = "float32"
    views: int = 1
    transform: Transform | None = None
    seed: int = 0
    run: RunOptions = field(default_factory=RunOptions)
    is_quiet: bool = False

    def batch_size(self, budget: int, device: str, *, is_vector: bool) -> int:
        """Return the batch size for a memory budget in bytes on a device."""
        return batch_size(budget, self.sample_bytes, is_vector=is_vector, gflop=self.sample_gflop, device=device)

    def arrays(
        self,
        function: Callable[[Tensor], Tensor],
        device: str,
        observe: Observer | None = None,
        on_pass: OnPass | None = None,
    ) -> Callable:
        """Return a function from inputs (B, ...), views and the number of copies that fit to their `Arrays`."""
        narrow = narrowed(function, self.encoder.precision, device)

        def measured(x: Tensor, views: list[Tensor], room: int) -> Arrays:
            embeddings, layers = self._forward(function, x)
            if not self.n_passes:
                return embeddings, np.empty((len(x), 1, 0)), layers
            copies = worthwhile_copies(x, self.n_passes, room)
            spectra = []
            for view in views or [x]:
                _, jacobians = jacobian(narrow, view, directions=self.directions, copies=copies, on_pass=on_pass)
                spectra.append(_to_numpy(singular_values(jacobians)))
                if observe is not None:
                    observe(jacobians)
            return embeddings, np.stack(spectra, axis=1), layers

        return measured

    def _forward(self, function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
        """Compute embeddings and layers of the untransformed samples."""
        with torch.no_grad():
            if not self.layers:
                return _to_numpy(function(x)), np.empty((len(x), 0), dtype=np.float32)
            output, layers = with_statistics(self.encoder, function, self.layers, x, self.layers_dtype)
            return _to_numpy(output), layers.cpu().numpy()


class Here:
    """Measure samples of one source in this process.

    Parameters
    ----------
    measurement : Measurement
    function : callable
        What `scoring` yields.
    source : Source
    device : str
    batch_size : int
        Size of the first batch; one that runs out of memory is halved, see `skjepa.extraction.batches.sizing.Halving`.
    observe : callable, optional
        See `skjepa.extract`.

    Attributes
    ----------
    on_pass : callable
        Called after each backward pass with the numbers of finished and of all passes, to show progress.
    """

    def __init__(
        self,
        measurement: Measurement,
        function: Callable[[Tensor], Tensor],
        source: Source,
        device: str,
        batch_size: int,
        observe: Observer | None = None,
    ) -> None:
        encoder = measurement.encoder
        self.devices = {device_name(device)}
        self.on_pass: OnPass = ignored
        arrays = measurement.arrays(function, device, observe, lambda done, n: self.on_pass(done, n))
        self.halving = Halving(arrays, batch_size)
        self.loader = Loader(
            source,
            encoder.preprocessing,
            encoder.dtype,
            device,
            channels_last=encoder.channels_last,
            run=measurement.run,
            is_quiet=measurement.is_quiet,
            views=measurement.views,
            transform=measurement.transform,
            seed=measurement.seed,
        )

    @property
    def skipped(self) -> dict[int, str]:
        """Reason for each sample that could not be read, by position."""
        return self.loader.skipped

    def __call__(self, positions: Sequence[int]) -> Measured:
        """Yield positions and the arrays of these samples, batch by batch."""
        for batch, x, views in self.loader.batches(list(positions), lambda: self.halving.batch_size):
            yield batch, self._measured(batch, x, views)

    def _measured(self, batch: list[int], x: Tensor, views: list[Tensor]) -> Arrays:
        try:
            return self.halving(x, views)
        except MemoryError as error:
            raise MemoryError(f"{error} (in {self._names(batch)})") from error
        except RuntimeError as error:
            if not is_device_failure(error):
                raise
            raise DeviceError(
                f"the device failed in {self._names(batch)}: {str(error).splitlines()[0]}. This process cannot use it "
                "any more: run again in a new process; with a store, finished samples are not computed again"
            ) from error

    def _names(self, batch: list[int]) -> str:
        names = [str(self.loader.source.ids[i]) for i in batch]
        return f"a batch of {len(names)}: {', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''}"


@contextmanager
def scoring(encoder: Encoder, device: str) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield the encoder as a function on the device with gradients enabled, see `Encoder.scoring`."""
    # Undo a no_grad or inference_mode of the caller.
    with torch.inference_mode(False), torch.enable_grad(), encoder.scoring(device) as function:
        yield function


def ignored(done: int, n: int) -> None:
    """Do nothing, where no progress is shown."""


def _to_numpy(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.detach().cpu().to(torch.float64).numpy()
