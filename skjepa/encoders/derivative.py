"""Check that autograd's derivative is the derivative of the encoder's output.

`detach`, straight-through estimators and custom backward rules can make it differ; scores would then be wrong.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import numpy as np
import torch
from torch import Tensor

from skjepa._utils.hardware import is_out_of_memory
from skjepa.encoders.encoder import Encoder
from skjepa.encoders.probe import EncoderError
from skjepa.jacobian.repeated_backward import prepared
from skjepa.jacobian.rows import jacobian

_TOLERANCE = 0.02  # share of the norm of the derivatives
_COARSE = 0.3  # the same, if the module cannot compute in float64
_STEPS = {torch.float64: (1e-4, 1e-6, 1e-3, 1e-5, 1e-2, 1e-1)}
_NARROW_STEPS = (1e-2, 1e-3, 1e-1, 3e-2, 3e-3)
_N_COTANGENTS, _N_TANGENTS = 2, 3
_MODES_AGREE = 1e-2
_FLAT = 1e-9  # slopes below this share of the output count as zero
_EVIDENCE = 0.1  # a step is ignored if noise exceeds this share of the slope

Function = Callable[[Tensor], Tensor]


def derivative_error(function: Function, point: Tensor, scale: Tensor | float = 1.0) -> float:
    """Compare derivatives by autograd with finite differences.

    Parameters
    ----------
    function : callable
        (B, ...) -> (B, K), each row from its own sample.
    point : Tensor
        One sample.
    scale : Tensor or float
        Units of the inputs with respect to which the Jacobian is taken.

    Returns
    -------
    float
        Norm of the difference relative to the norm of the derivatives; 0 if both vanish. The smallest over several
        steps, since long steps include curvature and short ones rounding errors.
    """
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(_N_TANGENTS, *point.shape, generator=generator, dtype=torch.float64)
    tangents = drawn.to(point.device, point.dtype)
    noise = _noise(function, point, scale, tangents)
    least, claimed = float("inf"), None
    for step in _STEPS.get(point.dtype, _NARROW_STEPS):
        with torch.no_grad():
            values = function(torch.cat([point + step * scale * tangents, point - step * scale * tangents])).double()
        slopes = (values[:_N_TANGENTS] - values[_N_TANGENTS:]) / (2 * step)  # (tangents, K)
        size = slopes.norm(dim=0)
        if claimed is None:
            # Outputs are weighted to count equally: a score sums logarithms, so errors of small outputs matter as well.
            flat = _FLAT * float(values.abs().max())
            least_size = torch.maximum(noise / step, 1e-3 * size.max()).clamp_min(max(flat, 1e-300))
            weights = 1 / torch.maximum(size, least_size)
            _, cotangents, gradient = _gradients(function, point, generator, weights)
            claimed = gradient.flatten(1).double() @ tangents.flatten(1).double().T
        found = cotangents.double() @ slopes.T
        norm = float(torch.maximum(claimed.norm(), found.norm()))
        unsure = float((cotangents.double().square() @ (noise / step).square()).sum().mul(_N_TANGENTS).sqrt())
        is_flat = float(size.max()) < flat and float(claimed.norm()) < (claimed.numel() * len(size)) ** 0.5
        if unsure > _EVIDENCE * norm or is_flat:
            continue  # noise hides the slope at this step
        least = min(least, max(0.0, float((claimed - found).norm()) - unsure) / norm)
        if least <= _TOLERANCE:
            break
    return least if np.isfinite(least) else 0.0


def _noise(function: Function, point: Tensor, scale: Tensor | float, tangents: Tensor) -> Tensor:
    """Estimate the rounding error of each output, (K,), from nearly equal inputs.

    Measured, since parts of a module may compute in lower precision than its output shows.
    """
    eps = torch.finfo(point.dtype).eps
    tiny = 1e-9 if point.dtype == torch.float64 else 4 * eps
    with torch.no_grad():
        values = function(torch.cat([point[None], point + tiny * scale * tangents])).double()
    return torch.maximum(3 * (values[1:] - values[0]).abs().amax(dim=0), 50 * eps * values.abs().amax(dim=0))


def modes_differ(function: Function, point: Tensor) -> float:
    """Return the relative difference between forward-mode and reverse-mode Jacobian; 0 without forward mode.

    Which of the two modes a run uses depends on the numbers of inputs and outputs.
    """
    _, cotangents, gradient = _gradients(function, point, torch.Generator().manual_seed(2))
    try:
        _, forward = jacobian(function, point[None], mode="forward")
    except (RuntimeError, NotImplementedError) as error:
        if is_out_of_memory(error):
            raise
        return 0.0
    expected = cotangents @ forward[0]
    found = gradient.flatten(1)
    return float((expected - found).norm() / torch.maximum(expected.norm(), found.norm()).clamp_min(1e-30))


def _gradients(
    function: Function, point: Tensor, generator: torch.Generator, weights: Tensor | float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return outputs at copies of the point, random weighted output directions, and the gradients along them."""
    with torch.enable_grad():
        leaf = point.expand(_N_COTANGENTS, *point.shape).clone().requires_grad_(True)
        outputs = prepared(function)(leaf)
        drawn = torch.randn(outputs.shape, generator=generator, dtype=torch.float64).to(outputs.device)
        cotangents = (drawn * weights).to(outputs)
        (gradient,) = torch.autograd.grad(outputs, leaf, cotangents)
    return outputs.detach(), cotangents, gradient


