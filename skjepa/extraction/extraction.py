"""What the expensive pass yields: embeddings, singular values, ids. Everything after it is cheap and starts here."""

import json
import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from skjepa._utils.files import written_whole
from skjepa.extraction.store.settings import SETTINGS, Settings, require_same_settings
from skjepa.jacobian.precision import PRECISIONS
from skjepa.jacobian.volume import numerical_rank


@dataclass(frozen=True, eq=False)
class Extraction:
    """Embeddings and singular values of n samples, sliceable like an array.

    Attributes
    ----------
    embeddings : array of shape (n_samples, K), float64
        f(x) of the untransformed sample.
    singular_values : array of shape (n_samples, V, R), float64
        Of the Jacobian at each of V views, descending; R = min(K, D).
    ids : array of shape (n_samples,), str
        Path relative to the folder, path as given, content hash, or what the caller named.
    meta : dict
        How it was computed (`SETTINGS`), on what, with which versions; ``meta["skipped"]`` lists
        ``[position, id, reason]`` of samples that could not be read.
    contents : array of shape (n_samples,), str
        Hash of what each sample was measured from (the bytes of a file, the numbers of an array), by which copies are
        known; "" where it is not known.
    """

    embeddings: NDArray[np.float64]
    singular_values: NDArray[np.float64]
    ids: NDArray[np.str_]
    meta: dict[str, Any] = field(default_factory=dict)
    contents: NDArray[np.str_] = field(default_factory=lambda: np.array([], dtype=np.str_))

    def __post_init__(self) -> None:
        n = len(self.embeddings)
        if len(self.contents) == 0:
            object.__setattr__(self, "contents", np.full(n, "", dtype=np.str_))
        if self.embeddings.ndim != 2 or self.singular_values.ndim != 3 or self.ids.ndim != 1:
            raise ValueError(
                "an Extraction needs embeddings (n, K), singular_values (n, V, R) and ids (n,); got shapes "
                f"{self.embeddings.shape}, {self.singular_values.shape}, {self.ids.shape}"
            )
        if not n == len(self.singular_values) == len(self.ids) == len(self.contents):
            raise ValueError(
                "embeddings, singular_values, ids and contents differ in length: "
                f"{n}, {len(self.singular_values)}, {len(self.ids)}, {len(self.contents)}"
            )

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
            self.embeddings[index], self.singular_values[index], self.ids[index], meta, self.contents[index]
        )

    @property
    def identities(self) -> NDArray[np.str_]:
        """What tells samples from copies of one another, (n_samples,): their content, or the id where it is unknown."""
        return np.where(self.contents == "", self.ids, self.contents)

    @property
    def settings(self) -> Settings:
        """What must agree before these results are mixed with others, see `require_same_settings`."""
        return cast(Settings, {key: self.meta.get(key) for key in ("encoder", *SETTINGS)})

    @property
    def n_features(self) -> int | None:
        """d of vectors; None for images."""
        shape = self.meta.get("input_shape") or []
        return shape[0] if len(shape) == 1 else None

    @property
    def numerical_rank(self) -> NDArray[np.int64]:
        """Singular values above the noise of the arithmetic, (n_samples, V)."""
        return numerical_rank(self.singular_values, eps=self.eps)

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
            np.savez_compressed(
                file,
                embeddings=self.embeddings,
                singular_values=self.singular_values,
                ids=self.ids.astype(np.str_),
                meta=np.array(json.dumps(self.meta)),
                contents=self.contents.astype(np.str_),
            )
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Extraction":
        """Read what `save` wrote. Raises ValueError naming the file where it is not an extraction."""
        path = _npz(path)
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                meta = json.loads(str(arrays["meta"].item()))
                contents = [arrays["contents"]] if "contents" in arrays else []  # older files have none
                return cls(arrays["embeddings"], arrays["singular_values"], arrays["ids"], meta, *contents)
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
        return cls(
            np.concatenate([part.embeddings for part in parts]),
            np.concatenate([part.singular_values for part in parts]),
            np.concatenate([part.ids for part in parts]),
            parts[0][:0].meta,
            np.concatenate([part.contents for part in parts]),
        )


def _npz(path: str | os.PathLike) -> Path:
    path = Path(path)
    return path if path.suffix == ".npz" else path.with_name(path.name + ".npz")


def require_finite(extraction: Extraction) -> None:
    """Raise ValueError where an embedding or a singular value is NaN or infinite; names the first such sample."""
    finite = np.isfinite(extraction.embeddings).all(axis=1) & np.isfinite(extraction.singular_values).all(axis=(1, 2))
    if not finite.all():
        first = extraction.ids[int(np.argmin(finite))]
        raise ValueError(f"the Extraction holds values that are not finite, of {(~finite).sum()} samples: {first} ...")
