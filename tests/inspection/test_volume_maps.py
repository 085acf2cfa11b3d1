import numpy as np
import pytest
import torch
from oracles import conv_net, dense_jacobian, mlp, random_images
from torch import nn

from skjepa import JEPAScoreDetector, extract, learn_volume_explainer, load_encoder
from skjepa.inspection.volume_maps import VolumeExplainer, patch_grid, patch_labels


@pytest.fixture(scope="module")
def images():
    return random_images(12), random_images(5, seed=1)


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(conv_net(6), image_size=32, precision="float64")


@pytest.fixture(scope="module")
def explainer(encoder, images):
    return learn_volume_explainer(encoder, images[0], patch_size=8)


def grams_by_hand(encoder, images, patch_size):
    """J_p J_p^T of every image and patch by slicing dense Jacobians, (n, P, K, K)."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255
    module = encoder.module.double().eval()
    J = dense_jacobian(module, encoder.preprocessing.normalise(x)).unflatten(2, (3, 32, 32))
    starts = range(0, 32, patch_size)
    patches = [J[..., top : top + patch_size, left : left + patch_size].flatten(2) for top in starts for left in starts]
    return torch.stack([patch @ patch.mT for patch in patches], dim=1).numpy()


def shares_by_hand(G_p, G0_p):
    """The formula of the documentation, written out."""
    G, G0 = G_p.sum(axis=0), G0_p.sum(axis=0)
    values, vectors = np.linalg.eigh(G0)
    root = vectors / np.sqrt(values) @ vectors.T
    ratios, Q = np.linalg.eigh(root @ G @ root)
    W = root @ Q
    return 0.5 * np.einsum("k,ik,pij,jk->p", np.log(ratios) / (ratios - 1), W, G_p - G0_p, W)


@pytest.mark.parametrize("patch_size", [8, 12, 32])
def test_maps_are_those_of_dense_jacobians(encoder, images, patch_size):
    normal, new = images
    explainer = learn_volume_explainer(encoder, normal, patch_size=patch_size, floor=1e-9)
    maps = explainer.explain(new)
    G0_p = grams_by_hand(encoder, normal, patch_size).mean(axis=0)
    np.testing.assert_allclose(explainer.grams, G0_p, rtol=1e-8, atol=1e-12)
    usual = np.mean([shares_by_hand(G_p, G0_p) for G_p in grams_by_hand(encoder, normal, patch_size)], axis=0)
    for share, G_p in zip(maps.shares, grams_by_hand(encoder, new, patch_size), strict=True):
        np.testing.assert_allclose(share.ravel(), shares_by_hand(G_p, G0_p) - usual, rtol=1e-8, atol=1e-10)


def test_shares_sum_to_the_log_volume_less_the_mean_of_normal_samples(encoder, explainer, images):
    maps = explainer.explain(images[1])
    sigma = extract(encoder, images[1]).singular_values[:, 0]
    normal = np.log(extract(encoder, images[0]).singular_values[:, 0]).sum(axis=1).mean()
    assert maps.baseline == pytest.approx(normal, rel=1e-12)
    np.testing.assert_allclose(maps.shares.sum(axis=(1, 2)), np.log(sigma).sum(axis=1) - normal, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(explainer.explain(images[0]).shares.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(maps.floor, 0, atol=1e-13)
    np.testing.assert_allclose(maps.outside, 0, atol=1e-12)
    np.testing.assert_allclose(maps.volume, np.log(sigma).sum(axis=1), rtol=1e-12)


@pytest.mark.parametrize(("floor", "rank"), [("auto", 3), ("high", None), ("high", 5)])
def test_floor_and_rank_have_shares_of_their_own(encoder, images, floor, rank):
    if floor == "high":  # some of the values that count lie under it in some images
        floor = float(np.median(extract(encoder, images[1]).singular_values[:, 0, 4]))
    explainer = learn_volume_explainer(encoder, images[0], floor=floor, rank=rank)
    maps = explainer.explain(images[1])
    detector = JEPAScoreDetector(encoder, formula="jepa", floor=floor, rank=rank).fit(images[0])
    total = maps.baseline + maps.shares.sum(axis=(1, 2)) + maps.floor + maps.outside
    np.testing.assert_allclose(total, detector.score_samples(images[1]), rtol=1e-12, atol=1e-12)
    assert (maps.floor > 1e-3).any() == (rank == 5)
    assert (
        maps.outside + explainer.expected[-2] >= -1e-12
    ).all()  # the rank largest of all are no less than those of a subspace


class Centred(nn.Module):
    """A module whose outputs sum to zero: one direction of output space is dead for every image."""

    def __init__(self) -> None:
        super().__init__()
        self.net = conv_net(6)

    def forward(self, x):
        z = self.net(x)
        return z - z.mean(dim=1, keepdim=True)


def test_rank_deficient_outputs_are_explained_on_the_leading_subspace(images):
    encoder = load_encoder(Centred(), image_size=32, precision="float64")
    explainer = learn_volume_explainer(encoder, images[0])
    assert explainer.rank == 5
    maps = explainer.explain(images[1])
    np.testing.assert_allclose(maps.outside, 0, atol=1e-11)
    expected = np.log(extract(encoder, images[1]).singular_values[:, 0, :5]).sum(axis=1)
    np.testing.assert_allclose(maps.baseline + maps.shares.sum(axis=(1, 2)), expected, atol=1e-11)


def test_an_image_without_any_volume_has_a_finite_map():
    class Dead(nn.Module):
        """Answers the left half of bright images only."""

        def __init__(self) -> None:
            super().__init__()
            self.net = conv_net(4)

        def forward(self, x):
            return self.net(torch.relu(x - 0.5))

    encoder = load_encoder(Dead(), image_size=32, precision="float64")
    explainer = learn_volume_explainer(encoder, random_images(8), patch_size=16)
    maps = explainer.explain(np.zeros((1, 32, 32, 3), dtype=np.uint8))
    assert np.isfinite(maps.shares).all()
    assert maps.floor[0] > 0
    assert (maps.shares < 0).all()
    total = maps.baseline + maps.shares.sum(axis=(1, 2)) + maps.floor + maps.outside
    np.testing.assert_allclose(total, maps.volume, rtol=1e-9)


def test_memory_of_one_image_is_enough_and_changes_nothing(encoder, explainer, images):
    again = learn_volume_explainer(encoder, images[0], patch_size=8, memory_budget=1)
    np.testing.assert_allclose(again.grams, explainer.grams, rtol=1e-10, atol=1e-13)
    small = again.explain(images[1], memory_budget=1)
    np.testing.assert_allclose(small.shares, explainer.explain(images[1]).shares, rtol=1e-9, atol=1e-11)


def test_copies_are_measured_once_and_told_twice(explainer, images):
    new = images[1]
    maps = explainer.explain(np.concatenate([new, new[1:2]]))
    np.testing.assert_array_equal(maps.shares[5], maps.shares[1])
    np.testing.assert_allclose(maps.shares[:5], explainer.explain(new).shares)


def test_features_of_vectors_have_shares():
    """A net that does not look at some features: they have no share."""
    net = mlp(6, 4)
    with torch.no_grad():
        net[0].weight[:, 4:] = 0
    X = np.random.default_rng(0).normal(size=(40, 6))
    explainer = learn_volume_explainer(load_encoder(net, precision="float64"), X[:30])
    maps = explainer.explain(X[30:])
    assert maps.shares.shape == (10, 6)
    np.testing.assert_allclose(maps.shares[:, 4:], 0, atol=1e-14)
    assert (np.abs(maps.shares[:, :4]) > 1e-6).any(axis=0).all()
    assert maps.pixels(0).shape == (6,)
    np.testing.assert_allclose(maps.baseline + maps.shares.sum(1) + maps.floor + maps.outside, maps.volume, atol=1e-12)


def test_saved_and_loaded_the_maps_are_the_same(tmp_path, images):
    explainer = learn_volume_explainer("bundled", images[0])
    explainer.save(tmp_path / "maps")
    loaded = VolumeExplainer.load(tmp_path / "maps")
    np.testing.assert_array_equal(loaded.explain(images[1]).shares, explainer.explain(images[1]).shares)
    assert repr(loaded) == "VolumeExplainer('bundled', 8 x 8 patches, 12 normal samples)"
    JEPAScoreDetector(formula="jepa").fit(images[0]).save(tmp_path / "detector")
    with pytest.raises(ValueError, match="JEPAScoreDetector, not a VolumeExplainer"):
        VolumeExplainer.load(tmp_path / "detector")


def test_an_explainer_of_a_module_of_ones_own_needs_it_again(encoder, explainer, images, tmp_path):
    explainer.save(tmp_path / "maps")
    with pytest.raises(ValueError, match="give it as encoder="):
        VolumeExplainer.load(tmp_path / "maps")
    loaded = VolumeExplainer.load(tmp_path / "maps", encoder=encoder)
    np.testing.assert_allclose(loaded.explain(images[1]).shares, explainer.explain(images[1]).shares)


def test_detectors_give_encoder_floor_and_rank(encoder, images):
    detector = JEPAScoreDetector(encoder, rank=4).fit(images[0])
    explainer = detector.volume_explainer(images[0], patch_size=8)
    assert (explainer.floor, explainer.rank) == (detector.floor_, 4)
    extraction = detector.extract(images[1])
    np.testing.assert_allclose(explainer.explain(images[1]).volume, detector.model_.volume(extraction), rtol=1e-12)
    rows, new = np.random.default_rng(0).normal(size=(60, 5)), np.random.default_rng(1).normal(size=(20, 5))
    trained = JEPAScoreDetector(method="exact", random_state=0).fit(rows)
    assert trained.volume_explainer(new).encoder is trained.encoder_
    forward = JEPAScoreDetector(random_state=0).fit(rows)  # has neither; the explainer learns its own
    assert forward.volume_explainer(new).rank == trained.volume_explainer(new).rank


def test_folds_with_encoders_of_their_own_are_refused():
    X = np.random.default_rng(0).normal(size=(60, 5))
    detector = JEPAScoreDetector(calibration=2, target_fpr=0.2, random_state=0).fit(X)
    with pytest.raises(ValueError, match="every fold trained its own encoder"):
        detector.volume_explainer(X)


def test_what_does_not_go_with_a_map_is_refused(encoder, explainer, images):
    with pytest.raises(TypeError, match="got views, which is not supported here"):
        explainer.explain(images[1], views=3)
    with pytest.raises(TypeError, match="keeps no Jacobians"):
        explainer.explain(extract(encoder, images[1]))
    with pytest.raises(ValueError, match="patch_size must be at least 1"):
        learn_volume_explainer(encoder, images[0], patch_size=0)
    with pytest.raises(ValueError, match="at least 2 samples"):
        learn_volume_explainer(encoder, images[0][:1])
    vectors = learn_volume_explainer(load_encoder(mlp(6, 4)), np.random.default_rng(0).normal(size=(20, 6)))
    with pytest.raises(ValueError, match=r"of shape \(2, 5\)"):
        vectors.explain(np.zeros((2, 5)))


def test_grids_cover_the_input_with_smaller_patches_at_the_border():
    assert patch_grid((3, 32, 20), 8) == (4, 3)
    labels = patch_labels((3, 32, 20), 8).reshape(3, 32, 20)
    assert labels[0, 0, 0] == 0
    assert labels[2, 31, 19] == 11
    assert (labels[0] == labels[1]).all()
    assert np.bincount(labels.ravel()).tolist() == 4 * [192, 192, 96]
    assert patch_labels((5,), 2).tolist() == [0, 0, 1, 1, 2]


def test_pixels_spread_the_shares(explainer, images):
    maps = explainer.explain(images[1])
    pixels = maps.pixels(2)
    assert pixels.shape == (32, 32)
    assert pixels[9, 17] == maps.shares[2, 1, 2]
    assert len(maps) == 5
