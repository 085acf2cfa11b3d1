"""Measure several layers of an encoder at once, to see in which of them anomalies show."""

import hashlib
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import block_diag
from torch import Tensor, nn

from skjepa._utils.validation import check_integer
from skjepa.data.sources import as_source
from skjepa.encoders.encoder import Encoder, load_encoder
from skjepa.encoders.outputs import has_square_sides, pooled, require_layer, with_layers
from skjepa.extraction.extraction import Extraction
from skjepa.extraction.observation import observed
from skjepa.jacobian.directions import Directions, random_directions
from skjepa.jacobian.pass_method import PassMethod
from skjepa.jacobian.spectrum import singular_values

OUTPUT = "output"
"""Name of the encoder's own output in a list of layers."""


def extract_layers(
    encoder: Encoder | str, X: Any, layers: Sequence[str], *, n_directions: int | None = None, **options: Any
) -> dict[str, Extraction]:
    """Compute embeddings and Jacobian singular values of several layers from one forward pass per batch.

    Use it to find the layer in which anomalies show best. Each returned extraction works like any other: a
    `JEPAScoreDetector` fits on it and scores extractions of the same layer. docs/guide/explain.md compares layers on
    data.

    Parameters
    ----------
    encoder : Encoder or str
        What `load_encoder` returns, or anything that it accepts.
    X : images or vectors
        See `skjepa.data.as_source`.
    layers : sequence of str
        Names from ``encoder.module.named_modules()``; "output" is the embedding itself. Layer outputs are averaged over
        positions or tokens, as `load_encoder` does with ``output=``.
    n_directions : int, optional
        Largest number of random output directions per layer, the same for all samples. By default each layer takes as
        many backward passes per sample as it has outputs. The Jacobians of all layers are in memory together, so limit
        the number for wide layers.
    **options
        Options of `skjepa.extract`: ids, memory_budget, device, n_jobs, on_error, progress.

    Returns
    -------
    dict of layer -> Extraction
        In the order of `layers`, all of the same samples.

    Raises
    ------
    ValueError, TypeError
        If there is no such layer, or it returns no tensor; otherwise as `skjepa.extract`.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from skjepa import extract_layers, load_encoder
    >>> X, _ = np.random.default_rng(0).normal(size=(8, 6)), torch.manual_seed(0)
    >>> net = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    >>> found = extract_layers(load_encoder(net), X, ["1", "output"])
    >>> {layer: extraction.singular_values.shape for layer, extraction in found.items()}
    {'1': (8, 1, 5), 'output': (8, 1, 3)}
    """
    encoder, source = load_encoder(encoder), as_source(X, ids=options.pop("ids", None))
    if isinstance(layers, str) or not layers or len(set(layers)) < len(layers):
        raise ValueError(f"layers must be a list of different names; got {layers!r}")
    layered = _layered(encoder, list(layers))
    shape = encoder.input_shape or np.shape(source.load(0))
    widths = _widths(layered, shape)
    method: Any = "exact"
    rows = widths
    if n_directions is not None:
        rows = [min(width, check_integer("n_directions", n_directions, minimum=1)) for width in widths]
        drawn = [random_directions(width, m).components for width, m in zip(widths, rows, strict=True)]
        method = Directions(block_diag(*drawn), layered.fingerprint)
    spectra = _Spectra(rows)
    whole, places = observed(layered, source, spectra.add, options, method=method)
    columns = np.split(whole.embeddings, np.cumsum(widths)[:-1], axis=1)
    return {
        layer: Extraction(
            z, np.stack(sigma)[places][:, None], whole.ids, _meta(whole.meta, encoder, layer, m, width), whole.contents
        )
        for layer, z, sigma, m, width in zip(layers, columns, spectra.sigma, rows, widths, strict=True)
    }


class _Layers(nn.Module):
    """Return the pooled outputs of several layers side by side, (B, sum of widths)."""

    def __init__(self, module: nn.Module, layers: list[str]) -> None:
        super().__init__()
        for layer in layers:
            if layer != OUTPUT:
                require_layer(module, layer)
        self.module, self.layers = module, layers

    def outputs(self, x: Tensor) -> list[Tensor]:
        hooked = [layer for layer in self.layers if layer != OUTPUT]
        output, caught = with_layers(self.module, hooked, lambda: self.module(x))
        caught[OUTPUT] = output
        for layer in self.layers:
            if layer not in caught:
                raise ValueError(f"layer {layer!r} is not used in the forward pass: choose another")
        return [pooled(caught[layer], self.module, layer, is_square=has_square_sides(x)) for layer in self.layers]

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.outputs(x)
        self.widths = [output.shape[1] for output in outputs]
        return torch.cat(outputs, dim=1)


def _layered(encoder: Encoder, layers: list[str]) -> Encoder:
    return Encoder(
        _Layers(encoder.module, layers),
        name=encoder.name,
        preprocessing=encoder.preprocessing,
        precision=encoder.precision,
        settings={"layers": layers, "of": encoder.fingerprint},
        recipe=None,
        channels_last=encoder.channels_last,
    )


def _widths(layered: Encoder, shape: tuple[int, ...]) -> list[int]:
    """Find the number of outputs of each layer by a forward pass of one blank sample."""
    with torch.no_grad(), layered.scoring() as function:
        function(torch.zeros(1, *shape, dtype=layered.dtype))
        return list(cast(_Layers, layered.module).widths)  # read inside: gone after the pass


class _Spectra:
    """Collect singular values per layer from batches of stacked Jacobians (B, sum of rows, D)."""

    def __init__(self, rows: list[int]) -> None:
        self.rows = rows
        self.sigma: list[list[NDArray[np.float64]]] = [[] for _ in rows]

    def add(self, jacobians: Tensor) -> None:
        found = [singular_values(part.contiguous()).numpy() for part in jacobians.split(self.rows, dim=1)]
        for kept, sigma in zip(self.sigma, found, strict=True):
            kept.extend(sigma)


def _meta(meta: dict[str, Any], encoder: Encoder, layer: str, n_rows: int, width: int) -> dict[str, Any]:
    """Return the meta of one layer; its fingerprint keeps results of different layers from being mixed."""
    return meta | {
        "encoder": f"{encoder.name}, {layer}",
        "fingerprint": hashlib.sha256(f"{encoder.fingerprint} layer {layer}".encode()).hexdigest(),
        "method": str(PassMethod("exact") if n_rows == width else PassMethod("sketch", n_rows)),
        "n_components": width,
    }
