"""THE loop: encoder x data -> `Extraction`. Batching, memory, views, store, bad samples and progress, for everyone."""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from skjepa import __version__
from skjepa._validation import check_choice, check_integer, check_number, seed_from
from skjepa.directions import (
    DEFAULT_SHARE,
    SKETCH,
    SUBSPACE,
    Directions,
    check_number_of_directions,
    random_directions,
)
from skjepa.encoders import Encoder, FingerprintError, load_encoder
from skjepa.extraction import Extraction
from skjepa.functionals import PAPER_FLOOR, combine_views, log_volume, warn_if_floor_is_noise
from skjepa.measurement import Arrays, Here, Measurement, Observer, device_name, scoring
from skjepa.memory import batch_size, bytes_per_sample, default_budget
from skjepa.pools import Pool, active_pool
from skjepa.preprocessing import describe
from skjepa.probe import EncoderError, Probe, probe
from skjepa.shards import Key
from skjepa.sources import ImageReadError, Source, as_source, known_by_content
from skjepa.spread import Spread
from skjepa.store import Store, memory_folder
from skjepa.views import Transform, default_transform

METHODS = ("exact", "sketch")


def extract(
    encoder: Encoder | str,
    X: Any,
    *,
    method: str | Directions = "exact",
    n_directions: int | None = None,
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
    """Embeddings and Jacobian singular values of every sample: the one expensive pass.

    Parameters
    ----------
    encoder : Encoder or str
        As made, or as taken, by `load_encoder`.
    X : array, list, folder, Dataset or Source
        See `skjepa.sources.as_source`.
    method : {"exact", "sketch"} or Directions
        - "exact": all R = min(K, D) singular values of the Jacobian J, by min(K, D) passes a view;
        - Directions U, from `skjepa.learn_directions`: those of U^T J, by m passes;
        - "sketch": the same with random U, seeded by `random_state`, see `skjepa.directions.random_directions`.
    n_directions : int, optional
        m of a sketch; by default K / 4.
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
        What to do with a sample that cannot be read, or whose embedding or Jacobian is not finite: an error that names
        it, or a warning that does. Every other sample of the batch is kept in the store first.
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
    check_choice("on_error", on_error, ("raise", "skip"))
    views = check_integer("views", views, minimum=1)
    source = as_source(X, ids=ids)
    pool = None if observe is not None else active_pool(device, resolve_device)
    own = _own_device(device, pool)
    seed = seed_from(random_state)
    shape = _input_shape(encoder, source)
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

    with _ready(encoder, shape, own) as (function, probed):
        name, directions = _output_directions(encoder, method, n_directions, probed.n_components, seed)
        meta = _describe(encoder, shape, probed, name, views, transform, seed, own)
        n_passes = probed.n_components if directions is None else directions.shape[1]
        measurement = Measurement(
            encoder,
            n_passes,
            _sample_bytes(encoder, probed),
            directions,
            views=views,
            transform=transform,
            seed=seed,
            on_error=on_error,
            n_jobs=n_jobs,
        )
        folder = memory_folder(memory, meta) if store is None else store
        if memory is not None and folder is not None:
            source = known_by_content(source)
        measured = _measured(pool, measurement, function, source, device, memory_budget, observe)
        with nullcontext() if folder is None else Store(folder, meta, is_cache=store is None) as opened:
            # Views draw their randomness from the id, which is part of the sample then.
            by_name = store is not None or transform is not None
            kept = None if opened is None else _Kept(opened, source, by_name=by_name)
            rows = _run(source, measured, progress, on_error, kept)
    meta["device"] = ", ".join(sorted(measured.devices)) or meta["device"]
    return _assemble(source, rows, measured.skipped, meta)


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
    check_choice("on_error", on_error, ("raise", "skip"))
    source, pool = as_source(X), active_pool(device, resolve_device)
    own = _own_device(device, pool)
    with _ready(encoder, _input_shape(encoder, source), own) as (function, probed):
        measurement = Measurement(encoder, 0, _sample_bytes(encoder, probed), on_error=on_error, n_jobs=n_jobs)
        measured = _measured(pool, measurement, function, source, device, memory_budget)
        rows = _run(source, measured, progress, on_error)
    _require_any(source, rows, measured.skipped)
    missing = (np.full(probed.n_components, np.nan),)
    return np.stack([rows.get(name, missing)[0] for name in source.ids.tolist()])


def jepa_score(
    encoder: Encoder | str, X: Any, *, floor: float = PAPER_FLOOR, rank: int | None = None, **options: Any
) -> NDArray[np.float64]:
    """JEPA-SCORE: the sum of log singular values of the encoder's input Jacobian (arXiv 2510.05949, Eq. 5 and Eq. 4).

    Parameters
    ----------
    encoder : Encoder or str
    X : data or Extraction
        Data as `extract` takes them, or what it returned (then no encoder runs).
    floor : float
        Singular values below it count as `floor`; the default is the paper's.
    rank : int, optional
        Only the `rank` largest values count, in every sample.
    **options
        Of `extract`: method, views, transform, device, memory_budget, random_state, progress ... With learned
        `Directions` as method the score is the exact one as their correction predicts it; with "sketch" it is the
        log-volume of the sketch.

    Returns
    -------
    array of shape (n_samples,), float64
        In nats; higher = denser = more normal. NaN for a sample skipped by ``on_error="skip"``.

    Raises
    ------
    ValueError, TypeError
        As `extract`; a floor that is not positive, a rank outside 1 ... min(K, D), options beside an Extraction.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from skjepa import jepa_score, load_encoder
    >>> A = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    >>> linear = torch.nn.Linear(2, 2)
    >>> linear.weight = torch.nn.Parameter(A)
    >>> np.exp(jepa_score(load_encoder(linear, precision="float64"), [[0.0, 0.0]])).round(12)
    array([6.])
    """
    check_number("floor", floor, above=0.0)
    if rank is not None:
        check_integer("rank", rank, minimum=1)
    if isinstance(X, Extraction):
        if options:
            raise TypeError(f"{', '.join(options)}: an Extraction keeps the settings it was made with")
        extraction = X
    else:
        extraction = extract(encoder, X, **options)
    directions = options.get("method")
    if isinstance(directions, Directions) and directions.n_exact:
        correction = directions.correction(floor, rank)
        scores = combine_views(correction.log_volume(extraction.embeddings, extraction.singular_values))
        return extraction.aligned(scores)
    if str(extraction.meta.get("method")).startswith(SUBSPACE):
        raise ValueError(
            f"X was measured by method {extraction.meta['method']!r}: the correction of those Directions predicts its "
            "exact score, in a detector with method=directions say"
        )
    sigma = extraction.singular_values
    if rank is not None and rank > sigma.shape[-1]:
        raise ValueError(f"rank must be at most min(K, D) = {sigma.shape[-1]}; got {rank}")
    warn_if_floor_is_noise(sigma, floor=floor, rank=rank, eps=extraction.eps)
    scores = combine_views(log_volume(sigma, floor=floor, rank=rank))
    return scores if extraction is X else extraction.aligned(scores)


def resolve_device(device: str) -> str:
    """The device that "auto" means, or the one named, if it is there."""
    if not isinstance(device, str):
        raise TypeError(f"device must be a name such as 'auto', 'cpu' or 'cuda:0'; got {device!r}")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} is not available here: {str(error).splitlines()[0]}") from error
    return str(device)


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
    if method == "exact" and n_directions is not None:
        raise ValueError("n_directions is for method='sketch'; method='exact' takes all")


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
        chosen, name = random_directions(n_components, m, seed=seed), f"{SKETCH} {m} directions"
    else:
        return "exact", None
    return name, torch.from_numpy(chosen.components).to(encoder.dtype)


def _input_shape(encoder: Encoder, source: Source) -> tuple[int, ...]:
    if encoder.input_shape is None:
        if not source.is_vector:
            raise ValueError(f"{encoder.name} encodes vectors, X holds images; give load_encoder an image_size")
        return np.shape(source.load(0))
    if source.is_vector:
        raise ValueError(f"{encoder.name} encodes images, X holds vectors (2-D numeric arrays are always vectors)")
    return encoder.input_shape


def _describe(encoder, shape, probed: Probe, method, views, transform, seed, device) -> dict[str, Any]:
    random_views = transform is not None
    return {
        "encoder": encoder.name,
        "fingerprint": encoder.fingerprint,
        "method": method,
        "precision": encoder.precision,
        "input_shape": list(shape),
        "n_components": probed.n_components,
        "views": views,
        "transform": describe(transform) if random_views else None,
        "seed": seed if random_views or method.startswith("sketch") else None,
        "device": device_name(device),
        "versions": {"skjepa": __version__, "torch": torch.__version__, "numpy": np.__version__},
    }


def _sample_bytes(encoder: Encoder, probed: Probe) -> int:
    return bytes_per_sample(probed.n_components, probed.n_inputs, probed.graph_bytes, encoder.dtype.itemsize)


def _own_device(device: str, pool: Pool | None) -> str:
    """Where this process looks at the encoder; it need not have the GPUs of a cluster."""
    if pool is None:
        return resolve_device(device)
    return pool.device if pool.is_here else "cpu"


def _measured(
    pool: Pool | None,
    measurement: Measurement,
    function: Callable[[Tensor], Tensor],
    source: Source,
    device: str,
    memory_budget: int | None,
    observe: Observer | None = None,
) -> Here | Spread:
    """Who measures: this process, or those of a pool."""
    if memory_budget is not None:
        check_integer("memory_budget", memory_budget, minimum=1)
    if pool is not None:
        spread = Spread(pool, measurement, source, memory_budget)
        if not (pool.is_here and len(source) <= spread.batch_size):  # one batch is not worth a process
            return spread
    device = resolve_device(device)
    budget = memory_budget or default_budget(device)
    return Here(measurement, function, source, device, batch_size(budget, measurement.sample_bytes), observe)


class _Kept:
    """A store as one source sees it, by ids. Its own keys hold the content: a name is not a sample for ever."""

    def __init__(self, store: Store, source: Source, *, by_name: bool) -> None:
        self.store = store
        self.keys: dict[str, Key] = {}
        for name, i in _first_positions(source).items():
            content = source.content(i)
            self.keys[name] = (name if by_name else content or name, content)

    def read(self) -> dict[str, Arrays]:
        """What is finished."""
        rows, self.failures = self.store.read_all(self.keys.values())
        return {name: rows[key] for name, key in self.keys.items() if key in rows}

    def in_turn(self, names: Iterable[str]) -> list[str]:
        """What could not be read before comes last: so the rest is in the batches of a run without interruption."""
        return sorted(names, key=lambda name: self.keys[name] in self.failures)

    def append(self, names: Sequence[str], arrays: Sequence[Any], unreadable: dict[str, str]) -> None:
        failures = {self.keys[name]: reason for name, reason in unreadable.items()}
        embeddings, sigma = arrays
        self.store.append([self.keys[name] for name in names], embeddings, sigma, failures)


def _run(
    source: Source, measured: Here | Spread, progress: bool, on_error: str, kept: _Kept | None = None
) -> dict[str, Arrays]:
    """Every sample measured once: id -> its row of each array. Equal ids are equal content."""
    first = _first_positions(source)
    rows = {} if kept is None else kept.read()
    noted: set[int] = set()
    missing = [name for name in first if name not in rows]
    if kept is not None and missing:
        missing = kept.in_turn(missing)
        kept.store.claim()
    with (
        tqdm(
            total=len(first),
            initial=len(first) - len(missing),
            unit="row" if source.is_vector else "img",
            desc="JEPA-SCORE",
            disable=not progress,
        ) as bar,
        closing(measured([first[name] for name in missing])) as batches,
    ):
        for positions, arrays in batches:
            finite, n = _finite(arrays), len(positions)
            broken = {i: _not_finite(str(source.ids[i])) for i, ok in zip(positions, finite, strict=True) if not ok}
            names = [str(source.ids[i]) for i in positions if i not in broken]
            arrays = tuple(array[finite] for array in arrays)
            if on_error == "skip":
                _skip(broken, measured.skipped)
            if kept is not None:
                kept.append(names, arrays, _news(source, measured.skipped, noted))
            if broken and on_error == "raise":
                raise EncoderError(next(iter(broken.values())))
            rows.update(zip(names, zip(*arrays, strict=True), strict=True))
            bar.update(n)
    if kept is not None and (unreadable := _news(source, measured.skipped, noted)):
        kept.append([], ([], []), unreadable)
    return rows


def _news(source: Source, skipped: dict[int, str], noted: set[int]) -> dict[str, str]:
    """Id -> reason of the samples skipped since the last time."""
    new = skipped.keys() - noted
    noted |= new
    return {str(source.ids[i]): skipped[i] for i in sorted(new)}


def _first_positions(source: Source) -> dict[str, int]:
    """Id -> where it first occurs."""
    first: dict[str, int] = {}
    for i, name in enumerate(source.ids.tolist()):
        first.setdefault(name, i)
    return first


def _finite(arrays: Arrays) -> NDArray[np.bool_]:
    """Which samples have finite embeddings and singular values throughout."""
    return np.all([np.isfinite(array).reshape(len(array), -1).all(axis=1) for array in arrays], axis=0)


def _not_finite(name: str) -> str:
    return f"the encoder's output or Jacobian is not finite at sample {name}"


def _skip(broken: dict[int, str], skipped: dict[int, str]) -> None:
    """What was read and cannot be scored goes the way of what cannot be read."""
    for reason in broken.values():
        warnings.warn(f"skipped: {reason}", stacklevel=4)
    skipped |= broken


def _require_any(source: Source, rows: dict[str, Arrays], skipped: dict[int, str]) -> None:
    if not rows:
        raise ImageReadError(f"not one of {len(source)} samples could be read; first: {next(iter(skipped.values()))}")


def _assemble(source: Source, rows: dict[str, Arrays], skipped: dict[int, str], meta: dict[str, Any]) -> Extraction:
    _require_any(source, rows, skipped)
    names = source.ids.tolist()
    kept = [i for i, name in enumerate(names) if name in rows]
    reasons = {names[i]: reason for i, reason in skipped.items()}
    meta["skipped"] = [[i, name, reasons[name]] for i, name in enumerate(names) if name not in rows]
    return Extraction(
        np.stack([rows[names[i]][0] for i in kept]), np.stack([rows[names[i]][1] for i in kept]), source.ids[kept], meta
    )
