"""Batched views against per-image expectations."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skjepa.pretraining.augmentations import VectorViewOptions, ViewOptions, training_views, vector_views

STILL = ViewOptions(scale=(1.0, 1.0), ratio=1.0, flip=False, jitter_probability=0.0, grayscale_probability=0.0)


def images(n: int = 6, size: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def draw(x: torch.Tensor, seed: int = 0, **changes) -> torch.Tensor:
    return training_views(x, torch.Generator().manual_seed(seed), options=dataclasses.replace(STILL, **changes))


def test_no_change_is_the_image_itself():
    x = images()
    torch.testing.assert_close(draw(x), x.float() / 255, atol=1e-5, rtol=0)


def test_same_generator_same_views_and_other_seed_other_views():
    x = images()
    first, again, other = (training_views(x, torch.Generator().manual_seed(s)) for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_parameters_differ_between_images_of_a_batch():
    x = images(1).expand(8, -1, -1, -1)
    views = training_views(x, torch.Generator().manual_seed(0))
    assert len({view.sum().item() for view in views}) == 8


def test_range_and_size():
    views = training_views(images(size=40), torch.Generator().manual_seed(0), size=16)
    assert views.shape == (6, 3, 16, 16)
    assert views.dtype == torch.float32
    assert views.min() >= 0
    assert views.max() <= 1


def test_flip_mirrors_about_half():
    x = images(400, size=4)
    views, plain = draw(x, flip=True), x.float() / 255
    mirrored = (views - plain.flip(3)).abs().amax((1, 2, 3)) < 1e-5
    kept = (views - plain).abs().amax((1, 2, 3)) < 1e-5
    assert (mirrored | kept).all()
    assert 120 < mirrored.sum() < 280


def test_crop_keeps_a_linear_ramp_linear_and_inside():
    ramp = torch.linspace(0, 255, 32).to(torch.uint8).view(1, 1, 1, 32).expand(50, 3, 32, 32)
    rows = draw(ramp, scale=(0.25, 0.25))[:, 0, 16]
    slopes = rows.diff(dim=1)[:, 1:-1]
    # A quarter of the area is half of the width: the slope halves.
    torch.testing.assert_close(slopes.mean(1), torch.full((50,), 1 / 62), atol=1e-3, rtol=0)
    assert rows[:, 0].std() > 0.05


def test_grey_has_equal_channels_and_keeps_luma():
    x = images()
    grey = draw(x, grayscale_probability=1.0)
    luma = (x.float() / 255 * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1)
    for channel in range(3):
        torch.testing.assert_close(grey[:, channel], luma, atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_each_colour_change_has_its_invariant(name):
    settings = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, name: 0.3}
    x = images().float().mul(0.3).add(90).to(torch.uint8)  # far from black and white, so that nothing is clipped
    plain, views = x.float() / 255, draw(x, jitter_probability=1.0, **settings)
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    luma, luma_before = (views * weights).sum(1), (plain * weights).sum(1)
    assert not torch.allclose(views, plain, atol=1e-2)
    if name == "brightness":
        ratio = views / plain
        torch.testing.assert_close(ratio, ratio[:, :1, :1, :1].expand_as(ratio), atol=1e-4, rtol=0)
    elif name == "contrast":
        torch.testing.assert_close(luma.mean((1, 2)), luma_before.mean((1, 2)), atol=1e-4, rtol=0)
    else:
        torch.testing.assert_close(luma, luma_before, atol=2e-3, rtol=0)


@pytest.mark.parametrize("bad", [torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8, 3, dtype=torch.uint8)])
def test_other_arrays_are_refused(bad):
    with pytest.raises(ValueError, match="images must be uint8 of shape"):
        training_views(bad, torch.Generator())


def test_masked_features_come_from_other_rows_of_the_same_column():
    rows = torch.arange(40.0).view(10, 4)
    views = vector_views(rows, torch.Generator().manual_seed(0), options=VectorViewOptions(noise=0.0, mask=0.5))
    changed = views != rows
    assert 0.2 < changed.float().mean() < 0.7
    assert all(set(views[:, j].tolist()) <= set(rows[:, j].tolist()) for j in range(4))
    again = vector_views(rows, torch.Generator().manual_seed(0), options=VectorViewOptions(noise=0.0, mask=0.5))
    assert torch.equal(views, again)


@given(noise=st.floats(0.01, 2.0))
def test_noise_has_the_size_that_was_asked_for(noise):
    rows = torch.zeros(2000, 5, dtype=torch.float64)
    views = vector_views(rows, torch.Generator().manual_seed(1), options=VectorViewOptions(noise=noise))
    assert views.dtype == torch.float64
    assert abs(views.std() / noise - 1) < 0.05


def test_vector_views_refuse_what_is_no_matrix_of_floats():
    for rows in (torch.zeros(4), torch.zeros(4, 2, dtype=torch.int64)):
        with pytest.raises(ValueError, match="rows must be floating point"):
            vector_views(rows, torch.Generator())
