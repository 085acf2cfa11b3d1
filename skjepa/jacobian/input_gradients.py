"""Compute gradients of linear layers with respect to their input, by kernels that are fast for many passes.

Such a gradient is linear in the gradient of the output and depends on the input only by its shape.
`torch.nn.grad.conv2d_input` and torch's own rule still pass the whole input to the kernel.
"""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from skjepa._utils.hardware import processor

_FEW_CHANNELS = 4  # input channels; kernels for gradients of convolutions are made for more
_ROWS_FOR_A_MATRIX = 16  # smallest batch; building the matrix of a convolution takes as long as some passes
_LARGEST_MATRIX = 2**22
_LAST = torch.channels_last
_WORTHWHILE = 2**23  # multiplications per product; below, the call costs more than it gains


def has_few_channels(weight: Tensor, groups: int) -> bool:
    """Return whether a convolution has few input channels, like a stem, so that phases compute its gradient faster."""
    return groups == 1 and weight.shape[1] <= _FEW_CHANNELS


def of_convolution(weight: Tensor, shape: torch.Size, how: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    """Return a function from the gradient at the output of a 2-D convolution to the gradient at its input.

    Parameters
    ----------
    weight : Tensor of shape (C_out, C_in / groups, k_h, k_w)
    shape : torch.Size
        Shape of the input, (B, C_in, H, W).
    how : dict
        ``stride``, ``padding`` and ``dilation``, each a pair, and ``groups``.

    Returns
    -------
    callable
        (B, C_out, H_out, W_out) -> (B, C_in, H, W)
    """
    stride, padding, dilation = how["stride"], how["padding"], how["dilation"]
    if has_few_channels(weight, how["groups"]) and dilation == (1, 1):
        if stride != (1, 1):
            return _by_phases(weight, shape, stride, padding)
        if shape[2] % 2 == shape[3] % 2 == 0 and max(padding) < min(weight.shape[2:]):
            return _by_blocks(weight, shape, padding)
    if how["groups"] == 1 and dilation == (1, 1) and _is_small(weight, shape):
        return _by_matrix(weight, shape, stride, padding)
    sizes = zip(shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    uncovered = [(size + 2 * p - d * (k - 1) - 1) % s for size, k, s, p, d in sizes]
    transposed = partial(F.conv_transpose2d, weight=weight, output_padding=uncovered, **how)
    is_pointwise = weight.shape[2:].numel() == how["groups"] == 1 and (stride, padding) == ((1, 1), (0, 0))
    return _by_pixels(weight, transposed) if is_pointwise and _takes_convolutions(weight) else transposed


def _by_pixels(weight: Tensor, transposed: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Handle a 1x1 convolution as a product of rows of pixels, which torch with one thread computes without oneDNN."""
    product = of_linear(weight[:, :, 0, 0])

    def below(gradient: Tensor) -> Tensor:
        rows = gradient.permute(0, 2, 3, 1)
        if not rows.is_contiguous():
            return transposed(gradient)
        return product(rows).permute(0, 3, 1, 2)

    return below


def _by_phases(weight: Tensor, shape: torch.Size, stride: Any, padding: Any) -> Callable[[Tensor], Tensor]:
    """Handle a convolution with a stride by a convolution without stride and more channels.

    With stride s, each s x s block of the input becomes s^2 C_in channels of one pixel. The gradient is then a
    convolution without stride whose kernel has k / s taps.
    """
    (height, width), kernel_size = shape[2:], weight.shape[2:]
    taps = [-(-k // s) for k, s in zip(kernel_size, stride, strict=True)]
    rim = [m * s - k for m, s, k in zip(taps, stride, kernel_size, strict=True)]
    split = F.pad(weight, (0, rim[1], 0, rim[0])).unflatten(3, (taps[1], stride[1])).unflatten(2, (taps[0], stride[0]))
    kernel = _laid_out_as(weight, split.flip(2, 4).permute(1, 3, 5, 0, 2, 4).flatten(0, 2))
    before = [m - 1 for m in taps]

    def below(gradient: Tensor) -> Tensor:
        image = _unfolded(F.conv2d(gradient, kernel, padding=before), stride)
        bottom, right = height + padding[0] - image.shape[2], width + padding[1] - image.shape[3]
        if max(bottom, right) > 0:  # pixels that no patch covers
            image = F.pad(image, (0, max(right, 0), 0, max(bottom, 0)))
        return image[:, :, padding[0] : padding[0] + height, padding[1] : padding[1] + width]

    return below


def _by_blocks(weight: Tensor, shape: torch.Size, padding: Any) -> Callable[[Tensor], Tensor]:
    """Handle a convolution without stride and with few channels by computing blocks of 2 x 2 pixels at a time.

    The channels of four pixels fill processor registers better than those of one. The kernel holds the flipped kernel
    at each of its four places in a block.
    """
    flipped = weight.flip(2, 3).transpose(0, 1)
    places = [F.pad(flipped, (right, 1 - right, down, 1 - down)) for down in (0, 1) for right in (0, 1)]
    kernel = _laid_out_as(weight, torch.stack(places, dim=1).flatten(0, 1))
    before = [k - 1 - p for k, p in zip(weight.shape[2:], padding, strict=True)]
    return lambda gradient: _unfolded(F.conv2d(gradient, kernel, stride=2, padding=before), (2, 2))


def _is_small(weight: Tensor, shape: torch.Size) -> bool:
    """Return whether the image has fewer pixels than the kernel has taps, so that most taps lie outside it."""
    pixels = shape[2:].numel()
    is_worthwhile = shape[0] >= _ROWS_FOR_A_MATRIX and weight.shape[:2].numel() * pixels**2 <= _LARGEST_MATRIX
    return is_worthwhile and pixels < weight.shape[2:].numel() and weight.is_contiguous(memory_format=_LAST)


def _by_matrix(weight: Tensor, shape: torch.Size, stride: Any, padding: Any) -> Callable[[Tensor], Tensor]:
    """Handle a convolution of a small image as one matrix from all inputs to all outputs."""
    n_out, (height, width) = len(weight), shape[2:]
    k_h, k_w = weight.shape[2:]
    sizes = zip(shape[2:], weight.shape[2:], stride, padding, strict=True)
    h_out, w_out = ((n + 2 * p - k) // s + 1 for n, k, s, p in sizes)
    matrix = weight.new_zeros(h_out, w_out, n_out, height, width, shape[1])
    for i in range(h_out):
        for j in range(w_out):
            top, left = i * stride[0] - padding[0], j * stride[1] - padding[1]
            rows, columns = (slice(max(-first, 0), n - first) for first, n in ((top, height), (left, width)))
            inside = weight[:, :, rows, columns].permute(0, 2, 3, 1)
            covered = matrix[i, j, :, max(top, 0) : top + k_h, max(left, 0) : left + k_w]
            covered.copy_(inside)
    product = of_linear(matrix.flatten(3).flatten(0, 2))

    def below(gradient: Tensor) -> Tensor:
        image = product(gradient.permute(0, 2, 3, 1).flatten(1))
        return image.view(-1, height, width, shape[1]).permute(0, 3, 1, 2)

    return below


def _unfolded(phases: Tensor, block: Any) -> Tensor:
    """(B, C b_h b_w, H, W) -> (B, C, H b_h, W b_w)."""
    n, _, height, width = phases.shape
    split = phases.reshape(n, -1, *block, height, width).permute(0, 1, 4, 2, 5, 3)
    return split.reshape(n, -1, height * block[0], width * block[1])


def _laid_out_as(weight: Tensor, kernel: Tensor) -> Tensor:
    is_last = weight.is_contiguous(memory_format=_LAST)
    return kernel.contiguous(memory_format=_LAST if is_last else torch.contiguous_format)


def of_linear(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a function from the gradient at the output of a linear layer, (..., C_out), to that at its input.

    The result has shape (..., C_in). On some processors torch's float32 matrix products are half as fast as its
    convolutions, because MKL uses AVX2 where oneDNN uses AVX-512. There the product is computed as a 1x1 convolution.
    """
    if not _takes_convolutions(weight):
        return lambda gradient: gradient @ weight
    kernel = weight[:, :, None, None]

    def below(gradient: Tensor) -> Tensor:
        rows = gradient.reshape(-1, gradient.shape[-1])
        if len(rows) * weight.numel() < _WORTHWHILE:
            return gradient @ weight
        return product_by_convolution(rows, kernel).view(*gradient.shape[:-1], -1)

    return below


def _takes_convolutions(weight: Tensor) -> bool:
    is_single = weight.dtype == torch.float32 and weight.device.type == "cpu"
    return is_single and convolutions_are_faster()


def product_by_convolution(rows: Tensor, kernel: Tensor) -> Tensor:
    """Multiply rows (n, C_out) by a kernel (C_out, C_in, 1, 1), with the rows as pixels of an image of height one.

    The stride along the height has no effect there, but with one thread torch uses oneDNN only if there is a stride.
    """
    pixels = rows.contiguous().view(1, 1, *rows.shape).permute(0, 3, 1, 2)
    return F.conv_transpose2d(pixels, kernel, stride=(2, 1))[0, :, 0].mT


@functools.cache
def convolutions_are_faster() -> bool:
    """Return whether this processor, from AMD with AVX-512, multiplies float32 matrices faster by convolutions.

    Decided by name and not by timing, since the two ways round differently and two runs must agree.
    """
    has_avx512 = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return has_avx512 and "AMD" in processor()
