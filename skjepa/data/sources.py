"""Turn any data into a `Source`: ids, and a function that loads one sample."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from skjepa.data.content import file_hash, hash_of_array, hash_of_bytes
from skjepa.data.datasets import check_pixels, dataset_source
from skjepa.data.folders import image_files
from skjepa.data.images import (
    ImageReadError,
    ValueRange,
    check_value_range,
    image_from_bytes,
    loaded_rgb,
    path_as_text,
    read_image,
)
from skjepa.data.kinds import PICTURES, is_number, kind_of, refuse_what_is_no_data
from skjepa.data.one_picture import listed
from skjepa.data.source import Source


def as_source(X: Any, *, ids: Sequence[str] | None = None, value_range: Sequence[float] | None = None) -> Source:
    """Make a source of images or vectors from arrays, lists, folders or datasets.

    Every function and detector of skjepa that takes data calls it, so it is needed only to set `ids` or `value_range`.

    Parameters
    ----------
    X : see below
        - array (N, H, W, 3), uint8 or float in [0, 1]; tensor (N, 3, H, W), float in [0, 1];
        - list of PIL images, of such arrays (H, W, 3), of paths or of image files in bytes; object or string array
          (n,) or (n, 1) of them;
        - one picture: the path of an image file, a PIL image, its file in bytes, an array (H, W, 3) or a tensor
          (3, H, W);
        - a generator of any of these, read once, at most half of the free memory;
        - a folder, searched to the bottom for image files, in sorted order;
        - a map-style torch Dataset with items x or (x, label), x a tensor (3, H, W), float in [0, 1] or uint8, or a
          PIL image;
        - numeric array, list or data frame (n, d): vectors.
    ids : sequence of str, optional
        Unique names to use instead of the source's own.
    value_range : (low, high), optional
        Values of black and white in grey images of more than 8 bits (files or PIL images), such as (0, 4095) for a
        12-bit camera; by default (0, 65535). The same range is used for all images, whatever they contain.

    Returns
    -------
    Source

    Raises
    ------
    ValueError, TypeError
        If the data are empty, ragged, not finite or outside [0, 1], have a wrong number of channels, or ids repeat; the
        message names which.
    """
    scale = check_value_range(value_range)
    if scale is not None and isinstance(X, Source):
        raise ValueError("X is already a Source: give value_range where it is made")
    source = X if isinstance(X, Source) else _dispatch(listed(X), scale)
    if len(source) == 0:
        raise ValueError("X holds no samples: give at least one")
    if ids is not None:
        names = np.asarray(ids, dtype=np.str_)
        if names.shape != (len(source),):
            raise ValueError(f"ids must be one name per sample: {len(source)} samples, ids of shape {names.shape}")
        if len(np.unique(names)) != len(names):
            raise ValueError("ids must be unique; got the same id twice: rename one")
        source = Source(names, source.load, source.is_vector, content=source.content, file=source.file)
    return source


def holds_vectors(X: Any) -> bool:
    """Return whether X holds numbers, which `validate_data` checks, and not images, paths, a folder or a Dataset."""
    if isinstance(X, Source):
        return X.is_vector
    refuse_what_is_no_data(X)
    if isinstance(X, str | os.PathLike | bytes | bytearray | Image.Image | torch.utils.data.Dataset):
        return False
    if isinstance(X, list | tuple) and not X:
        return False
    if isinstance(X, list | tuple):
        kind = kind_of(X[0])
        return kind == "values" or (kind in ("arrays", "tensors") and np.ndim(X[0]) < 2)
    if hasattr(X, "toarray"):
        return True  # sparse matrices, which `validate_data` refuses
    array = X if isinstance(X, Tensor) else np.asarray(X)
    if isinstance(array, np.ndarray) and array.dtype.kind in "OSU" and array.size and array.size == len(array):
        return not any(kind_of(item) in PICTURES and not is_number(item) for item in array.flat)
    return array.ndim < 3


def _dispatch(X: Any, value_range: ValueRange) -> Source:
    if isinstance(X, str | os.PathLike):
        return folder_source(X, value_range)
    if isinstance(X, Tensor):
        return _tensor_source(X)
    if isinstance(X, torch.utils.data.Dataset):
        return dataset_source(X, value_range)
    if isinstance(X, list | tuple):
        return _list_source(X, value_range)
    if hasattr(X, "toarray"):
        raise TypeError("sparse input is not supported: give X.toarray()")
    refuse_what_is_no_data(X)
    array = np.asarray(X)
    if array.ndim == 0:
        raise TypeError(f"X must be an array, a list, a folder or a torch Dataset; got {type(X).__name__}")
    return _array_source(array, value_range)


def folder_source(folder: str | os.PathLike, value_range: ValueRange = None) -> Source:
    """Make a source of the image files below a folder, in sorted order.

    Ids are paths relative to the folder, with forward slashes. Hidden files and folders, and those of the operating
    system, are ignored. Links to folders are followed.

    Parameters
    ----------
    folder : path-like
    value_range : (low, high), optional
        See `skjepa.data.as_source`.

    Returns
    -------
    Source

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        If there is no such folder.
    ValueError
        If it holds no image files.

    Warns
    -----
    UserWarning
        If ignored files may be images; the message counts them by their endings.
    """
    root = Path(folder)
    if not root.exists():
        raise FileNotFoundError(
            f"there is no folder {root}, nor a file: give an existing folder of images, or an image file"
        )
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is a file: give a folder, or the paths of image files")
    files = image_files(root)
    return _files_source(files, _names(file.relative_to(root).as_posix() for file in files), value_range)


def _files_source(files: Sequence[Any], names: NDArray[np.str_], value_range: ValueRange) -> Source:
    if value_range is None:
        return Source(
            names, lambda i: read_image(files[i]), content=lambda i: file_hash(files[i]), file=lambda i: files[i]
        )
    # No `file`: another process would read it without the range, which gives a different image.
    return Source(
        names,
        lambda i: read_image(files[i], value_range),
        content=lambda i: (known := file_hash(files[i])) and f"{known} {value_range[0]!r} {value_range[1]!r}",
    )


def _names(paths: Iterable[str | os.PathLike]) -> NDArray[np.str_]:
    """Return paths as ids; if two paths have the same text, the second gets a number."""
    taken: dict[str, str] = {}
    names = []
    for given in paths:
        path = os.fspath(given)
        name, n = path_as_text(path), 1
        while taken.setdefault(name, path) != path:
            n += 1
            name = f"{path_as_text(path)} ({n})"
        names.append(name)
    return np.array(names, dtype=np.str_)


def _paths_source(paths: Sequence[str | os.PathLike], value_range: ValueRange) -> Source:
    files = [os.fspath(path) for path in paths]
    return _files_source(files, _names(files), value_range)


def _list_source(X: Sequence[Any], value_range: ValueRange = None) -> Source:
    if not X:
        raise ValueError("X is an empty list: give at least one sample")
    kinds = {kind_of(item) for item in X}
    if len(kinds) > 1:
        raise TypeError(f"X mixes {' and '.join(sorted(kinds))}: give one kind")
    kind = kinds.pop()
    if kind == "paths":
        return _paths_source(X, value_range)
    if kind == "bytes of image files":
        return _bytes_source(X, value_range)
    if kind == "PIL images":
        ids = np.array([_image_id(image, i, value_range) for i, image in enumerate(X)])
        return _hashed(ids, lambda i: loaded_rgb(X[i], i, value_range=value_range))
    if kind == "tensors":
        return _tensor_source(torch.stack(list(_same_shape(X))))
    try:
        return _array_source(np.asarray(_same_shape(X) if kind == "arrays" else X))
    except ValueError as error:
        if "inhomogeneous" not in str(error):
            raise
        raise ValueError(f"ragged input: the items of X differ in length, give all the same ({error})") from error


def _bytes_source(X: Sequence[bytes | bytearray], value_range: ValueRange) -> Source:
    """Image files that are in memory already; known by the hash that the files have."""
    ids = np.array([hash_of_bytes(content) for content in X], dtype=np.str_)
    known = "" if value_range is None else f" {value_range[0]!r} {value_range[1]!r}"
    return Source(
        ids,
        lambda i: image_from_bytes(X[i], f"image {i}", value_range=value_range),
        content=lambda i: f"{ids[i]}{known}",
    )


def _same_shape(items: Sequence[Any]) -> Sequence[Any]:
    shapes = {tuple(item.shape) for item in items}
    if len(shapes) > 1:
        some = ", ".join(map(str, sorted(shapes)[:3]))
        raise ValueError(
            f"ragged input: arrays of different shapes ({some} ...): resize them, or give PIL images or paths"
        )
    return items


def _image_id(image: Image.Image, position: int, value_range: ValueRange) -> str:
    """Return the hash of the image's pixels as its id; a broken image is named by its position and fails in load."""
    try:
        return hash_of_array(np.asarray(loaded_rgb(image, position, value_range=value_range)))
    except ImageReadError:
        return f"image {position}"


