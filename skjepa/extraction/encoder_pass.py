"""Run an encoder over data: `extract` returns an `Extraction`, `embed` the embeddings alone."""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skjepa import __version__
from skjepa._utils.hardware import device_name
from skjepa._utils.progress import shows_bar
from skjepa._utils.validation import check_choice, check_integer, check_number, seed_from
from skjepa.data.images import ImageReadError
from skjepa.data.source import Source, known_by_content, noting_content
from skjepa.data.sources import as_source
from skjepa.encoders.automatic import automatic_encoder
from skjepa.encoders.derivative import require_derivative
from skjepa.encoders.description import describe
from skjepa.encoders.encoder import Encoder
from skjepa.extraction.batches.loader import first_input
from skjepa.extraction.batches.measurement import Arrays, Measurement, Observer, scoring
from skjepa.extraction.batches.options import RunOptions
from skjepa.extraction.batches.pooling import LAYER_DTYPES, Layer, chosen_layers
from skjepa.extraction.batches.ready import forward_gflop, input_shape, probed_once, ready, sample_bytes
from skjepa.extraction.batches.views import Transform, default_transform
from skjepa.extraction.cost.bill import Bill
from skjepa.extraction.cost.choice import Choice, begun_with, by_operations, by_time, check_method, output_directions
from skjepa.extraction.extraction import Extraction
from skjepa.extraction.loop import measuring, run_through
from skjepa.extraction.processes.pools import active_pool, own_device
from skjepa.extraction.resume import ResumedStore, first_positions
from skjepa.extraction.store.settings import SETTINGS
from skjepa.extraction.store.store import Store, cache_of, memory_folder, settings_of, stores_of
from skjepa.jacobian.directions import Directions
from skjepa.jacobian.pass_method import PassMethod

