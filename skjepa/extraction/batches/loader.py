"""Load batches of model-ready tensors from a `Source`, in threads, and record samples that cannot be read."""

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from skjepa.data.images import ImageReadError
from skjepa.data.sources import Source
from skjepa.encoders.encoder import Encoder
from skjepa.encoders.preprocessing import Preprocessing
from skjepa.extraction.batches.options import RunOptions
from skjepa.extraction.batches.views import Transform, make_view


class Loader:
    """Read samples of one source for one encoder.

    Parameters
    ----------
    source : Source
    preprocessing : Preprocessing or None
        Preprocessing of the encoder; None for vectors.
    dtype : torch.dtype
        Floating-point type of the encoder.
    device : str
    channels_last : bool
        Whether images are laid out with channels last. Convolutions are faster so, but a user's module that calls
        `view` on its input fails.
    run : RunOptions
        With ``on_error="skip"`` a sample that cannot be read gives a warning and an entry of `skipped`.
    is_quiet : bool
        Whether to give no such warning, because the process that sent the samples gives it.
    views : int
        Number of random views per sample, if there is a `transform`.
    transform : callable, optional
    seed : int

    Attributes
    ----------
    skipped : dict
        Position -> reason for each sample that could not be read.
    """

    def __init__(
        self,
        source: Source,
        preprocessing: Preprocessing | None,
        dtype: torch.dtype,
        device: str,
        *,
        channels_last: bool,
        run: RunOptions,
        is_quiet: bool = False,
        views: int = 1,
        transform: Transform | None = None,
        seed: int = 0,
    ) -> None:
        self.source, self.preprocessing, self.dtype, self.device = source, preprocessing, dtype, device
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.run, self.is_quiet = run, is_quiet
        self.views, self.transform, self.seed = views, transform, seed
        self.skipped: dict[int, str] = {}

    def batches(
        self, positions: list[int], size: Callable[[], int]
    ) -> Iterator[tuple[list[int], Tensor, list[Tensor]]]:
        """Yield positions, inputs (B, ...) and one such tensor per view.

        `size` is called before each batch, because batches may shrink when memory runs out.
        """
        n_threads = self.run.reading_threads
        with ThreadPoolExecutor(n_threads) as pool:
            start = 0
            while start < len(positions):
                chunk = positions[start : start + size()]
                start += len(chunk)
                read = map(self._read, chunk) if n_threads == 1 else pool.map(self._read, chunk)
                samples = {i: sample for i, sample in zip(chunk, read, strict=True) if sample is not None}
                if samples:
                    yield list(samples), self._to_input(list(samples.values())), self._views(samples)

    def _read(self, i: int) -> Tensor | None:
        try:
            sample = self.source.load(i)
            if self.preprocessing is None:
                return torch.as_tensor(sample, dtype=self.dtype)
            return self.preprocessing.load(sample, self.dtype)
        except ImageReadError as error:
            if self.run.on_error == "raise":
                raise
            self.skipped[i] = str(error)
            if not self.is_quiet:
                warnings.warn(f"skipped {error}", stacklevel=2)
            return None

    def _views(self, samples: dict[int, Tensor]) -> list[Tensor]:
        if self.transform is None:
            return []
        return [
            self._to_input(
                [
                    make_view(sample, self.transform, seed=self.seed, sample_id=str(self.source.ids[i]), view=view)
                    for i, sample in samples.items()
                ]
            )
            for view in range(self.views)
        ]

    def _to_input(self, samples: list[Tensor]) -> Tensor:
        batch = torch.stack(samples).to(self.device)
        if self.preprocessing is None:
            return batch
        return self.preprocessing.normalise(batch).contiguous(memory_format=self.layout)


def first_input(encoder: Encoder, source: Source, device: str) -> Tensor | None:
    """Return the first sample as the encoder receives it; None if it cannot be read, which the run reports."""
    run = RunOptions(on_error="skip")
    layout = encoder.channels_last
    loader = Loader(source, encoder.preprocessing, encoder.dtype, device, channels_last=layout, run=run, is_quiet=True)
    for _, x, _ in loader.batches([0], lambda: 1):
        return x[0]
    return None
