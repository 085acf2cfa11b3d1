"""What the expensive pass yields: embeddings, hidden layers, singular values. All that follows is cheap, from these."""

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
from skjepa.extraction.store.settings import SETTINGS, Settings, SettingsMismatchError, require_same_settings
from skjepa.jacobian.pass_method import PassMethod
from skjepa.jacobian.precision import PRECISIONS
from skjepa.jacobian.volume import numerical_rank

_NO_LAYERS: dict[str, Any] = {"layers": None, "layers_dtype": None}
_NO_VIEWS = {"transform": None, "seed": None}


@dataclass(frozen=True, eq=False)
class Extraction:
    """Embeddings, hidden layers and singular values of n samples, sliceable like an array.

    Attributes
    ----------
    embeddings : array of shape (n_samples, K), float64
        f(x) of the untransformed sample.
    singular_values : array of shape (n_samples, V, R), float64, or None
        Of the Jacobian at each of V views, descending; R = min(K, D). None where no backward pass was made
        (``method="forward"``); `spectra` is the same and raises there.
    ids : array of shape (n_samples,), str
        Path relative to the folder, path as given, content hash, or what the caller named.
    meta : dict
        How it was computed (`SETTINGS`), on what, with which versions; ``meta["skipped"]`` lists
        ``[position, id, reason]`` of samples that could not be read.
    contents : array of shape (n_samples,), str
        Hash of what each sample was measured from (the bytes of a file, the numbers of an array), by which copies are
        known; "" where it is not known.
    layers : dict of name -> array of shape (n_samples, 2 C), float32 or float16
        Of hidden layers, in the order of the forward pass: mean and then standard deviation of each of C channels over
        positions or tokens; of vectors (n_samples, C), the values themselves. Empty where none were read.
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
            raise ValueError(f"the arrays of an Extraction need one row for each of its samples; got {shapes}")

    @property
    def shape(self) -> tuple[int]:
        """``(n_samples,)``: what scikit-learn's splitters ask of an indexable."""
        return (len(self.ids),)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> "Extraction":
        """The samples at a slice, a mask or integer positions."""
        if isinstance(index, int | np.integer):
            index = [int(index)]
        meta = {key: value for key, value in self.meta.items() if key != "skipped"}  # its positions are of the whole
        return Extraction(
            self.embeddings[index],
            None if self.singular_values is None else self.singular_values[index],
            self.ids[index],
            meta,
            self.contents[index],
            {name: values[index] for name, values in self.layers.items()},
        )

    def narrowed(self, layers: Sequence[str] | None) -> "Extraction":
        """The same with these layers alone, in this order; None: without any.

        Raises
        ------
        ValueError
            One that it does not have.
        """
        self.require_layers(layers or ())
        kept = {name: self.layers[name] for name in layers or ()}
        told = {"layers": list(kept), "layers_dtype": self.meta.get("layers_dtype")} if kept else _NO_LAYERS
        return replace(self, layers=kept, meta=self.meta | told)

    def require_layers(self, names: Iterable[str]) -> None:
        """Raise ValueError that names the first of these layers that there is not, and those that there are."""
        if missing := [name for name in names if name not in self.layers]:
            known = ", ".join(map(repr, self.layers)) or "none"
            raise ValueError(
                f"the Extraction has no layer {missing[0]!r}; it has {known}: extract it with the layers of the fit"
            )

    def forward_only(self) -> "Extraction":
        """What ``method="forward"`` would have yielded: the same without singular values."""
        forward = {"method": "forward", "method_reason": None, "views": 1, **_NO_VIEWS}
        return replace(self, singular_values=None, meta=self.meta | forward)

    @property
    def spectra(self) -> NDArray[np.float64]:
        """`singular_values`; raises ValueError where no backward pass was made."""
        if self.singular_values is None:
            raise ValueError(
                "these samples were measured by method='forward', which makes no backward pass and so yields no "
                "singular values: measure them with method='exact' or method='sketch'"
            )
        return self.singular_values

    @property
    def identities(self) -> NDArray[np.str_]:
        """What tells samples from copies of one another, (n_samples,): their content, or the id where it is unknown."""
        return np.where(self.contents == "", self.ids, self.contents)

    @property
    def settings(self) -> Settings:
        """What must agree before these results are mixed with others, see `require_same_settings`."""
        return cast(Settings, {key: self.meta.get(key) for key in ("encoder", *SETTINGS, "method_reason")})

    @property
    def n_features(self) -> int | None:
        """d of vectors; None for images."""
        shape = self.meta.get("input_shape") or []
        return shape[0] if len(shape) == 1 else None

    @property
    def is_table(self) -> bool:
        """Whether samples are rows whose layers have no positions or tokens."""
        return self.n_features is not None and not self.meta.get("layers_pooled", False)

    @property
    def numerical_rank(self) -> NDArray[np.int64]:
        """Singular values above the noise of the arithmetic, (n_samples, V)."""
        return numerical_rank(self.spectra, eps=self.eps)

    @property
    def eps(self) -> float:
        """Machine epsilon of the encoder's arithmetic, see `skjepa.jacobian.Arithmetic`."""
        return PRECISIONS[self.meta.get("precision", "float64")].eps

    @property
    def errors(self) -> dict[int, str]:
        """Samples that were skipped: position among all samples -> reason."""
        return {int(position): str(reason) for position, _, reason in self._skipped}

    @property
    def all_ids(self) -> NDArray[np.str_]:
        """Ids of all samples, those that were skipped among them, in the order of X."""
        ids = self.ids.tolist()
        for position, name, _ in self._skipped:
            ids.insert(position, str(name))
        return np.array(ids, dtype=np.str_)

    @property
    def measured(self) -> NDArray[np.int64]:
        """Positions of these samples among all samples, ascending."""
        return np.setdiff1d(np.arange(len(self) + len(self._skipped)), list(self.errors))

    def aligned(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """`values` of these samples, (n_samples,) or (n_samples, k), with NaN in the rows of skipped samples."""
        full = np.full((len(self) + len(self._skipped), *np.shape(values)[1:]), np.nan)
        full[self.measured] = values
        return full

    @property
    def _skipped(self) -> list[tuple[int, str, str]]:
        return sorted(map(tuple, self.meta.get("skipped", [])))

    def save(self, path: str | os.PathLike) -> Path:
        """Write one ``.npz`` file, whole or not at all; read it with `Extraction.load`."""
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
        """Read what `save` wrote. Raises ValueError naming the file where it is not an extraction."""
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
        """Join extractions made with the same settings; raises SettingsMismatchError naming the first difference."""
        if not parts:
            raise ValueError("nothing to concatenate")
        for part in parts[1:]:
            require_same_settings(parts[0].meta, part.meta, "the extractions to concatenate")
        first = parts[0].singular_values
        for part in parts[1:]:  # of hands that say nothing of it
            if list(part.layers) != list(parts[0].layers) or (part.singular_values is None) != (first is None):
                raise SettingsMismatchError("the extractions to concatenate differ in what they hold")
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
    """Raise ValueError where a number of an Extraction is NaN or infinite; names the first such sample."""
    finite = np.isfinite(extraction.embeddings).all(axis=1)
    for values in extraction.layers.values():
        finite &= np.isfinite(values).all(axis=1)
    if extraction.singular_values is not None:
        finite &= np.isfinite(extraction.singular_values).all(axis=(1, 2))
    if not finite.all():
        first = extraction.ids[int(np.argmin(finite))]
        raise ValueError(f"the Extraction holds values that are not finite, of {(~finite).sum()} samples: {first} ...")
