"""Diagnose a detector and explain the scores of samples."""

from skjepa._lazy import doors

__getattr__, __dir__, __all__ = doors(__name__, __file__)