def _array_source(X: np.ndarray, value_range: ValueRange = None) -> Source:
    if X.dtype.kind in "OSU":
        items = X[:, 0] if X.ndim == 2 and X.shape[1] == 1 else X
        if items.ndim == 1 and all(kind_of(item) in PICTURES for item in items):
            return _list_source(list(items), value_range)
        if X.dtype.kind == "O" and X.ndim == 2:
            return _vector_source(X)
        raise TypeError(f"got an array of dtype {X.dtype} and shape {X.shape}: give images, paths or vectors")
    if X.ndim == 2:
        return _vector_source(X)
    if X.ndim != 4:
        grey = ". Grey images: give np.repeat(X[..., None], 3, axis=-1)" if X.ndim == 3 else ""
        raise ValueError(f"images must be (N, H, W, 3) and vectors (n, d); got an array of shape {X.shape}{grey}")
    if X.shape[-1] != 3:
        raise ValueError(
            f"raw arrays need 3 channels, last: (N, H, W, 3); got shape {X.shape}. "
            "Convert them, or give PIL images or files, which are converted to RGB"
        )
    if 0 in X.shape[1:]:
        raise ValueError(f"got images without pixels, of shape {X.shape}")
    if X.dtype != np.uint8:
        check_pixels(X, "image")
    return _hashed(np.array([hash_of_array(image) for image in X], dtype=np.str_), lambda i: X[i])


