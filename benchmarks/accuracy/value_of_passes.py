"""What do the terms of the Jacobian add once hidden layers are read? Passes per image, seconds, AUROC, and decisions.

    python -m benchmarks.accuracy.value_of_passes --data FOLDER [--encoder FILE] [--cache FOLDER] [--quick]
    python -m benchmarks.accuracy.value_of_passes --data FOLDER --encoder lite0 --weights FILE --most 64 --cache FOLDER
    python -m benchmarks.accuracy.value_of_passes --data FOLDER --encoder vit-tiny --cache FOLDER

FOLDER is that of benchmarks.accuracy.images. Normal are CIFAR-10 images, or of lite0 ImageNet's photographs at 224
pixels; one fit on some of them, others calibrate, others again are judged against each set: foreign ones, four
corruptions, and five that nobody had looked at while the score was made. Measured are

- the default with the forward pass alone, with 4 and 16 random directions of the output, and with all K of them, which
  is the exact score (or with as many as --most says, where K passes are not to be had: 1,280 of them take half a minute
  per image of 224 pixels on one core);
- of encoders that `skjepa pretrain` made also the forward pass and 8 random directions at the ends of each of the last
  three stages (`skjepa.extract_layers`): for each stage log q(s given z) and log q(sigma given z) with z the pooled
  output of that stage, in the place and with the weight of the output's terms.

For each: seconds per image, side by side on the same images; AUROC on every set, and its lead over the forward pass
with a 95 % interval by a bootstrap of the normal images and those of the set; and the share of decisions (flagged by
the conformal threshold for 5 % of normal images) that are not those of the most passes. With --cache a run that was cut
off goes on. Writes benchmarks/results/value_of_passes[_ENCODER].json (or --out).
"""

import argparse
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy.images import Sets, Sizes
from benchmarks.accuracy.images_224 import PHOTOGRAPHS, SIDE
from benchmarks.accuracy.ways_of_passing import (
    FORWARD,
    N_HIDDEN,
    Scores,
    Way,
    costs,
    way_of_hidden,
    ways_of_output,
)
from benchmarks.common import record
from benchmarks.common.image_sets import (
    BLIND,
    CORRUPTIONS,
    FOREIGN,
    NOISE,
    Images,
    corrupted,
    drawn,
    folders_of,
    uniform_noise,
)
from benchmarks.common.small_encoders import OTHERS, encoder_named
from skjepa.detectors.conformal import conformal_offset
from skjepa.evaluation.comparison import SharedNormals, bootstrap, delong

PASSES = (4, 16)
ALPHA = 0.05
FULL, QUICK = Sizes(1000, 400, 800, 300), Sizes(200, 60, 100, 40)
OF_OTHERS = {"lite0": Sizes(200, 100, 100, 20), "vit-tiny": Sizes(150, 60, 80, 15)}
SIDES = {"lite0": SIDE, "vit-tiny": 96}
N_TIMED, ROUNDS = 8, 3
SPLITS = ("fit", "calibration", "test")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--encoder", default="bundled", help="a name of skjepa, a file, or vit-tiny or lite0")
    options.add_argument("--weights", type=Path, help="of lite0")
    options.add_argument("--most", type=int, help="no more random directions than these, in the place of all K")
    options.add_argument("--no-hidden", action="store_true", help="leave out the passes at hidden stages")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--resamples", type=int, default=500)
    options.add_argument("--cache", type=Path, help="keep what is measured here, and resume: 8 K^2 bytes an image")
    options.add_argument("--quick", action="store_true", help="few images: a minute")
    options.add_argument("--out", type=Path)
    chosen = options.parse_args()
    is_other = chosen.encoder in OTHERS
    sizes = QUICK if chosen.quick else OF_OTHERS.get(chosen.encoder, FULL)
    encoder = encoder_named(chosen.encoder, chosen.weights, SIDES.get(chosen.encoder))
    with folders_of(chosen.data, *([PHOTOGRAPHS] if chosen.encoder == "lite0" else [])) as folder:
        sets = (photographs if chosen.encoder == "lite0" else small_images)(folder, sizes, chosen.seed)
    ways, n_components = ways_of_output(encoder, sets.groups, PASSES, chosen.most, chosen.cache)
    reference = list(ways)[-1]
    if not (is_other or chosen.no_hidden):
        ways[f"{N_HIDDEN * 3} passes at hidden stages"] = way_of_hidden(encoder, sets.groups, ways[FORWARD].scores)
    results = {
        "n_components": n_components,
        "reference": reference,
        "alpha": ALPHA,
        "ways": costs(encoder, sets.groups["test"][:N_TIMED], ways, n_components, ROUNDS),
        **compared(ways, sets, reference, chosen.resamples),
    }
    name = "value_of_passes" + (f"_{chosen.encoder.partition('-')[0]}" if is_other else "")
    settings = {"encoder": chosen.encoder, "quick": chosen.quick, "sizes": vars(sizes), "resamples": chosen.resamples}
    settings |= {"input_shape": list(encoder.input_shape or ()), "most": chosen.most}
    record.write(chosen.out or record.RESULTS / f"{name}.json", results, seed=chosen.seed, **settings)
    show(results)


