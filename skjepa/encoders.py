"""`Encoder`: a frozen module, what its input looks like, and a fingerprint. `load_encoder` makes one from anything."""

import difflib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from skjepa._validation import check_choice, check_integer
from skjepa.hub import load_timm_model, timm_preprocessing
from skjepa.networks import read_network
from skjepa.preprocessing import Preprocessing, plain_preprocessing

BUNDLED = Path(__file__).parent / "bundled" / "encoder.safetensors"

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


class FingerprintError(ValueError):
    """The encoder at hand is not the one that a result or a detector was made with."""


class Encoder:
    """A frozen encoder f: R^D -> R^K. Made by `load_encoder`, shared (never copied) by `sklearn.clone` and `deepcopy`.

    Attributes
    ----------
    name : str
        What it was loaded from.
    module : torch.nn.Module
        As handed over: scoring leaves its mode, dtype, device and gradients as they were.
    preprocessing : Preprocessing or None
        None for an encoder of vectors.
    precision : {"float32", "float64"}
        Arithmetic of the forward and backward passes.

    Notes
    -----
    A pickle holds the name, the settings and the fingerprint, not the weights; unpickling loads them again and raises
    `FingerprintError` where they have changed. An encoder made from a module of the user's carries that module.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        name: str,
        preprocessing: Preprocessing | None,
        precision: str,
        settings: dict[str, Any],
        recipe: dict[str, Any] | None,
    ) -> None:
        self.name = name
        self.module = module
        self.preprocessing = preprocessing
        self.precision = precision
        self._settings = settings
        self._recipe = recipe
        self._hashed: tuple[Any, str] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """torch dtype of the arithmetic."""
        return _DTYPES[self.precision]

    @property
    def input_shape(self) -> tuple[int, ...] | None:
        """``(3, H, W)`` of an image encoder; None for vectors, whose width the data tell."""
        return None if self.preprocessing is None else (3, *self.preprocessing.size)

    @property
    def fingerprint(self) -> str:
        """Hash of architecture, weights, output, preprocessing and precision; computed again when weights change."""
        state = self.module.state_dict(keep_vars=True)
        version = tuple((name, tensor.data_ptr(), tensor._version) for name, tensor in state.items())
        if self._hashed is None or self._hashed[0] != version:
            self._hashed = (version, _hash(self.module, {**self._settings, "precision": self.precision}))
        return self._hashed[1]

    @contextmanager
    def scoring(self, device: torch.device | str = "cpu") -> Iterator[Callable[[Tensor], Tensor]]:
        """Context in which the encoder is a pure function ``(B, *input_shape) -> (B, K)`` on `device`.

        Parameters and buffers are used detached, in the encoder's precision, on the device: the module itself keeps
        its own. Every submodule is in eval mode inside and back in its former mode after.
        """
        state = {
            name: tensor.detach().to(device, self.dtype if tensor.is_floating_point() else None)
            for named in (self.module.named_parameters, self.module.named_buffers)
            for name, tensor in named()
        }
        modes = [(module, module.training) for module in self.module.modules()]
        self.module.eval()
        try:
            yield lambda x: functional_call(self.module, state, (x,))
        finally:
            for module, training in modes:
                module.training = training

    def __repr__(self) -> str:
        shape = "vectors" if self.input_shape is None else f"{self.input_shape[1]}x{self.input_shape[2]} images"
        return f"Encoder({self.name!r}, {shape}, {self.precision}, fingerprint {self.fingerprint[:12]})"

    def __sklearn_clone__(self) -> "Encoder":
        return self

    def __copy__(self) -> "Encoder":
        return self

    def __deepcopy__(self, memo: dict) -> "Encoder":
        return self

    def __getstate__(self) -> dict[str, Any]:
        state = {"fingerprint": self.fingerprint, "recipe": self._recipe}
        if self._recipe is None:
            state.update({key: value for key, value in self.__dict__.items() if key != "_hashed"})
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        fingerprint, recipe = state.pop("fingerprint"), state.pop("recipe")
        if recipe is not None:
            state = load_encoder(**recipe).__dict__
        self.__dict__.update({**state, "_recipe": recipe})
        self.__dict__.setdefault("_hashed", None)
        if self.fingerprint != fingerprint:
            raise FingerprintError(
                f"encoder {self.name!r} has changed since it was pickled: fingerprint {self.fingerprint[:12]}, "
                f"expected {fingerprint[:12]} (other weights, preprocessing or architecture)"
            )


def load_encoder(
    source: str | os.PathLike | nn.Module | Encoder,
    *,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    output: str | Callable[[nn.Module, Tensor], Tensor] = "auto",
    precision: str = "float32",
    weights: str | os.PathLike | None = None,
) -> Encoder:
    """Make an `Encoder` from a name, a folder, a file or a module.

    Parameters
    ----------
    source : str, path or torch.nn.Module
        - ``"bundled"``: the small convolutional JEPA that ships with the package (32x32, K = 64);
        - a timm name, such as ``"vit_small_patch14_dinov2.lvd142m"``, or ``"hf-hub:OWNER/NAME"``;
        - ``"local-dir:PATH"``: a folder written by ``timm.models.save_for_hf``;
        - the path of a ``.safetensors`` file written by `skjepa.pretrain`;
        - a module: of images where `image_size` is given, else of vectors ``(B, d)``.
    image_size : int, optional
        Side of the square the module receives; overrides a timm model's own.
    mean, std : three floats, optional
        Channel statistics of pixels in [0, 1]; by default the model's own, for a module 0 and 1.
    output : {"auto", "pooled", "projected"}, layer name or callable
        The embedding. "auto": pooled features, for CLIP-type models the projection; for a module what it returns. A
        layer name as in ``named_modules()``: its output, averaged over positions or tokens. A callable gets
        ``(module, x)`` and returns ``(B, K)``.
    precision : {"float32", "float64"}
        Arithmetic of both passes. float64 takes its singular values from the Jacobian itself.
    weights : path, optional
        File or folder with the weights of the timm name in `source`.

    Returns
    -------
    Encoder

    Raises
    ------
    ValueError
        Unknown name (close names are suggested) or setting.
    skjepa.hub.WeightsNotFoundError
        Weights neither cached nor reachable; within five seconds.

    Examples
    --------
    >>> from skjepa import load_encoder
    >>> load_encoder("bundled").input_shape
    (3, 32, 32)
    """
    if isinstance(source, Encoder):
        return source
    check_choice("precision", precision, _DTYPES)
    if image_size is not None:
        image_size = check_integer("image_size", image_size, minimum=1)
    options = {"image_size": image_size, "mean": mean, "std": std, "output": output, "precision": precision}
    if isinstance(source, nn.Module):
        if weights is not None:
            raise ValueError("weights= goes with a timm name; load them into the module yourself")
        return _from_module(source, **options)
    name = os.fspath(source)
    if name == "bundled" or name.endswith(".safetensors"):
        if weights is not None:
            raise ValueError(f"weights= goes with a timm name; {name!r} has its own")
        return _from_file(name, **options)
    return _from_timm(name, weights=weights, **options)


def _from_module(module, *, image_size, mean, std, output, precision) -> Encoder:
    if image_size is None and (mean is not None or std is not None):
        raise ValueError("mean and std are for images: give image_size as well")
    preprocessing = None if image_size is None else plain_preprocessing(image_size, mean, std)
    if output in ("pooled", "projected"):
        raise ValueError(f"output={output!r} is for timm models; name a layer or give a callable")
    return Encoder(
        _with_output(module, output),
        name=type(module).__name__,
        preprocessing=preprocessing,
        precision=precision,
        settings=_settings(preprocessing, output),
        recipe=None,
    )


def _from_file(name, *, image_size, mean, std, output, precision) -> Encoder:
    path = BUNDLED if name == "bundled" else Path(name)
    if not path.is_file():
        raise FileNotFoundError(f"no encoder file {path}")
    module, metadata = read_network(path)
    preprocessing = plain_preprocessing(
        image_size or metadata["image_size"],
        metadata["mean"] if mean is None else mean,
        metadata["std"] if std is None else std,
    )
    recipe = {"source": name if name == "bundled" else str(path.resolve())}
    recipe |= {"image_size": image_size, "mean": mean, "std": std, "output": output, "precision": precision}
    return Encoder(
        _with_output(module, output),
        name=name,
        preprocessing=preprocessing,
        precision=precision,
        settings=_settings(preprocessing, output),
        recipe=recipe,
    )


def _from_timm(name, *, image_size, mean, std, output, precision, weights) -> Encoder:
    projected = {"pooled": False, "projected": True}.get(output) if isinstance(output, str) else False
    if output == "auto":
        projected = None
    model = load_timm_model(name, image_size=image_size, projected=projected, weights=weights)
    preprocessing = timm_preprocessing(model, image_size=image_size, mean=mean, std=std)
    recipe = {"source": name, "image_size": image_size, "mean": mean, "std": std, "output": output}
    recipe |= {"precision": precision, "weights": None if weights is None else os.fspath(weights)}
    return Encoder(
        model if output in ("pooled", "projected") else _with_output(model, output),
        name=name,
        preprocessing=preprocessing,
        precision=precision,
        settings=_settings(preprocessing, output),
        recipe=recipe,
    )


class _Layer(nn.Module):
    """The output of one named layer, averaged over positions (B, C, H, W) or tokens (B, N, C)."""

    def __init__(self, module: nn.Module, layer: str) -> None:
        super().__init__()
        names = [name for name, _ in module.named_modules() if name]
        if layer not in names:
            close = difflib.get_close_matches(layer, names, n=5, cutoff=0.4)
            hint = f" Close: {', '.join(close)}." if close else ""
            raise ValueError(f"no layer {layer!r} in {type(module).__name__}.{hint}")
        self.module, self.layer = module, layer

    def forward(self, x: Tensor) -> Tensor:
        caught: list[Tensor] = []
        hook = self.module.get_submodule(self.layer).register_forward_hook(lambda *call: caught.append(call[-1]))
        try:
            self.module(x)
        finally:
            hook.remove()
        if not caught:
            raise ValueError(f"layer {self.layer!r} takes no part in the forward pass")
        value = caught[-1]
        if value.ndim == 4:
            return value.mean(dim=(2, 3))
        return value.mean(dim=1) if value.ndim == 3 else value


class _Call(nn.Module):
    """The output of a callable of ``(module, x)``."""

    def __init__(self, module: nn.Module, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.module, x)


def _with_output(module: nn.Module, output: str | Callable) -> nn.Module:
    if callable(output):
        return _Call(module, output)
    return module if output == "auto" else _Layer(module, output)


def _settings(preprocessing: Preprocessing | None, output: str | Callable) -> dict[str, Any]:
    named = output if isinstance(output, str) else getattr(output, "__qualname__", repr(type(output)))
    return {"output": named, "preprocessing": preprocessing and preprocessing.settings}


def _hash(module: nn.Module, settings: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    digest.update(repr(module).encode())
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
