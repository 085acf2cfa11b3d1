"""From a folder to an encoder file that scores."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from oracles import random_images
from PIL import Image

from skjepa import JEPAScoreDetector, load_encoder
from skjepa.data.images import ImageReadError
from skjepa.pretraining.images import RECIPE, train_encoder
from skjepa.pretraining.loop import CollapseWarning

QUICK = dataclasses.replace(RECIPE, epochs=2, batch_size=16, n_directions=16, projector_width=16, precision="float32")
pytestmark = pytest.mark.filterwarnings("ignore::skjepa.pretraining.loop.CollapseWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for i, image in enumerate(random_images(40, seed=3)):
        Image.fromarray(image).resize((40, 24)).save(root / f"{i:02d}.png")
    return root


@pytest.mark.parametrize("network", ["convnet", "vit"])
def test_a_folder_becomes_an_encoder(folder, tmp_path, network):
    path = tmp_path / "my.safetensors"
    trained = train_encoder(folder, path, network=network, image_size=16, n_components=4, config=QUICK)
    assert (trained.path, trained.n_images, trained.skipped) == (path, 40, {})
    encoder = load_encoder(path)
    assert encoder.input_shape == (3, 16, 16)
    records = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
    assert records == trained.history
    assert {"participation_ratio", "normality", "eigenvalue_min", "loss"} <= set(records[-1])
    scores = JEPAScoreDetector(encoder).fit(folder).score_samples(folder)
    assert np.isfinite(scores).all()


def test_the_encoder_sees_what_it_was_trained_on(folder, tmp_path):
    """Outputs are whitened on the training images as `load_encoder` prepares them: zero mean, covariance one."""
    encoder = load_encoder(
        train_encoder(folder, tmp_path / "a.safetensors", image_size=16, n_components=4, config=QUICK).path
    )
    z = JEPAScoreDetector(encoder).extract(folder).embeddings
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(np.cov(z.T), np.eye(4), atol=2e-3)


def test_same_seed_same_weights_and_resume_changes_nothing(folder, tmp_path):
    def weights(name, **options):
        path = tmp_path / f"{name}.safetensors"
        train_encoder(folder, path, image_size=16, n_components=4, **options)
        return torch.cat([p.flatten() for p in load_encoder(path).module.parameters()])

    whole = weights("a", config=QUICK)
    assert torch.equal(whole, weights("b", config=QUICK))
    assert torch.equal(whole, weights("b", config=QUICK, resume=True))  # finished: nothing is left to train
    assert not torch.equal(whole, weights("c", config=dataclasses.replace(QUICK, seed=1), keep_checkpoint=True))
    with pytest.raises(ValueError, match="other settings of seed"):
        weights("c", config=QUICK, resume=True)


def test_collapse_is_said_and_the_encoder_kept(folder, tmp_path):
    config = dataclasses.replace(QUICK, objective="invariance", projector_objective=None, epochs=12, warmup=0.0)
    with pytest.warns(CollapseWarning):
        train_encoder(folder, tmp_path / "flat.safetensors", image_size=16, n_components=32, config=config)
    assert load_encoder(tmp_path / "flat.safetensors").input_shape == (3, 16, 16)


def test_a_finished_run_leaves_the_encoder_and_its_statistics(folder, tmp_path):
    out = tmp_path / "a.safetensors"
    train_encoder(folder, out, image_size=16, n_components=4, config=QUICK)
    assert sorted(path.name for path in tmp_path.glob("a.*")) == ["a.jsonl", "a.safetensors"]
    (tmp_path / "plain").touch()
    assert {path.stat().st_mode for path in tmp_path.glob("a.*")} == {(tmp_path / "plain").stat().st_mode}
    train_encoder(folder, out, image_size=16, n_components=4, config=QUICK, keep_checkpoint=True)
    assert (tmp_path / "a.checkpoint.pt").exists()


def test_broken_images_stop_or_are_named(folder, tmp_path):
    for i, path in enumerate(sorted(folder.iterdir())[:20]):
        (tmp_path / f"{i}.png").write_bytes(path.read_bytes())
    (tmp_path / "bad.png").write_text("no picture")
    out = tmp_path / "a.safetensors"
    with pytest.raises(ImageReadError, match=r"bad\.png"):
        train_encoder(tmp_path, out, image_size=16, config=QUICK)
    assert not list(tmp_path.glob("a.*"))
    with pytest.warns(UserWarning, match=r"skipped .*bad\.png"):
        trained = train_encoder(tmp_path, out, image_size=16, n_components=4, config=QUICK, on_error="skip")
    assert list(trained.skipped) == ["bad.png"]
    assert trained.n_images == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "resnet"}, "network must be one of 'convnet', 'vit'"),
        ({"network": "vit", "image_size": 20}, "multiple of 8"),
        ({"image_size": 4}, "image_size must be at least 8"),
        ({"config": dataclasses.replace(QUICK, objective="magic")}, "objective must be one of"),
        ({"config": dataclasses.replace(QUICK, epochs=0)}, "epochs must be at least 1"),
    ],
)
def test_settings_are_checked(folder, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        train_encoder(folder, tmp_path / "a.safetensors", **{"config": QUICK, **options})
    assert not list(tmp_path.iterdir())


def test_vectors_and_other_names_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="VectorJEPA"):
        train_encoder(np.zeros((20, 3)), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        train_encoder(folder, tmp_path / "a.pt")


def test_images_that_do_not_fit_into_memory_are_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("skjepa.pretraining.images.default_budget", lambda device: 1000)
    with pytest.raises(MemoryError, match="40 images of 16x16"):
        train_encoder(folder, tmp_path / "a.safetensors", image_size=16, config=QUICK)