@dataclass(frozen=True)
class Groups:
    """Images by group, no image in two of the normal ones; and which of the others are foreign, which blind."""

    groups: dict[str, Images]
    foreign: list[str]
    blind: list[str]


def small_images(folder: Path, sizes: Sizes, seed: int) -> Groups:
    sets = Sets(folder, sizes, seed, None)
    return Groups({**sets.normal, **sets.outliers, **sets.blind}, list(sets.outliers), list(sets.blind))


def photographs(folder: Path, sizes: Sizes, seed: int) -> Groups:
    """ImageNet's photographs against the small sets, and against corruptions of further photographs."""
    rng = np.random.default_rng(seed)
    counts = [sizes.fit, sizes.calibration, sizes.test, *[sizes.foreign] * len(CORRUPTIONS)]
    images = drawn(folder / PHOTOGRAPHS, sum(counts), rng)[0]
    parts = [images[end - n : end] for n, end in zip(counts, np.cumsum(counts), strict=True)]
    others = {
        name.partition("/")[0]: drawn(folder / name, sizes.foreign, rng)[0] for name in ("cifar10/test", *FOREIGN)
    }
    others[NOISE] = uniform_noise(sizes.foreign, rng, side=SIDE)
    clean = parts[len(SPLITS) :]
    others |= {kind: corrupted(part, kind, rng) for kind, part in zip(CORRUPTIONS, clean, strict=True)}
    blind = {kind: corrupted(part, kind, rng) for kind, part in zip(BLIND, cycle(clean))}
    return Groups({**dict(zip(SPLITS, parts, strict=False)), **others, **blind}, list(others), list(blind))


def compared(ways: dict[str, Way], sets: Groups, reference: str, n_resamples: int) -> dict[str, Any]:
    """By set and way AUROC, its lead over the forward pass with an interval, and decisions; the same in the mean."""
    others = [*sets.foreign, *sets.blind]
    scores = {name: way.scores for name, way in ways.items()}
    flags = {name: flagged(by) for name, by in scores.items()}

    def decided(way: str, groups: list[str]) -> dict[str, float]:
        both = [(flags[way][group], flags[reference][group]) for group in groups]
        return {
            "flagged": float(np.mean([own.mean() for own, _ in both])),
            "differ": float(np.mean([(own != theirs).mean() for own, theirs in both])),
        }

    def row(groups: list[str]) -> dict[str, dict[str, float]]:
        leads = aurocs(scores, groups, n_resamples)
        return {way: leads[way] | decided(way, groups) for way in ways}

    return {
        "normal": {way: decided(way, ["test"]) for way in ways},
        "sets": {name: row([name]) for name in others},
        "means": {"foreign": row(sets.foreign), "blind": row(sets.blind)},
        "foreign": sets.foreign,
        "blind": sets.blind,
    }


def flagged(scores: Scores) -> dict[str, NDArray[np.bool_]]:
    offset = conformal_offset(scores["calibration"], ALPHA)
    return {name: part < offset for name, part in scores.items()}


def aurocs(scores: dict[str, Scores], groups: list[str], n_resamples: int) -> dict[str, dict[str, float]]:
    """Mean AUROC on the groups by every way, and its lead over the forward pass with a 95 % interval."""
    shared = SharedNormals.checked(
        {way: by["test"] for way, by in scores.items()},
        {way: {name: by[name] for name in groups} for way, by in scores.items()},
    )
    drawn = bootstrap(shared, n_resamples=n_resamples)
    mean = dict(zip(scores, delong(shared)[0].mean(axis=1).tolist(), strict=True))
    found = {}
    for way in scores:
        low, high = drawn.difference(way, FORWARD, "auroc")
        found[way] = {"auroc": mean[way], "lead": mean[way] - mean[FORWARD], "low": low, "high": high}
    return found


def show(results: dict[str, Any]) -> None:
    print(f"{'':30}{'ms':>9}{'foreign':>9}{'blind':>9}   differ: normal, foreign, blind")
    for way, cost in results["ways"].items():
        line = f"{way:30}{1000 * cost['seconds']:9.1f}"
        if way in results["normal"]:
            means = [results["means"][kind][way] for kind in ("foreign", "blind")]
            line += "".join(f"{mean['auroc']:9.3f}" for mean in means)
            line += "".join(f"{part['differ']:9.1%}" for part in (results["normal"][way], *means))
        print(line)


if __name__ == "__main__":
    main()
