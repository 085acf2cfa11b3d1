"""Measure the same samples with several numbers of backward passes, and time each of them."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skjepa._utils.validation import check_integer
from skjepa.data.sources import Source
from skjepa.encoders.encoder import Encoder
from skjepa.extraction.encoder_pass import embed, extract
from skjepa.extraction.extraction import Extraction

CHEAP = (4, 16)
"""Numbers of random directions that "auto" measures in addition to all K; together less than a third of 64 passes."""

_TIMED = 16
_ENOUGH_SECONDS, _MOST_ROUNDS = 2.0, 5
_OF_THE_JACOBIAN = ("method", "n_directions", "views", "transform")


@dataclass(frozen=True)
class Measured:
    """Hold extractions of the same samples with several numbers of backward passes.

    Attributes
    ----------
    whole : dict of group -> Extraction
        Extractions by the method of the run.
    fewer : dict of int -> dict of group -> Extraction
        Extractions by each number of random directions.
    kept : dict of group -> array
        Positions of the samples that every way could read and measure.
    """

    whole: dict[str, Extraction]
    fewer: dict[int, dict[str, Extraction]]
    kept: dict[str, NDArray[np.int64]]


def checked_passes(passes: Any) -> Any:
    """Return the numbers in ascending order without repetitions; pass "auto" and None through.

    Raises
    ------
    TypeError, ValueError
        `passes` is anything else.
    """
    if passes is None or (isinstance(passes, str) and passes == "auto"):
        return passes
    if isinstance(passes, str) or not isinstance(passes, Sequence):
        raise TypeError(f"passes must be 'auto', None or a sequence of numbers such as (4, 16); got {passes!r}")
    return sorted({check_integer("passes", m, minimum=0) for m in passes})


def measure(encoder: Encoder, groups: Mapping[str, Source], passes: Any, **options: Any) -> Measured:
    """Extract every group by the method of `options`, and by each number of random directions.

    Parameters
    ----------
    encoder : Encoder
    groups : mapping of name -> Source
    passes : "auto", None or list of int
        As `checked_passes` returns it. "auto" means `CHEAP` where `options` make all K passes. A number that `options`
        make already is not measured twice.
    options : dict
        See `skjepa.extract`.

    Raises
    ------
    ValueError
        There are more directions than encoder outputs; it is raised before anything is measured.
    """
    if isinstance(passes, list) and passes and passes[-1] > (n := _n_outputs(encoder, groups["fit"], options)):
        raise ValueError(f"passes holds {passes[-1]}, and the encoder has {n} outputs: give numbers of at most {n}")
    whole = {name: extract(encoder, source, **options) for name, source in groups.items()}
    fewer = {
        m: {name: extract(encoder, source, **options | _sketch(m)) for name, source in groups.items()}
        for m in _numbers(passes, whole["fit"])
    }
    ways = [whole, *fewer.values()]
    kept = {name: reduce(np.intersect1d, [way[name].measured for way in ways]) for name in groups}

    def common(way: dict[str, Extraction]) -> dict[str, Extraction]:
        return {name: part[np.isin(part.measured, kept[name])] for name, part in way.items()}

    return Measured(common(whole), {m: common(way) for m, way in fewer.items()}, kept)


def n_backward_passes(extraction: Extraction) -> int:
    """Return the number of backward passes per sample: one per singular value and view."""
    return 0 if extraction.singular_values is None else int(np.prod(extraction.singular_values.shape[1:]))


def seconds_per_sample(
    encoder: Encoder, source: Source, numbers: Sequence[int], **options: Any
) -> dict[str | int, float]:
    """Measure the seconds per sample in the encoder on a few samples, in rounds in which all ways take turns.

    The option `memory` is ignored, because it would make the pass look free. The fastest of several rounds counts; a
    round that takes seconds is run once.

    Returns
    -------
    dict of str or int -> float
        Seconds for each form that a detector reads ("samples", "embeddings", "forward", "extraction"), and for each of
        `numbers`.
    """
    few = source[:_TIMED]
    plain = {key: value for key, value in options.items() if key != "memory"}
    forward = {key: value for key, value in plain.items() if key not in _OF_THE_JACOBIAN}
    ways: dict[str | int, partial] = {
        "embeddings": partial(embed, encoder, few),
        "forward": partial(extract, encoder, few, method="forward", **forward),
        "extraction": partial(extract, encoder, few, **plain),
        **{m: partial(extract, encoder, few, **plain | _sketch(m)) for m in numbers},
    }
    embed(encoder, few[:1])  # warm up: the first call is slower
    taken: dict[str | int, list[float]] = {way: [] for way in ways}
    started = time.perf_counter()
    for _ in range(_MOST_ROUNDS):
        for way, run in ways.items():
            before = time.perf_counter()
            run()
            taken[way].append((time.perf_counter() - before) / len(few))
        if time.perf_counter() - started > _ENOUGH_SECONDS:
            break
    return {"samples": 0.0, **{way: min(found) for way, found in taken.items()}}


def _numbers(passes: Any, whole: Extraction) -> list[int]:
    """Return the numbers that are still to be measured; 0 is left out, because every pass includes the forward pass."""
    n_outputs = whole.embeddings.shape[1]
    made = 0 if whole.singular_values is None else whole.singular_values.shape[2]
    if isinstance(passes, list):
        return [m for m in passes if m not in (0, made)]
    is_exact = whole.meta["method"] == "exact"
    return [m for m in CHEAP if m < n_outputs] if passes == "auto" and is_exact else []


def _sketch(m: int) -> dict[str, Any]:
    return {"method": "sketch", "n_directions": m}


def _n_outputs(encoder: Encoder, source: Source, options: Mapping[str, Any]) -> int:
    return embed(encoder, source[:_TIMED], on_error=options.get("on_error", "raise")).shape[1]
