"""THE loop: encoder x data -> `Extraction`. Batching, memory, views, store, bad samples and progress, for everyone."""

import os
import platform
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from skjepa import __version__
from skjepa._validation import check_choice, check_integer, check_number, seed_from
from skjepa.encoders import Encoder, load_encoder
from skjepa.extraction import Extraction
from skjepa.functionals import PAPER_FLOOR, combine_views, log_volume, warn_if_floor_is_noise
from skjepa.jacobian import jacobian
from skjepa.memory import MAX_BATCH, bytes_per_sample, default_budget, is_out_of_memory
from skjepa.preprocessing import describe
from skjepa.probe import EncoderError, Probe, probe
from skjepa.sources import ImageReadError, Source, as_source
from skjepa.spectrum import singular_values
from skjepa.store import Store
from skjepa.views import Transform, default_transform, make_view

METHODS = ("exact",)

_Row = tuple[NDArray[np.float64], NDArray[np.float64]]


def extract(
    encoder: Encoder | str,
    X: Any,
    *,
    method: str = "exact",
    views: int = 1,
    transform: Transform | None = None,
    ids: Sequence[str] | None = None,
    store: str | os.PathLike | None = None,
    memory_budget: int | None = None,
    device: str = "auto",
    n_jobs: int | None = None,
    on_error: str = "raise",
    random_state: Any = None,
    progress: bool = False,
) -> Extraction:
    """Embeddings and Jacobian singular values of every sample: the one expensive pass.

    Parameters
    ----------
    encoder : Encoder or str
        As made, or as taken, by `load_encoder`.
    X : array, list, folder, Dataset or Source
        See `skjepa.sources.as_source`.
    method : {"exact"}
        All R = min(K, D) singular values, by min(K, D) passes a view.
    views : int
        Number V of random views a sample (arXiv 2510.05949, Eq. 4). 1 without a `transform` is the sample itself
        (Eq. 5).
    transform : callable, optional
        Tensor (3, H, W) in [0, 1] (vectors: (d,)) to a tensor of that shape, randomly; torch, NumPy and `random` are
        seeded by (seed, sample id, view). By default, with ``views > 1``, the usual training views for images.
    ids : sequence of str, optional
        Unique names of the samples.
    store : path, optional
        Folder in which finished samples are kept, and from which the run resumes.
    memory_budget : int, optional
        Bytes that a batch may take; by default half of the free memory. A batch that runs out is halved and retried.
    device : str
        "auto" takes CUDA where there is one.
    n_jobs : int, optional
        Threads that read images; -1 for one a core.
    on_error : {"raise", "skip"}
        What to do with a sample that cannot be read: an error that names it, or a warning that does.
    random_state : int, RandomState or Generator, optional
        Seeds the views; None means 0, so that two runs agree.
    progress : bool
        Show a bar with images per second and time left.

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
    """
    if isinstance(X, Extraction):
        raise TypeError("X is an Extraction already: pass it on instead of extracting it again")
    encoder = load_encoder(encoder)
    check_choice("method", method, METHODS)
    check_choice("on_error", on_error, ("raise", "skip"))
    views = check_integer("views", views, minimum=1)
    source = as_source(X, ids=ids)
    device = resolve_device(device)
    seed = seed_from(random_state)
    shape = _input_shape(encoder, source)
    if transform is None and views > 1:
        if encoder.preprocessing is None or encoder.preprocessing.normalises_first:
            raise ValueError("views > 1 of vectors, or of images with a preprocess of your own, need a transform")
        transform = default_transform(encoder.preprocessing.size)
    if store is not None and not source.stable_ids:
        raise ValueError("a store needs names that the next run will repeat: pass ids= with a torch Dataset")

    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))  # a caller's no_grad or inference_mode ends at this door
        stack.enter_context(torch.enable_grad())
        function = stack.enter_context(encoder.scoring(device))
        probed = probe(function, shape, dtype=encoder.dtype, device=device)
        meta = _describe(encoder, shape, probed, method, views, transform, seed, device)
        kept = None if store is None else Store(store, meta)
        if kept is not None:
            stack.callback(kept.flush)
        measure = _Measure(function, _batch_size(encoder, probed, memory_budget, device))
        loader = _Loader(encoder, source, views, transform, seed, device, on_error, n_jobs)
        rows = _run(source, kept, loader, measure, progress)
    return _assemble(source, rows, loader.skipped, meta)


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
        Of `extract`: views, transform, device, memory_budget, random_state, progress ...

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
    sigma = extraction.singular_values
    if rank is not None and rank > sigma.shape[-1]:
        raise ValueError(f"rank must be at most min(K, D) = {sigma.shape[-1]}; got {rank}")
    warn_if_floor_is_noise(sigma, floor=floor, rank=rank, eps=extraction.eps)
    scores = combine_views(log_volume(sigma, floor=floor, rank=rank))
    return scores if extraction is X else extraction.aligned(scores)


