import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from skjepa import JEPAScoreDetector, load_encoder


def pictures(n, seed=0, size=(48, 40)):
    return np.random.default_rng(seed).integers(100, 156, (n, *size, 3), dtype=np.uint8)


def with_square(picture, top, left, side=8):
    odd = picture.copy()
    odd[top : top + side, left : left + side] = 255
    return odd


@pytest.fixture(scope="module")
def plain():
    return JEPAScoreDetector(method="forward").fit(pictures(60))


@pytest.fixture(scope="module")
def local():
    return JEPAScoreDetector(method="forward", local=True).fit(pictures(60))


def expected_total(detector, X):
    """What the terms of the layers say, less what they say of the median."""
    parts, weight = detector.explain(X).parts, detector.model_.weight
    layers = [name for name in parts if name.startswith("layer ")]
    return -np.sum([parts[name] for name in layers], axis=0) - sum(weight[name] for name in layers) * np.log(2)


def test_shares_add_up_to_the_terms_of_the_layers(plain):
    new = pictures(5, seed=1)
    new[0] = with_square(new[0], 20, 10)
    np.testing.assert_allclose(plain.additive_maps(new).total, expected_total(plain, new), rtol=1e-5, atol=1e-5)


def test_shares_of_several_folds_add_up_to_the_mean_of_their_terms():
    detector = JEPAScoreDetector(method="forward", calibration=3, target_fpr=0.1).fit(pictures(45))
    new = pictures(3, seed=1)
    np.testing.assert_allclose(detector.additive_maps(new).total, expected_total(detector, new), rtol=1e-5, atol=1e-4)


def test_shares_of_a_float64_encoder_are_exact_to_rounding():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.Conv2d(6, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2))
    net = nn.Sequential(net, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    encoder = load_encoder(net, image_size=32, precision="float64")
    detector = JEPAScoreDetector(encoder, method="forward").fit(pictures(40))
    new = pictures(4, seed=1)
    # what the pass keeps of layers is float32
    np.testing.assert_allclose(detector.additive_maps(new).total, expected_total(detector, new), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("top", "left"), [(8, 4), (30, 26), (12, 28), (20, 16)])
def test_the_additive_map_peaks_where_a_bright_square_was_pasted(plain, top, left):
    found = plain.anomaly_map(with_square(pictures(1, seed=1)[0], top, left)[None])[0]

    assert found.shape == (48, 40)
    peak = np.unravel_index(np.nanargmax(found), found.shape)
    assert np.hypot(peak[0] - top - 3.5, peak[1] - left - 3.5) <= 5


@pytest.mark.parametrize(("top", "left"), [(8, 4), (30, 26), (12, 28), (20, 16)])
def test_the_local_map_is_hot_around_a_bright_square(local, top, left):
    found = local.anomaly_map(with_square(pictures(1, seed=1)[0], top, left)[None])[0]

    # positions all around see the square: what is half as surprising as the hottest lies around it
    hot = np.nan_to_num(found) * (np.nan_to_num(found) > np.nanmax(found) / 2)
    rows, columns = np.mgrid[:48, :40]
    middle = (hot * rows).sum() / hot.sum(), (hot * columns).sum() / hot.sum()
    assert np.hypot(middle[0] - top - 3.5, middle[1] - left - 3.5) <= 5


def test_a_picture_that_is_cropped_has_no_values_outside(plain):
    found = plain.anomaly_map(pictures(1, seed=1))[0]
    assert np.isnan(found[:3]).all()
    assert np.isnan(found[-3:]).all()
    assert np.isfinite(found[5:-5]).all()


def test_pictures_of_different_sizes_have_maps_of_their_own_sizes(local):
    sizes = [(48, 40), (40, 64)]
    found = local.anomaly_map([Image.fromarray(pictures(1, seed=1, size=size)[0]) for size in sizes])
    assert [values.shape for values in found] == sizes


def test_a_spot_lies_over_the_square_and_normal_pictures_have_few(local):
    odd = with_square(pictures(1, seed=1)[0], 20, 12)
    ((first, *_),) = local.spots(odd[None])
    left, top, right, bottom = first.box
    assert left <= 16 <= right
    assert top <= 24 <= bottom
    assert first.p_value == pytest.approx(1 / 61)

    n = sum(bool(spots) for spots in local.spots(pictures(100, seed=2)))
    assert n <= 12  # 5 expected; more than 12 by chance once in a thousand
    with pytest.warns(UserWarning, match="with 60 normal images no spot can have a p-value below 0.016.*at least 99"):
        assert local.spots(odd[None], level=0.01) == [[]]


def test_the_oddest_positions_are_a_term_of_the_score(local, plain):
    odd = with_square(pictures(1, seed=1)[0], 20, 12)[None]
    assert "local" in local.explain(odd).parts
    assert "local" not in plain.explain(odd).parts
    assert local.score_samples(odd)[0] < local.score_samples(pictures(1, seed=3))[0]


def test_with_groups_the_terms_of_new_parts_are_of_usual_size():
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    maps = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.Conv2d(6, 8, 3, 2), nn.ReLU())
    encoder = load_encoder(nn.Sequential(maps, nn.AdaptiveAvgPool2d(1), nn.Flatten()), image_size=32)

    def exposures(n_parts):
        parts = rng.integers(0, 200, (n_parts, 1, 4, 4, 3)).repeat(8, axis=2).repeat(8, axis=3)
        return (parts + rng.integers(0, 20, (n_parts, 4, 32, 32, 3))).reshape(-1, 32, 32, 3).astype(np.uint8)

    detector = JEPAScoreDetector(encoder, method="forward", layers=["0.1", "0.3"], local=True)
    fit, new = exposures(25), exposures(25)
    mean = {}
    for name, groups in (("alone", None), ("by part", np.repeat(np.arange(25), 4))):
        parts = detector.fit(fit, groups=groups).explain(new).parts
        weight = detector.model_.weight
        mean[name] = {term: np.median(-values) / weight[term] for term, values in parts.items()}
    # the median surprise of what is exchangeable is log 2
    assert max(mean["by part"].values()) < 2
    assert min(mean["by part"].values()) > 0.2
    assert np.mean(list(mean["alone"].values())) > 1.5 * np.mean(list(mean["by part"].values()))


