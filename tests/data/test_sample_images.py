import numpy as np

from skjepa.data.sample_images import demo_images


def test_real_images_used_once():
    images = demo_images(seed=0)
    assert list(images) == ["fit", "photographs", "MRI scan", "elevation model", "digits"]
    for group in images.values():
        assert group.dtype == np.uint8
        assert group.shape[1:] == (32, 32, 3)
        assert len(group) > 30
    tiles = np.concatenate([images["fit"], images["photographs"]])
    assert len(np.unique(tiles.reshape(len(tiles), -1), axis=0)) == len(tiles)


def test_the_seed_decides_the_split():
    assert np.array_equal(demo_images(3)["fit"], demo_images(3)["fit"])
    assert not np.array_equal(demo_images(3)["fit"], demo_images(4)["fit"])
