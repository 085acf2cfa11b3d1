"""The suites of the benchmark: golden spectra, corruptions, verdicts."""

import sys
from typing import ClassVar

import numpy as np
import pytest
from matplotlib.axes import Axes
from oracles import random_images
from PIL import Image

from benchmarks.accuracy import images as suite
from benchmarks.accuracy import one_class, openood, spectra, verdicts
from benchmarks.common import image_sets
from skjepa.data.sources import as_source
from skjepa.data.splits import repeats
from skjepa.evaluation.benchmark_result import BenchmarkResult


def test_published_aurocs_of_real_spectra(shared_data):
    with np.load(shared_data / "spectra.npz") as arrays:
        loaded = {name: arrays[name].astype(np.float64) for name in arrays}
    for encoder, sets in spectra.PUBLISHED.items():
        found = spectra.judge_encoder(encoder, loaded, resamples=20)
        for name, published in sets.items():
            score = found[name]["scores"]["JEPA-SCORE"]
            assert score["auroc"] == pytest.approx(published, abs=spectra.TOLERANCE)
            assert score["low"] <= score["auroc"] <= score["high"]
        if encoder == "dinov2_vits14":
            tail = found["SVHN"]["scores"]["without the largest 20 %"]["auroc"]
            assert tail == pytest.approx(spectra.PUBLISHED_TAIL, abs=spectra.TOLERANCE)
        if encoder == "metaclip_b16":
            assert max(found["SVHN"]["fifths"]["gap_in_nats"]) < -0.6


SEEN = ["blur", "gaussian noise", "JPEG", "contrast"]
BLIND = ["pixelated", "brightness", "colour", "salt and pepper", "occlusion"]


@pytest.mark.parametrize("kind", [*SEEN, *BLIND])
def test_corruptions_grow_stronger(kind):
    assert [*image_sets.CORRUPTIONS, *image_sets.BLIND] == [*SEEN, *BLIND]
    images = [Image.fromarray(image) for image in random_images(1).repeat(5, axis=0)]
    changed = image_sets.corrupted(images, kind, np.random.default_rng(0))
    distance = [
        np.abs(np.asarray(a).astype(float) - np.asarray(b)).mean() for a, b in zip(images, changed, strict=True)
    ]
    assert distance[0] > 0
    assert (np.diff(distance) > 0).all()


def test_groups_of_the_image_suite_share_no_image(tmp_path):
    pictures = random_images(60, side=8)
    for place in ("cifar10/train", "cifar10/test", *image_sets.FOREIGN):
        for i in range(24):
            folder = tmp_path / place / str(i % 2)
            folder.mkdir(parents=True, exist_ok=True)
            offset = {"cifar10/train": 0, "cifar10/test": 24}.get(place, 48)
            Image.fromarray(pictures[min(offset + i, 59)]).save(folder / f"{i}.png")
    with image_sets.folders_of(tmp_path) as found:
        sets = suite.Sets(found, suite.Sizes(fit=8, calibration=4, test=6, foreign=2), seed=0, download=None)
    groups = {**sets.normal, suite.TRAINING: sets.training, **sets.outliers}
    assert {name: len(group) for name, group in sets.normal.items()} == {"fit": 8, "calibration": 4, "test": 6}
    assert repeats({name: as_source(group) for name, group in groups.items()}) == []
    assert set(sets.outliers) == {*image_sets.FOREIGN, image_sets.NOISE, *image_sets.CORRUPTIONS}
    assert {name: len(part) for name, part in sets.normal_of(0.5).items()} == {"fit": 4, "calibration": 2, "test": 3}
    assert len(sets.fit_classes(0.5)) == 4
    assert {name: len(part) for name, part in sets.blind.items()} == dict.fromkeys(image_sets.BLIND, 2)
    spoilt = {name: as_source(group) for name, group in sets.blind.items()}
    assert repeats({**spoilt, **{name: as_source(group) for name, group in sets.normal.items()}}) == []


def test_torchvision_that_does_not_load_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match="--download needs a torchvision that loads"):
        image_sets.downloaded(tmp_path, 1, np.random.default_rng(0))


