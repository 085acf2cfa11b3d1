"""Ways to spend backward passes on an image: scores of the default detector by each, and seconds side by side.

A part of value_of_passes.py.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.grams import measure
from benchmarks.common.image_sets import Images
from skjepa import Encoder, Extraction, JEPAScoreDetector, extract, extract_layers
from skjepa.jacobian.directions import random_directions
from skjepa.jacobian.pass_method import PassMethod
from skjepa.scores.densities import ConditionalDensity, SpectrumDensity
from skjepa.scores.layered import VOLUME_WEIGHT, Tail
from skjepa.scores.model import AUTO_FLOOR

FORWARD = "forward pass alone"
HIDDEN = ("stage 2", "stage 3", "stage 4")
N_HIDDEN = 8
MANY_PASSES, FEWEST_TIMED = 300, 2
Scores = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Way:
    """One way of passing.

    Attributes
    ----------
    passes : int
        Backward passes per image.
    extract : callable
        What it costs: a function of an encoder and images.
    scores : dict of group -> array
        Of the default detector that was fitted on the group "fit"; all groups but that one, higher = more normal.
    """

    passes: int
    extract: Callable[[Encoder, Images], Any]
    scores: Scores


def ways_of_output(
    encoder: Encoder, groups: dict[str, Images], passes: tuple[int, ...], most: int | None, cache: Path | None
) -> tuple[dict[str, Way], int]:
    """The forward pass alone, some numbers of random directions of the output, and all K of them (or the `most`); K.

    Every image is measured once, by all K directions or the most; what fewer of them see follows from its Gram matrix.
    Of a sketch of the most directions the first m are a sketch of m.
    """
    sketch = {} if most is None else {"method": "sketch", "n_directions": most}
    measured = measure(encoder, groups, cache, **sketch)
    n_rows = measured["fit"].grams.shape[1]
    ways = {
        FORWARD: Way(0, extracting(method="forward"), judged({n: m.exact.forward_only() for n, m in measured.items()}))
    }
    for m in (m for m in passes if m < n_rows):
        components = np.eye(n_rows)[:, :m] if most else random_directions(n_rows, m).components
        seen = {name: part.seen_by(components, str(PassMethod("sketch", m))) for name, part in measured.items()}
        ways[f"{m} passes"] = Way(m, extracting(method="sketch", n_directions=m), judged(seen))
    whole = {name: part.exact for name, part in measured.items()}
    ways[f"{n_rows} passes"] = Way(n_rows, extracting(**sketch or {"method": "exact"}), judged(whole))
    return ways, whole["fit"].meta["n_components"]


def way_of_hidden(encoder: Encoder, groups: dict[str, Images], forward: Scores) -> Way:
    """The forward pass, and terms of the Jacobians of hidden stages, added as those of the output are."""
    paths = [encoder.module.stages[name] for name in HIDDEN]

    def of_stages(encoder: Encoder, images: Images) -> dict[str, Extraction]:
        return extract_layers(encoder, images, paths, n_directions=N_HIDDEN)

    passes = {name: of_stages(encoder, images) for name, images in groups.items()}
    terms = [term for path in paths for term in volume_terms(passes["fit"][path], path)]
    scores = {
        name: given - VOLUME_WEIGHT * np.mean([term(passes[name]) for term in terms], axis=0)
        for name, given in forward.items()
    }
    return Way(N_HIDDEN * len(HIDDEN), of_stages, scores)


def extracting(**how: Any) -> Callable[[Encoder, Images], Extraction]:
    return lambda encoder, images: extract(encoder, images, **how)


def judged(passes: dict[str, Extraction]) -> Scores:
    detector = JEPAScoreDetector().fit(passes["fit"])
    return {name: detector.score_samples(passed) for name, passed in passes.items() if name != "fit"}


def volume_terms(fit: Extraction, path: str) -> list[Callable[[dict[str, Extraction]], NDArray[np.float64]]]:
    """How unusual s given z and sigma given z of one stage are, as functions of the extractions of all stages."""
    floor = AUTO_FLOOR * float(np.median(fit.spectra[..., 0]))

    def logs(passed: Extraction) -> NDArray[np.float64]:
        return np.log(np.maximum(passed.spectra[:, 0], floor))

    z, log_sigma = fit.embeddings, logs(fit)
    volume, spectrum = ConditionalDensity().fit(z, log_sigma.sum(axis=1)), SpectrumDensity().fit(z, log_sigma)
    tails = [Tail.learn(-density.fit_scores_) for density in (volume, spectrum)]

    def of_volume(passes: dict[str, Extraction]) -> NDArray[np.float64]:
        passed = passes[path]
        return tails[0].surprise(-volume.score_samples(passed.embeddings, logs(passed).sum(axis=1)))

    def of_spectrum(passes: dict[str, Extraction]) -> NDArray[np.float64]:
        passed = passes[path]
        return tails[1].surprise(-spectrum.score_samples(passed.embeddings, logs(passed)))

    return [of_volume, of_spectrum]


def costs(encoder: Encoder, images: Images, ways: dict[str, Way], n_components: int, rounds: int) -> dict[str, dict]:
    """Backward passes and seconds per image of every way, and of all K passes where no way makes them.

    The ways take turns on the same images, after one image to warm up; the fastest of several rounds counts. Ways of
    more than 300 passes see two of the images in one round, which is minutes.
    """
    timed = {name: (way.passes, way.extract) for name, way in ways.items()}
    if n_components not in [passes for passes, _ in timed.values()]:
        timed[f"{n_components} passes"] = (n_components, extracting(method="exact"))
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for passes, run in timed.values():
        if passes <= MANY_PASSES:
            run(encoder, images[:1])
    for nth in range(rounds):
        for way, (passes, run) in timed.items():
            if passes > MANY_PASSES and nth > 0:
                continue
            few = images if passes <= MANY_PASSES else images[:FEWEST_TIMED]
            start = time.perf_counter()
            run(encoder, few)
            seconds[way].append((time.perf_counter() - start) / len(few))
    return {way: {"passes": passes, "seconds": min(seconds[way])} for way, (passes, _) in timed.items()}
