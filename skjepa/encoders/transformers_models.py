"""Load vision models of Hugging Face `transformers` by name or folder, with their own image processor."""

import json
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import Compose, InterpolationMode, PILToTensor, Resize
from torchvision.transforms.functional import center_crop, crop, get_dimensions, pil_modes_mapping

from skjepa.encoders.preprocessing import Preprocessing, channel_statistics
from skjepa.encoders.timm_models import WeightsNotFoundError, check_patches, download_failed, require_network

PREFIX = "transformers:"
"""Prefix of names and folders of these models."""

_PROCESSORS = ("preprocessor_config.json", "processor_config.json")  # the second since transformers 5
_FILES = ["config.json", *_PROCESSORS, "model*.safetensors", "model.safetensors.index.json"]


@dataclass(frozen=True)
class _Family:
    """Describe how models of one `model_type` are built and pooled.

    Attributes
    ----------
    names : tuple of str
        Name of the class in `transformers`, and of the class with a projection if there is one.
    read_out : {"mean", "class"}
        Pooled features: mean of all tokens, or the class token, both after the last normalisation.
    options : tuple of str
        Options of `from_pretrained` that are set to False.
    resamples : bool
        Whether position embeddings are resampled only on request. Otherwise they always are, or there are none.
    """

    names: tuple[str, ...]
    read_out: str
    options: tuple[str, ...] = ()
    resamples: bool = False


_CLIP = _Family(("CLIPVisionModel", "CLIPVisionModelWithProjection"), "class", resamples=True)
_METACLIP_2 = _Family(("MetaClip2VisionModel", "MetaClip2VisionModelWithProjection"), "class", resamples=True)
_FAMILIES = {
    "ijepa": _Family(("IJepaModel",), "mean", ("add_pooling_layer",), resamples=True),
    "dinov2": _Family(("Dinov2Model",), "class"),
    "dinov2_with_registers": _Family(("Dinov2WithRegistersModel",), "class"),
    "dinov3_vit": _Family(("DINOv3ViTModel",), "class"),
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
    "metaclip_2": _METACLIP_2,
    "metaclip_2_vision_model": _METACLIP_2,
}


