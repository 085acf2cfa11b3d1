"""Turn the source that `load_encoder` is given into a module and its preprocessing."""

import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from skjepa.encoders.lite0 import LITE0, LITE0_MEAN, LITE0_SIZE, LITE0_STD, load_lite0
from skjepa.encoders.networks import read_network
from skjepa.encoders.preprocessing import (
    Preprocessing,
    callable_preprocessing,
    plain_preprocessing,
    whole_image_preprocessing,
)
from skjepa.encoders.timm_models import load_timm_model, timm_preprocessing
from skjepa.encoders.transformers_models import PREFIX, load_transformers_model, transformers_preprocessing
from skjepa.persistence.folder import NotHereError

BUNDLED = Path(__file__).parent / "bundled" / "encoder.safetensors"


def require_known_source(source: Any, weights: str | None = None) -> None:
    """Raise NotHereError if a saved detector names a file, a folder or a hub page, which its writer may have chosen."""
    is_known = not isinstance(source, str) or (re.fullmatch(r"[\w.-]+", source) and not source.endswith(".safetensors"))
    if weights is not None or not is_known:
        named = repr(source) if weights is None else f"{source!r} with weights {weights!r}"
        raise NotHereError(
            f"the saved detector names its encoder as {named}; paths and hub pages are not loaded from a saved "
            "detector, since its writer chose them. If you trust the encoder, give it as encoder="
        )


def check_output_choice(source: Any, output: Any) -> None:
    """Raise if `output` is not a choice of `load_encoder` for this source."""
    if not isinstance(output, str) and not callable(output):
        raise TypeError(f"output must be a name or a callable of (module, x); got {output!r}")
    if output in ("pooled", "projected") and (isinstance(source, nn.Module) or _is_file(source)):
        raise ValueError(
            f"got output={output!r}, which is for models of timm and transformers; give a layer name or a callable"
        )


def own_preprocessing(preprocess, image_size, mean, std) -> Preprocessing:
    """Return the preprocessing by a user's function, which replaces mean and std."""
    if not callable(preprocess):
        raise TypeError(f"preprocess must be 'auto' or a callable of a PIL image; got {preprocess!r}")
    if mean is not None or std is not None:
        raise ValueError("got mean or std with your own preprocess, which normalises itself: leave mean and std out")
    return callable_preprocessing(preprocess, image_size)


def square(preprocessing: Preprocessing) -> int:
    """Return the side of square images; raises ValueError for others."""
    height, width = preprocessing.size
    if height != width:
        raise ValueError(f"preprocess returns {height}x{width} images; named models take squares: crop to equal sides")
    return height


def load_source(source, *, image_size, mean, std, output, weights, own) -> tuple[nn.Module, Preprocessing | None]:
    """Return the module behind a source, and its preprocessing: the user's `own`, if any."""
    if isinstance(source, torch.export.ExportedProgram):
        raise TypeError("got an exported program: give its module, load_encoder(program.module(), ...)")
    if isinstance(source, torch.jit.ScriptModule):
        raise TypeError(
            "got a TorchScript module, whose weights cannot be converted to another precision: give the module that it "
            "was made from, or one exported by torch.export"
        )
    if not isinstance(source, str | os.PathLike | nn.Module):
        raise TypeError(f"source must be a name, a path, a torch module or an Encoder; got {type(source).__name__}")
    if weights is not None and (isinstance(source, nn.Module) or _is_file(source) or str(source).startswith(PREFIX)):
        raise ValueError("got weights= with a source that has its own; weights= is for timm names: leave it out")
    if isinstance(source, nn.Module):
        if image_size is None and (mean is not None or std is not None):
            raise ValueError("got mean or std without image_size: for images give image_size as well")
        return unwrapped(source), own or (None if image_size is None else plain_preprocessing(image_size, mean, std))
    name = os.fspath(source)
    projected = {"auto": None, "projected": True}.get(output, False) if isinstance(output, str) else False
    if name.startswith(PREFIX):
        own = own or transformers_preprocessing(name, image_size=image_size, mean=mean, std=std)
        return _fast(load_transformers_model(name, image_size=square(own), projected=projected)), own
    if name == LITE0:
        statistics = LITE0_MEAN if mean is None else mean, LITE0_STD if std is None else std
        return _fast(load_lite0()), own or whole_image_preprocessing(image_size or LITE0_SIZE, *statistics)
    if not _is_file(name):
        module = load_timm_model(name, image_size=image_size, projected=projected, weights=weights)
        return _fast(module), own or timm_preprocessing(module, image_size=image_size, mean=mean, std=std)
    module, metadata = read_network(BUNDLED if name == "bundled" else name)
    try:
        preprocessing = plain_preprocessing(
            image_size or metadata["image_size"],
            metadata["mean"] if mean is None else mean,
            metadata["std"] if std is None else std,
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{name} does not state the images it takes ({error!r}): save it again") from error
    return _fast(module), own or preprocessing


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module inside wrappers for training: several devices, compilation, averaged weights."""
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel | AveragedModel):
            module = module.module
        elif isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):  # of torch.compile
            module = inner
        else:
            return module


def _fast(module: nn.Module) -> nn.Module:
    """Return a module of skjepa or timm with convolutions in the faster channels-last layout.

    Not used for a user's module, which would fail if it calls `view` on the output of a convolution.
    """
    return module.to(memory_format=torch.channels_last)


def _is_file(source: Any) -> bool:
    """Return whether a source is a network in an installed file, not a model of timm or transformers."""
    if not isinstance(source, str | os.PathLike) or str(source).startswith(PREFIX):
        return False
    return str(source) in ("bundled", LITE0) or str(source).endswith(".safetensors")


def absolute(source: str | os.PathLike) -> str:
    """Return the source with paths made absolute."""
    name = os.fspath(source)
    if name.startswith("local-dir:"):
        return f"local-dir:{Path(name.removeprefix('local-dir:')).resolve()}"
    if name.startswith(PREFIX):  # a folder, or a name on the hub
        folder = Path(name.removeprefix(PREFIX))
        return f"{PREFIX}{folder.resolve()}" if folder.is_dir() else name
    return str(Path(name).resolve()) if name.endswith(".safetensors") else name
