"""One pass for a judgement and the maps of where each image is odd."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from skjepa import JEPAScoreDetector, load_encoder


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.maps = nn.Sequential(nn.Conv2d(3, 6, 4, 4), nn.ReLU(), nn.Conv2d(6, 8, 3, 2), nn.ReLU())

    def forward(self, x):
        return self.maps(x).mean((2, 3))


@pytest.fixture
def shown():
    """How many samples each forward pass is given, but for the blank ones that tell shapes."""
    seen = []

    def note(module, given):
        if isinstance(module, Small) and given[0].any():
            seen.append(len(given[0]))

    hook = register_module_forward_pre_hook(note)
    yield seen
    hook.remove()


def pictures(n, seed=0):
    return np.random.default_rng(seed).integers(100, 156, (n, 48, 64, 3), dtype=np.uint8)


def detector(**settings):
    encoder = load_encoder(Small(), image_size=32)
    layers = ["maps.1", "maps.3"]
    return JEPAScoreDetector(encoder, method="forward", layers=layers, **{"local": True, **settings})


@pytest.mark.parametrize(
    ("settings", "n_shown"),
    [
        ({}, 3),
        ({"tiles": 32}, 3 * 6),
        ({"tiles": 32, "calibration": 3, "target_fpr": 0.1}, 3 * 6),
        ({"calibration": 3, "target_fpr": 0.1}, 3),
    ],
)
def test_a_judgement_and_maps_come_from_one_pass(settings, n_shown, shown):
    fitted, new = detector(**settings).fit(pictures(20)), pictures(3, seed=1)
    new[1, 20:26, 30:44] = 255
    alone, expected = fitted.judge(new), fitted.picture_maps(new, level=0.2)

    shown.clear()
    judged, maps = fitted.judge_and_map(new, level=0.2)
    assert sum(shown) == n_shown

    np.testing.assert_array_equal(judged.scores, alone.scores)
    np.testing.assert_array_equal(judged.p_values, alone.p_values)
    assert list(judged.reasons) == list(alone.reasons)
    for own, other in zip(maps, expected, strict=True):
        np.testing.assert_array_equal(own.values, other.values)
        assert own.spots == other.spots
        assert (own.id, own.placement) == (other.id, other.placement)
    assert maps[1].spots


def test_scores_of_tiles_by_several_folds_take_one_pass(shown):
    fitted = detector(tiles=32, calibration=3, target_fpr=0.1).fit(pictures(20))
    shown.clear()
    fitted.predict(pictures(3, seed=1))
    assert sum(shown) == 3 * 6


def test_a_kept_pass_serves_maps_as_well(tmp_path, shown):
    from joblib import Memory

    fitted = detector(memory=Memory(tmp_path, verbose=0)).fit(pictures(20))
    new = pictures(3, seed=1)
    fitted.score_samples(new)
    shown.clear()
    assert fitted.anomaly_map(new).shape == (3, 48, 64)
    assert not shown


def test_without_a_local_model_the_results_are_the_same():
    fitted, new = detector(local=False).fit(pictures(20)), pictures(3, seed=1)
    judged, maps = fitted.judge_and_map(new)
    np.testing.assert_array_equal(judged.scores, fitted.score_samples(new))
    np.testing.assert_array_equal(maps[2].pixels(), fitted.anomaly_map(new)[2])


def test_an_unreadable_image_has_a_reason_and_no_map(tmp_path):
    for i, picture in enumerate(pictures(3, seed=1)):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(b"no picture")
    fitted = detector(on_error="skip").fit(pictures(20))
    with pytest.warns(UserWarning, match="1.png"):
        judged, maps = fitted.judge_and_map(tmp_path)
    assert [found is None for found in maps] == [False, True, False]
    assert [found.id for found in maps if found] == ["0.png", "2.png"]
    assert np.isnan(judged.scores[1])


@pytest.mark.parametrize("settings", [{"calibration": 3, "target_fpr": 0.1}, {"calibration": 0.5}, {}])
def test_a_fit_shows_each_tile_once(settings, shown):
    detector(tiles=32, **settings).fit(pictures(20))
    n_tiles = 20 * 6
    assert n_tiles <= sum(shown) < 1.2 * n_tiles  # a few more tell what fits into memory
