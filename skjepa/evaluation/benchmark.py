"""Detectors against each other: one extraction an encoder, splits that never overlap, every score on unseen samples."""

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
    """A detector in a benchmark, and what it is shown.

    Attributes
    ----------
    detector : estimator
        With `fit` and `score_samples` (higher = more normal).
    reads : {"extraction", "forward", "embeddings", "samples"}
        An `Extraction`, the same without singular values, its embeddings (n, K), or the samples themselves: a `Source`
        of images, or rows (n, d).
    """

    detector: Any
    reads: str = "embeddings"


def default_detectors(*, classes: bool = False, passes: bool = True) -> dict[str, Any]:
    """The default detector and what it has to beat, for images.

    Parameters
    ----------
    classes : bool
        With relative Mahalanobis, which needs classes of normal samples.
    passes : bool
        With JEPA-SCORE, which needs singular values, and so with the default detector both with and without them.
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
        **({"flow": EmbeddingDetector(FlowDensity())} if find_spec("zuko") else {}),  # an extra of its own
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
    """Fit every detector on normal samples, and judge it on others against sets of outliers.

    Parameters
    ----------
    normal : images or vectors, or mapping
        Split at random; or "fit", "calibration" and "test" by name, as splits of one's own.
    outliers : mapping of name -> images or vectors
    detectors : mapping of name -> estimator or Entry, optional
        Cloned. This package's take the extraction; any other of scikit-learn's or PyOD's its embeddings. One of one's
        own says what it takes by an attribute `reads`, or comes as an `Entry`. The first is the one that the others are
        compared with. By default `default_detectors`, without JEPA-SCORE where `method` makes no backward pass.
    encoder : str, Encoder or VectorJEPA
        As `JEPAScoreDetector` takes it; a `VectorJEPA` is trained on the fit split.
    classes : "folders", array of one class a fit sample, or None
        For relative Mahalanobis.
    fit, calibration, limit
        See `skjepa.data.split_source`; `limit` holds for every set of outliers as well.
    on_repeats : {"report", "drop"}
        What to do with samples that are found in two splits, or both among the normal samples and the outliers.
    method, extract_options
        Of the expensive pass, see `skjepa.extract`: layers, views, memory, device, n_jobs, memory_budget ...
    passes : sequence of int, "auto" or None
        Numbers of backward passes with which the default detector is judged as well: 0 is the forward pass alone, m
        takes m random directions ("skjepa, 4 passes"), each by an extraction of its own. "auto": 0, 4 and 16 where all
        K passes are made anyway and no `detectors` are given, else none.
    n_resamples : int
        Of the bootstrap.
    random_state : int
        Of splits, views and the bootstrap.
    on_error : {"raise", "skip"}
        With "skip", unreadable images are left out for all detectors.
    progress : bool

    Returns
    -------
    skjepa.evaluation.BenchmarkResult

    Raises
    ------
    ValueError, TypeError
        Nothing to compare, bad shares, a split without samples, more passes than the encoder has outputs.

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
            "run_benchmark takes no time_budget, for all its groups are measured alike: choose method= and "
            "n_directions= by what skjepa.estimate_cost says"
        )
    seed = check_integer("random_state", random_state, minimum=0)
    numbers = checked_passes(passes)
    if detectors is not None and numbers == "auto":
        numbers = None
    groups = _groups(normal, outliers, fit, calibration, limit, seed)
    labels = classes_of(groups["fit"]) if isinstance(classes, str) else checked_classes(classes, len(groups["fit"]))
    entries = {} if detectors is None else _entries(detectors)
    found = repeats(groups)
    if on_repeats == "drop":
        groups = _nonempty(without_repeats(groups, found), "every sample of {} is also among the normal samples")
    chosen = _encoder(encoder, groups["fit"], seed)
    options: dict[str, Any] = {"method": method, "random_state": seed, **extract_options}
    measured = measure(chosen, groups, numbers, on_error=on_error, progress=progress, **options)
    unreadable = {name: len(source) - len(measured.kept[name]) for name, source in groups.items()}
    groups = _nonempty({n: groups[n][kept] for n, kept in measured.kept.items()}, "no sample of {} can be read")
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
        raise ValueError("no sets of outliers: a benchmark needs at least one")
    if taken := [name for name in outliers if name in SPLITS]:
        raise ValueError(f"a set of outliers cannot be called {taken[0]!r}, the name of a split")
    if isinstance(normal, Mapping):
        if set(normal) != set(SPLITS):
            raise ValueError(f"splits of one's own are {', '.join(map(repr, SPLITS))}; got {sorted(normal)}")
        splits = {name: as_source(normal[name]) for name in SPLITS}
    else:
        splits = split_source(normal, fit=fit, calibration=calibration, limit=limit, random_state=seed)
    sets = {name: as_source(data).sample(limit, seed) for name, data in outliers.items()}
    kinds = {source.is_vector for source in (*splits.values(), *sets.values())}
    if len(kinds) > 1:
        raise TypeError("normal samples and outliers must be all images or all vectors")
    return splits | sets


def _nonempty(groups: dict[str, Source], reason: str) -> dict[str, Source]:
    for name, source in groups.items():
        if len(source) == 0:
            raise ValueError(f"{reason.format(name)}: nothing is left of it")
    return groups


def _entries(detectors: Mapping[str, Any]) -> dict[str, Entry]:
    if not detectors:
        raise ValueError("no detectors to compare")
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
    """Every detector with what it is shown and what that costs; other numbers of passes follow the first detector."""
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
    """One detector's scores of every group but the one it is fitted on, and what they cost."""
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
