"""Provide the score models, which turn an `Extraction` into one score per sample."""

from skjepa._lazy import doors

__getattr__, __dir__, __all__ = doors(__name__, __file__)
