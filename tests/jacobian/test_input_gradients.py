"""Gradients of linear layers, from other kernels than torch's own rule takes, against that rule."""

import pytest
import torch
import torch.nn.functional as F

from skjepa.jacobian import input_gradients
from skjepa.jacobian.rows import jacobian


def randn(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


CONVOLUTIONS = {
    "phases, patches": (3, 5, (4, 4), {"stride": (4, 4)}),
    "phases, overlapping": (3, 5, (4, 4), {"stride": (2, 2), "padding": (1, 1)}),
    "phases, taps that do not divide": (2, 5, (7, 5), {"stride": (2, 3), "padding": (3, 1)}),
    "phases, one side": (4, 5, (3, 3), {"stride": (1, 2), "padding": (1, 2)}),
    "phases, uncovered rim": (3, 5, (2, 3), {"stride": (5, 4)}),
    "blocks": (3, 5, (3, 3), {"padding": (1, 1)}),
    "blocks, even kernel": (1, 5, (2, 4), {"padding": (0, 3)}),
    "blocks, wide padding": (3, 5, (3, 3), {"padding": (3, 1)}),
    "few, dilated": (3, 5, (3, 3), {"dilation": (2, 1), "stride": (2, 2)}),
    "many": (6, 8, (3, 3), {"stride": (2, 2), "padding": (1, 1)}),
    "many, dilated, uncovered": (6, 8, (3, 2), {"stride": (3, 2), "dilation": (2, 3)}),
    "many, pointwise with a stride": (6, 8, (1, 1), {"stride": (2, 2)}),
    "many, pointwise": (6, 8, (1, 1), {}),
    "many, pointwise and padded": (6, 8, (1, 1), {"padding": (1, 2)}),
    "grouped": (6, 9, (3, 3), {"groups": 3, "padding": (2, 0)}),
    "each channel alone": (6, 6, (5, 5), {"groups": 6, "padding": (2, 2)}),
}


@pytest.mark.parametrize("size", [(12, 14), (13, 15), (14, 13)])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name, channels_last, size):
    n_inputs, n_outputs, kernel_size, given = CONVOLUTIONS[name]
    how = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1} | given
    x = randn(2, n_inputs, *size).requires_grad_(True)
    weight = randn(n_outputs, n_inputs // how["groups"], *kernel_size, seed=1)
    if channels_last:
        weight = weight.contiguous(memory_format=torch.channels_last)
    output = F.conv2d(x, weight, **how)
    gradient = randn(*output.shape, seed=2)
    if channels_last:
        gradient = gradient.contiguous(memory_format=torch.channels_last)
    (expected,) = torch.autograd.grad(output, x, gradient)
    below = input_gradients.of_convolution(weight, x.shape, how)
    torch.testing.assert_close(below(gradient), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(below(2 * gradient), 2 * expected, rtol=1e-12, atol=1e-12)  # what is kept stays


SMALL_IMAGES = {
    "two by two": ((2, 2), (3, 3), {"padding": (1, 1)}),
    "one pixel": ((1, 1), (3, 3), {"padding": (1, 1)}),
    "with a stride": ((2, 3), (3, 3), {"padding": (1, 1), "stride": (2, 2)}),
    "far outside": ((2, 2), (5, 3), {"padding": (4, 2), "stride": (1, 3)}),
    "larger than the kernel on one side": ((5, 1), (3, 3), {"padding": (1, 2)}),
    "without padding": ((3, 2), (3, 2), {}),
}


@pytest.mark.parametrize("name", SMALL_IMAGES)
def test_convolutions_of_images_smaller_than_their_kernel(name):
    size, kernel_size, given = SMALL_IMAGES[name]
    how = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1} | given
    x = randn(20, 6, *size).requires_grad_(True)
    weight = randn(8, 6, *kernel_size, seed=1).contiguous(memory_format=torch.channels_last)
    output = F.conv2d(x, weight, **how)
    gradient = randn(*output.shape, seed=2)
    (expected,) = torch.autograd.grad(output, x, gradient)
    below = input_gradients.of_convolution(weight, x.shape, how)
    assert ("_by_matrix" in str(below)) == (name != "without padding")
    torch.testing.assert_close(below(gradient), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("faster", [False, True])
@pytest.mark.parametrize("shape", [(1, 700, 96), (2, 20, 30, 96), (9, 96), (700, 96)])
def test_linear_layers(monkeypatch, shape, faster):
    monkeypatch.setattr(input_gradients, "convolutions_are_faster", lambda: faster)
    taken = []
    by_convolution = input_gradients.product_by_convolution
    monkeypatch.setattr(
        input_gradients, "product_by_convolution", lambda *args: taken.append(1) or by_convolution(*args)
    )
    gradient, weight = randn(*shape, dtype=torch.float32), randn(96, 160, dtype=torch.float32, seed=1)
    below = input_gradients.of_linear(weight)(gradient)
    torch.testing.assert_close(below.double(), gradient.double() @ weight.double(), rtol=1e-5, atol=1e-4)
    assert bool(taken) == (faster and shape != (9, 96))


def test_pointwise_convolutions_by_pixels(monkeypatch):
    monkeypatch.setattr(input_gradients, "convolutions_are_faster", lambda: True)
    weight = randn(64, 96, 1, 1, dtype=torch.float32)
    gradient = randn(3, 64, 20, 30, dtype=torch.float32, seed=1)
    how = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
    below = input_gradients.of_convolution(weight, torch.Size((3, 96, 20, 30)), how)
    expected = torch.einsum("bohw,oi->bihw", gradient.double(), weight[:, :, 0, 0].double())
    for layout in (torch.contiguous_format, torch.channels_last):
        found = below(gradient.contiguous(memory_format=layout))
        assert found.is_contiguous(memory_format=layout)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


def test_float64_and_slices_of_a_gradient(monkeypatch):
    monkeypatch.setattr(input_gradients, "convolutions_are_faster", lambda: True)
    weight = randn(96, 160)
    gradient = randn(700, 192)[:, ::2]
    assert torch.equal(input_gradients.of_linear(weight)(gradient), gradient @ weight)
    narrow = input_gradients.of_linear(weight.float())(gradient.float())
    torch.testing.assert_close(narrow.double(), gradient @ weight, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "capability", "faster"),
    [("AMD EPYC", "AVX512", True), ("AMD EPYC", "AVX2", False), ("Intel(R) Xeon(R)", "AVX512", False)],
)
def test_the_way_is_told_by_the_processor(monkeypatch, name, capability, faster):
    # By the clock two runs could take different ways, and their scores would differ by rounding.
    monkeypatch.setattr(input_gradients, "processor", lambda: name)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert input_gradients.convolutions_are_faster.__wrapped__() is faster


def test_positions_of_an_image():
    # ConvNeXt and Swin have linear layers of (B, H, W, C).
    weight = randn(3, 4)

    def function(x):
        return F.linear(x.view(-1, 4, 5, 4), weight).flatten(1)

    x = randn(2, 80)
    torch.testing.assert_close(jacobian(function, x)[1], jacobian(function, x, mode="forward")[1])
