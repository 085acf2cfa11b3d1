"""Words on how an image looks: a made change gets its word, a normal image none, on photographs that packages carry."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter
from sklearn.datasets import load_sample_images

from skjepa import JEPAScoreDetector
from skjepa.inspection.appearance import WORDS, NormalAppearance, learn_appearance, standing_out, statistics_of

RNG = np.random.default_rng(0)


def tinted(image, *factors):
    return Image.fromarray((np.asarray(image) * np.array(factors)).clip(0, 255).astype(np.uint8))


def noisy(image):
    noise = RNG.normal(0, 60, (*image.size[::-1], 1))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


CHANGES = {
    "blurrier or smoother": lambda image: image.filter(ImageFilter.GaussianBlur(4)),
    "sharper or noisier": noisy,
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.2),
    "flatter in contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.1),
    "paler": lambda image: ImageEnhance.Color(image).enhance(0.0),
    "bluer": lambda image: tinted(image, 0.5, 0.5, 1.5),
    "redder": lambda image: tinted(image, 1.5, 0.4, 0.9),
    "wider": lambda image: image.resize((400, 96)),
}


@pytest.fixture(scope="module")
def photographs():
    """Tiles of the Chinese palace, without the sky, in random order."""
    palace = Image.fromarray(load_sample_images().images[0])
    tiles = [palace.crop((x, y, x + 96, y + 96)) for x in range(0, 540, 32) for y in range(180, 330, 16)]
    tiles = [tile for tile in tiles if np.asarray(tile.convert("L")).std() > 40]
    assert len(tiles) > 120
    return [tiles[i] for i in np.random.default_rng(0).permutation(len(tiles))]


@pytest.fixture(scope="module")
def appearance(photographs):
    return learn_appearance(photographs[:-24])


@pytest.mark.parametrize("word", CHANGES)
def test_a_made_change_gets_its_word(appearance, photographs, word):
    said = [[remark.words for remark in appearance.remarks(CHANGES[word](image))] for image in photographs[-24:]]
    hits = sum(f"{word} than any normal image" in words for words in said)
    assert hits > 0.6 * len(said)


def test_a_normal_image_gets_none(appearance, photographs):
    assert not any(appearance.remarks(image) for image in photographs[:-24])  # by their own range
    assert sum(bool(appearance.remarks(image)) for image in photographs[-24:]) < 0.1 * len(photographs[-24:])


def test_every_word_is_true(appearance, photographs):
    for image in (CHANGES[word](photographs[-1]) for word in CHANGES):
        values, _ = statistics_of(image)
        for remark in appearance.remarks(image):
            if remark.statistic == "colours":
                continue
            own = values[list(WORDS).index(remark.statistic)]
            normal = [statistics_of(other)[0][list(WORDS).index(remark.statistic)] for other in photographs[:-24]]
            less, more = WORDS[remark.statistic]
            assert own < min(normal) if remark.words.startswith(less) else own > max(normal)
            assert f"{own:.3g}" in remark.numbers
            assert more or less


def test_colours_never_seen():
    grey = [Image.fromarray(np.repeat(RNG.integers(60, 200, (32, 32, 1), np.uint8), 3, axis=2)) for _ in range(20)]
    green = np.asarray(grey[0]).copy()
    green[:16] = (0, 200, 0)
    remarks = {remark.statistic: remark for remark in learn_appearance(grey[1:]).remarks(Image.fromarray(green))}
    assert remarks["colours"].words == "colours that no normal image has, on 50% of it"
    assert "50.0% of the pixels" in remarks["colours"].numbers


def test_an_image_of_one_tone_and_one_of_a_pixel(appearance):
    for size in ((32, 32), (1, 1), (2, 90)):
        values, colours = statistics_of(Image.new("RGB", size, (0, 0, 0)))
        assert np.isfinite(values).all()
        assert colours.sum() == pytest.approx(1.0)
        assert appearance.remarks(Image.new("RGB", size, (0, 0, 0)))


def test_few_normal_images_have_no_range(photographs):
    few = learn_appearance(photographs[:9])
    assert few.remarks(CHANGES["darker"](photographs[-1])) == []
    with pytest.raises(ValueError, match="none of the normal images can be read"):
        learn_appearance([])


def test_what_stands_out_of_a_collection(photographs):
    images = [*photographs[:40], CHANGES["darker"](photographs[40]), CHANGES["wider"](photographs[41])]
    found = standing_out(np.stack([statistics_of(image)[0] for image in images]))
    assert "far wider than most of the others" in [remark.words for remark in found[-1]]
    assert sum(map(bool, found[:40])) <= 4
    assert standing_out(np.zeros((3, len(WORDS)))) == [[], [], []]


def test_it_is_saved_with_the_detector_and_forgotten_by_a_new_fit(tmp_path, appearance, photographs):
    images = np.stack([np.asarray(image.resize((32, 32))) for image in photographs[:20]])
    detector = JEPAScoreDetector(method="forward").fit(images)
    detector.appearance_ = appearance
    loaded = JEPAScoreDetector.load(detector.save(tmp_path / "detector")).appearance_
    assert np.array_equal(loaded.values, appearance.values)
    assert np.array_equal(loaded.colours, appearance.colours)
    assert not hasattr(detector.fit(images), "appearance_")


def test_statistics_of_another_number_are_refused(appearance):
    with pytest.raises(ValueError, match="need 8 statistics and 37 colours"):
        NormalAppearance(appearance.values[:, 1:], appearance.colours, 0.0).portable_check()