def test_a_saved_detector_has_the_same_maps(local, tmp_path):
    odd = with_square(pictures(1, seed=1)[0], 20, 12)[None]
    again = JEPAScoreDetector.load(local.save(tmp_path / "detector"))

    np.testing.assert_array_equal(again.anomaly_map(odd), local.anomaly_map(odd))
    np.testing.assert_array_equal(again.score_samples(odd), local.score_samples(odd))
    assert again.spots(odd) == local.spots(odd)


def test_an_extraction_with_positions_serves_both_detectors(local, plain):
    new = pictures(4, seed=1)
    measured = local.extract(pictures(60))
    assert any(name.startswith("positions") for name in measured.layers)
    again = JEPAScoreDetector(method="forward", local=True).fit(measured)
    np.testing.assert_allclose(again.score_samples(local.extract(new)), local.score_samples(new))

    without = JEPAScoreDetector(method="forward").fit(measured)
    assert "local" not in without.model_.weight


def test_columns_of_a_table_have_shares_that_add_up():
    torch.manual_seed(0)
    encoder = load_encoder(nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4)))
    rng, usual = np.random.default_rng(0), np.array([0.0, 100, -5, 3, 1000, 7])  # far from 0, and still usual
    detector = JEPAScoreDetector(encoder).fit(usual + rng.normal(size=(200, 6)))
    new = usual + rng.normal(size=(4, 6))
    new[0, 3] += 9

    found = detector.anomaly_map(new)
    assert found.shape == (4, 6)
    assert found[0].argmax() == 3
    maps = detector.additive_maps(new)
    np.testing.assert_allclose(maps.total, expected_total(detector, new), rtol=1e-6, atol=1e-6)

    explained = detector.explain(new)
    np.testing.assert_allclose(explained.columns, found)
    assert explained.oddest_columns(0) == ["column 3"]
    assert "most unusual columns: column 3" in explained.words(0)


def test_what_cannot_be_mapped_is_said(plain):
    with pytest.raises(ValueError, match="local=True"):
        plain.spots(pictures(1))
    with pytest.raises(TypeError, match="does not keep positions"):
        plain.anomaly_map(plain.extract(pictures(2)))
    without = JEPAScoreDetector(method="exact", layers=None).fit(pictures(20))
    with pytest.raises(ValueError, match="maps show hidden layers"):
        without.anomaly_map(pictures(1))
    with pytest.raises(ValueError, match="local=True reads hidden layers"):
        JEPAScoreDetector(local=True, layers=None).fit(pictures(20))


def test_an_overlay_shows_the_picture_the_map_and_the_spots(local):
    odd = with_square(pictures(1, seed=1)[0], 20, 12)
    (found,) = local.picture_maps(odd[None])
    shown = np.asarray(found.overlay(odd))
    assert shown.shape[1] == 270  # as wide as the legend
    assert found.overlay(odd, legend=False).size == (40 * 6, 48 * 6)  # enlarged to be seen
    red = shown[..., 0].astype(int) - shown[..., 2]
    assert red[22 * 6, 14 * 6] > 50
    assert shown.shape[0] > 48 * 6  # the legend
    assert (shown[:280, 245:] == 255).all()  # beside the picture
