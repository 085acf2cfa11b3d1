"""From positions in a `Source` to batches of model-ready tensors; reads in threads, remembers what cannot be read."""

import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from skjepa._utils.validation import check_integer
from skjepa.data.images import ImageReadError
from skjepa.data.sources import Source
from skjepa.encoders.preprocessing import Preprocessing
from skjepa.extraction.batches.views import Transform, make_view


def reading_threads(n_jobs: int | None) -> int:
    """What `n_jobs` means: one thread, so many, or for -1 one a core."""
    return {None: 1, -1: os.cpu_count() or 1}.get(n_jobs) or check_integer("n_jobs", n_jobs, minimum=1)


class Loader:
    """Reads samples of one source for one encoder.

    Parameters
    ----------
    source : Source
    preprocessing : Preprocessing or None
        Of the encoder; None for vectors.
    dtype : torch.dtype
        The encoder's arithmetic.
    device : str
    on_error : {"raise", "skip", "note"}
        Whether a sample that cannot be read is an error, a warning and an entry of `skipped`, or the entry alone.
    n_jobs : int, optional
        Threads; -1 for one a core.
    views : int
        Random views of each sample, where there is a `transform`.
    transform : callable, optional
    seed : int

    Attributes
    ----------
    skipped : dict
        Position -> reason.
    """

    def __init__(
        self,
        source: Source,
        preprocessing: Preprocessing | None,
        dtype: torch.dtype,
        device: str,
        *,
        on_error: str,
        n_jobs: int | None,
        views: int = 1,
        transform: Transform | None = None,
        seed: int = 0,
    ) -> None:
        self.source, self.preprocessing, self.dtype, self.device = source, preprocessing, dtype, device
        self.on_error, self.views, self.transform, self.seed = on_error, views, transform, seed
        self.n_jobs = reading_threads(n_jobs)
        self.skipped: dict[int, str] = {}

    def batches(
        self, positions: list[int], size: Callable[[], int]
    ) -> Iterator[tuple[list[int], Tensor, list[Tensor]]]:
        """Positions, inputs (B, ...) and one such tensor a view; `size` is asked before each batch: it may shrink."""
        with ThreadPoolExecutor(self.n_jobs) as pool:
            start = 0
            while start < len(positions):
                chunk = positions[start : start + size()]
                start += len(chunk)
                read = map(self._read, chunk) if self.n_jobs == 1 else pool.map(self._read, chunk)
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
            if self.on_error == "raise":
                raise
            self.skipped[i] = str(error)
            if self.on_error == "skip":
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
        # Convolutions run their backward passes faster on interleaved channels; to a ViT it is all the same.
        return self.preprocessing.normalise(batch).contiguous(memory_format=torch.channels_last)
