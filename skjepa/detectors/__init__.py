"""Detectors with a scikit-learn face."""

from skjepa._lazy import doors

__getattr__, __dir__, __all__ = doors(__name__, __file__)
