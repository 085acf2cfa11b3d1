"""The mathematics of the Jacobian: rows, singular values, log-volume, fewer directions."""

from skjepa._lazy import doors

__getattr__, __dir__, __all__ = doors(__name__, __file__)
