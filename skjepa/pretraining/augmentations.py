"""Draw random views of samples as tensors, a whole batch in a few operations.

Colour changes are combined into one affine map of RGB per image, and crop and flip into one resampling grid, so that
the time does not grow with the number of changes.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Rows: luma (ITU-R BT.601) and the two chroma axes of YIQ, the plane in which a hue change is a rotation.
_RGB_TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_YIQ_TO_RGB = torch.linalg.inv(_RGB_TO_YIQ)


@dataclass(frozen=True)
class ViewOptions:
    """Hold the strength of the random changes that views of images get.

    Attributes
    ----------
    scale : (float, float)
        Range of the crop's share of the image area.
    ratio : float
        Limit of the aspect ratio, which is log-uniform in [1 / ratio, ratio].
    flip : bool
        Whether to mirror half of the images left to right.
    brightness, contrast, saturation : float
        Strength x of each change, whose factor is uniform in [1 - x, 1 + x].
    hue : float
        Largest rotation of the chroma plane, uniform in [-hue, hue] turns.
    jitter_probability, grayscale_probability : float
        Share of the images whose colours are changed, and share of the images turned grey.
    """

    scale: tuple[float, float] = (0.2, 1.0)
    ratio: float = 4 / 3
    flip: bool = True
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    jitter_probability: float = 0.8
    grayscale_probability: float = 0.2


@dataclass(frozen=True)
class VectorViewOptions:
    """Hold the strength of the random changes that views of vectors get.

    Attributes
    ----------
    noise : float
        Standard deviation of the Gaussian noise on every feature, in units of the standardised features.
    mask : float
        Share of the features, drawn per row, that are replaced by the same features of other rows of the batch.
    """

    noise: float = 0.3
    mask: float = 0.0


def training_views(
    images: Tensor, generator: torch.Generator, *, size: int | None = None, options: ViewOptions | None = None
) -> Tensor:
    """Draw one random view of every image: resized crop, flip, colour jitter, greyscale.

    Parameters
    ----------
    images : uint8 Tensor of shape (n_samples, 3, height, width)
    generator : torch.Generator
        The only source of randomness (on the CPU): the same state and shapes give the same views.
    size : int, optional
        Side of the square views in pixels; the images' height by default. Crops are resampled bilinearly without
        antialiasing, so images much larger than `size` should be resized beforehand.
    options : ViewOptions, optional

    Returns
    -------
    float32 Tensor of shape (n_samples, 3, size, size)
        In [0, 1], not normalised.

    Raises
    ------
    ValueError
        If `images` is not a batch of uint8 RGB images.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be uint8 of shape (n, 3, h, w); got {images.dtype} {tuple(images.shape)}")
    options = options or ViewOptions()
    size = size or images.shape[2]
    pixels = images.float().div_(255)
    theta = _crop_parameters(len(images), generator, options).to(images.device)
    grid = F.affine_grid(theta, [len(images), 3, size, size], align_corners=False)
    views = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return _recolour(views, generator, options)


def vector_views(rows: Tensor, generator: torch.Generator, *, options: VectorViewOptions | None = None) -> Tensor:
    """Draw one random view of every row: some features taken from other rows, and noise on all.

    A masked feature gets the value of another row, not zero, so that views stay in the range of the data.

    Parameters
    ----------
    rows : floating Tensor of shape (n_samples, n_features)
        Standardised features.
    generator : torch.Generator
        The only source of randomness (on the CPU): the same state and shapes give the same views.
    options : VectorViewOptions, optional

    Returns
    -------
    Tensor of shape (n_samples, n_features)
        Views in the dtype and on the device of the rows.

    Raises
    ------
    ValueError
        If `rows` is not a matrix of floats.
    """
    if rows.ndim != 2 or not rows.is_floating_point():
        raise ValueError(f"rows must be floating point of shape (n, d); got {rows.dtype} {tuple(rows.shape)}")
    options = options or VectorViewOptions()
    if options.mask > 0:
        masked = torch.rand(rows.shape, generator=generator) < options.mask
        donor = torch.randint(len(rows), rows.shape, generator=generator)
        rows = torch.where(masked.to(rows.device), rows.gather(0, donor.to(rows.device)), rows)
    return rows + options.noise * torch.randn(rows.shape, generator=generator, dtype=rows.dtype).to(rows.device)


def _uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator) * (high - low) + low


def _crop_parameters(n: int, generator: torch.Generator, options: ViewOptions) -> Tensor:
    """Draw affine maps (n, 2, 3) from output to input coordinates in [-1, 1], for `affine_grid`."""
    area = _uniform(n, *options.scale, generator)
    stretch = torch.exp(_uniform(n, -1.0, 1.0, generator) * math.log(options.ratio) / 2)
    width = (area.sqrt() * stretch).clamp_(max=1)
    height = (area.sqrt() / stretch).clamp_(max=1)
    mirror = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0) if options.flip else torch.ones(n)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = width * mirror
    theta[:, 1, 1] = height
    theta[:, 0, 2] = _uniform(n, -1.0, 1.0, generator) * (1 - width)
    theta[:, 1, 2] = _uniform(n, -1.0, 1.0, generator) * (1 - height)
    return theta


def _recolour(views: Tensor, generator: torch.Generator, options: ViewOptions) -> Tensor:
    """Apply x -> A x + b to the colours of each image; A holds hue, saturation, contrast and brightness."""
    n, device = len(views), views.device
    jittered = torch.rand(n, generator=generator) < options.jitter_probability
    grey = torch.rand(n, generator=generator) < options.grayscale_probability

    def factor(strength: float) -> Tensor:
        return torch.where(jittered, 1 + _uniform(n, -strength, strength, generator), 1.0)

    brightness, contrast = factor(options.brightness), factor(options.contrast)
    saturation = torch.where(grey, 0.0, factor(options.saturation))
    angle = torch.where(jittered, 2 * math.pi * _uniform(n, -options.hue, options.hue, generator), 0.0)

    chroma = torch.zeros(n, 3, 3)
    chroma[:, 0, 0] = 1
    chroma[:, 1, 1] = chroma[:, 2, 2] = saturation * angle.cos()
    chroma[:, 1, 2] = -saturation * angle.sin()
    chroma[:, 2, 1] = saturation * angle.sin()
    colour = ((brightness * contrast).view(n, 1, 1) * (_YIQ_TO_RGB @ chroma @ _RGB_TO_YIQ)).to(device)
    luma = views.mean((2, 3)) @ _RGB_TO_YIQ[0].to(device)
    # Contrast pulls towards the image's own mean grey level, which brightness then scales.
    offset = ((brightness * (1 - contrast)).to(device) * luma).view(n, 1, 1)
    return torch.baddbmm(offset, colour, views.flatten(2)).view_as(views).clamp_(0, 1)
