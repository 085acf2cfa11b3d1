"""Detectors of embeddings, given images: one forward pass each, the same scores as of an Extraction."""

import numpy as np
import pytest
from oracles import conv_net, random_images
from PIL import Image
from pyod.models.ecod import ECOD
from sklearn.base import clone
from sklearn.ensemble import IsolationForest
from torch.nn import functional

from skjepa import EmbeddingDetector, KNNDetector, MahalanobisDetector, VectorJEPA, embed, extract, load_encoder, prune
from skjepa.encoders import FingerprintError

IMAGES = random_images(48)
NORMAL, NEW = IMAGES[:40], IMAGES[40:]
KINDS = {
    "mahalanobis": MahalanobisDetector(normalize=True),
    "sum of layers": MahalanobisDetector(layer="sum"),
    "knn": KNNDetector(n_neighbors=3),
    "layers": KNNDetector(layer="concatenated"),
    "forest": EmbeddingDetector(IsolationForest(random_state=0)),
    "ecod": EmbeddingDetector(ECOD()),
    "folds": KNNDetector(target_fpr=0.1),
}


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(conv_net(), image_size=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i, image in enumerate(IMAGES):
        part = folder / ("normal" if i < 40 else "new")
        part.mkdir(exist_ok=True)
        Image.fromarray(image).save(part / f"{i:02d}.png")
    return folder


@pytest.fixture
def passes(monkeypatch):
    """Samples that have gone through the encoder from now on, beside the looks at it."""
    call, calls = functional.conv2d, []

    def counted(x, weight, *args, **kwargs):
        if weight.shape[1] == 3 and len(x) > 3:
            calls.append(len(x))
        return call(x, weight, *args, **kwargs)

    monkeypatch.setattr(functional, "conv2d", counted)
    return calls


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_is_embedded(kind, encoder, folder):
    """As by hand: extract, then fit."""
    layers = "auto" if getattr(KINDS[kind], "layer", None) else None
    normal, new = (extract(encoder, folder / part, method="forward", layers=layers) for part in ("normal", "new"))
    by_hand = clone(KINDS[kind]).fit(normal)
    detector = clone(KINDS[kind]).set_params(encoder=encoder).fit(folder / "normal")
    np.testing.assert_allclose(detector.score_samples(folder / "new"), by_hand.score_samples(new), rtol=1e-6)
    np.testing.assert_array_equal(detector.predict(str(folder / "new")), by_hand.predict(new))
    assert detector.encoder_ is encoder
    assert by_hand.encoder_ is None
    assert detector.score_samples(folder / "new" / "40.png").shape == (1,)


@pytest.mark.parametrize("kind", ["mahalanobis", "folds"])
def test_one_pass(kind, encoder, passes):
    detector = clone(KINDS[kind]).set_params(encoder=encoder).fit(NORMAL)
    assert sum(passes) == 40
    passes.clear()
    found = detector.judge(NEW)
    assert sum(passes) == 8
    np.testing.assert_array_equal(found.scores, detector.score_samples(NEW))


def test_the_encoder_is_chosen():
    detector = KNNDetector().fit(NORMAL)
    np.testing.assert_allclose(
        detector.score_samples(NEW), KNNDetector(encoder=detector.encoder_).fit(NORMAL).score_samples(NEW), rtol=1e-6
    )


@pytest.mark.parametrize("kind", ["sum of layers", "knn", "folds"])
def test_save_and_load(kind, encoder, tmp_path):
    detector = clone(KINDS[kind]).set_params(encoder="bundled").fit(NORMAL)
    detector.save(tmp_path / "detector")
    loaded = type(detector).load(tmp_path / "detector")
    np.testing.assert_array_equal(loaded.score_samples(NEW), detector.score_samples(NEW))
    own = clone(detector).set_params(encoder=encoder).fit(NORMAL)
    own.save(tmp_path / "own")
    with pytest.raises(ValueError, match="give it as encoder="):
        type(own).load(tmp_path / "own")
    loaded = type(own).load(tmp_path / "own", encoder=encoder)
    np.testing.assert_array_equal(loaded.score_samples(NEW), own.score_samples(NEW))


def test_bad_images_are_skipped_and_flagged(encoder, folder, tmp_path):
    (tmp_path / "a.png").write_bytes(b"broken")
    Image.fromarray(NEW[0]).save(tmp_path / "b.png")
    detector = MahalanobisDetector(encoder=encoder, on_error="skip", calibration=0.3).fit(folder / "normal")
    with pytest.warns(UserWarning, match="skipped"):
        found = detector.judge(tmp_path)
    assert found.labels[0] == -1
    assert np.isnan(found.scores[0])
    np.testing.assert_allclose(found.scores[1:], detector.score_samples(NEW[:1]), rtol=1e-6)
    with pytest.warns(UserWarning, match="skipped"):
        some = MahalanobisDetector(encoder=encoder, on_error="skip", relative=True).fit(
            [tmp_path / "a.png", *sorted((folder / "normal").iterdir())], np.arange(41) % 2
        )
    assert some.n_samples_fit_ == 40


def test_a_collection_is_pruned_by_one_pass(encoder, folder, passes, tmp_path):
    """With and without a clean reference; a store keeps the pass."""
    made = extract(encoder, folder, method="forward", layers=None)
    passes.clear()
    pruned = prune(folder, keep=0.9, detector=KNNDetector(encoder=encoder), store=tmp_path / "store")
    assert sum(passes) == 48
    np.testing.assert_array_equal(pruned.kept, prune(made, keep=0.9, detector=KNNDetector()).kept)
    passes.clear()
    prune(folder, keep=0.9, detector=KNNDetector(encoder=encoder), store=tmp_path / "store")
    assert not passes
    clean = prune(folder / "new", target_fpr=0.2, normal=folder / "normal", detector=KNNDetector(encoder=encoder))
    assert sum(passes) == 48
    assert len(clean) == 8


def test_images_are_embedded_apart_from_a_fit(encoder, folder):
    detector = MahalanobisDetector(encoder=encoder, layer="sum")
    made = detector.embed_images(folder / "normal")
    np.testing.assert_allclose(
        clone(detector).fit(made).score_samples(made), detector.fit(folder / "normal").score_samples(made), rtol=1e-9
    )
    with pytest.raises(TypeError, match="X holds rows of numbers"):
        detector.embed_images(np.eye(4))


def test_rows_stay_as_they_are():
    rows = np.random.default_rng(0).normal(size=(60, 3))
    detector = KNNDetector().fit(rows)
    assert detector.encoder_ is None
    with pytest.raises(TypeError, match=r"fitted on rows of numbers, and X holds images; .* skjepa.embed"):
        detector.predict(NEW)
    with pytest.raises(TypeError, match=r"encoder= is for images.* EmbeddingTransformer\(encoder\) before"):
        KNNDetector(encoder="bundled").fit(rows)
    with pytest.raises(TypeError, match=r"make_pipeline\(EmbeddingTransformer\(VectorJEPA\(\)\), KNNDetector\(\)\)"):
        KNNDetector(encoder=VectorJEPA()).fit(rows)


def test_embeddings_of_the_same_encoder_are_scored(encoder):
    detector = KNNDetector(encoder=encoder).fit(NORMAL)
    np.testing.assert_allclose(
        detector.score_samples(embed(encoder, NEW)), detector.score_samples(NEW), rtol=1e-5, atol=1e-8
    )


def test_images_after_a_fit_on_an_extraction(encoder):
    made = extract(encoder, NORMAL, method="forward")
    expected = KNNDetector().fit(made).score_samples(extract(encoder, NEW, method="forward"))
    detector = KNNDetector(encoder=encoder).fit(made)
    np.testing.assert_allclose(detector.score_samples(NEW), expected, rtol=1e-6)
    with pytest.raises(FingerprintError, match="give the encoder of the fit, or fit again with this one"):
        KNNDetector(encoder="bundled").fit(made).score_samples(NEW)


@pytest.mark.parametrize("name", ["device", "n_jobs", "on_error", "verbose", "memory_budget"])
def test_bad_options_are_refused_before_the_pass(name, encoder, passes):
    with pytest.raises((ValueError, TypeError), match=name):
        KNNDetector(encoder=encoder, **{name: "nothing"}).fit(NORMAL)
    assert not passes
