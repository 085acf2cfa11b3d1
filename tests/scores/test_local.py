import numpy as np
import pytest

from skjepa.scores.local import LocalModel, PositionGaussians, across_models, image_values


def rows(n, rng, grid=(3, 4), n_channels=6):
    mixing = np.random.default_rng(5).normal(size=(n_channels, n_channels))
    means = np.random.default_rng(6).normal(size=(grid[0] * grid[1], n_channels))
    return (rng.normal(size=(n, grid[0] * grid[1], n_channels)) @ mixing + means).reshape(n, -1)


def test_distances_are_those_of_a_dense_reference():
    positions = rows(200, np.random.default_rng(0)).reshape(200, 12, 6)
    new = rows(5, np.random.default_rng(1)).reshape(5, 12, 6)
    model = PositionGaussians(positions.astype(np.float32))

    centred = positions - positions.mean(axis=0)
    own = np.einsum("npi,npj->pij", centred, centred) / 200
    blended = 0.5 * own + 0.5 * own.mean(axis=0)
    away = new - positions.mean(axis=0)
    expected = np.einsum("npi,pij,npj->np", away, np.linalg.inv(blended), away)
    # all axes are kept, so that whitening changes nothing but the last bit of ridge
    np.testing.assert_allclose(model.distances(new.astype(np.float32)), expected, rtol=0.02)


def test_p_values_of_positions_and_of_whole_samples_hold_over_seeds():
    patches, images = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        model = LocalModel().fit(rows(60, rng), (3, 4))
        new = model.log_distances(rows(60, rng))
        patches.append((model.patch_p_values(new) <= 0.05).mean())
        images.append((model.image_wide_p_values(new.max(axis=1)) <= 0.05).mean())
    # 2,400 samples: two standard errors of a share of .05 are .009; folds make the test a little too careful
    assert 0.02 < np.mean(patches) < 0.059
    assert 0.02 < np.mean(images) < 0.059


@pytest.mark.parametrize("n_folds", [2, 5])
def test_p_values_of_several_folds_together_hold_over_seeds(n_folds):
    alone, patches, images = [], [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        normal, fold = rows(40, rng), np.arange(40) % n_folds
        models = [LocalModel().fit(normal[fold != k], (3, 4)) for k in range(n_folds)]
        new = rows(60, rng)
        surprises, p_values, hottest = across_models(models, new)
        alone.append((models[0].patch_p_values(models[0].log_distances(new)) <= 0.05).mean())
        patches.append((p_values <= 0.05).mean())
        n_hotter = len(hottest) - np.searchsorted(hottest, surprises.max(axis=1), side="left")
        images.append(((1 + n_hotter) / (1 + len(hottest)) <= 0.05).mean())
    # 1,200 samples: two standard errors of a share of .05 are .013
    assert 0.01 < np.mean(patches) <= np.mean(alone) < 0.063
    assert np.mean(images) < 0.063


def test_pictures_of_several_samples_have_one_hottest_position():
    normal, of = rows(60, np.random.default_rng(0)), np.repeat(np.arange(20), 3)
    model = LocalModel().fit(normal, (3, 4), of, of)
    single = LocalModel().fit(normal, (3, 4), of)
    assert (model.n_parts, single.n_parts) == (3, 1)
    assert len(model.hottest) == 20
    assert set(model.hottest) <= set(single.hottest)
    assert model.hottest.min() >= np.median(single.hottest) - 1

    fewer = LocalModel().fit(normal[1:], (3, 4), of[1:], of[1:])
    assert fewer.n_parts == 2


def test_near_copies_are_judged_by_a_model_that_has_not_seen_them():
    rng = np.random.default_rng(0)
    parts, noise = rows(12, rng), lambda: 0.01 * rng.normal(size=(60, 72))
    copies, of = np.repeat(parts, 5, axis=0) + noise(), np.repeat(np.arange(12), 5)
    alone = LocalModel().fit(copies, (3, 4))
    apart = LocalModel().fit(copies, (3, 4), of)
    assert np.median(apart.hottest) > np.median(alone.hottest) + 0.4


def test_levels_of_quantiles_are_ranks():
    model = LocalModel().fit(rows(40, np.random.default_rng(0)), (3, 4))
    n = 40 * 12
    assert model.levels.min() == pytest.approx(2 / (n + 1))
    assert model.patch_p_values(np.array([-1e9]))[0] == pytest.approx(1)
    assert model.patch_p_values(np.array([1e9]))[0] == pytest.approx(1 / (n + 1))


def test_the_value_of_an_image_is_the_mean_of_its_oddest_positions():
    distances = np.log(np.arange(1.0, 101.0))[None]
    assert np.exp(image_values(distances))[0] == pytest.approx(np.mean([98, 99, 100]))


def test_rows_of_another_width_are_refused():
    model = LocalModel().fit(rows(10, np.random.default_rng(0)), (3, 4))
    with pytest.raises(ValueError, match="72 numbers per sample; got 71"):
        model.log_distances(np.zeros((2, 71)))
