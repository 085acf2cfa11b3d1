"""anomalib's PaDiM and PatchCore on weights of ours: their networks, maps and image scores, trained as they train them.

anomalib is not a dependency of this project: `pip install anomalib` beside it, or run without the rivals.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

BACKBONE = "tf_efficientnet_lite0"
PADIM_LAYERS = (1, 2, 3)
"""Of timm's feature maps: strides 4, 8 and 16, as layer1, layer2 and layer3 of the ResNets that PaDiM was made with."""
PATCHCORE_LAYERS = (2, 3)
"""Strides 8 and 16, as its layer2 and layer3."""
PADIM_FEATURES = 100
_BATCH = 16

Scored = tuple[NDArray[np.float64], list[NDArray[np.float32]], dict[str, float]]
"""Image scores (higher = more anomalous), maps (H, W) over the encoder's input, and seconds and megabytes."""


def padim(module: nn.Module, train: Sequence[Tensor], test: Sequence[Tensor], seed: int) -> Scored:
    """PaDiM, `PADIM_FEATURES` random channels, of normalised pictures (3, H, W)."""
    from anomalib.models.image.padim.torch_model import PadimModel

    torch.manual_seed(seed)
    model = PadimModel(BACKBONE, list(PADIM_LAYERS), pre_trained=False, n_features=PADIM_FEATURES)
    _give_weights(model, module)
    return _scored(model, train, test, model.fit, lambda: (model.gaussian.mean, model.gaussian.inv_covariance))


def patchcore(module: nn.Module, train: Sequence[Tensor], test: Sequence[Tensor], seed: int, share: float) -> Scored:
    """PatchCore with a coreset of so large a share of the patches."""
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    torch.manual_seed(seed)
    model = PatchcoreModel(list(PATCHCORE_LAYERS), BACKBONE, pre_trained=False)
    _give_weights(model, module)
    return _scored(model, train, test, lambda: model.subsample_embedding(share), lambda: (model.memory_bank,))


def _give_weights(model: Any, module: nn.Module) -> None:
    """anomalib builds the network by its name; it has the first stages of ours, under the same names."""
    network, weights = model.feature_extractor.feature_extractor, module.state_dict()
    network.load_state_dict({name: weights[name] for name in network.state_dict()})


def _scored(
    model: Any, train: Sequence[Tensor], test: Sequence[Tensor], fit: Callable[[], Any], kept: Callable[[], Any]
) -> Scored:
    started = time.perf_counter()
    model.train()
    model.feature_extractor.eval()
    with torch.no_grad():
        for start in range(0, len(train), _BATCH):
            model(torch.stack(list(train[start : start + _BATCH])))
        fit()
        fitted = time.perf_counter()
        model.eval()
        found = [model(torch.stack(list(test[start : start + _BATCH]))) for start in range(0, len(test), _BATCH)]
    scores = np.concatenate([part.pred_score.double().numpy().ravel() for part in found])
    maps = [values for part in found for values in part.anomaly_map[:, 0].float().numpy()]
    cost = {
        "fit_seconds": fitted - started,
        "seconds_per_image": (time.perf_counter() - fitted) / len(test),
        "megabytes": sum(array.numel() * array.element_size() for array in kept()) / 1e6,
    }
    return scores, maps, cost
