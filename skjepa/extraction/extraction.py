"""`Extraction`: the embeddings, hidden layers and singular values that one run of the encoder yields."""

import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from skjepa._utils.files import written_whole
from skjepa._utils.shown import html_table
from skjepa.extraction.store.settings import SETTINGS, Settings, SettingsMismatchError, require_same_settings
from skjepa.jacobian.pass_method import PassMethod
from skjepa.jacobian.precision import PRECISIONS
from skjepa.jacobian.volume import numerical_rank

_NO_LAYERS: dict[str, Any] = {"layers": None, "layers_dtype": None}
_NO_VIEWS = {"transform": None, "seed": None}


@dataclass(frozen=True, eq=False, repr=False)
class Extraction:
    """Hold embeddings, hidden layers and singular values of n samples; slices like an array.

    Detectors, inspection and evaluation compute everything from it without running the encoder again.

    Attributes
    ----------
    embeddings : array of shape (n_samples, K), float64
        Encoder outputs f(x) for the untransformed samples; K is the number of outputs.
    singular_values : array of shape (n_samples, V, R), float64, or None
        Singular values of the Jacobian at each of V views, descending; R = min(K, D) for D inputs per sample. None
        where no backward pass was made (``method="forward"``); `spectra` returns the same array and raises there.
    ids : array of shape (n_samples,), str
        Path relative to the folder, path as given, content hash, or the name that the caller gave.
    meta : dict
        Settings, encoder, device and package versions of the run; ``meta["skipped"]`` lists ``[position, id, reason]``
        for samples that could not be read.
    contents : array of shape (n_samples,), str
        Hash of the data of each sample (bytes of a file, numbers of an array), by which copies are recognised;
        "" where it is not known.
    layers : dict of name -> array of shape (n_samples, 2 C), float32 or float16
        Hidden layers in the order of the forward pass: mean and then standard deviation of each of C channels over
        positions or tokens. For layers of vectors (n_samples, C), the values themselves. Empty where none were read.
    """

    embeddings: NDArray[np.float64]
    singular_values: NDArray[np.float64] | None
    ids: NDArray[np.str_]
    meta: dict[str, Any] = field(default_factory=dict)
    contents: NDArray[np.str_] = field(default_factory=lambda: np.array([], dtype=np.str_))
    layers: dict[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.embeddings)
        if len(self.contents) == 0:
            object.__setattr__(self, "contents", np.full(n, "", dtype=np.str_))
        arrays: dict[str, tuple[NDArray, int]] = {
            "embeddings": (self.embeddings, 2),
            **({} if self.singular_values is None else {"singular_values": (self.singular_values, 3)}),
            "ids": (self.ids, 1),
            "contents": (self.contents, 1),
            **{f"layers[{name!r}]": (values, 2) for name, values in self.layers.items()},
        }
        shapes = ", ".join(f"{name} {array.shape}" for name, (array, _) in arrays.items())
        if any(array.ndim != ndim for array, ndim in arrays.values()):
            raise ValueError(
                "an Extraction needs embeddings (n, K), singular_values (n, V, R) or None, ids (n,) and layers (n, W); "
                f"got {shapes}"
            )
        if any(len(array) != n for array, _ in arrays.values()):
            raise ValueError(f"the arrays of an Extraction need one row per sample; got {shapes}")

    @property
    def shape(self) -> tuple[int]:
        """Shape ``(n_samples,)``, as scikit-learn's splitters read it."""
        return (len(self.ids),)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> "Extraction":
        """Return the samples at a slice, a mask or integer positions."""
        if isinstance(index, int | np.integer):
            index = [int(index)]
        meta = {key: value for key, value in self.meta.items() if key != "skipped"}  # its positions count in the whole
        return Extraction(
            self.embeddings[index],
            None if self.singular_values is None else self.singular_values[index],
            self.ids[index],
            meta,
            self.contents[index],
            {name: values[index] for name, values in self.layers.items()},
        )

    def narrowed(self, layers: Sequence[str] | None) -> "Extraction":
        """Return a copy that holds only the named layers, in this order; None keeps no layer.

        Raises
        ------
        ValueError
            If it lacks one of them.
        """
        self.require_layers(layers or ())
        kept = {name: self.layers[name] for name in layers or ()}
        told = {"layers": list(kept), "layers_dtype": self.meta.get("layers_dtype")} if kept else _NO_LAYERS
        return replace(self, layers=kept, meta=self.meta | told)

    def require_layers(self, names: Iterable[str]) -> None:
        """Raise ValueError if any of these layers is missing; the message lists the layers that exist."""
        if missing := [name for name in names if name not in self.layers]:
            known = ", ".join(map(repr, self.layers)) or "none"
            raise ValueError(
                f"the Extraction has no layer {missing[0]!r}; it has {known}: extract again with the layers of the fit"
            )

    def forward_only(self) -> "Extraction":
        """Return a copy without singular values, as ``method="forward"`` would have yielded it."""
        forward = {"method": "forward", "method_reason": None, "views": 1, **_NO_VIEWS}
        return replace(self, singular_values=None, meta=self.meta | forward)

    @property
    def spectra(self) -> NDArray[np.float64]:
        """The singular values, (n_samples, V, R); raises ValueError where no backward pass was made."""
        if self.singular_values is None:
            raise ValueError(
                "these samples were extracted with method='forward', which yields no singular values: extract them "
                "with method='exact' or method='sketch'"
            )
        return self.singular_values

    @property
    def identities(self) -> NDArray[np.str_]:
        """Keys that are equal for copies of one sample, (n_samples,): its content hash, or else its id."""
        return np.where(self.contents == "", self.ids, self.contents)

    @property
    def settings(self) -> Settings:
        """Settings that must agree before these results may be joined or scored with others."""
        return cast(Settings, {key: self.meta.get(key) for key in ("encoder", *SETTINGS, "method_reason")})

    @property
    def n_features(self) -> int | None:
        """Number of features d per vector; None for images."""
        shape = self.meta.get("input_shape") or []
        return shape[0] if len(shape) == 1 else None

    @property
    def is_table(self) -> bool:
        """Whether samples are rows whose layers have no positions or tokens."""
        return self.n_features is not None and not self.meta.get("layers_pooled", False)

    @property
    def numerical_rank(self) -> NDArray[np.int64]:
        """Number of singular values above the rounding noise, (n_samples, V)."""
        return numerical_rank(self.spectra, eps=self.eps)

    @property
    def eps(self) -> float:
        """Machine epsilon of the encoder's arithmetic, see `skjepa.jacobian.Arithmetic`."""
        return PRECISIONS[self.meta.get("precision", "float64")].eps

    @property
    def errors(self) -> dict[int, str]:
        """Reason for each skipped sample, by its position among all samples."""
        return {int(position): str(reason) for position, _, reason in self._skipped}

    @property
    def all_ids(self) -> NDArray[np.str_]:
        """Ids of all samples in the order of X, including skipped ones."""
        ids = self.ids.tolist()
        for position, name, _ in self._skipped:
            ids.insert(position, str(name))
        return np.array(ids, dtype=np.str_)

    @property
    def measured(self) -> NDArray[np.int64]:
        """Positions of these samples among all samples of X, ascending."""
        return np.setdiff1d(np.arange(len(self) + len(self._skipped)), list(self.errors))

    def aligned(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return values (n_samples, ...) with rows of NaN inserted for skipped samples, in the order of X."""
        full = np.full((len(self) + len(self._skipped), *np.shape(values)[1:]), np.nan)
        full[self.measured] = values
        return full

    @property
    def _skipped(self) -> list[tuple[int, str, str]]:
        return sorted(map(tuple, self.meta.get("skipped", [])))

    def __repr__(self) -> str:
        return f"Extraction({', '.join(f'{name}: {told}' for name, told in self._about() if told)})"

    def _repr_html_(self) -> str:
        return html_table(("Extraction", ""), self._about())

    def _about(self) -> list[tuple[str, str]]:
        sigma = self.singular_values
        spectra = "none" if sigma is None else f"{sigma.shape[2]} per sample"
        views = "" if sigma is None or sigma.shape[1] == 1 else f" and view, {sigma.shape[1]} views"
        return [
            ("samples", str(len(self))),
            ("could not be read", str(len(self._skipped) or "")),
            ("embeddings", f"K = {self.embeddings.shape[1]}"),
            ("singular values", spectra + views),
            ("layers", ", ".join(self.layers) or "none"),
            ("encoder", str(self.meta.get("encoder", ""))),
            ("method", str(self.meta.get("method", ""))),
        ]

    def save(self, path: str | os.PathLike) -> Path:
        """Write one ``.npz`` file, whole or not at all, for `Extraction.load`."""
        path = _npz(path)
        with written_whole(path) as partial, open(partial, "wb") as file:
            arrays: dict[str, Any] = {
                "embeddings": self.embeddings,
                "ids": self.ids.astype(np.str_),
                "meta": np.array(json.dumps(self.meta)),
                "contents": self.contents.astype(np.str_),
                "layer_names": np.array(list(self.layers), dtype=np.str_),
                **{f"layer_{i}": values for i, values in enumerate(self.layers.values())},
            }
            if self.singular_values is not None:
                arrays["singular_values"] = self.singular_values
            np.savez_compressed(file, **arrays)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Extraction":
        """Read a file that `save` wrote; raises ValueError if it is not a saved extraction."""
        path = _npz(path)
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                meta = json.loads(str(arrays["meta"].item()))
                # Older files have no contents and no layers.
                names = arrays["layer_names"].tolist() if "layer_names" in arrays else []
                layers = {name: arrays[f"layer_{i}"] for i, name in enumerate(names)}
                sigma = None
                if "singular_values" in arrays or PassMethod.parse(meta.get("method")).kind != "forward":
                    sigma = arrays["singular_values"]
                contents = arrays["contents"] if "contents" in arrays else np.array([], dtype=np.str_)
                return cls(arrays["embeddings"], sigma, arrays["ids"], meta, contents, layers)
        except FileNotFoundError:
            raise
        except (KeyError, TypeError, ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{path} is not a saved Extraction: {error}") from error

    @classmethod
    def concat(cls, parts: Sequence["Extraction"]) -> "Extraction":
        """Join extractions made with the same settings; raises SettingsMismatchError if any setting differs."""
        if not parts:
            raise ValueError("got no extraction to concatenate: give at least one")
        for part in parts[1:]:
            require_same_settings(parts[0].meta, part.meta, "the extractions to concatenate")
        first = parts[0].singular_values
        for part in parts[1:]:  # made by hand, without settings in meta
            if list(part.layers) != list(parts[0].layers) or (part.singular_values is None) != (first is None):
                raise SettingsMismatchError(
                    "the extractions to concatenate hold different layers, or only some hold singular values: extract "
                    "all of them with the same options"
                )
        return cls(
            np.concatenate([part.embeddings for part in parts]),
            None if first is None else np.concatenate([part.spectra for part in parts]),
            np.concatenate([part.ids for part in parts]),
            parts[0][:0].meta,
            np.concatenate([part.contents for part in parts]),
            {name: np.concatenate([part.layers[name] for part in parts]) for name in parts[0].layers},
        )


def _npz(path: str | os.PathLike) -> Path:
    path = Path(path)
    return path if path.suffix == ".npz" else path.with_name(path.name + ".npz")


def require_finite(extraction: Extraction) -> None:
    """Raise ValueError if an Extraction holds NaN or infinity; the message names the first such sample."""
    finite = np.isfinite(extraction.embeddings).all(axis=1)
    for values in extraction.layers.values():
        finite &= np.isfinite(values).all(axis=1)
    if extraction.singular_values is not None:
        finite &= np.isfinite(extraction.singular_values).all(axis=(1, 2))
    if not finite.all():
        first = extraction.ids[int(np.argmin(finite))]
        raise ValueError(
            f"the Extraction holds NaN or infinite values in {(~finite).sum()} samples, the first {first}: leave them "
            "out, or extract them again"
        )
