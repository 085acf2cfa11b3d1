"""Benchmark detectors against each other, with one extraction for all of them and splits that never overlap."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.ensemble import IsolationForest
from sklearn.mixture import GaussianMixture

from skjepa._utils.validation import check_choice, check_integer
from skjepa.data.sources import Source, as_source
from skjepa.data.splits import SPLITS, checked_classes, classes_of, repeats, split_source, without_repeats
from skjepa.detectors.adapter import EmbeddingDetector
from skjepa.detectors.baselines import KNNDetector, MahalanobisDetector
from skjepa.detectors.complexity import ComplexityDetector
from skjepa.detectors.encoder_choice import frozen_encoder, is_trained_on, trained_encoder
from skjepa.detectors.jepa_score import JEPAScoreDetector
from skjepa.encoders.encoder import Encoder
from skjepa.evaluation.benchmark_result import BenchmarkResult
from skjepa.evaluation.passes import Measured, checked_passes, measure, n_backward_passes, seconds_per_sample
from skjepa.extraction.extraction import Extraction
from skjepa.scores.flow import FlowDensity

READS = ("extraction", "forward", "embeddings", "samples")
OURS, FORWARD_ALONE = "skjepa", "skjepa, forward pass alone"


@dataclass(frozen=True)
class Entry:
    """Describe a detector in a benchmark, with the form of the samples that it takes.

    Attributes
    ----------
    detector : estimator
        A detector with `fit` and `score_samples` (higher = more normal).
    reads : {"extraction", "forward", "embeddings", "samples"}
        "extraction": an `Extraction`. "forward": one without singular values. "embeddings": an array (n, K).
        "samples": the samples themselves, as a `Source` of images or rows (n, d).
    """

    detector: Any
    reads: str = "embeddings"


def default_detectors(*, classes: bool = False, passes: bool = True) -> dict[str, Any]:
    """Return the default detector for images and its baselines, by name.

    Parameters
    ----------
    classes : bool
        Whether to include relative Mahalanobis, which needs classes of normal samples.
    passes : bool
        Whether to include the detectors for which singular values matter: JEPA-SCORE, and the default detector without
        singular values for comparison.

    Returns
    -------
    dict of name -> estimator
    """
    detectors = {
        OURS: JEPAScoreDetector(),
        FORWARD_ALONE: JEPAScoreDetector(method="forward"),
        "JEPA-SCORE": JEPAScoreDetector(formula="jepa"),
        "Mahalanobis": MahalanobisDetector(),
        "Mahalanobis++": MahalanobisDetector(normalize=True),
        "relative Mahalanobis": MahalanobisDetector(relative=True),
        "Mahalanobis, sum over layers": MahalanobisDetector(layer="sum"),
        "kNN": KNNDetector(),
        "kNN, normalised": KNNDetector(normalize=True),
        "kNN on layers": KNNDetector(normalize=True, layer="concatenated"),
        "Gaussian mixture": EmbeddingDetector(GaussianMixture(10, reg_covar=1e-3, random_state=0)),
        **({"flow": EmbeddingDetector(FlowDensity())} if find_spec("zuko") else {}),  # zuko is optional
        "IForest": EmbeddingDetector(IsolationForest(random_state=0)),
        "IForest on layers": EmbeddingDetector(IsolationForest(random_state=0), layer="concatenated"),
        "bits per pixel": ComplexityDetector(),
    }
    left_out = [] if classes else ["relative Mahalanobis"]
    left_out += [] if passes else [FORWARD_ALONE, "JEPA-SCORE"]
    return {name: made for name, made in detectors.items() if name not in left_out}


def run_benchmark(
    normal: Any,
    outliers: Mapping[str, Any],
    detectors: Mapping[str, Any] | None = None,
    *,
    encoder: Any = "auto",
    classes: ArrayLike | str | None = "folders",
    fit: float = 0.5,
    calibration: float = 0.2,
    limit: int | None = None,
    on_repeats: str = "report",
    method: Any = "auto",
    passes: Sequence[int] | str | None = "auto",
    n_resamples: int = 1000,
    random_state: int = 0,
    on_error: str = "raise",
    progress: bool = False,
    **extract_options: Any,
) -> BenchmarkResult:
    """Compare detectors on normal samples and sets of outliers, with confidence intervals and paired tests.

    Every detector is fitted on one part of the normal samples, and evaluated on another part and the outliers. Each
    sample passes the encoder once for all detectors.

    Parameters
    ----------
    normal : images or vectors, or mapping
        Normal samples, split at random. A mapping with the keys "fit", "calibration" and "test" holds your own splits.
    outliers : mapping of name -> images or vectors
        Sets of outliers.
    detectors : mapping of name -> estimator or Entry, optional
        Detectors to compare; they are cloned. A detector of this package gets the form of the samples that it reads. A
        scikit-learn or PyOD detector gets the embeddings. For your own detector, set an attribute `reads` or give an
        `Entry`. The first detector is the reference of all comparisons. By default `default_detectors`, without
        JEPA-SCORE where `method` makes no backward pass.
    encoder : str, Encoder or VectorJEPA
        As `JEPAScoreDetector` takes it. A `VectorJEPA` is trained on the fit split.
    classes : "folders", array with one class per fit sample, or None
        Classes of normal samples for relative Mahalanobis.
    fit, calibration, limit
        See `skjepa.data.split_source`. `limit` holds for every set of outliers as well.
    on_repeats : {"report", "drop"}
        What to do with samples that occur in two splits, or both among the normal samples and the outliers.
    method, extract_options
        Options of the pass, see `skjepa.extract`: layers, views, memory, device, n_jobs, memory_budget and others.
    passes : sequence of int, "auto" or None
        Additional numbers of backward passes at which the default detector is evaluated. 0 is the forward pass alone;
        m takes m random directions ("skjepa, 4 passes"). Each number takes its own extraction. "auto": 0, 4 and 16
        where all K passes are made anyway and `detectors` is not given, else none.
    n_resamples : int
        Number of bootstrap samples.
    random_state : int
        Seeds splits, views and the bootstrap.
    on_error : {"raise", "skip"}
        With "skip", unreadable images are left out for all detectors.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    skjepa.evaluation.BenchmarkResult

    Raises
    ------
    ValueError, TypeError
        There is nothing to compare, a share is invalid, a split has no samples, or `passes` exceeds the number of
        encoder outputs.

    Examples
    --------
    >>> import numpy as np
    >>> from skjepa import KNNDetector, MahalanobisDetector, load_encoder
    >>> from torch import nn
    >>> rng = np.random.default_rng(0)
    >>> normal, far = rng.normal(size=(100, 4)), rng.normal(9, 1, size=(20, 4))
    >>> rivals = {"kNN": KNNDetector(), "Mahalanobis": MahalanobisDetector()}
    >>> result = run_benchmark(normal, {"far": far}, rivals, encoder=load_encoder(nn.Identity()))
    >>> result.summary["detectors"]["kNN"]["mean"]["auroc"]["value"]
    1.0
    """
    check_choice("on_repeats", on_repeats, ("report", "drop"))
    if "time_budget" in extract_options:
        raise TypeError(
            "run_benchmark takes no time_budget, because it measures all groups alike: choose method= and "
            "n_directions= with skjepa.estimate_cost"
        )
    seed = check_integer("random_state", random_state, minimum=0)
    numbers = checked_passes(passes)
    if detectors is not None and numbers == "auto":
        numbers = None
    groups = _groups(normal, outliers, fit, calibration, limit, seed)
    labels = classes_of(groups["fit"]) if isinstance(classes, str) else checked_classes(classes, len(groups["fit"]))
    entries = {} if detectors is None else _entries(detectors)
    _require_one_encoder(entries, encoder)
    found = repeats(groups)
    if on_repeats == "drop":
        groups = _nonempty(without_repeats(groups, found), "every sample of {!r} is also among the normal samples")
    chosen = _encoder(encoder, groups["fit"], seed)
    options: dict[str, Any] = {"method": method, "random_state": seed, **extract_options}
    measured = measure(chosen, groups, numbers, on_error=on_error, progress=progress, **options)
    unreadable = {name: len(source) - len(measured.kept[name]) for name, source in groups.items()}
    groups = _nonempty({n: groups[n][kept] for n, kept in measured.kept.items()}, "no sample of {!r} can be read")
    labels = None if labels is None else labels[measured.kept["fit"]]
    whole = measured.whole["fit"]
    if detectors is None:
        has_passes = whole.singular_values is not None
        entries = _entries(default_detectors(classes=labels is not None, passes=has_passes))
    timed = seconds_per_sample(chosen, groups["fit"], list(measured.fewer), **options)
    scores, costs = {}, {}
    for name, (entry, extractions, cost) in _ways(entries, numbers, measured, timed).items():
        scores[name], costs[name] = _judge(entry, groups, extractions, labels, cost)
    settings = {
        "encoder": whole.meta.get("encoder"),
        **{key: whole.meta.get(key) for key in ("fingerprint", "method", "views", "precision", "n_components")},
        "seed": seed,
        "n_resamples": n_resamples,
        "repeats": on_repeats,
        "unreadable": unreadable,
    }
    return BenchmarkResult(settings, groups, scores, costs, found, next(iter(entries)), n_resamples)


def _groups(
    normal: Any, outliers: Mapping[str, Any], fit: float, calibration: float, limit: int | None, seed: int
) -> dict[str, Source]:
    if not outliers:
        raise ValueError("outliers holds no sets, and a benchmark needs at least one: give outliers={'name': samples}")
    if taken := [name for name in outliers if name in SPLITS]:
        raise ValueError(f"a set of outliers cannot be called {taken[0]!r}, which is the name of a split: rename it")
    if isinstance(normal, Mapping):
        if set(normal) != set(SPLITS):
            raise ValueError(
                f"normal as a mapping must have the keys {', '.join(map(repr, SPLITS))}; got {sorted(normal)}"
            )
        splits = {name: as_source(normal[name]) for name in SPLITS}
    else:
        splits = split_source(normal, fit=fit, calibration=calibration, limit=limit, random_state=seed)
    sets = {name: as_source(data).sample(limit, seed) for name, data in outliers.items()}
    kinds = {source.is_vector for source in (*splits.values(), *sets.values())}
    if len(kinds) > 1:
        raise TypeError("normal samples and outliers must be all images or all vectors; got both kinds")
    return splits | sets


def _nonempty(groups: dict[str, Source], reason: str) -> dict[str, Source]:
    for name, source in groups.items():
        if len(source) == 0:
            raise ValueError(f"{reason.format(name)}, so no sample of it is left: give other samples")
    return groups


def _require_one_encoder(entries: Mapping[str, Entry], encoder: Any) -> None:
    """Raise where a detector brings an encoder of its own: all of them are given what one encoder measured."""
    for name, entry in entries.items():
        inner = getattr(entry.detector, "detector", entry.detector)
        own = getattr(inner, "encoder", None)
        if entry.reads == "samples" or own is None or own is encoder:
            continue
        if not isinstance(own, str) or own not in ("auto", encoder):
            raise ValueError(
                f"detector {name!r} has an encoder of its own, and run_benchmark measures with one for all: give it as "
                "run_benchmark(..., encoder=load_encoder(module)), and leave it out of the detector"
            )


def _entries(detectors: Mapping[str, Any]) -> dict[str, Entry]:
    if not detectors:
        raise ValueError("detectors is empty: give at least one detector, or None for the default ones")
    entries = {}
    for name, given in detectors.items():
        if isinstance(given, Entry) or hasattr(given, "reads"):
            check_choice(f"reads of {name!r}", given.reads, READS)
            entries[name] = given if isinstance(given, Entry) else Entry(given, given.reads)
        else:
            entries[name] = Entry(EmbeddingDetector(given))
    return entries


def _encoder(encoder: Any, source: Source, seed: int) -> Encoder:
    return trained_encoder(encoder, source, seed) if is_trained_on(encoder, source) else frozen_encoder(encoder, source)


def _ways(
    entries: dict[str, Entry], numbers: Any, measured: Measured, timed: Mapping[Any, float]
) -> dict[str, tuple[Entry, dict[str, Extraction], Mapping[Any, float]]]:
    """Return every detector with its extractions and their cost; other numbers of passes follow the first detector."""
    first, *others = entries
    ways = {first: (entries[first], measured.whole, timed)}
    for m, extractions in measured.fewer.items():
        cost = {**timed, "extraction": timed[m]}
        ways[f"{OURS}, {m} passes"] = (Entry(JEPAScoreDetector(), "extraction"), extractions, cost)
    if isinstance(numbers, list) and 0 in numbers and measured.whole["fit"].singular_values is not None:
        ways[FORWARD_ALONE] = (Entry(JEPAScoreDetector(method="forward"), "forward"), measured.whole, timed)
    return ways | {name: (entries[name], measured.whole, timed) for name in others}


def _judge(
    entry: Entry,
    groups: dict[str, Source],
    passes: dict[str, Extraction],
    labels: NDArray | None,
    timed: Mapping[Any, float],
) -> tuple[dict[str, NDArray[np.float64]], dict[str, float]]:
    """Return one detector's scores of every group except the fit split, and their cost."""
    detector = clone(entry.detector, safe=False)
    started = time.perf_counter()
    detector.fit(_shown(entry, groups, passes, "fit"), labels)
    fitted = time.perf_counter()
    names: Sequence[str] = [name for name in groups if name != "fit"]
    scores = {
        name: np.asarray(detector.score_samples(_shown(entry, groups, passes, name)), dtype=np.float64)
        for name in names
    }
    n_scored = sum(len(part) for part in scores.values())
    n_passes = {"samples": 0, "embeddings": 1, "forward": 1, "extraction": 1 + n_backward_passes(passes["fit"])}
    return scores, {
        "passes_per_sample": n_passes[entry.reads],
        "seconds_per_sample": timed[entry.reads] + (time.perf_counter() - fitted) / n_scored,
        "fit_seconds": fitted - started,
    }


def _shown(entry: Entry, groups: dict[str, Source], passes: dict[str, Extraction], name: str) -> Any:
    if entry.reads == "samples":
        return groups[name].rows() if groups[name].is_vector else groups[name]
    if entry.reads == "embeddings":
        return passes[name].embeddings
    return passes[name] if entry.reads == "extraction" else passes[name].forward_only()