def resolve_device(device: str) -> str:
    """The device that "auto" means, or the one named, if it is there."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} is not available here: {str(error).splitlines()[0]}") from error
    return str(device)


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
        "seed": seed if random_views else None,
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor() or device,
        "versions": {"skjepa": __version__, "torch": torch.__version__, "numpy": np.__version__},
    }


def _batch_size(encoder: Encoder, probed: Probe, memory_budget: int | None, device: str) -> int:
    budget = (
        default_budget(device) if memory_budget is None else check_integer("memory_budget", memory_budget, minimum=1)
    )
    each = bytes_per_sample(probed.n_components, probed.n_inputs, probed.graph_bytes, encoder.dtype.itemsize)
    return max(1, min(MAX_BATCH, budget // each))


class _Loader:
    """Reads samples into batches of model-ready tensors and remembers those that cannot be read."""

    def __init__(self, encoder, source, views, transform, seed, device, on_error, n_jobs) -> None:
        self.encoder, self.source, self.device, self.on_error = encoder, source, device, on_error
        self.views, self.transform, self.seed = views, transform, seed
        cores = os.cpu_count() or 1
        self.n_jobs = {None: 1, -1: cores}.get(n_jobs) or check_integer("n_jobs", n_jobs, minimum=1)
        self.skipped: dict[int, str] = {}

    def batches(
        self, positions: list[int], size: Callable[[], int]
    ) -> Iterator[tuple[list[int], Tensor, list[Tensor]]]:
        """Positions, inputs (B, ...) and one such tensor a view; `size` is asked before each batch: it may shrink."""
        with ThreadPoolExecutor(self.n_jobs) as pool:
            start = 0
            while start < len(positions):
                chunk = positions[start : start + size()]
                start += len(chunk)
                read = map(self._read, chunk) if self.n_jobs == 1 else pool.map(self._read, chunk)
                samples = {i: sample for i, sample in zip(chunk, read, strict=True) if sample is not None}
                if samples:
                    yield list(samples), self._to_input(list(samples.values())), self._views(samples)

    def _read(self, i: int) -> Tensor | None:
        try:
            sample = self.source.load(i)
            if self.encoder.preprocessing is None:
                return torch.as_tensor(sample, dtype=self.encoder.dtype)
            return self.encoder.preprocessing.load(sample, self.encoder.dtype)
        except ImageReadError as error:
            if self.on_error == "raise":
                raise
            self.skipped[i] = str(error)
            warnings.warn(f"skipped {error}", stacklevel=2)
            return None

    def _views(self, samples: dict[int, Tensor]) -> list[Tensor]:
        if self.transform is None:
            return []
        return [
            self._to_input(
                [
                    make_view(sample, self.transform, seed=self.seed, sample_id=str(self.source.ids[i]), view=view)
                    for i, sample in samples.items()
                ]
            )
            for view in range(self.views)
        ]

    def _to_input(self, samples: list[Tensor]) -> Tensor:
        batch = torch.stack(samples).to(self.device)
        if self.encoder.preprocessing is None:
            return batch
        # Convolutions run their backward passes faster on interleaved channels; to a ViT it is all the same.
        return self.encoder.preprocessing.normalise(batch).contiguous(memory_format=torch.channels_last)


class _Measure:
    """Embeddings and singular values of a batch; the batch size falls, for good, when memory runs out."""

    def __init__(self, function: Callable[[Tensor], Tensor], batch_size: int) -> None:
        self.function, self.batch_size = function, batch_size

    def __call__(self, x: Tensor, views: list[Tensor]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(B, K) and (B, V, R), float64."""
        try:
            return self._measure(x, views)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if len(x) == 1:
                raise MemoryError(
                    f"one sample of shape {tuple(x.shape[1:])} does not fit into memory: use a smaller image_size, "
                    "a smaller encoder or a larger device"
                ) from error
        # Outside the except block: the traceback would keep the failed batch alive.
        if x.is_cuda:
            torch.cuda.empty_cache()
        half = (len(x) + 1) // 2
        self.batch_size = min(self.batch_size, half)
        first = self(x[:half], [view[:half] for view in views])
        second = self(x[half:], [view[half:] for view in views])
        return np.concatenate([first[0], second[0]]), np.concatenate([first[1], second[1]])

    def _measure(self, x: Tensor, views: list[Tensor]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if not views:
            outputs, jacobians = jacobian(self.function, x)
            return _to_numpy(outputs), _to_numpy(singular_values(jacobians))[:, None]
        with torch.no_grad():
            outputs = self.function(x)
        spectra = [_to_numpy(singular_values(jacobian(self.function, view)[1])) for view in views]
        return _to_numpy(outputs), np.stack(spectra, axis=1)


def _to_numpy(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.detach().cpu().to(torch.float64).numpy()


def _run(source: Source, store: Store | None, loader: _Loader, measure: _Measure, progress: bool) -> dict[str, _Row]:
    """Every sample measured once: id -> (embedding, singular values). Equal ids are equal content."""
    rows: dict[str, _Row] = {}
    first: dict[str, int] = {}
    for i, name in enumerate(source.ids.tolist()):
        first.setdefault(name, i)
    keys: dict[int, str] = {}
    if store is not None:
        kept = store.read()
        keys = {i: _store_key(name, source.content(i)) for name, i in first.items()}
        rows = {name: kept[keys[i]] for name, i in first.items() if keys[i] in kept}
    missing = [i for name, i in first.items() if name not in rows]
    with tqdm(
        total=len(first),
        initial=len(first) - len(missing),
        unit="row" if source.is_vector else "img",
        desc="JEPA-SCORE",
        disable=not progress,
    ) as bar:
        for positions, x, views in loader.batches(missing, lambda: measure.batch_size):
            embeddings, sigma = measure(x, views)
            names = [str(source.ids[i]) for i in positions]
            _check_finite(names, embeddings, sigma)
            if store is not None:
                store.append([keys[i] for i in positions], embeddings, sigma)
            rows.update(zip(names, zip(embeddings, sigma, strict=True), strict=True))
            bar.update(len(positions))
    return rows


def _store_key(name: str, content: str) -> str:
    """The id a store keeps: names alone would take one folder's files for another's, or a changed file for the old."""
    return name if content in ("", name) else f"{name}#{content}"


def _check_finite(names: list[str], embeddings: NDArray, sigma: NDArray) -> None:
    finite = np.isfinite(embeddings).all(axis=1) & np.isfinite(sigma).all(axis=(1, 2))
    if not finite.all():
        raise EncoderError(f"the encoder's output or Jacobian is not finite at sample {names[int(np.argmin(finite))]}")


def _assemble(source: Source, rows: dict[str, _Row], skipped: dict[int, str], meta: dict[str, Any]) -> Extraction:
    names = source.ids.tolist()
    kept = [i for i, name in enumerate(names) if name in rows]
    if not kept:
        raise ImageReadError(f"not one of {len(names)} samples could be read; first: {next(iter(skipped.values()))}")
    reasons = {names[i]: reason for i, reason in skipped.items()}
    meta["skipped"] = [[i, name, reasons[name]] for i, name in enumerate(names) if name not in rows]
    return Extraction(
        np.stack([rows[names[i]][0] for i in kept]), np.stack([rows[names[i]][1] for i in kept]), source.ids[kept], meta
    )
