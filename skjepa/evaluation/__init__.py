"""Provide metrics, benchmarks, comparisons of detectors, and their figures."""

from skjepa._lazy import doors

__getattr__, __dir__, __all__ = doors(__name__, __file__)