class TransformersVision(nn.Module):
    """Wrap a vision model of `transformers` as a function of its pixels.

    Parameters
    ----------
    model : nn.Module
    read_out : {"mean", "class", "projection"}
    options : dict
        Options of the model's `forward`.
    """

    def __init__(self, model: nn.Module, read_out: str, options: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.read_out, self._options = model, read_out, options

    def forward_features(self, x: Tensor) -> Tensor:
        """Return all tokens after the last layer, (B, N, C), like timm's method; without the last norm for CLIP."""
        return self.model(pixel_values=x, **self._options).last_hidden_state

    def forward(self, x: Tensor) -> Tensor:
        """Return embeddings ``(B, K)`` for normalised pixels ``(B, 3, H, W)``."""
        output = self.model(pixel_values=x, **self._options)
        if self.read_out == "projection":
            return output.image_embeds
        return output.pooler_output if self.read_out == "class" else output.last_hidden_state.mean(dim=1)

    def extra_repr(self) -> str:
        return f"read_out={self.read_out}, {self._options}"


def load_transformers_model(name: str, *, image_size: int | None, projected: bool | None) -> TransformersVision:
    """Build a vision model of `transformers` with its pretrained weights.

    Parameters
    ----------
    name : str
        ``"transformers:OWNER/NAME"`` on the Hugging Face hub, or ``"transformers:FOLDER"`` from `save_pretrained`.
    image_size : int, optional
        Side of the images in pixels, if it is not the model's own; position embeddings are resampled.
    projected : bool, optional
        True takes CLIP's projection, False the pooled features; None takes the projection if there is one.

    Raises
    ------
    ModuleNotFoundError
        If `transformers` is not installed.
    ValueError
        If the model is of another kind or has no projection, or the weights do not fit or are not safetensors.
    skjepa.encoders.WeightsNotFoundError
        If the weights are neither in a folder nor cached, and there is no network.
    """
    folder = local_folder(name)
    config = _json(folder / "config.json")
    kind = config.get("model_type")
    if kind not in _FAMILIES:
        raise ValueError(f"{name!r} has model_type {kind!r}; supported are {', '.join(map(repr, _FAMILIES))}")
    family = _FAMILIES[kind]
    if projected and len(family.names) == 1:
        raise ValueError(f"{name!r} has no projection: give output='pooled'")
    with_projection = len(family.names) == 2 and projected is not False
    model = _pretrained(name, folder, family.names[-1 if with_projection else 0], dict.fromkeys(family.options, False))
    size = _own_size(model.config)
    check_patches(name, model.config.patch_size, image_size)
    options = {"interpolate_pos_encoding": True} if family.resamples and image_size not in (None, size) else {}
    return TransformersVision(model, "projection" if with_projection else family.read_out, options)


def transformers_preprocessing(
    name: str, *, image_size: int | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Preprocessing:
    """Return resizing, crop and statistics of the model's image processor, or the values given here instead.

    `image_size` scales the size before the crop by the same factor. Pillow resizes images, with antialiasing.
    """
    folder = local_folder(name)
    if not any((folder / file).is_file() for file in _PROCESSORS):
        raise ValueError(f"{name!r} has no {' or '.join(_PROCESSORS)}: give preprocess=, a function of a PIL image")
    with _quiet():
        processor = _transformers().AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    steps, size = _resizing(name, processor, image_size)
    normalises = getattr(processor, "do_normalize", False)
    mean, std = channel_statistics(
        (processor.image_mean if normalises else None) if mean is None else mean,
        (processor.image_std if normalises else None) if std is None else std,
    )
    settings = {"resize": f"transformers: {steps}", "size": list(size), "mean": list(mean), "std": list(std)}
    return Preprocessing(size, mean, std, Compose([*steps, _to_tensor]), settings)


def local_folder(name: str) -> Path:
    """Return the folder behind a name: itself, a folder of the hub's cache, or a new download there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    where = name.removeprefix(PREFIX)
    if Path(where).is_dir():
        return Path(where)
    try:
        cached = Path(snapshot_download(where, allow_patterns=_FILES, local_files_only=True))
        if _is_complete(cached):
            return cached
    except LocalEntryNotFoundError:
        pass
    except HFValidationError as error:
        raise WeightsNotFoundError(f"{name!r} names neither a folder nor a model on the Hugging Face hub") from error
    local = f"Give a local copy, a folder that save_pretrained wrote: load_encoder('{PREFIX}FOLDER')."
    require_network(name, f"{where} on the Hugging Face hub", local_copy=local)
    try:
        return Path(snapshot_download(where, allow_patterns=_FILES))
    except (HfHubHTTPError, OSError) as error:
        raise download_failed(name, error, local_copy=local) from error


def _transformers() -> Any:
    try:
        import transformers
    except ModuleNotFoundError:
        message = f"encoders named {PREFIX!r} need transformers: pip install 'skjepa[transformers]'"
        raise ModuleNotFoundError(message) from None
    return transformers


def _pretrained(name: str, folder: Path, class_name: str, options: dict[str, Any]) -> Any:
    """Load a model from safetensors only; raises if weights are missing, which `transformers` would draw at random.

    Attention is "sdpa", since "eager" computes its softmax in float32 at every precision.
    """
    transformers = _transformers()
    from safetensors import SafetensorError

    try:
        with _quiet():
            model, info = getattr(transformers, class_name).from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, by name
                dtype=torch.float32,
                attn_implementation="sdpa",
                **options,
            )
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise ValueError(f"cannot load {name!r}: {textwrap.shorten(str(error) or repr(error), 400)}") from error
    if wrong := [_of_wrong_size(entry) for entry in info.get("mismatched_keys", [])]:
        raise ValueError(f"cannot load {name!r}: weights of other sizes, {textwrap.shorten('; '.join(wrong), 300)}")
    missing = sorted(key for key in info["missing_keys"] if not key.endswith("mask_token"))  # for training only
    if missing:
        raise ValueError(f"cannot load {name!r}: weights missing, {textwrap.shorten(', '.join(missing), 300)}")
    for part in model.modules():
        if hasattr(part, "name_or_path"):
            part.name_or_path = ""  # its origin must not change the fingerprint
    return model


def _of_wrong_size(entry: Any) -> str:
    name, *sizes = entry if isinstance(entry, tuple | list) else (entry,)
    found = [str(tuple(size)) for size in sizes if isinstance(size, torch.Size | tuple | list)]
    return f"{name} {found[0]} in the file, {found[1]} in the model" if len(found) == 2 else str(name)


class _quiet:
    """Silence bars and log lines of `transformers`, and restore its settings afterwards."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self._logging = logging
        self._before = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        self._logging.set_verbosity(self._before[0])
        if self._before[1]:
            self._logging.enable_progress_bar()


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.parent} is not a model folder of transformers, with config.json: {error!r}") from error
    return content if isinstance(content, dict) else {}


def _is_complete(folder: Path) -> bool:
    """Return whether a folder of the cache holds the configuration and all weights."""
    if not (folder / "config.json").is_file():
        return False
    index = folder / "model.safetensors.index.json"
    shards = _json(index).get("weight_map", {}).values() if index.is_file() else ["model.safetensors"]
    return all((folder / shard).is_file() for shard in shards)


def _own_size(config: Any) -> int | None:
    return config.image_size if isinstance(config.image_size, int) else None


def _resizing(name: str, processor: Any, image_size: int | None) -> tuple[list[Callable], tuple[int, int]]:
    """Return resize and crop steps of an image processor, and the (height, width) of their result."""

    def setting(key: str) -> Any:
        return getattr(processor, key, None)

    crop = setting("crop_size") if setting("do_center_crop") else None
    size = setting("size") if setting("do_resize") else None
    edge = getattr(size, "shortest_edge", None)
    final = crop or size
    odd = setting("do_pad") or not setting("do_rescale") or abs(processor.rescale_factor * 255 - 1) > 1e-6
    if odd or final is None or not final.height or not final.width:
        raise ValueError(
            f"the image processor of {name!r} does not only resize, crop and normalise to one size: give preprocess=, "
            "a function of a PIL image"
        )
    if image_size is not None and final.height != final.width:
        raise ValueError(f"image_size is for squares; {name!r} takes {final.height}x{final.width}: leave it out")
    scale = 1.0 if image_size is None else image_size / final.height
    height, width = round(scale * final.height), round(scale * final.width)
    steps: list[Callable] = []
    if size is not None:
        target = round(scale * edge) if edge else [round(scale * size.height), round(scale * size.width)]
        steps.append(Resize(target, interpolation=_interpolation(setting("resample"))))
    if crop is not None:
        steps.append(_Crop(height, width))
    return steps, (height, width)


def _interpolation(resample: Any) -> InterpolationMode:
    """Return torchvision's interpolation mode for one that may be given as Pillow's number."""
    if isinstance(resample, InterpolationMode):
        return resample
    return {number: mode for mode, number in pil_modes_mapping.items()}[int(resample)]


@dataclass(frozen=True)
class _Crop:
    """Crop the centre of a PIL image or tensor; rounds an odd margin down as transformers does, unlike torchvision."""

    height: int
    width: int

    def __call__(self, image: Any) -> Any:
        _, height, width = get_dimensions(image)
        if height < self.height or width < self.width:
            return center_crop(image, [self.height, self.width])  # pads with black
        return crop(image, (height - self.height) // 2, (width - self.width) // 2, self.height, self.width)


def _to_tensor(image: Any) -> Tensor:
    return image if isinstance(image, Tensor) else PILToTensor()(image)
