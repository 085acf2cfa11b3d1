"""One picture in each of its forms, and generators, wherever samples are taken."""

import io

import numpy as np
import pytest
import torch
from oracles import conv_net, random_images
from PIL import Image

from skjepa import ComplexityDetector, EmbeddingTransformer, JEPAScoreDetector, embed, extract, load_encoder
from skjepa.data import ImageReadError, as_source
from skjepa.data import one_picture as module
from skjepa.pyod import PyODDetector

IMAGES = random_images(40)


@pytest.fixture
def path(tmp_path):
    Image.fromarray(IMAGES[0]).save(tmp_path / "x.png")
    return tmp_path / "x.png"


FORMS = {
    "text": str,
    "path": lambda path: path,
    "PIL image": lambda path: Image.open(path),
    "bytes": lambda path: path.read_bytes(),
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "array": lambda path: IMAGES[0],
    "tensor": lambda path: torch.from_numpy(IMAGES[0]).movedim(2, 0) / 255,
    "generator": lambda path: (image for image in [Image.open(path)]),
    "map": lambda path: map(str, [path]),
    "list of bytes": lambda path: [path.read_bytes()],
    "column of bytes": lambda path: np.array([path.read_bytes(), None], dtype=object)[:1],
}


@pytest.fixture(scope="module")
def detector():
    encoder = load_encoder(conv_net(), image_size=32)
    return JEPAScoreDetector(encoder, method="forward", calibration=0.4, target_fpr=0.1).fit(IMAGES)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_picture(detector, path, form):
    made = FORMS[form]
    expected = detector.score_samples(IMAGES[:1])
    for found in (detector.score_samples(made(path)), detector.judge(made(path)).scores):
        assert found.shape == (1,)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert detector.predict(made(path)).shape == detector.p_values(made(path)).shape == (1,)
    assert detector.anomaly_map(made(path)).shape == (1, 32, 32)
    assert len(detector.explain(made(path))) == 1


@pytest.mark.parametrize("form", FORMS)
def test_other_doors(path, form):
    made, encoder = FORMS[form], load_encoder(conv_net(), image_size=32)
    expected = embed(encoder, IMAGES[:1])
    for found in (
        embed(encoder, made(path)),
        extract(encoder, made(path), method="forward").embeddings,
        EmbeddingTransformer(encoder).fit(IMAGES).transform(made(path)),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert ComplexityDetector().fit(IMAGES).score_samples(made(path)).shape == (1,)


def test_a_grey_picture_is_no_table(detector):
    grey = Image.fromarray(IMAGES[0]).convert("L")
    np.testing.assert_array_equal(detector.score_samples(grey), detector.score_samples(grey.convert("RGB")))


def test_bytes_are_known_as_their_file(path):
    content = path.read_bytes()
    of_bytes, of_file = as_source([content, content]), as_source(path)
    assert of_bytes.content(0) == of_bytes.content(1) == of_file.content(0)
    assert as_source(content, value_range=(0, 99)).content(0) == as_source(path, value_range=(0, 99)).content(0)
    with pytest.raises(ImageReadError, match=r"image 1: cannot be read as an image \(unknown format\)"):
        as_source([content, b"a.png"]).load(1)


def test_a_value_range_reaches_bytes():
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), 4095, dtype=np.uint16)).save(buffer, "PNG")
    assert np.asarray(as_source(buffer.getvalue(), value_range=(0, 4095)).load(0)).min() == 255


def test_a_fit_on_a_generator(path):
    encoder = load_encoder(conv_net(), image_size=32)
    detector = JEPAScoreDetector(encoder, method="forward")
    of_generator = detector.fit(Image.fromarray(image) for image in IMAGES).score_samples(IMAGES[:3])
    np.testing.assert_array_equal(of_generator, detector.fit(IMAGES).score_samples(IMAGES[:3]))
    pyod = PyODDetector(detector).fit(Image.fromarray(image) for image in IMAGES)
    assert pyod.decision_scores_.shape == (40,)
    with pytest.raises(ValueError, match="at least 2 samples; got 1"):
        detector.fit(path)


def test_what_a_generator_may_hold_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "default_budget", lambda device: 10 * IMAGES[0].nbytes)

    def endless():
        while True:
            yield IMAGES[0]

    with pytest.raises(MemoryError, match=r"first 10 items of the generator X .*give paths or a torch Dataset"):
        as_source(endless())


def test_a_file_that_is_no_picture(tmp_path):
    (tmp_path / "scores.csv").write_text("id,score\n")
    with pytest.raises(NotADirectoryError, match="is a file: give a folder, or the paths of image files"):
        as_source(tmp_path / "scores.csv")
