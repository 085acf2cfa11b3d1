"""From a picture to the tensor a module receives."""

import functools

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision import transforms
from torchvision.transforms import functional as F

from skjepa.encoders.description import describe, without_addresses
from skjepa.encoders.preprocessing import Preprocessing, channel_statistics, plain_preprocessing


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return load_sample_image("flower.jpg")


@pytest.fixture
def plain() -> Preprocessing:
    return plain_preprocessing(32, (0.5, 0.4, 0.3), (0.1, 0.2, 0.4))


class TestPlain:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_shorter_side_then_centre(self, plain, pixels, dtype):
        loaded = plain.load(Image.fromarray(pixels), dtype)
        by_hand = F.center_crop(F.resize(Image.fromarray(pixels), 32, F.InterpolationMode.BICUBIC), [32, 32])
        assert loaded.dtype == dtype
        expected = torch.from_numpy(np.asarray(by_hand).transpose(2, 0, 1) / 255)
        torch.testing.assert_close(loaded, expected.to(dtype), rtol=0, atol=1e-7)

    def test_arrays_take_the_path_of_pictures(self, plain, pixels):
        as_picture = plain.load(Image.fromarray(pixels), torch.float32)
        assert torch.equal(plain.load(pixels, torch.float32), as_picture)

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
    def test_floats_keep_their_precision(self, plain, pixels, dtype):
        """Near what 8 bits give, and not rounded to them."""
        rounded = plain.load(pixels, torch.float64)
        kept = plain.load((pixels / 255).astype(dtype), torch.float64)
        # Pillow rounds and clips after each of its two passes, torch after the last.
        assert (kept - rounded).abs().mean() < 1 / 255
        assert (kept - rounded).abs().max() < 5 / 255
        assert not torch.equal(kept * 255, (kept * 255).round())

    def test_tensors_and_arrays_agree(self, plain, pixels):
        array = pixels / 255
        tensor = torch.from_numpy(array).permute(2, 0, 1)
        assert torch.equal(plain.load(array, torch.float64), plain.load(tensor, torch.float64))

    @pytest.mark.parametrize("order", ["C", "channels first"])
    def test_read_only_arrays(self, plain, pixels, order):
        array = (
            pixels / 255 if order == "C" else np.ascontiguousarray(pixels.transpose(2, 0, 1) / 255).transpose(1, 2, 0)
        )
        array.flags.writeable = False
        assert plain.load(array, torch.float64).shape == (3, 32, 32)

    def test_same_size_is_untouched(self, pixels):
        tile = pixels[:32, :32]
        loaded = plain_preprocessing(32, None, None).load(tile, torch.float64)
        torch.testing.assert_close(loaded, torch.from_numpy(tile.transpose(2, 0, 1) / 255.0), rtol=0, atol=1e-15)

    def test_small_and_odd_pictures(self, plain):
        for size in ((1, 1), (1, 50), (33, 31)):
            assert plain.load(np.zeros((*size, 3), np.uint8), torch.float32).shape == (3, 32, 32)

    def test_normalise(self, plain):
        batch = torch.rand(2, 3, 4, 4, dtype=torch.float64)
        normalised = plain.normalise(batch)
        for channel, (mean, std) in enumerate(zip(plain.mean, plain.std, strict=True)):
            torch.testing.assert_close(normalised[:, channel], (batch[:, channel] - mean) / std)
        assert torch.equal(plain_preprocessing(4, None, None).normalise(batch), batch)


def test_no_overshoot():
    """Bicubic interpolation leaves [0, 1] at an edge; a view's transform counts on it."""
    import timm

    from skjepa.encoders.timm_models import timm_preprocessing

    model = timm.create_model("test_resnet", pretrained_cfg_overlay={"interpolation": "bicubic"})
    preprocessing = timm_preprocessing(model, image_size=20, mean=None, std=None)
    edge = torch.zeros(3, 15, 15, dtype=torch.float64)
    edge[:, :, 7:] = 1
    assert preprocessing.settings["interpolation"] == "bicubic"
    loaded = preprocessing.load(edge, torch.float64)
    assert loaded.min() == 0
    assert loaded.max() == 1


class TestChannelStatistics:
    def test_defaults(self):
        assert channel_statistics(None, None) == ((0.0,) * 3, (1.0,) * 3)
        assert channel_statistics(np.array([0.1, 0.2, 1]), None)[0] == (0.1, 0.2, 1.0)

    @pytest.mark.parametrize(
        ("mean", "std", "message"),
        [
            ((1, 2), None, "mean and std need three values"),
            (None, (1, 1, 1, 1), "mean and std need three values"),
            (None, (1, 0, 1), "positive"),
            (None, (1, -1, 1), "positive"),
            ((0, float("nan"), 0), None, "finite"),
            ((123.675, 116.28, 103.53), None, r"mean must be of pixels in \[0, 1\]"),
            (None, (1, float("nan"), 1), "finite"),
            (None, (1, float("inf"), 1), "finite"),
        ],
    )
    def test_refused(self, mean, std, message):
        with pytest.raises(ValueError, match=message):
            channel_statistics(mean, std)


class Scale:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        return self.factor * x


class Holder:
    def __init__(self):
        self.inner = Scale(1)

    def method(self, x):
        return x


class TestDescribeCallable:
    """The same words for the same function in every process, other words for another."""

    def test_parameters_count(self):
        assert describe(Scale(1)) == describe(Scale(1))
        assert describe(Scale(1)) != describe(Scale(2))
        add = functools.partial(max, 1)
        assert describe(add) == describe(functools.partial(max, 1))
        assert describe(add) != describe(functools.partial(max, 2))
        assert describe(functools.partial(max, key=abs)) != describe(functools.partial(min, key=abs))

    def test_what_it_carries_counts_to_the_bottom(self):
        def scaled(by):
            return transforms.Compose([transforms.Lambda(lambda x: x * by), Scale(1)])

        assert describe(scaled(1)) == describe(scaled(1))
        assert describe(scaled(1)) != describe(scaled(9))
        assert describe(transforms.Lambda(lambda x: x + 1)) != describe(transforms.Lambda(lambda x: x + 2))

    def test_code_counts(self):
        first = lambda x: x + 1  # noqa: E731
        second = lambda x: x + 2  # noqa: E731
        assert describe(first) != describe(second)

    @pytest.mark.parametrize(
        "function", [lambda x: x, Scale(1), Holder().method, functools.partial(Scale(1)), Holder(), np.sum, F.resize]
    )
    def test_no_address(self, function):
        assert " at 0x" not in describe(function)

    def test_code_without_a_file(self):
        namespace: dict = {"__name__": "typed"}
        exec("def f(x): return x", namespace)
        assert describe(namespace["f"]).startswith("typed.f")
        other: dict = {"__name__": "typed"}
        exec("def f(x): return 2 * x", other)
        assert describe(other["f"]) != describe(namespace["f"])
        assert describe(namespace["f"]) == describe(namespace["f"])

    def test_without_addresses(self):
        assert without_addresses("<f at 0x7fA0> and <g at 0x1>") == "<f> and <g>"