_FEW = 32  # up to so many samples are measured without estimating the time first


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
    time_budget: float | None = None,
    progress: bool | str = False,
    observe: Observer | None = None,
) -> Extraction:
    """Compute embeddings, hidden-layer statistics and Jacobian singular values for every sample.

    Everything else in skjepa works on what this returns and runs no encoder, so extract once and reuse the result.
    K is the number of encoder outputs and D the number of inputs per sample.

    Parameters
    ----------
    encoder : Encoder or str
        What `load_encoder` returns, or anything that it accepts; "auto" takes "bundled" for images up to 64 pixels
        and "lite0" for larger ones.
    X : array, list, folder, Dataset or Source
        See `skjepa.data.as_source`.
    method : {"auto", "forward", "exact", "sketch"} or Directions
        - "auto": "exact" for images where that takes at most 64 passes and 20 GFLOP per image, or where there are
          views; otherwise "forward". ``meta["method_reason"]`` gives the reason. With `time_budget`, the most backward
          passes that fit into it;
        - "forward": no backward pass and no singular values;
        - "exact": all R = min(K, D) singular values of the Jacobian J, by min(K, D) passes per view;
        - Directions U, from `skjepa.learn_directions`: the singular values of U^T J, by m passes per view;
        - "sketch": the singular values of U^T J for random U, seeded by `random_state`; see
          `skjepa.jacobian.random_directions`.
    n_directions : int, optional
        Number m of random directions for ``method="sketch"``; by default K / 4.
    layers : "auto", list of str, or None
        Hidden layers to read in the forward pass, as mean and standard deviation of each channel over positions
        or tokens. "auto" reads the ends of the encoder's stages, at most eight. A list holds names from
        ``encoder.module.named_modules()`` or names that "auto" uses; for vectors also "input", the rows themselves.
    layers_dtype : {"float32", "float16"}
        Type in which layers are kept. A ViT-B keeps 48 KiB per sample in float32, half of that in float16.
    views : int
        Number V of random views per sample (arXiv 2510.05949, Eq. 4). 1 without a `transform` measures the sample
        itself (Eq. 5).
    transform : callable, optional
        Random function from a tensor (3, H, W) in [0, 1] (vectors: (d,)) to a tensor of the same shape. torch, NumPy
        and `random` are seeded by (seed, sample id, view). By default, with ``views > 1``, the usual training views
        for images.
    ids : sequence of str, optional
        Unique names of the samples.
    store : path, optional
        Folder that keeps finished samples and from which an interrupted run resumes. It belongs to one encoder and one
        choice of settings, and refuses others.
    memory : path or joblib.Memory, optional
        Folder of a cache for any encoders and settings. Samples are recognised by content, not by name, and measured
        only once. Processes may share it. Only the location of a `joblib.Memory` is used.
    memory_budget : int, optional
        Bytes that a batch may take; by default half of the free memory. A batch that runs out of memory is halved and
        retried.
    device : str
        Torch device; "auto" takes CUDA if there is one.
    n_jobs : int, optional
        Number of threads that read images in each process; -1 for one per core. To measure in several processes, put
        ``joblib.parallel_config`` around the call: "loky" for this machine, "dask" for a cluster; see
        docs/guide/scaling.md.
    on_error : {"raise", "skip"}
        What to do with a sample that cannot be read, or whose embedding, layers or Jacobian are not finite: raise an
        error that names it, or warn and leave it out. All other samples of the batch are kept in the store first.
    random_state : int, RandomState or Generator, optional
        Seed of the views and of the sketch. None means 0, so that two runs agree.
    time_budget : float, optional
        Seconds that the pass may take on this machine, estimated from two samples before it starts. "auto" makes as
        many backward passes as fit into it: all K, 16, 4 or none. Any other method that would take longer raises an
        error. A store that already holds samples keeps its method.
    progress : bool or "auto"
        Show a bar with images per second and the time left. A pass of more than ten seconds prints its estimated time
        first. "auto" does so in a terminal or a notebook, after two seconds. Without the bar, a pass of more than ten
        minutes gives a warning with the estimate.
    observe : callable, optional
        Called with the Jacobians (B, K or m, D) of every batch and view before they are dropped, to compute anything
        else from them. Where a batch of views runs out of memory, some of its Jacobians are passed twice.

    Returns
    -------
    Extraction
        Samples in the order of X, without skipped samples, which ``meta["skipped"]`` lists.

    Raises
    ------
    ValueError, TypeError
        If the data, an option or the encoder does not fit; the message names which.
    SettingsMismatchError
        If `store` was made with other settings.
    TimeBudgetError
        If the pass would take longer than `time_budget`.
    MemoryError
        If one sample alone does not fit into memory.
    DeviceError
        If a GPU failed; the message names the batch. With several processes another process measures the batch
        instead.
    """
    if isinstance(X, Extraction):
        raise TypeError("X is already an Extraction: pass it on as it is, or give the samples themselves")
    check_method(method, n_directions)
    run = RunOptions(device, memory_budget, n_jobs, on_error, progress)
    views = check_integer("views", views, minimum=1)
    source = as_source(X, ids=ids)
    encoder = automatic_encoder(encoder, source)
    pool = None if observe is not None else active_pool(device)
    own = own_device(device, pool)
    seed = seed_from(random_state)
    shape = input_shape(encoder, source)
    check_choice("layers_dtype", layers_dtype, LAYER_DTYPES)
    has_views = views > 1 or transform is not None
    is_auto = isinstance(method, str) and method == "auto"
    is_timed = is_auto and time_budget is not None
    if time_budget is not None:
        check_number("time_budget", time_budget, above=0.0)
    if isinstance(method, str) and method == "forward" and has_views:
        raise ValueError(
            "method='forward' measures no Jacobian, so views and transform have no effect: give views=1 and no "
            "transform, or method='exact' or 'sketch'"
        )
    if transform is None and views > 1:
        if encoder.preprocessing is None or encoder.preprocessing.normalises_first:
            raise ValueError(
                f"got views={views} without a transform; vectors, and images with your own preprocess, have no default "
                "transform: give transform=, or views=1"
            )
        transform = default_transform(encoder.preprocessing.size)
    if store is not None and memory is not None:
        raise ValueError("got both store and memory, which keep the same results: give one of them")
    if observe is not None and (store is not None or memory is not None):
        raise ValueError(
            "observe is not called for samples read from a store or a memory: give observe without store and memory"
        )
    if store is not None and not source.stable_ids:
        raise ValueError("a store needs ids that are the same in the next run: pass ids= with a torch Dataset")

    # Random views are seeded by the id, so that with views two equal samples of different ids differ.
    by_name = store is not None or transform is not None
    # A store or a cache recognises samples by content: a file may change under the same name.
    is_kept = store is not None or cache_of(memory) is not None
    source = noting_content(known_by_content(source) if is_kept else source)

    gflop = partial(forward_gflop, encoder, shape, own)

    def described(n_components: int, choice: Choice | None) -> tuple[dict[str, Any], Tensor | None]:
        read: dict[str, Any] = {}
        if choice is None and is_auto:
            choice = by_operations(n_components, gflop, is_vector=source.is_vector, has_views=has_views)
        if choice is not None:
            read["method_reason"] = choice.reason
        asked = (method, n_directions) if choice is None else (choice.method, choice.n_directions)
        name, directions = output_directions(encoder, *asked, n_components, seed)
        described = _describe(encoder, shape, n_components, name, views, transform, seed, own)
        if chosen:
            is_pooled = any(layer.is_pooled for layer in chosen)
            names = [layer.name for layer in chosen]
            read |= {"layers": names, "layers_dtype": layers_dtype, "layers_pooled": is_pooled}
        return described | read, directions

    with encoder.unchanging(), ExitStack() as stack:
        chosen = chosen_layers(encoder, layers, shape)
        choice = begun_with(store) if is_timed else None
        kept: ResumedStore | None = None
        if choice is not None or not is_timed:
            expected = partial(described, choice=choice)
            kept, meta = _what_is_kept(stack, encoder, shape, source, store, memory, expected, by_name=by_name)
        if kept is not None and kept.is_complete:
            return _assemble(source, kept.rows, {}, meta, chosen)
        function = stack.enter_context(scoring(encoder, own))
        # The time is reported before the encoder is probed, which itself takes seconds with a large encoder.
        todo = _left(source, kept)
        bill = Bill(Measurement(encoder, 0, 0, views=views, run=run), function, source, todo, own, pool)
        if is_auto and time_budget is not None and choice is None:
            choice = by_time(bill.cost, time_budget, is_vector=source.is_vector, has_views=has_views)
        if (shows_bar(progress) or time_budget is not None or len(todo) > _FEW) and bill.look is not None:
            bill.present(_passes(*described(bill.look.n_components, choice)), time_budget)
        probed = probed_once(encoder, function, shape, own)
        meta, directions = described(probed.n_components, choice)
        n_passes = _passes(meta, directions)
        if n_passes:
            sample = partial(first_input, encoder, source, own)
            require_derivative(encoder, function, shape, probed.n_components, own, sample)
        measurement = Measurement(
            encoder,
            n_passes,
            sample_bytes(encoder, probed, n_passes),
            probed.gflop,
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


def _passes(meta: dict[str, Any], directions: Tensor | None) -> int:
    """Return the number of backward passes per view."""
    if meta["method"] == "forward":
        return 0
    return meta["n_components"] if directions is None else directions.shape[1]


def _left(source: Source, kept: ResumedStore | None) -> list[int]:
    """Return the positions of samples that are still to be measured."""
    return [i for name, i in first_positions(source).items() if kept is None or name not in kept.rows]


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
    """Open the store of earlier runs with these settings, and return it with its meta; None if there is none.

    The store stays open until the stack ends. Of the settings only K has to be found by running the encoder. It is
    taken from the store here, so that a run whose samples are all finished needs no encoder.
    """
    for folder in stores_of(memory) if store is None else [Path(store)]:
        settings = settings_of(folder)
        if settings is None or settings["fingerprint"] != encoder.fingerprint or settings["input_shape"] != list(shape):
            continue  # K of another encoder, or of another input size
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
    progress: bool | str = False,
) -> NDArray[np.float64]:
    """Compute the embeddings of every sample by one forward pass each, without Jacobians.

    Parameters
    ----------
    encoder, X, memory_budget, device, n_jobs, on_error, progress
        As for `extract`.

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
        raise TypeError("X is already an Extraction: take X.embeddings, or give the samples themselves")
    run = RunOptions(device, memory_budget, n_jobs, on_error, progress)
    source, pool = as_source(X), active_pool(device)
    encoder = automatic_encoder(encoder, source)
    own = own_device(device, pool)
    with ready(encoder, input_shape(encoder, source), own) as (function, probed):
        measurement = Measurement(encoder, 0, sample_bytes(encoder, probed, 0), run=run)
        measured = measuring(pool, measurement, function, source)
        rows = run_through(source, measured, run)
    _require_any(source, rows, measured.skipped)
    missing = (np.full(probed.n_components, np.nan),)
    return np.stack([rows.get(name, missing)[0] for name in source.ids.tolist()])


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


def _require_any(source: Source, rows: dict[str, Arrays], skipped: dict[int, str]) -> None:
    if not rows:
        raise ImageReadError(f"none of {len(source)} samples could be read; the first: {next(iter(skipped.values()))}")


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
