"""Split the surprises of hidden layers into sums over statistics, so that each position or column gets a share."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from skjepa.scores.layered import LayeredScore
from skjepa.scores.layers import LinearPart

_NEAR = 1e-9  # scales from the median, within which the secant equals the slope
_SLOPE = float(np.sqrt(2 / np.pi))  # slope of the surprise at the median, per scale: the normal density over 1/2


def layer_shares(model: LayeredScore, layers: Mapping[str, NDArray]) -> dict[str, list[LinearPart]]:
    r"""Split the weighted surprises of the layers into parts that are linear in the statistics of each layer.

    Let c be the `LayerChain` value of a layer, t its median over the fit samples, each left out, and r(c) its surprise
    (`Tail`). Then r(c) - r(t) = k (c - t), where k is the slope of the secant between c and t. At a given sample c is a
    sum of parts that are linear in statistics, and so r(c) - r(t) is one too. The parts of all layers sum to

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
