"""Hidden layers from the forward pass: values, settings, stores, workers, and a pass without backward passes."""

import shutil
import threading
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from torch import nn

from skjepa import Extraction, JEPAScoreDetector, MahalanobisDetector, extract, load_encoder
from skjepa.extraction.batches.pooling import chosen_layers
from skjepa.extraction.store.settings import SettingsMismatchError

BEFORE = Path(__file__).parents[1] / "persistence" / "before_layers"
IMAGES = np.random.default_rng(0).integers(0, 256, size=(6, 32, 32, 3), dtype=np.uint8)
NAMES = ["stage 1", "stage 2", "stage 3", "stage 4"]


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("bundled")


@pytest.fixture(scope="module")
def forward(encoder):
    return extract(encoder, IMAGES, method="forward")


class Branches(nn.Module):
    """Maps, tokens with a tuple around them, a vector, a layer in place, and one that is never called."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.relu = nn.ReLU(inplace=True)
        self.tokens = Tokens()
        self.head = nn.Linear(4, 2)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        x = self.relu(self.conv(x))
        x, _ = self.tokens(x)
        return self.head(x.mean(1))


class Tokens(nn.Module):
    def forward(self, x):
        return x.flatten(2).transpose(1, 2), None


def test_mean_and_deviation_of_each_channel():
    net = Branches().eval()
    own = load_encoder(net, image_size=32, precision="float64")
    found = extract(own, IMAGES, method="forward", layers=["conv", "relu", "tokens", "head"])
    x = torch.from_numpy(IMAGES).double().permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        conv = net.double().conv(x)
    relu = conv.clamp_min(0)

    def pooled(maps):
        return np.concatenate([maps.mean((2, 3)), maps.std((2, 3), correction=0)], axis=1)

    np.testing.assert_allclose(found.layers["conv"], pooled(conv), rtol=1e-5)  # before the layer in place
    np.testing.assert_allclose(found.layers["relu"], pooled(relu), rtol=1e-5)
    np.testing.assert_allclose(found.layers["tokens"], pooled(relu), rtol=1e-5)
    np.testing.assert_allclose(found.layers["head"], found.embeddings, rtol=1e-6)
    assert {values.dtype for values in found.layers.values()} == {np.dtype("float32")}
    net.float()


class Shifted(nn.Module):
    """Maps far from zero beside their spread, as a tuple, as a map and as a vector; the layers after work in place."""

    def __init__(self, *, channels_last):
        super().__init__()
        self.channels_last = channels_last
        self.pair, self.map, self.vector = Pair(), nn.Identity(), nn.Identity()

    def forward(self, x):
        maps = self.pair(300 + x * torch.tensor([1.0, 0.1, 0.0]).view(3, 1, 1))[0]
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        maps = self.map(maps.mul_(2).contiguous(memory_format=layout))
        vector = self.vector(maps.add_(1).mean((2, 3)))
        return vector.mul_(3) - 900


class Pair(nn.Module):
    def forward(self, x):
        return x, None


@pytest.mark.parametrize("channels_last", [False, True])
def test_statistics_are_those_of_float64_before_the_next_layer_works_in_place(channels_last):
    images = np.random.default_rng(1).integers(0, 256, size=(3, 40, 40, 3), dtype=np.uint8)
    own = load_encoder(Shifted(channels_last=channels_last).eval(), image_size=40)
    found = extract(own, images, method="forward", layers=["pair", "map", "vector"])
    x = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255).float()
    maps = (300 + x * torch.tensor([1.0, 0.1, 0.0]).view(3, 1, 1)).double()  # rounded as the network rounds them
    for name, factor in (("pair", 1), ("map", 2)):
        mean, deviation = factor * maps.mean((2, 3)), factor * maps.std((2, 3), correction=0)
        np.testing.assert_allclose(found.layers[name][:, :3], mean, rtol=3e-7)
        np.testing.assert_allclose(found.layers[name][:, 3:], deviation, rtol=1e-5, atol=2e-4)
    np.testing.assert_allclose(found.layers["vector"], 2 * maps.mean((2, 3)) + 1, rtol=3e-7)


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        ("all", ValueError, "layers must be 'auto', a list of layer names, or None; got 'all'"),
        (["con"], ValueError, "no layer 'con'.*conv"),
        (["conv", "conv"], ValueError, "different names"),
        (["unused"], ValueError, "'unused' is not used in the forward pass"),
    ],
)
def test_what_is_no_layer(layers, error, message):
    own = load_encoder(Branches().eval(), image_size=32)
    with pytest.raises(error, match=message):
        extract(own, IMAGES, method="forward", layers=layers)


class TestForward:
    def test_makes_no_backward_pass(self, encoder, forward, monkeypatch):
        def refuse(*args, **kwargs):
            raise AssertionError("a backward pass")

        whole = extract(encoder, IMAGES, method="exact")
        monkeypatch.setattr("skjepa.extraction.batches.measurement.jacobian", refuse)
        again = extract(encoder, IMAGES, method="forward")
        assert forward.singular_values is None
        assert list(forward.layers) == NAMES
        for found in (again, whole):
            np.testing.assert_array_equal(forward.embeddings, found.embeddings)
            for name in NAMES:
                np.testing.assert_array_equal(forward.layers[name], found.layers[name])

    def test_says_so_where_singular_values_are_needed(self, forward):
        with pytest.raises(ValueError, match="method='forward', which yields no singular values"):
            _ = forward.spectra
        for formula in ("jepa", "density"):
            with pytest.raises(ValueError, match="method='exact'"):
                JEPAScoreDetector(formula=formula).fit(forward)
            with pytest.raises(ValueError, match=f"formula='{formula}'.*method='forward' measures none"):
                JEPAScoreDetector(formula=formula, method="forward").fit(IMAGES)

    def test_has_no_views_and_no_directions(self, encoder):
        with pytest.raises(ValueError, match="measures no Jacobian, so views and transform have no effect"):
            extract(encoder, IMAGES, method="forward", views=2)
        with pytest.raises(ValueError, match=r"n_directions is for method='sketch'"):
            extract(encoder, IMAGES, method="forward", n_directions=3)

    def test_is_what_is_left_of_an_exact_pass(self, encoder, forward):
        left = extract(encoder, IMAGES, method="exact").forward_only()
        assert left.settings == forward.settings
        np.testing.assert_array_equal(left.embeddings, forward.embeddings)

    def test_auto(self, encoder):
        assert extract(encoder, IMAGES, method="auto").meta["method"] == "exact"  # K = 64
        rows = np.random.default_rng(0).normal(size=(5, 3))
        assert extract(load_encoder(nn.Linear(3, 2)), rows, method="auto").meta["method"] == "forward"
        wide = load_encoder(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 65)).eval(), image_size=8)
        assert extract(wide, IMAGES, method="auto").meta["method"] == "forward"

    def test_without_a_derivative(self):
        class Rounded(nn.Module):
            def forward(self, x):
                return x + (x.round() - x).detach()

        rows = np.random.default_rng(0).normal(size=(5, 3))
        assert extract(load_encoder(Rounded()), rows, method="forward").embeddings.shape == (5, 3)


class TestExtraction:
    def test_slices_and_joins(self, forward):
        parts = [forward[:2], forward[[2]], forward[np.arange(6) > 2]]
        assert [len(part.layers["stage 1"]) for part in parts] == [2, 1, 3]
        joined = Extraction.concat(parts)
        for name in NAMES:
            np.testing.assert_array_equal(joined.layers[name], forward.layers[name])
        assert joined.singular_values is None

    def test_is_saved(self, forward, tmp_path):
        again = Extraction.load(forward.save(tmp_path / "e"))
        assert list(again.layers) == NAMES
        assert again.singular_values is None
        for name in NAMES:
            np.testing.assert_array_equal(again.layers[name], forward.layers[name])

    def test_others_are_not_mixed(self, encoder, forward):
        for other in (extract(encoder, IMAGES, method="forward", layers=options) for options in (None, NAMES[:2])):
            with pytest.raises(SettingsMismatchError, match="layers is"):
                Extraction.concat([forward, other])
        half = extract(encoder, IMAGES, method="forward", layers_dtype="float16")
        assert half.layers["stage 1"].dtype == np.float16
        with pytest.raises(SettingsMismatchError, match="layers_dtype is 'float16', expected 'float32'"):
            Extraction.concat([forward, half])

    def test_a_row_is_missing(self, forward):
        with pytest.raises(ValueError, match=r"one row per sample; got.*layers\['stage 1'\] \(5, 64\)"):
            Extraction(forward.embeddings, None, forward.ids, layers={"stage 1": forward.layers["stage 1"][:5]})

    def test_numbers_too_large_for_half_precision_are_the_largest(self):
        own = load_encoder(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)))
        rows = np.array([[1e9, 0.0], [0.0, 1.0]])
        found = extract(own, rows, method="forward", layers_dtype="float16")
        assert np.isfinite(found.layers["input"]).all()
        assert found.layers["input"][0, 0] == np.finfo(np.float16).max


class TestKept:
    def test_store_resumes(self, encoder, forward, tmp_path, monkeypatch):
        kept = extract(encoder, IMAGES[:3], method="forward", store=tmp_path / "s", ids=list("abc"))
        whole = extract(encoder, IMAGES, method="forward", store=tmp_path / "s", ids=list("abcdef"))
        np.testing.assert_array_equal(kept.layers["stage 4"], whole.layers["stage 4"][:3])
        monkeypatch.setattr("skjepa.extraction.encoder_pass.run_through", None)  # nothing is left to measure
        again = extract(encoder, IMAGES, method="forward", store=tmp_path / "s", ids=list("abcdef"))
        for name in NAMES:
            np.testing.assert_array_equal(again.layers[name], forward.layers[name])

    def test_store_of_other_layers_is_refused(self, encoder, tmp_path):
        options = {"method": "forward", "ids": list("abcdef")}
        extract(encoder, IMAGES, store=tmp_path / "s", layers=NAMES[:2], **options)
        with pytest.raises(SettingsMismatchError, match="layers is"):
            extract(encoder, IMAGES, store=tmp_path / "s", **options)
        # The same layers in another order: their columns would be taken for one another's.
        with pytest.raises(SettingsMismatchError, match="layers is"):
            extract(encoder, IMAGES, store=tmp_path / "s", layers=NAMES[1::-1], **options)

    def test_memory(self, encoder, forward, tmp_path):
        for _ in range(2):
            found = extract(encoder, IMAGES, method="forward", memory=tmp_path)
            np.testing.assert_array_equal(found.layers["stage 2"], forward.layers["stage 2"])
        assert extract(encoder, IMAGES, method="forward", memory=tmp_path, layers=None).layers == {}

    def test_workers(self, encoder, forward):
        with joblib.parallel_config("loky", n_jobs=2):
            found = extract(encoder, np.concatenate([IMAGES] * 2), method="forward", memory_budget=2**22)
        for name in NAMES:
            np.testing.assert_allclose(found.layers[name][:6], forward.layers[name], rtol=1e-5, atol=1e-6)

    def test_threads_do_not_see_one_another(self, encoder, forward):
        found: dict[int, Extraction] = {}

        def run(i: int) -> None:
            found[i] = extract(encoder, IMAGES[i : i + 1], method="forward")

        threads = [threading.Thread(target=run, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for i in range(6):
            np.testing.assert_allclose(
                found[i].layers["stage 3"][0], forward.layers["stage 3"][i], rtol=1e-5, atol=1e-6
            )


class TestBefore:
    """What the version before hidden layers wrote."""

    ROWS = np.random.default_rng(0).normal(size=(30, 3)) + 0.5

    @pytest.fixture
    def expected(self):
        with np.load(BEFORE / "expected.npz") as arrays:
            return dict(arrays)

    def test_detectors_score_as_they_did(self, expected):
        detector = JEPAScoreDetector.load(BEFORE / "detector")
        np.testing.assert_allclose(detector.score_samples(self.ROWS), expected["detector"], rtol=1e-9)
        np.testing.assert_array_equal(detector.calibration_scores_, expected["calibration"])
        gaussian = MahalanobisDetector.load(BEFORE / "mahalanobis")
        np.testing.assert_allclose(gaussian.score_samples(self.ROWS), expected["mahalanobis"], rtol=1e-12)

    def test_extraction_and_store_are_read(self, encoder, tmp_path):
        before = Extraction.load(BEFORE / "extraction")
        assert before.layers == {}
        assert len(before) == 3
        shutil.copytree(BEFORE / "store", tmp_path / "store")
        ids = list("abcdef")
        found = extract(encoder, IMAGES, store=tmp_path / "store", ids=ids, layers=None)
        np.testing.assert_array_equal(found.embeddings[:3], before.embeddings)
        np.testing.assert_array_equal(found.spectra[:3], before.spectra)

    def test_and_not_mixed(self, encoder, tmp_path):
        shutil.copytree(BEFORE / "store", tmp_path / "store")
        with pytest.raises(SettingsMismatchError, match="give layers=None to continue"):
            extract(encoder, IMAGES, store=tmp_path / "store", ids=list("abcdef"))
        before, now = Extraction.load(BEFORE / "extraction"), extract(encoder, IMAGES)
        with pytest.raises(SettingsMismatchError, match="layers"):
            Extraction.concat([before, now])
        with pytest.raises(SettingsMismatchError, match="layers"):
            JEPAScoreDetector().fit(now).score_samples(before)


def test_a_vit_b_takes_less_than_50_kb():
    import timm

    vit = load_encoder(timm.create_model("vit_base_patch16_224", num_classes=0, img_size=32).eval(), image_size=32)
    assert 4 * sum(layer.width for layer in chosen_layers(vit, "auto", (3, 32, 32))) < 50_000
