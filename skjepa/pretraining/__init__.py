"""Train small encoders on images or tables."""

from skjepa._lazy import doors

__getattr__, __dir__, __all__ = doors(__name__, __file__)
