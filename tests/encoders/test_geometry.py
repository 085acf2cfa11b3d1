import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import Compose, InterpolationMode, RandomHorizontalFlip, Resize, ToTensor

from skjepa.encoders.geometry import placement
from skjepa.encoders.preprocessing import callable_preprocessing, plain_preprocessing


@pytest.mark.parametrize(("height", "width"), [(48, 48), (96, 64), (60, 200), (31, 47), (500, 380)])
def test_resize_and_centre_crop_are_undone(height, width):
    preprocessing = plain_preprocessing(32, None, None)
    found = placement(preprocessing, (height, width))

    step = min(height, width) / 32
    assert found.vertical.step == pytest.approx(step, rel=0.02)
    assert found.horizontal.step == pytest.approx(step, rel=0.02)
    # the middle of the input is the middle of the picture, within the pixel by which a crop rounds
    for axis, side in ((found.vertical, height), (found.horizontal, width)):
        assert axis.start + axis.step * 15.5 == pytest.approx((side - 1) / 2, abs=0.75 * step)


def test_a_whole_picture_that_is_squeezed_is_covered_to_its_corners():
    squeeze = Compose([Resize((32, 32), interpolation=InterpolationMode.BICUBIC, antialias=True), ToTensor()])
    found = placement(callable_preprocessing(squeeze, None), (90, 200))

    assert found.vertical.step == pytest.approx(90 / 32, rel=0.01)
    assert found.horizontal.step == pytest.approx(200 / 32, rel=0.01)
    assert np.isfinite(found.to_picture(np.zeros((4, 4)))).all()
    assert found.box((slice(0, 4), slice(0, 4)), (4, 4)) == (0, 0, 200, 90)


def test_outside_of_the_crop_there_is_no_value():
    found = placement(plain_preprocessing(32, None, None), (64, 128)).to_picture(np.ones((4, 4)))

    assert found.shape == (64, 128)
    assert np.isnan(found[:, :31]).all()
    assert np.isnan(found[:, 97:]).all()
    np.testing.assert_allclose(found[:, 34:94], 1)


def test_a_bright_square_comes_back_where_it_was():
    preprocessing = plain_preprocessing(64, None, None)
    picture = np.zeros((150, 120, 3), dtype=np.uint8)
    picture[70:90, 30:50] = 255
    seen = preprocessing.load(Image.fromarray(picture), preprocessing_dtype())[0].numpy()

    back = placement(preprocessing, (150, 120)).to_picture(seen)
    rows, columns = np.nonzero(np.nan_to_num(back) > 0.5)
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == pytest.approx((70, 90, 30, 50), abs=1.5)


def preprocessing_dtype():
    import torch

    return torch.float64


def test_a_mirror_is_refused():
    mirrored = Compose([Resize((32, 32)), RandomHorizontalFlip(1.0), ToTensor()])
    with pytest.raises(ValueError, match="does not keep places"):
        placement(callable_preprocessing(mirrored, None), (64, 64))
