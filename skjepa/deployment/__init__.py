"""Run a detector in production: exported models, a service, streams, drift, and calibration after a shift."""

from skjepa._lazy import doors

__getattr__, __dir__, __all__ = doors(__name__, __file__)