def openood_folder(root):
    """As OpenOOD's download script leaves it, of few small pictures."""
    rng = np.random.default_rng(0)
    lists = {"train_cifar10": 40, "val_cifar10": 20, "test_cifar10": 20}
    lists |= {f"test_{name}": 10 for names in openood.SETS["cifar10"].values() for name in names}
    (root / openood.LISTS / "cifar10").mkdir(parents=True)
    for name, n in lists.items():
        normal = name.endswith("cifar10")
        lines = []
        for i, pixels in enumerate(rng.integers(0, 256, size=(n, 8, 8, 3), dtype=np.uint8)):
            path = root / "images_classic" / name / f"a {i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels // 4 if normal else pixels).save(path)
            lines.append(f"{name}/a {i}.png {i % 2 if normal else -1}")
        (root / openood.LISTS / "cifar10" / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return root


def test_lists_of_openood(tmp_path, monkeypatch):
    import json

    root = openood_folder(tmp_path / "data")
    out = tmp_path / "found.json"
    command = ["openood.py", "--data", str(root), "--limit", "30", "--resamples", "10", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", command)
    openood.main()
    found = json.loads(out.read_text())
    assert set(found["near"]["detectors"]["relative Mahalanobis"]["sets"]) == {"cifar100", "tin"}
    assert set(found["all"]["detectors"]["skjepa"]["sets"]) == {"cifar100", "tin", *openood.SMALL}
    mean = found["far"]["detectors"]["skjepa"]["mean"]["auroc"]["value"]
    assert mean > 0.9  # bright noise against dark
    (root / openood.LISTS / "cifar10" / "test_tin.txt").unlink()
    with pytest.raises(SystemExit, match=r"no list .*test_tin.txt"):
        openood.main()
    (root / openood.LISTS / "cifar10" / "test_tin.txt").write_text("tin/lost.png -1\n")
    with pytest.raises(SystemExit, match=r"no image tin/lost.png"):
        openood.main()


@pytest.mark.parametrize(("shift", "met"), [(3.0, True), (0.5, False)])
def test_bars(shift, met):
    rng = np.random.default_rng(0)
    sizes = {"fit": 5, "calibration": 400, "test": 400, "near": 300, "tuned": 300}
    means = {"near": -1.0, "tuned": -1.0}

    def scores(factor):
        return {name: rng.normal(factor * means.get(name, 0.0), 1, n) for name, n in sizes.items() if name != "fit"}

    detectors = {"ours": scores(shift), "theirs": scores(1.0), "bits per pixel": scores(9.0)}
    costs = {name: {"passes_per_sample": 1, "seconds_per_sample": 0.1, "fit_seconds": 0.1} for name in detectors}
    groups = {name: as_source(rng.normal(size=(n, 2))) for name, n in sizes.items()}
    found = verdicts.bars(
        BenchmarkResult({"seed": 0}, groups, detectors, costs, [], "ours", n_resamples=10),
        {"sets not tuned on": ["near"]},
    )
    assert found["sets not tuned on"]["sets"] == ["near"]
    for name in ("ahead of every baseline", "no set far behind the best", "significant against every baseline"):
        assert found["all sets"][name]["met"] is met
    assert found["all sets"]["ahead of every baseline"]["nearest"] == "theirs"
    assert (found["all sets"]["behind"]["near"]["behind_by"] < 0) is met


def test_agreement_is_of_ranks_within_normal_images_and_of_all():
    class Result:
        sets = ("far",)
        scores: ClassVar = {
            "ours": {"test": np.arange(9.0), "far": np.arange(9.0) - 20},
            "theirs": {"test": np.exp(np.arange(9.0)), "far": 1e4 + np.arange(9.0)},
        }

    found = suite.agreement(Result, ["ours"], ["theirs"])["ours"]["theirs"]
    assert found["normal"] == pytest.approx(1.0)
    assert found["all"] < 0


def test_one_class_means():
    assert one_class.one_class_means({"cat": {"a": 0.5}, "dog": {"a": 0.7}}) == {"a": pytest.approx(0.6)}


def test_committed_plots_show_no_image():
    rng, pictures = np.random.default_rng(0), random_images(40, side=8)
    names = ("fit", "calibration", "test", "far")
    groups = {name: as_source(pictures[10 * i : 10 * i + 10]) for i, name in enumerate(names)}
    scores = {"JEPA-SCORE": {name: rng.normal(size=10) for name in names[1:]}}
    result = BenchmarkResult({"seed": 0}, groups, scores, {}, reference="JEPA-SCORE")

    class Sets:
        classes: ClassVar = {"test": ["horse"] * 6 + ["cat"] * 4}
        normal: ClassVar = {"test": [Image.fromarray(picture) for picture in pictures[20:30]]}

    def n_images(figure):
        return sum(len(axes.images) for axes in figure.findobj(Axes))

    assert n_images(suite.histograms(result, "JEPA-SCORE", alpha=0.2)) == 0
    assert n_images(suite.within_class(result, Sets, "horse", n_images=0)) == 0
    assert n_images(suite.within_class(result, Sets, "horse")) == 6
