"""Compute Jacobians, their singular values and log-volume, exactly or from fewer directions."""

from skjepa._lazy import doors

__getattr__, __dir__, __all__ = doors(__name__, __file__)
