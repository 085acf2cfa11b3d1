"""Load pretrained timm models from the hub, the cache, a folder or a file, with timm's own preprocessing."""

import os
import textwrap
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from skjepa.encoders.checkpoints import classes_of, read_checkpoint
from skjepa.encoders.names import hint
from skjepa.encoders.preprocessing import Preprocessing, channel_statistics

_PROBE_SECONDS = 3.0
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


class WeightsNotFoundError(FileNotFoundError):
    """Raised when pretrained weights are neither cached nor reachable."""


def load_timm_model(
    name: str,
    *,
    image_size: int | None = None,
    projected: bool | None = None,
    weights: str | os.PathLike | None = None,
) -> nn.Module:
    """Build a timm model with its pretrained weights.

    Parameters
    ----------
    name : str
        A timm name (``"vit_small_patch14_dinov2.lvd142m"``), ``"hf-hub:..."`` or ``"local-dir:PATH"``.
    image_size : int, optional
        Side of the image in pixels instead of the model's own; timm resamples position embeddings.
    projected : bool, optional
        True keeps the model's head (the projection of a CLIP-type model), False drops it (pooled features); by default
        CLIP-type models keep it.
    weights : path, optional
        A checkpoint file, or a folder that holds one, used instead of the hub.

    Raises
    ------
    ValueError
        If the model is unknown (close names are suggested), the weights do not fit it, it has no head to keep, or the
        patches do not divide the image size.
    WeightsNotFoundError
        If nothing is cached and there is no network; raised within seconds, with what was tried.
    """
    name = _cached_snapshot(name, weights is not None)
    config = _pretrained_config(name)
    if projected and not config.get("num_classes"):
        raise ValueError(f"{name!r} has no projection: give output='pooled'")
    drops_head = projected is False or (projected is None and not is_clip_type(config))
    options: dict[str, Any] = {"pretrained_cfg_overlay": _weights_overlay(name, config, weights)}
    if image_size is not None and config.get("fixed_input_size"):
        options["img_size"] = image_size
    try:
        model = _create(name, options)
    except ValueError as as_it_is:
        repaired = None if weights is None else _repaired(Path(weights), config, drops_head=drops_head)
        if repaired is None:
            raise
        try:
            model = _create(name, {**options, **repaired})
        except ValueError:
            raise as_it_is from None
    check_patches(name, getattr(getattr(model, "patch_embed", None), "patch_size", None), image_size)
    # The head is dropped only now: for a model built without it, timm loads unfitting weights without an error.
    if drops_head:
        model.reset_classifier(0)
    getattr(model, "pretrained_cfg", {}).pop("state_dict", None)  # loaded into the model already
    return model


