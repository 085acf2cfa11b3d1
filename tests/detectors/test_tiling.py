from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import Compose, Resize, ToTensor

from skjepa import JEPAScoreDetector, load_encoder
from skjepa.data import as_source, tile_pictures
from skjepa.deployment.export import ExportError
from skjepa.encoders.probe import EncoderError
from skjepa.reporting.map_files import write_maps
from skjepa.reporting.scored_groups import score_group

SIZE = (80, 104)


def pictures(n, seed=0, size=SIZE):
    return np.random.default_rng(seed).integers(100, 156, (n, *size, 3), dtype=np.uint8)


def with_scratch(picture):
    odd = picture.copy()
    odd[40:44, 60:84] = 255
    return odd


def detector(**settings):
    torch.manual_seed(0)
    maps = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.Conv2d(6, 8, 3, 2), nn.ReLU())
    encoder = load_encoder(nn.Sequential(maps, nn.AdaptiveAvgPool2d(1), nn.Flatten()), image_size=32)
    layers = ["0.1", "0.3"]
    return JEPAScoreDetector(encoder, method="forward", layers=layers, **{"tiles": 32, "local": True, **settings})


@pytest.fixture(scope="module")
def fitted():
    return detector().fit(pictures(20))


@pytest.fixture(scope="module")
def new():
    found = pictures(3, seed=1)
    found[1] = with_scratch(found[1])
    return found


def test_the_score_is_that_of_the_oddest_tile(fitted, new):
    tiles = tile_pictures(new, 32)
    source = as_source(pictures(20))
    fit = tile_pictures(source, 32)
    plain = detector(tiles=None).fit(fit.source, groups=source.identities[fit.groups])
    np.testing.assert_allclose(
        fitted.score_samples(new), tiles.least_normal(plain.score_samples(tiles.source)), rtol=1e-6
    )
    assert fitted.score_samples(new).argmin() == 1


def test_explain_tells_the_terms_of_the_oddest_tile_and_where_it_lies(fitted, new):
    told = fitted.explain(new)
    np.testing.assert_allclose(sum(told.parts.values()), fitted.score_samples(new))
    left, top, side = map(int, told.ids[1].split("[")[1].rstrip("]").split(","))
    assert left < 84 and left + side > 60 and top < 44 and top + side > 40  # noqa: PT018


def test_a_scratch_is_a_spot_of_the_picture_and_the_map_has_its_size(fitted, new):
    first, second, third = fitted.spots(new)
    assert first == third == []
    left, top, right, bottom = second[0].box
    assert left <= 72 <= right
    assert top <= 42 <= bottom
    assert second[0].p_value == pytest.approx(1 / 21)  # of 20 normal pictures, however many tiles they have

    found = fitted.anomaly_map(new)
    assert found.shape == (3, *SIZE)
    assert np.isfinite(found).all()
    assert found[1, 40:44, 60:84].mean() > 5 * found.mean()


def test_a_larger_picture_needs_more_normal_ones_for_a_spot(fitted):
    large = with_scratch(pictures(1, seed=2, size=(128, 160))[0])
    with pytest.warns(UserWarning, match=r"with 20 normal images no spot can have a p-value below 0\.14.* at least 59"):
        assert fitted.spots([large]) == [[]]  # 30 tiles, the normal ones have 12
    (found,) = fitted.spots([large], level=0.2)
    assert found[0].p_value == pytest.approx(3 / 21)


def test_calibration_is_of_pictures(new):
    held_out = detector(local=False, calibration=0.5, target_fpr=0.1).fit(pictures(20))
    assert len(held_out.calibration_scores_) == 10
    assert held_out.p_values(new)[1] == pytest.approx(1 / 11)
    folds = detector(local=False, calibration=2, target_fpr=0.1).fit(pictures(20))
    assert len(folds.calibration_scores_) == 20
    assert folds.predict(new)[1] == -1


def test_tiles_that_do_not_fit_into_memory_are_drawn():
    few = detector(memory_budget=2_000_000).fit(pictures(20))
    n = few.models_[0].diagnosis.n_samples
    assert 40 <= n < 240
    assert n % 20 == 0  # of each picture as many
    assert few.model_.local.n_parts == n // 20
    assert (few.predict(pictures(20)) < 0).sum() == 2  # a promise about whole pictures


