"""What is measured of a sample, and how: the same batches whether in this process or, pickled, in another."""

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
"""Of B samples: embeddings (B, K), singular values (B, V, R) and layers side by side (B, W); R or W is 0 where a run
does not measure them."""
Measured = Generator[tuple[list[int], Arrays], None, None]
Observer = Callable[[Tensor], None]
OnPass = Callable[[int, int], None]
"""Is given how many backward passes of a batch are done, and how many there are; (0, 0) where only others know."""


@dataclass(frozen=True, eq=False)
class Measurement:
    """Everything but the samples, the device at hand and the size of the batches.

    Attributes
    ----------
    encoder : Encoder
    n_passes : int
        Backward passes a view: K, or m with directions; 0 for the forward pass alone.
    sample_bytes : int
        Memory that one sample of a batch takes.
    sample_gflop : float
        Operations of a sample's forward pass in 10^9, see `skjepa.encoders.probe.Probe`.
    directions : tensor of shape (K, m), optional
        Output directions in the place of all K.
    layers : tuple of Layer
        Hidden layers that are read in the forward pass.
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
        """Samples of a batch that may take so many bytes on a device."""
        return batch_size(budget, self.sample_bytes, is_vector=is_vector, gflop=self.sample_gflop, device=device)

    def arrays(
        self,
        function: Callable[[Tensor], Tensor],
        device: str,
        observe: Observer | None = None,
        on_pass: OnPass | None = None,
    ) -> Callable:
        """Of inputs (B, ...), their views, and how many times B samples have room: what `Here` yields."""
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
        """Embeddings and layers of the samples as they are, whatever their views."""
        with torch.no_grad():
            if not self.layers:
                return _to_numpy(function(x)), np.empty((len(x), 0), dtype=np.float32)
            output, layers = with_statistics(self.encoder, function, self.layers, x, self.layers_dtype)
            return _to_numpy(output), layers.cpu().numpy()


class Here:
    """Measures samples of one source in this process.

    Parameters
    ----------
    measurement : Measurement
    function : callable
        What `scoring` yields.
    source : Source
    device : str
    batch_size : int
        To start with: a batch that runs out of memory is halved, see `skjepa.extraction.batches.sizing.Halving`.
    observe : callable, optional
        See `skjepa.extract`.

    Attributes
    ----------
    on_pass : callable
        For whoever shows how far a batch is: called after each backward pass with how many are done, and of how many.
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
        """Position -> why it could not be read."""
        return self.loader.skipped

    def __call__(self, positions: Sequence[int]) -> Measured:
        """Positions, and the arrays of these samples."""
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
                f"the device failed in {self._names(batch)}: {str(error).splitlines()[0]}. Nothing more can run on it "
                "in this process; run again: with a store, what was finished before is not computed again"
            ) from error

    def _names(self, batch: list[int]) -> str:
        names = [str(self.loader.source.ids[i]) for i in batch]
        return f"a batch of {len(names)}: {', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''}"


@contextmanager
def scoring(encoder: Encoder, device: str) -> Iterator[Callable[[Tensor], Tensor]]:
    """The encoder as a function on the device, see `Encoder.scoring`, with gradients."""
    # A caller's no_grad or inference_mode ends at this door.
    with torch.inference_mode(False), torch.enable_grad(), encoder.scoring(device) as function:
        yield function


def ignored(done: int, n: int) -> None:
    """Where nobody watches."""


def _to_numpy(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.detach().cpu().to(torch.float64).numpy()