def is_derivative_right(
    function: Function,
    point: Tensor,
    scale: Tensor | float,
    in_float64: Callable[[], AbstractContextManager[Function]],
) -> bool:
    """Return whether `derivative_error` is small, in float64 with short steps if it is not in lower precision."""
    error = derivative_error(function, point, scale)
    if error <= _TOLERANCE or point.dtype == torch.float64:
        return error <= _TOLERANCE
    try:
        with in_float64() as exact:
            wide = scale.double() if isinstance(scale, Tensor) else scale
            return derivative_error(exact, point.double(), wide) <= _TOLERANCE
    except (RuntimeError, TypeError) as failed:  # a module that computes only in float32
        if is_out_of_memory(failed):
            raise
        return error <= _COARSE


def require_derivative(
    encoder: Encoder,
    function: Function,
    shape: tuple[int, ...],
    n_components: int,
    device: str,
    sample: Callable[[], Tensor | None],
) -> None:
    """Raise EncoderError if autograd's derivative of an encoder is wrong; each fingerprint is checked once.

    Parameters
    ----------
    encoder : Encoder
    function : callable
        What its `scoring` yields on the device.
    shape : tuple of int
        Shape of one input.
    n_components : int
        Number K of encoder outputs.
    device : str
    sample : callable
        Returns an input as the encoder receives it, or None. It is checked as well as a random input, at which an
        encoder may be flat.
    """
    checked = (encoder.fingerprint, tuple(shape), str(device))
    if checked in encoder.checked:
        return
    generator = torch.Generator().manual_seed(0)
    centre, scale = encoder.input_units or (0.0, 1.0)
    if isinstance(scale, Tensor) and isinstance(centre, Tensor):
        centre, scale = centre.to(device, encoder.dtype), scale.to(device, encoder.dtype)
    drawn = torch.randn((2, *shape), generator=generator, dtype=torch.float64).to(device, encoder.dtype)
    points = [centre + scale * drawn[0]]
    first = sample()
    if first is not None:  # noise is added, since ReLUs and maxima have no derivative at images of one colour
        points.append(first + 0.1 * scale * drawn[1])
    in_float64 = partial(encoder.scoring, device, torch.float64)
    if not all(is_derivative_right(function, point, scale, in_float64) for point in points):
        raise EncoderError(
            "autograd's derivative of this encoder differs from finite differences of its output, so its Jacobian "
            "would be wrong. It may contain detach(), .data, a straight-through estimator, rounding or a custom "
            "backward pass: take an encoder without that part, or choose a layer before it with output="
        )
    is_forward = points[0].numel() < n_components
    if is_forward and max(modes_differ(function, point) for point in points) > _MODES_AGREE:
        raise EncoderError(
            "forward-mode and reverse-mode derivatives of this encoder differ: correct its custom derivative, for "
            "example the jvp of a torch.autograd.Function"
        )
    encoder.checked.add(checked)
