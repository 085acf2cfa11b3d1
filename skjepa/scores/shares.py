"""The surprises of hidden layers as sums over what the layers show, so that each position or column has its share."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from skjepa.scores.layered import LayeredScore
from skjepa.scores.layers import LinearPart

_NEAR = 1e-9  # scales from the median: there the secant is the slope
_SLOPE = float(np.sqrt(2 / np.pi))  # of the surprise at the median, per scale: the normal density over 1/2


def layer_shares(model: LayeredScore, layers: Mapping[str, NDArray]) -> dict[str, list[LinearPart]]:
    r"""What every layer adds to the weighted surprises of the layers, by layer, linear in its statistics.

    With c a layer's `LayerChain` value, t its median among fit samples that were left out, and r(c) its surprise
    (`Tail`), r(c) - r(t) = k (c - t) for the slope k of the secant between them; c is a sum of parts linear in
    statistics at the sample, and so is r(c) - r(t). The parts of all layers sum to

        sum over layers of weight (r(c) - r(t)) = -(sum of the terms "layer ...") - sum of weight log 2

    Parameters
    ----------
    model : LayeredScore
    layers : dict of name -> array of shape (n_samples, p)
        Statistics of each layer of the chain, the embedding under the name "output".
    """
    values = model.chain.surprises(layers)
    found: dict[str, list[LinearPart]] = {name: [] for name in values}
    for name, parts in model.chain.linear_parts(layers).items():
        term = f"layer {name}"
        tail, weight = model.tails[term], model.weight[term]
        beyond = values[name] - tail.median
        is_near = np.abs(beyond) <= _NEAR * tail.scale
        rise = tail.surprise(values[name]) - tail.surprise(np.full(1, tail.median))
        slope = np.where(is_near, _SLOPE / tail.scale, rise / np.where(is_near, 1.0, beyond))
        for i, part in enumerate(parts):
            found[part.layer].append(part.scaled(weight * slope, tail.median if i == 0 else 0.0))
    return found
