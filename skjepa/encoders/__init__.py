"""Load encoders, prepare their input, and describe them by fingerprint and cost."""

from skjepa._lazy import doors

__getattr__, __dir__, __all__ = doors(__name__, __file__)
