"""Run forward passes that keep hidden layers position by position, before they are pooled."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from skjepa._utils import hardware
from skjepa._utils.hardware import default_budget
from skjepa._utils.progress import progress_bar
from skjepa.data.sources import Source
from skjepa.encoders.encoder import Encoder
from skjepa.encoders.probe import EncoderError
from skjepa.extraction.batches.loader import Loader
from skjepa.extraction.batches.measurement import scoring
from skjepa.extraction.batches.options import RunOptions
from skjepa.extraction.batches.pooling import chosen_layers, mean_and_deviation, with_positions
from skjepa.extraction.batches.positions import LayerPositions
from skjepa.extraction.batches.ready import input_shape, probed_once
from skjepa.extraction.batches.sizing import batch_size
from skjepa.extraction.loop import not_finite, skip


@dataclass(frozen=True)
class PositionBatch:
    """Hold one batch of samples with their hidden layers at every position.

    Attributes
    ----------
    places : list of int
        Positions of the samples in the source.
    embeddings : array of shape (B, K)
    layers : dict of name -> LayerPositions
    """

    places: list[int]
    embeddings: NDArray[np.float64]
    layers: dict[str, LayerPositions]

    @property
    def statistics(self) -> dict[str, NDArray[np.float64]]:
        """Mean and standard deviation of each channel per layer, (B, 2 C), as `skjepa.extract` pools them."""
        found = {}
        for name, layer in self.layers.items():
            values = layer.values
            pooled = values[:, 0] if layer.is_vector else torch.cat(mean_and_deviation(values, (1,)), 1)
            found[name] = pooled.cpu().double().numpy()
        return found

    @property
    def is_finite(self) -> NDArray[np.bool_]:
        """Which samples are finite in each of embeddings, singular values (there are none) and layers, (3, B)."""
        layers = [torch.isfinite(layer.values).flatten(1).all(dim=1).cpu().numpy() for layer in self.layers.values()]
        output = np.isfinite(self.embeddings).all(axis=1)
        return np.array([output, np.ones_like(output), np.all([output, *layers], axis=0)])

    def only(self, chosen: NDArray[np.bool_]) -> "PositionBatch":
        """Return the samples at a mask."""
        rows = np.flatnonzero(chosen).tolist()
        layers = {name: replace(layer, values=layer.values[rows]) for name, layer in self.layers.items()}
        return PositionBatch([self.places[i] for i in rows], self.embeddings[chosen], layers)


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
    shape, device = input_shape(encoder, source), hardware.resolve_device(run.device)
    with scoring(encoder, device) as function:
        chosen = [layer for layer in chosen_layers(encoder, layers, shape) if layer.grid is None]
        probed = probed_once(encoder, function, shape, device)
        n_bytes = 2 * probed.graph_bytes + 4 * probed.n_inputs * encoder.dtype.itemsize
        budget = run.memory_budget or default_budget(device)
        size = batch_size(budget, n_bytes, is_vector=source.is_vector, gflop=probed.gflop, device=device)
        preprocessing, layout = encoder.preprocessing, encoder.channels_last
        loader = Loader(source, preprocessing, encoder.dtype, device, channels_last=layout, run=run)
        with progress_bar(run.progress, total=len(source), unit="img", desc=called) as bar, torch.no_grad():
            for places, x, _ in loader.batches(list(range(len(source))), lambda: size):
                output, found = with_positions(encoder.module, function, chosen, x)
                batch = PositionBatch(places, output.cpu().double().numpy(), found)
                parts = batch.is_finite
                if broken := not_finite(source, places, parts):
                    if run.on_error == "raise":
                        raise EncoderError(next(iter(broken.values())))
                    skip(broken, loader.skipped)
                    batch = batch.only(np.asarray(parts.all(axis=0)))
                if batch.places:
                    see(batch)
                bar.update(len(places))
    return loader.skipped
