"""The expensive pass: encoder x data -> `Extraction`, by `extract`, or embeddings alone, by `embed`."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skjepa import __version__
from skjepa._utils import hardware
from skjepa._utils.hardware import device_name
from skjepa._utils.validation import check_choice, check_integer, seed_from
from skjepa.data.images import ImageReadError
from skjepa.data.sources import Source, as_source, known_by_content, noting_content
from skjepa.encoders.derivative import require_derivative
from skjepa.encoders.description import describe
from skjepa.encoders.encoder import Encoder, FingerprintError, load_encoder
from skjepa.encoders.probe import Probe, probe
from skjepa.extraction.batches.loader import first_input
from skjepa.extraction.batches.measurement import Arrays, Measurement, Observer, scoring
from skjepa.extraction.batches.options import RunOptions
from skjepa.extraction.batches.pooling import LAYER_DTYPES, Layer, chosen_layers
from skjepa.extraction.batches.sizing import bytes_per_sample
from skjepa.extraction.batches.views import Transform, default_transform
from skjepa.extraction.extraction import Extraction
from skjepa.extraction.loop import measuring, run_through
from skjepa.extraction.processes.pools import Pool, active_pool
from skjepa.extraction.resume import ResumedStore
from skjepa.extraction.store.settings import SETTINGS
from skjepa.extraction.store.store import Store, cache_of, memory_folder, settings_of, stores_of
from skjepa.jacobian.directions import (
    DEFAULT_SHARE,
    Directions,
    check_number_of_directions,
    random_directions,
)
from skjepa.jacobian.pass_method import PassMethod

METHODS = ("auto", "forward", "exact", "sketch")

AUTO_PASSES = 64
"""`method="auto"` makes at most so many backward passes per image, and none for vectors."""


def extract(
    encoder: Encoder | str,
    X: Any,
    *,
    method: str | Directions = "exact",
    n_directions: int | None = None,
    layers: str | Sequence[str] | None = "auto",
    layers_dtype: str = "float32",
    views: int = 1,
    transform: Transform | None = None,
    ids: Sequence[str] | None = None,
    store: str | os.PathLike | None = None,
    memory: Any = None,
    memory_budget: int | None = None,
    device: str = "auto",
    n_jobs: int | None = None,
    on_error: str = "raise",
    random_state: Any = None,
    progress: bool = False,
    observe: Observer | None = None,
) -> Extraction:
    """Embeddings, hidden layers and Jacobian singular values of every sample: the one expensive pass.

    Parameters
    ----------
    encoder : Encoder or str
        As made, or as taken, by `load_encoder`.
    X : array, list, folder, Dataset or Source
        See `skjepa.data.as_source`.
    method : {"auto", "forward", "exact", "sketch"} or Directions
        - "auto": "exact" for images where that takes at most 64 passes, or where there are views; else "forward";
        - "forward": no singular values and no backward pass;
        - "exact": all R = min(K, D) singular values of the Jacobian J, by min(K, D) passes a view;
        - Directions U, from `skjepa.learn_directions`: those of U^T J, by m passes;
        - "sketch": the same with random U, seeded by `random_state`, see `skjepa.jacobian.random_directions`.
    n_directions : int, optional
        m of a sketch; by default K / 4.
    layers : "auto", list of str, or None
        Hidden layers that are read in the forward pass, as mean and standard deviation of each channel over positions
        or tokens. "auto": the ends of the encoder's stages, at most eight. A list: names as
        in ``encoder.module.named_modules()``, or those of "auto"; of vectors also "input", the rows themselves.
    layers_dtype : {"float32", "float16"}
        Of what is kept of them. A ViT-B keeps 48 KiB per sample in float32, half of that in float16.
    views : int
        Number V of random views a sample (arXiv 2510.05949, Eq. 4). 1 without a `transform` is the sample itself
        (Eq. 5).
    transform : callable, optional
        Tensor (3, H, W) in [0, 1] (vectors: (d,)) to a tensor of that shape, randomly; torch, NumPy and `random` are
        seeded by (seed, sample id, view). By default, with ``views > 1``, the usual training views for images.
    ids : sequence of str, optional
        Unique names of the samples.
    store : path, optional
        Folder in which finished samples are kept, and from which the run resumes. It belongs to one encoder and to one
        choice of settings, and refuses others.
    memory : path or joblib.Memory, optional
        Folder of a cache for any encoders and settings: what has been measured once, known by its content and not by
        its name, is read. Processes may share it. Of a `joblib.Memory` only the location is used.
    memory_budget : int, optional
        Bytes that a batch may take; by default half of the free memory. A batch that runs out is halved and retried.
    device : str
        "auto" takes CUDA where there is one.
    n_jobs : int, optional
        Threads that read images, in each process; -1 for one a core. How many processes measure is said by
        ``joblib.parallel_config`` around the call: "loky" for this machine, "dask" for a cluster; see
        docs/guide/scaling.md.
    on_error : {"raise", "skip"}
        What to do with a sample that cannot be read, or whose embedding, layers or Jacobian are not finite: an error
        that names it, or a warning that does. Every other sample of the batch is kept in the store first.
    random_state : int, RandomState or Generator, optional
        Seeds the views and the sketch; None means 0, so that two runs agree.
    progress : bool
        Show a bar with images per second and time left.
    observe : callable, optional
        Is given the Jacobians (B, K or m, D) of every batch and view before they are dropped: for what else is to be
        learned from them. A batch of views that runs out of memory is seen again in part.

    Returns
    -------
    Extraction
        In the order of X, less the samples skipped (``meta["skipped"]``).

    Raises
    ------
    ValueError, TypeError
        Bad data, options or encoder; names the thing.
    SettingsMismatchError
        `store` was made with other settings.
    MemoryError
        One sample alone does not fit.
    DeviceError
        A GPU failed; names the batch. In other processes the batch is measured again instead, by another process.
    """
    if isinstance(X, Extraction):
        raise TypeError("X is an Extraction already: pass it on instead of extracting it again")
    encoder = load_encoder(encoder)
    _check_method(method, n_directions)
    run = RunOptions(device, memory_budget, n_jobs, on_error, progress)
    views = check_integer("views", views, minimum=1)
    source = as_source(X, ids=ids)
    pool = None if observe is not None else active_pool(device)
    own = _own_device(device, pool)
    seed = seed_from(random_state)
    shape = _input_shape(encoder, source)
    check_choice("layers_dtype", layers_dtype, LAYER_DTYPES)
    has_views = views > 1 or transform is not None
    if isinstance(method, str) and method == "forward" and has_views:
        raise ValueError(
            "views are of the Jacobian, which method='forward' does not measure: give views=1 and no transform, or "
            "method='exact' or 'sketch'"
        )
    if transform is None and views > 1:
        if encoder.preprocessing is None or encoder.preprocessing.normalises_first:
            raise ValueError("views > 1 of vectors, or of images with a preprocess of your own, need a transform")
        transform = default_transform(encoder.preprocessing.size)
    if store is not None and memory is not None:
        raise ValueError("give a store or a memory, not both: each keeps what has been measured")
    if observe is not None and (store is not None or memory is not None):
        raise ValueError("observe sees what is measured: what a store or a memory keeps would pass it by")
    if store is not None and not source.stable_ids:
        raise ValueError("a store needs names that the next run will repeat: pass ids= with a torch Dataset")

    # Views draw their randomness from the id, which is part of the sample then.
    by_name = store is not None or transform is not None
    # What a store or a cache keeps belongs to a content, of which a name alone tells nothing.
    is_kept = store is not None or cache_of(memory) is not None
    source = noting_content(known_by_content(source) if is_kept else source)

    def described(n_components: int) -> tuple[dict[str, Any], Tensor | None]:
        chosen_method = method
        if isinstance(method, str) and method == "auto":
            is_cheap = not source.is_vector and n_components <= AUTO_PASSES
            chosen_method = "exact" if is_cheap or has_views else "forward"
        name, directions = _output_directions(encoder, chosen_method, n_directions, n_components, seed)
        described = _describe(encoder, shape, n_components, name, views, transform, seed, own)
        read: dict[str, Any] = {}
        if chosen:
            is_pooled = any(layer.is_pooled for layer in chosen)
            names = [layer.name for layer in chosen]
            read = {"layers": names, "layers_dtype": layers_dtype, "layers_pooled": is_pooled}
        return described | read, directions

    with encoder.unchanging(), ExitStack() as stack:
        chosen = chosen_layers(encoder, layers, shape)
        kept, meta = _what_is_kept(stack, encoder, shape, source, store, memory, described, by_name=by_name)
        if kept is not None and kept.is_complete:
            return _assemble(source, kept.rows, {}, meta, chosen)
        function, probed = stack.enter_context(_ready(encoder, shape, own))
        meta, directions = described(probed.n_components)
        n_passes = probed.n_components if directions is None else directions.shape[1]
        if meta["method"] == "forward":
            n_passes = 0
        else:
            sample = partial(first_input, encoder, source, own)
            require_derivative(encoder, function, shape, probed.n_components, own, sample)
        measurement = Measurement(
            encoder,
            n_passes,
            _sample_bytes(encoder, probed, n_passes),
            directions,
            chosen,
            layers_dtype,
            views=views,
            transform=transform,
            seed=seed,
            run=run,
        )
        measured = measuring(pool, measurement, function, source, observe)
        folder = memory_folder(memory, meta) if store is None else store
        if folder is not None and (kept is None or kept.store.settings["n_components"] != probed.n_components):
            opened = stack.enter_context(Store(folder, meta, is_cache=store is None))
            kept = ResumedStore(opened, source, by_name=by_name)
        rows = run_through(source, measured, run, kept)
    meta["device"] = ", ".join(sorted(measured.devices)) or meta["device"]
    return _assemble(source, rows, measured.skipped, meta, chosen)


def _what_is_kept(
    stack: ExitStack,
    encoder: Encoder,
    shape: tuple[int, ...],
    source: Source,
    store: str | os.PathLike | None,
    memory: Any,
    described: Callable[[int], tuple[dict[str, Any], Tensor | None]],
    *,
    by_name: bool,
) -> tuple[ResumedStore | None, dict[str, Any]]:
    """A store of earlier runs with these settings, open until the stack ends, and their meta; None where there is none.

    K is all that only a look at the encoder tells of the settings. Where everything is finished nobody has to look: the
    store tells K.
    """
    for folder in stores_of(memory) if store is None else [Path(store)]:
        settings = settings_of(folder)
        if settings is None or settings["fingerprint"] != encoder.fingerprint or settings["input_shape"] != list(shape):
            continue  # K of another encoder, or of inputs of another size
        meta, _ = described(settings["n_components"])
        if all(settings.get(key) == meta.get(key) for key in SETTINGS):
            opened = stack.enter_context(Store(folder, meta, is_cache=store is None))
            return ResumedStore(opened, source, by_name=by_name), meta
    return None, {}


def embed(
    encoder: Encoder | str,
    X: Any,
    *,
    memory_budget: int | None = None,
    device: str = "auto",
    n_jobs: int | None = None,
    on_error: str = "raise",
    progress: bool = False,
) -> NDArray[np.float64]:
    """Embeddings alone: one forward pass a sample, no Jacobian.

    Parameters
    ----------
    encoder, X, memory_budget, device, n_jobs, on_error, progress
        As `extract` has them.

    Returns
    -------
    array of shape (n_samples, K), float64
        ``extract(encoder, X).embeddings``, with rows of NaN for samples skipped by ``on_error="skip"``.

    Raises
    ------
    ValueError, TypeError, MemoryError
        As `extract`.
    """
    if isinstance(X, Extraction):
        raise TypeError("X is an Extraction, which has embeddings already")
    encoder = load_encoder(encoder)
    run = RunOptions(device, memory_budget, n_jobs, on_error, progress)
    source, pool = as_source(X), active_pool(device)
    own = _own_device(device, pool)
    with _ready(encoder, _input_shape(encoder, source), own) as (function, probed):
        measurement = Measurement(encoder, 0, _sample_bytes(encoder, probed, 0), run=run)
        measured = measuring(pool, measurement, function, source)
        rows = run_through(source, measured, run)
    _require_any(source, rows, measured.skipped)
    missing = (np.full(probed.n_components, np.nan),)
    return np.stack([rows.get(name, missing)[0] for name in source.ids.tolist()])


@contextmanager
def _ready(encoder: Encoder, shape: tuple[int, ...], device: str) -> Iterator[tuple[Callable[[Tensor], Tensor], Probe]]:
    """The encoder as a function on the device, and what a look at it on inputs of this shape tells."""
    with scoring(encoder, device) as function:
        yield function, probe(function, shape, dtype=encoder.dtype, device=device)


def _check_method(method: str | Directions, n_directions: int | None) -> None:
    check_number_of_directions(n_directions)
    if isinstance(method, Directions):
        if n_directions not in (None, method.n_directions):
            raise ValueError(f"method has {method.n_directions} directions, n_directions is {n_directions}")
        return
    if isinstance(method, str) and method == "subspace":
        raise ValueError(
            "method='subspace' learns its directions from normal samples, in a detector's fit; here pass what "
            "learn_directions returns as method"
        )
    check_choice("method", method, METHODS)
    if method != "sketch" and n_directions is not None:
        taken = "takes all" if method == "exact" else "makes no backward pass"
        raise ValueError(f"n_directions is for method='sketch'; method={method!r} {taken}")


def _output_directions(
    encoder: Encoder, method: str | Directions, n_directions: int | None, n_components: int, seed: int
) -> tuple[str, Tensor | None]:
    """What the method is called in the meta, and its cotangents (K, m) in the encoder's arithmetic."""
    if isinstance(method, Directions):
        if method.encoder not in (None, encoder.fingerprint):
            raise FingerprintError(
                f"the directions are of another encoder than {encoder.name!r}: fingerprint "
                f"{str(method.encoder)[:12]}, expected {encoder.fingerprint[:12]}"
            )
        if len(method.components) != n_components:
            raise ValueError(f"the directions are of {len(method.components)} outputs, the encoder has {n_components}")
        chosen, name = method, method.method
    elif method == "sketch":
        m = n_directions or max(1, n_components // DEFAULT_SHARE)
        chosen, name = random_directions(n_components, m, seed=seed), str(PassMethod("sketch", m))
    else:
        return method, None
    return name, torch.from_numpy(chosen.components).to(encoder.dtype)


def _input_shape(encoder: Encoder, source: Source) -> tuple[int, ...]:
    if encoder.input_shape is None:
        if not source.is_vector:
            raise ValueError(f"{encoder.name} encodes vectors, X holds images; give load_encoder an image_size")
        return np.shape(source.load(0))
    if source.is_vector:
        raise ValueError(f"{encoder.name} encodes images, X holds vectors (2-D numeric arrays are always vectors)")
    return encoder.input_shape


def _describe(encoder, shape, n_components: int, method, views, transform, seed, device) -> dict[str, Any]:
    random_views = transform is not None
    return {
        "encoder": encoder.name,
        "fingerprint": encoder.fingerprint,
        "method": method,
        "precision": encoder.precision,
        "input_shape": list(shape),
        "n_components": n_components,
        "views": views,
        "transform": describe(transform) if random_views else None,
        "seed": seed if random_views or PassMethod.parse(method).kind == "sketch" else None,
        "device": device_name(device),
        "versions": {"skjepa": __version__, "torch": torch.__version__, "numpy": np.__version__},
    }


def _sample_bytes(encoder: Encoder, probed: Probe, n_passes: int) -> int:
    if n_passes == 0:  # no graph is kept, but all of its tensors at once are more than any moment holds
        return probed.graph_bytes + 4 * probed.n_inputs * encoder.dtype.itemsize
    return bytes_per_sample(probed.n_components, probed.n_inputs, probed.graph_bytes, encoder.dtype.itemsize)


def _own_device(device: str, pool: Pool | None) -> str:
    """Where this process looks at the encoder; it need not have the GPUs of a cluster."""
    if pool is None:
        return hardware.resolve_device(device)
    return pool.device if pool.is_here else "cpu"


def _require_any(source: Source, rows: dict[str, Arrays], skipped: dict[int, str]) -> None:
    if not rows:
        raise ImageReadError(f"not one of {len(source)} samples could be read; first: {next(iter(skipped.values()))}")


def _assemble(
    source: Source, rows: dict[str, Arrays], skipped: dict[int, str], meta: dict[str, Any], chosen: tuple[Layer, ...]
) -> Extraction:
    _require_any(source, rows, skipped)
    names = source.ids.tolist()
    kept = [i for i, name in enumerate(names) if name in rows]
    reasons = {names[i]: reason for i, reason in skipped.items()}
    meta["skipped"] = [[i, name, reasons[name]] for i, name in enumerate(names) if name not in rows]
    embeddings, sigma, read = (np.stack([rows[names[i]][place] for i in kept]) for place in range(3))
    parts = np.split(read, np.cumsum([layer.width for layer in chosen])[:-1], axis=1) if chosen else []
    return Extraction(
        embeddings,
        sigma if sigma.shape[2] else None,
        source.ids[kept],
        meta,
        np.array([source.content(i) for i in kept], dtype=np.str_),
        {layer.name: part.astype(meta["layers_dtype"]) for layer, part in zip(chosen, parts, strict=True)},
    )
