"""Compute -log P(N(0, 1) > x) by elementary functions, because runtimes have no double-precision error function."""

import math

import torch
from torch import Tensor

# Rational approximations of the error function by W. J. Cody, 1969, Mathematics of Computation 23, as in his program
# CALERF: erf(x) for x <= 0.46875, erfc(x) up to 4, and erfc(x) beyond. Numerator and denominator; highest power first.
_ERF = (
    (1.85777706184603153e-1, 3.16112374387056560, 1.13864154151050156e2, 3.77485237685302021e2, 3.20937758913846947e3),
    (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3),
)
_MIDDLE = (
    (
        2.15311535474403846e-8,
        5.64188496988670089e-1,
        8.88314979438837594,
        6.61191906371416295e1,
        2.98635138197400131e2,
        8.81952221241769090e2,
        1.71204761263407058e3,
        2.05107837782607147e3,
        1.23033935479799725e3,
    ),
    (
        1.0,
        1.57449261107098347e1,
        1.17693950891312499e2,
        5.37181101862009858e2,
        1.62138957456669019e3,
        3.29079923573345963e3,
        4.36261909014324716e3,
        3.43936767414372164e3,
        1.23033935480374942e3,
    ),
)
_FAR = (
    (
        1.63153871373020978e-2,
        3.05326634961232344e-1,
        3.60344899949804439e-1,
        1.25781726111229246e-1,
        1.60837851487422766e-2,
        6.58749161529837803e-4,
    ),
    (
        1.0,
        2.56852019228982242,
        1.87295284992346725,
        5.27905102951428412e-1,
        6.05183413124413191e-2,
        2.33520497626869185e-3,
    ),
)
_NEAR, _WIDE = 0.46875, 4.0


def minus_log_upper_tail(x: Tensor) -> Tensor:
    """Return -log P(N(0, 1) > x), as ``-scipy.stats.norm.logsf(x)`` does; finite for every finite x."""
    t = torch.abs(x) / math.sqrt(2)
    log_upper = torch.where(t <= _NEAR, _log_near(t), torch.where(t <= _WIDE, _log_middle(t), _log_far(t)))
    # Half of erfc(t) is the smaller tail; the larger tail is one minus it.
    smaller = math.log(2) - log_upper
    larger = -torch.log1p(-0.5 * torch.exp(log_upper))
    return torch.where(x >= 0, smaller, larger)


def _log_near(t: Tensor) -> Tensor:
    t = torch.clamp(t, max=_NEAR)
    return torch.log1p(-t * _ratio(_ERF, t * t))


def _log_middle(t: Tensor) -> Tensor:
    t = torch.clamp(t, _NEAR, _WIDE)
    return torch.log(_ratio(_MIDDLE, t)) - t * t


def _log_far(t: Tensor) -> Tensor:
    t = torch.clamp(t, min=_WIDE)
    inverse = 1 / (t * t)
    inside = 1 / math.sqrt(math.pi) - inverse * _ratio(_FAR, inverse)
    return torch.log(inside) - torch.log(t) - t * t


def _ratio(coefficients: tuple[tuple[float, ...], tuple[float, ...]], x: Tensor) -> Tensor:
    above, below = coefficients
    return _polynomial(above, x) / _polynomial(below, x)


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    """Evaluate a polynomial by Horner's rule, with the coefficient of the highest power first."""
    value = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value