def test_a_saved_detector_cuts_the_same_tiles(fitted, new, tmp_path):
    again = JEPAScoreDetector.load(fitted.save(tmp_path / "detector"), encoder=fitted.encoder)
    assert again.tiles == 32
    np.testing.assert_array_equal(again.score_samples(new), fitted.score_samples(new))
    assert again.spots(new) == fitted.spots(new)


def test_an_unreadable_picture_has_no_score_and_no_map(fitted, new, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, picture in zip(paths, new, strict=True):
        Image.fromarray(picture).save(path)
    paths[0].write_bytes(b"no picture")
    saved = fitted.save(tmp_path / "detector")
    skipping = JEPAScoreDetector.load(saved, encoder=fitted.encoder).set_params(on_error="skip")
    with pytest.warns(UserWarning, match="skipped .*0.png"):
        scores = skipping.score_samples(paths)
    np.testing.assert_allclose(scores[1:], fitted.score_samples(new)[1:])
    assert np.isnan(scores[0])
    with pytest.warns(UserWarning, match="skipped .*0.png"):
        assert [found is None for found in skipping.picture_maps(paths)] == [True, False, False]
    with pytest.warns(UserWarning, match="skipped .*0.png"):
        assert skipping.judge(paths).reasons[0] == f"{paths[0]}: cannot be read as an image (unknown format)"


def test_a_folder_of_large_pictures_is_scored_and_mapped_by_the_command_line_code(new, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, picture in zip(paths, new, strict=True):
        Image.fromarray(picture).save(path)
    held_out = detector(calibration=0.5, target_fpr=0.1).fit(pictures(20))
    group = score_group(held_out, "new", as_source(tmp_path))
    np.testing.assert_allclose(group.scores, held_out.score_samples(new))
    assert group.labels.tolist() == [1, -1, 1]
    assert group.reasons[1]
    (told,) = write_maps(held_out, [group], tmp_path / "maps")
    assert (told["height"], told["width"]) == SIZE
    assert (tmp_path / "maps" / told["overlay"]).is_file()


def test_what_tiles_do_not_go_with_is_said(fitted, new):
    with pytest.raises(ValueError, match="give the images to fit and score_samples"):
        fitted.extract(new)
    with pytest.raises(ValueError, match="X holds vectors, and tiles are cut from images"):
        JEPAScoreDetector(tiles=32).fit(np.zeros((5, 3)))
    with pytest.raises(TypeError, match="tiles must be an integer; got 'large'"):
        JEPAScoreDetector(tiles="large").fit(new)
    with pytest.raises(TypeError, match="tiles must be an integer"):
        JEPAScoreDetector(tiles=np.array([24, 32])).fit(new)
    with pytest.raises(ValueError, match="tiles must be shorter than"):
        JEPAScoreDetector(tiles=2**40).fit(new)
    with pytest.raises(ValueError, match="tiles is empty"):
        JEPAScoreDetector(tiles=[]).fit(new)
    with pytest.raises(ValueError, match="tiles=None"):
        fitted.additive_maps(new)
    with pytest.raises(TypeError, match="give the images, or tiles=None"):
        fitted.score_samples(detector(tiles=None).extract(new))
    with pytest.raises(ExportError, match="tiles do not export"):
        fitted.export("detector.onnx")


@pytest.mark.parametrize("settings", [{}, {"calibration": 3, "target_fpr": 0.1}])
def test_a_fit_reads_each_image_twice(settings):
    """Once for its size and once for its tiles, whatever the number of folds."""
    images, loaded = pictures(12), []
    source = as_source(images)
    counted = replace(source, load=lambda i: loaded.append(i) or source.load(i))
    detector(**settings).fit(counted)
    assert len(loaded) <= 2 * 12 + 4  # a few more tell how much memory a tile takes
    loaded.clear()
    detector(**settings).fit(counted).judge_and_map(counted)
    assert len(loaded) <= 4 * 12 + 4


class Unit(nn.Module):
    """Embeddings of length 1, which black tiles turn into 0 / 0."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.maps = nn.Conv2d(3, 6, 4, 4, bias=False)

    def forward(self, x):
        z = self.maps(x).mean((2, 3))
        return z / z.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("settings", [{}, {"tiles": 32}, {"local": True}, {"local": True, "tiles": 32}])
def test_an_image_that_cannot_be_measured_has_no_map(settings):
    new = np.random.default_rng(1).integers(100, 156, (3, 48, 64, 3), dtype=np.uint8)
    fit, odd = new.repeat(6, axis=0) + np.arange(18, dtype=np.uint8)[:, None, None, None], new.copy()
    odd[1] = 0
    encoder = load_encoder(Unit(), preprocess=Compose([Resize((32, 32)), ToTensor()]))
    fitted = JEPAScoreDetector(encoder, method="forward", layers=["maps"], **settings).fit(fit)
    with pytest.raises(EncoderError, match="is not finite at sample"):
        fitted.picture_maps(odd)
    with pytest.warns(UserWarning, match="skipped"):
        found = fitted.set_params(on_error="skip").picture_maps(odd)
    assert [own is None for own in found] == [False, True, False]
    for own, other in zip(found, fitted.picture_maps(new), strict=True):
        if own is not None:
            np.testing.assert_allclose(own.values, other.values, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:skipped")
def test_an_image_with_a_tile_that_cannot_be_measured_is_left_out_of_the_fit(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(100, 156, (16, 48, 64, 3), dtype=np.uint8)
    images[3, :32, :32] = 0
    for i, image in enumerate([*images, images[0]]):  # the copy at the end is not learned from
        Image.fromarray(image).save(tmp_path / f"{i:02d}.png")
    encoder = load_encoder(Unit(), preprocess=Compose([Resize((32, 32)), ToTensor()]))
    settings = {"method": "forward", "layers": ["maps"], "local": True, "tiles": 32, "on_error": "skip"}
    fitted = JEPAScoreDetector(encoder, **settings).fit(tmp_path)
    (tmp_path / "03.png").unlink()
    expected = JEPAScoreDetector(encoder, **settings).fit(tmp_path)
    new = rng.integers(100, 156, (3, 48, 64, 3), dtype=np.uint8)
    assert fitted.n_samples_fit_ == 15
    np.testing.assert_array_equal(fitted.score_samples(new), expected.score_samples(new))


@pytest.mark.filterwarnings("ignore:skipped")
def test_groups_of_images_that_are_left_out_are_left_out_as_well(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(100, 156, (14, 48, 64, 3), dtype=np.uint8)
    images[6, :32, :32] = 0
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i:02d}.png")
    (tmp_path / "02.png").write_bytes(b"no image")
    encoder = load_encoder(Unit(), preprocess=Compose([Resize((32, 32)), ToTensor()]))
    settings = {"layers": ["maps"], "local": True, "tiles": 32, "on_error": "skip", "calibration": 0.4}
    groups, new = np.arange(14) // 2, rng.integers(100, 156, (3, 48, 64, 3), dtype=np.uint8)
    fitted = JEPAScoreDetector(encoder, method="forward", **settings).fit(tmp_path, groups=groups)
    for name in ("02.png", "06.png"):
        (tmp_path / name).unlink()
    expected = JEPAScoreDetector(encoder, method="forward", **settings).fit(tmp_path, groups=np.delete(groups, [2, 6]))
    np.testing.assert_array_equal(fitted.score_samples(new), expected.score_samples(new))


def test_directions_are_learned_from_tiles():
    images = np.random.default_rng(0).integers(100, 156, (30, 32, 48, 3), dtype=np.uint8)
    encoder = load_encoder(
        nn.Sequential(nn.Conv2d(3, 6, 4, 4), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), image_size=32
    )
    settings = {"layers": ["1"], "local": True, "tiles": 32}
    fitted = JEPAScoreDetector(encoder, method="subspace", n_directions=2, **settings).fit(images)
    given = JEPAScoreDetector(encoder, method=fitted.directions_, **settings).fit(images)
    np.testing.assert_allclose(fitted.score_samples(images[:3]), given.score_samples(images[:3]))
    judged, maps = fitted.judge_and_map(images[:3])
    assert list(judged.ids) == [found.id for found in maps]  # images, not tiles
    np.testing.assert_array_equal(judged.scores, fitted.score_samples(images[:3]))
    np.testing.assert_array_equal(maps[1].pixels(), fitted.anomaly_map(images[:3])[1])
