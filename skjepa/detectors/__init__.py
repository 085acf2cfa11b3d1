"""Provide the detectors, which have the interface of scikit-learn's outlier detectors."""

from skjepa._lazy import doors

__getattr__, __dir__, __all__ = doors(__name__, __file__)