def timm_preprocessing(
    model: nn.Module, *, image_size: int | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Preprocessing:
    """Return timm's evaluation transform of `model`, with the values given here instead of its configuration."""
    from timm.data import create_transform, resolve_model_data_config

    config = resolve_model_data_config(model)
    if image_size is not None:
        config["input_size"] = (3, image_size, image_size)
    mean, std = channel_statistics(config["mean"] if mean is None else mean, config["std"] if std is None else std)
    config.update(mean=mean, std=std)
    resize = create_transform(**config, is_training=False, normalize=False)
    settings = {key: list(value) if isinstance(value, tuple) else value for key, value in sorted(config.items())}
    return Preprocessing(tuple(config["input_size"][1:]), mean, std, resize, {"resize": "timm", **settings})


def is_clip_type(config: dict[str, Any]) -> bool:
    """Return whether a timm configuration belongs to an image-text model, whose head is a projection."""
    tag = config.get("tag") or ""
    return "clip" in f"{config.get('architecture')} {tag}" and "_ft_" not in tag and bool(config.get("num_classes"))


def _create(name: str, options: dict[str, Any]) -> Any:
    """Call timm's `create_model`, with errors that name the model and the problem with its weights."""
    import timm
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
    from safetensors import SafetensorError

    try:
        return timm.create_model(name, pretrained=True, **options)
    except (HfHubHTTPError, EntryNotFoundError, urllib.error.URLError) as error:
        raise download_failed(name, error) from error
    except (RuntimeError, ValueError, KeyError, AssertionError, SafetensorError, OSError) as error:
        size = f" at image_size={options['img_size']}" if "img_size" in options else ""
        reason = textwrap.shorten(str(error) or repr(error), 400)  # torch lists every missing tensor
        raise ValueError(f"cannot load {name!r}{size}: {reason}") from error


def _cached_snapshot(name: str, has_weights: bool) -> str:
    """Replace a hub id whose files are all cached by the cached folder, to avoid a request by the hub's client."""
    from huggingface_hub import try_to_load_from_cache

    if not name.startswith("hf-hub:"):
        return name
    hub_id, _, revision = name.removeprefix("hf-hub:").partition("@")
    config = try_to_load_from_cache(hub_id, "config.json", revision=revision or None)
    if not isinstance(config, str):
        return name
    folder = Path(config).parent
    complete = has_weights or any((folder / file).is_file() for file in _HUB_FILES)
    return f"local-dir:{folder}" if complete else name


def _pretrained_config(name: str) -> dict[str, Any]:
    """Return the pretrained configuration behind a name, without loading weights."""
    from timm.models import get_pretrained_cfg, is_model

    if name.startswith("local-dir:"):
        return _local_config(Path(name.removeprefix("local-dir:")))
    if name.startswith("hf-hub:"):
        require_network(name, f"the hub's page of {name.removeprefix('hf-hub:')}")
        return _remote_config(name.removeprefix("hf-hub:"))
    architecture = name.partition(".")[0]
    if not is_model(architecture):
        raise ValueError(f"unknown encoder {name!r}. {hint(name)}")
    try:
        config = get_pretrained_cfg(name)
    except RuntimeError as error:
        import timm

        tags = timm.list_pretrained(f"{architecture}.*")
        raise ValueError(f"unknown encoder {name!r}: {error} Known: {', '.join(tags) or 'none'}.") from error
    return config.to_dict() if config else {}


def _local_config(folder: Path) -> dict[str, Any]:
    from timm.models._hub import load_model_config_from_path

    if not folder.is_dir():
        raise WeightsNotFoundError(f"local-dir: there is no folder {folder}: give an existing model folder")
    try:
        config, architecture, _ = load_model_config_from_path(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} is not a model folder of timm's format (config.json and model.safetensors, as written by "
            f"timm.models.save_for_hf): {error!r}"
        ) from error
    return {**config, "architecture": architecture}


def _remote_config(hub_id: str) -> dict[str, Any]:
    from timm.models._hub import load_model_config_from_hf

    try:
        config, architecture, _ = load_model_config_from_hf(hub_id)
    except (OSError, ValueError, KeyError) as error:
        raise WeightsNotFoundError(f"the Hugging Face hub gives no timm model {hub_id!r}: {error}") from error
    return {**config, "architecture": architecture}


def _weights_overlay(name: str, config: dict[str, Any], weights: str | os.PathLike | None) -> dict[str, Any] | None:
    """Return changes of the configuration that make timm load the weights from where they are."""
    if weights is not None:
        # The source is emptied, since timm would prefer the source of a hub id or a folder to the file.
        file = _checkpoint_file(Path(weights))
        return {"file": str(file), "source": "", "custom_load": file.suffix == ".npz"}
    if name.startswith(("local-dir:", "hf-hub:")):
        return None
    hub_id, url = config.get("hf_hub_id"), config.get("url")
    cached = _cached_file(hub_id, config.get("hf_hub_filename"), url)
    if cached is not None:
        return {"file": str(cached), "custom_load": config.get("custom_load", False)}
    if hub_id:
        require_network(name, f"{hub_id} on the Hugging Face hub")
    elif url:
        require_network(name, url, url)
    else:
        raise WeightsNotFoundError(f"timm knows no source of weights for {name!r}: give weights=FILE_OR_FOLDER")
    return None


