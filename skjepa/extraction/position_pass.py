"""Run forward passes that keep hidden layers position by position, before they are pooled."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from skjepa._utils import hardware
from skjepa._utils.hardware import default_budget
from skjepa._utils.progress import progress_bar
from skjepa.data.sources import Source
from skjepa.encoders.encoder import Encoder
from skjepa.encoders.geometry import picture_size
from skjepa.encoders.probe import probe
from skjepa.extraction.batches.loader import Loader
from skjepa.extraction.batches.measurement import scoring
from skjepa.extraction.batches.options import RunOptions
from skjepa.extraction.batches.pooling import chosen_layers, with_positions
from skjepa.extraction.batches.positions import LayerPositions
from skjepa.extraction.batches.sizing import batch_size


@dataclass(frozen=True)
class PositionBatch:
    """Hold one batch of samples with their hidden layers at every position.

    Attributes
    ----------
    places : list of int
        Positions of the samples in the source.
    embeddings : array of shape (B, K)
    rows : array of shape (B, P * C), float16, or None
        Channels of several layers at each cell of one grid, if the layers ask for it.
    layers : dict of name -> LayerPositions
    picture_sizes : list of (int, int)
        Height and width of each image as it was given; empty for vectors.
    """

    places: list[int]
    embeddings: NDArray[np.float64]
    rows: NDArray[np.float16] | None
    layers: dict[str, LayerPositions]
    picture_sizes: list[tuple[int, int]]

    @property
    def statistics(self) -> dict[str, NDArray[np.float64]]:
        """Mean and standard deviation of each channel per layer, (B, 2 C), as `skjepa.extract` pools them."""
        found = {}
        for name, layer in self.layers.items():
            values = layer.values
            pooled = values[:, 0] if layer.is_vector else torch.cat([values.mean(1), values.std(1, correction=0)], 1)
            found[name] = pooled.cpu().double().numpy()
        return found


def position_pass(
    encoder: Encoder,
    source: Source,
    layers: Any,
    see: Callable[[PositionBatch], None],
    run: RunOptions,
    *,
    called: str = "maps",
) -> dict[int, str]:
    """Call `see` with every sample once, in batches; nothing of a batch is kept afterwards.

    Parameters
    ----------
    encoder : Encoder
    source : Source
    layers : "auto" or list of str
        See `skjepa.extract`.
    see : callable
        Called with each batch in turn, without samples that ``on_error="skip"`` leaves out.
    run : RunOptions
    called : str
        Label of the progress bar.

    Returns
    -------
    dict of position -> reason
        Samples that could not be read.

    Raises
    ------
    ValueError, TypeError, MemoryError
        As `skjepa.extract`.
    """
    shape, device = encoder.input_shape or np.shape(source.load(0)), hardware.resolve_device(run.device)
    if source.is_vector != (len(shape) == 1):
        kinds = ("vectors", "images") if source.is_vector else ("images", "vectors")
        raise ValueError(f"X holds {kinds[0]}, but {encoder.name} encodes {kinds[1]}: give {kinds[1]}")
    sizes: dict[int, tuple[int, int]] = {}

    def load(i: int) -> Any:
        sample = source.load(i)
        if not source.is_vector:
            sizes[i] = picture_size(sample)
        return sample

    noting = Source(source.ids, load, source.is_vector)
    with scoring(encoder, device) as function:
        chosen = chosen_layers(encoder, layers, shape)
        probed = probe(function, shape, dtype=encoder.dtype, device=device)
        sample_bytes = 2 * probed.graph_bytes + 4 * probed.n_inputs * encoder.dtype.itemsize
        budget = run.memory_budget or default_budget(device)
        size = batch_size(budget, sample_bytes, is_vector=source.is_vector)
        preprocessing, layout = encoder.preprocessing, encoder.channels_last
        loader = Loader(noting, preprocessing, encoder.dtype, device, channels_last=layout, run=run)
        with progress_bar(run.progress, total=len(source), unit="img", desc=called) as bar, torch.no_grad():
            for places, x, _ in loader.batches(list(range(len(source))), lambda: size):
                output, found, rows = with_positions(encoder.module, function, chosen, x)
                arrays = (output.cpu().double().numpy(), None if rows is None else rows.cpu().half().numpy())
                see(PositionBatch(places, *arrays, found, [sizes.pop(i) for i in places if i in sizes]))
                bar.update(len(places))
    return loader.skipped
