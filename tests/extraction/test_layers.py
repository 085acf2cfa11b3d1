import numpy as np
import pytest
import torch
from oracles import conv_net, mlp, random_images
from torch import nn

from skjepa import JEPAScoreDetector, extract, extract_layers, load_encoder
from skjepa.extraction.store.settings import SettingsMismatchError


@pytest.mark.parametrize("layer", ["1", "4", "7"])
def test_a_layer_is_what_an_encoder_with_that_output_says(layer):
    module, images = conv_net(6), random_images(4)
    encoder = load_encoder(module, image_size=32, precision="float64")
    found = extract_layers(encoder, images, ["1", "4", "7", "output"])[layer]
    alone = extract(load_encoder(module, image_size=32, precision="float64", output=layer), images)
    np.testing.assert_allclose(found.embeddings, alone.embeddings, rtol=1e-12)
    np.testing.assert_allclose(found.singular_values, alone.singular_values, rtol=1e-8, atol=1e-12)
    assert found.ids.tolist() == alone.ids.tolist()


def test_the_output_is_that_of_the_encoder():
    images, encoder = random_images(3), load_encoder("bundled")
    found = extract_layers(encoder, images, ["features.0", "output"])
    alone = extract(encoder, images)
    np.testing.assert_allclose(found["output"].singular_values, alone.singular_values, rtol=1e-4)
    np.testing.assert_allclose(found["output"].embeddings, alone.embeddings, rtol=1e-4, atol=1e-6)
    assert list(found) == ["features.0", "output"]


def test_a_forward_pass_serves_all_layers():
    calls = []

    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(6, 4)

        def forward(self, x):
            if torch.is_grad_enabled() and len(x) == 30:
                calls.append(1)
            return self.net(x)

    X = np.random.default_rng(0).normal(size=(30, 6))
    encoder = load_encoder(Counted())
    extract(encoder, X)
    one = len(calls)
    extract_layers(encoder, X, ["net.1", "net.3", "output"])
    assert len(calls) - one <= one + 1


def test_copies_have_equal_rows():
    X = np.random.default_rng(0).normal(size=(5, 6))
    found = extract_layers(load_encoder(mlp(6, 4)), X[[0, 1, 0, 2]], ["1"])["1"]
    np.testing.assert_array_equal(found.singular_values[0], found.singular_values[2])
    assert found.singular_values.shape == (4, 1, 6)


def test_a_sketch_of_every_layer_takes_fewer_passes():
    X = np.random.default_rng(0).normal(size=(7, 40))
    encoder = load_encoder(mlp(40, 4))
    found = extract_layers(encoder, X, ["0", "2", "output"], n_directions=5)
    assert [part.singular_values.shape[2] for part in found.values()] == [5, 5, 4]
    assert [part.embeddings.shape[1] for part in found.values()] == [32, 32, 4]
    assert found["0"].meta["method"] == "sketch of 5 directions"
    assert found["output"].meta["method"] == "exact"
    again = extract_layers(encoder, X, ["2"], n_directions=5)["2"]
    np.testing.assert_allclose(again.singular_values, found["2"].singular_values, rtol=1e-5)


def test_detectors_fit_on_layers_and_keep_them_apart():
    X = np.random.default_rng(0).normal(size=(60, 6))
    found = extract_layers(load_encoder(mlp(6, 4)), X, ["1", "3"])
    detector = JEPAScoreDetector().fit(found["1"])
    assert np.isfinite(detector.score_samples(found["1"])).all()
    with pytest.raises(SettingsMismatchError, match="fingerprint"):
        detector.score_samples(found["3"])


def test_bad_layers_are_named():
    encoder, X = load_encoder(mlp(6, 4)), np.zeros((3, 6))
    with pytest.raises(ValueError, match="no layer 'nothing'"):
        extract_layers(encoder, X, ["nothing"])
    with pytest.raises(ValueError, match="list of different names"):
        extract_layers(encoder, X, ["1", "1"])
    with pytest.raises(ValueError, match="list of different names"):
        extract_layers(encoder, X, "1")
    with pytest.raises(TypeError, match="got transform, which is not supported here"):
        extract_layers(encoder, X, ["1"], transform=torch.relu)