def _repaired(weights: Path, config: dict[str, Any], *, drops_head: bool) -> dict[str, Any] | None:
    """Return options for a checkpoint of another training program: without wrappers, with its number of classes.

    Tried only if timm, which knows the formats of its families, cannot load it. None if it holds no such weights.
    """
    try:
        tensors = read_checkpoint(_checkpoint_file(weights))
    except Exception:  # torch.load may raise anything on a broken file; timm's error reports it
        return None
    overlay: dict[str, Any] = {"state_dict": tensors, "file": "", "source": "", "custom_load": False}
    n_classes = classes_of(tensors, config.get("classifier")) if drops_head else None
    if n_classes is None:
        return {"pretrained_cfg_overlay": overlay}
    return {"pretrained_cfg_overlay": {**overlay, "num_classes": n_classes}, "num_classes": n_classes}


def _checkpoint_file(path: Path) -> Path:
    if path.is_file():
        return path
    if path.is_dir():
        for name in _HUB_FILES:
            if (path / name).is_file():
                return path / name
        raise WeightsNotFoundError(f"weights={path} holds neither {' nor '.join(_HUB_FILES)}: give the file itself")
    raise WeightsNotFoundError(f"weights={path} does not exist: give a checkpoint file or a folder that holds one")


def _cached_file(hub_id: str | None, filename: str | None, url: str | None) -> Path | None:
    import torch
    from huggingface_hub import try_to_load_from_cache

    if hub_id:
        for name in [filename] if filename else _HUB_FILES:
            found = try_to_load_from_cache(hub_id, name)
            if isinstance(found, str):
                return Path(found)
    elif url:
        file = Path(torch.hub.get_dir(), "checkpoints", Path(urllib.parse.urlparse(url).path).name)
        if file.is_file():
            return file
    return None


def _hub_address() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def require_network(name: str, what: str, address: str | None = None, *, local_copy: str | None = None) -> None:
    """Raise WeightsNotFoundError, with the advice `local_copy`, if an address does not answer within seconds.

    The default address is the hub's. Called first because the hub's client retries for over a minute without a network.
    """
    from huggingface_hub import constants

    reason = (
        "offline mode is on (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else _unreachable(address or _hub_address())
    )
    if reason:
        raise WeightsNotFoundError(
            f"no weights for {name!r}: not in the local cache, and {what} cannot be reached ({reason}). "
            + (local_copy or _local_copy(name))
        )


def download_failed(name: str, error: BaseException, *, local_copy: str | None = None) -> WeightsNotFoundError:
    """Return the error for a failed download, with the advice `local_copy`."""
    reason = " ".join(str(error).split())
    return WeightsNotFoundError(
        f"no weights for {name!r}: the download failed ({reason}). {local_copy or _local_copy(name)}"
    )


def _local_copy(name: str) -> str:
    return (
        "Give a local copy: load_encoder('local-dir:FOLDER') with the model's config.json and model.safetensors, "
        f"or load_encoder({name!r}, weights=FILE_OR_FOLDER)."
    )


def _unreachable(address: str) -> str | None:
    """Return why `address` does not answer within a few seconds; None if an HTTP server answers."""
    outcome: list[str | None] = [f"no answer from {address} in {_PROBE_SECONDS:g} s"]

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=_PROBE_SECONDS).close()
            outcome[0] = None
        except urllib.error.HTTPError as error:
            # Any answer shows a connection, except from a broken gateway or a proxy that wants a password.
            blocked = error.code >= 500 or error.code == 407
            outcome[0] = f"{address}: {error}" if blocked else None
        except (OSError, ValueError) as error:
            outcome[0] = f"{address}: {getattr(error, 'reason', error)}"

    # Name resolution has no timeout, so it runs in a thread that can be abandoned.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    return outcome[0]


def check_patches(name: str, patch_size: Any, image_size: int | None) -> None:
    """Raise ValueError if an image size is not a multiple of the patch size (a number, one per side, or None)."""
    sides = patch_size if isinstance(patch_size, tuple | list) else [patch_size]
    if image_size is not None and any(side and image_size % side for side in sides):
        raise ValueError(f"image_size={image_size} must be a multiple of {name}'s patch size {sides[0]}")