def _vector_source(X: np.ndarray) -> Source:
    if X.dtype.kind not in "biufO":
        raise ValueError(f"vectors must be real numbers; got an array of dtype {X.dtype}")
    try:
        rows = np.asarray(X, dtype=np.float64) + 0.0  # -0.0 is 0.0
    except (TypeError, ValueError) as error:
        raise ValueError(f"vectors must be numbers: {error}") from error
    if not np.isfinite(rows).all():
        raise ValueError("X holds NaN or infinite values: fill them in or leave those rows out")
    ids = np.array([hash_of_array(row) for row in rows], dtype=np.str_)
    return _hashed(ids, lambda i: rows[i].copy(), is_vector=True)


def _tensor_source(X: Tensor) -> Source:
    array = (X.float() if X.dtype == torch.bfloat16 else X).detach().cpu().numpy()
    if array.ndim == 2:
        return _vector_source(array)
    if array.ndim != 4 or array.shape[1] != 3 or array.dtype.kind != "f":
        raise ValueError(
            f"tensors of images must be float (N, 3, H, W) in [0, 1]; got {X.dtype} of shape {tuple(X.shape)}"
        )
    check_pixels(array, "image")
    return _hashed(
        np.array([hash_of_array(image) for image in array], dtype=np.str_), lambda i: torch.from_numpy(array[i])
    )


def _hashed(ids: NDArray[np.str_], load: Callable[[int], Any], *, is_vector: bool = False) -> Source:
    """Return a source whose ids are hashes of the content."""
    return Source(ids, load, is_vector, content=lambda i: str(ids[i]))
