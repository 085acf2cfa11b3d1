"""Is a detector sound, and why does a sample score as it does."""

from skjepa._lazy import doors

__getattr__, __dir__, __all__ = doors(__name__, __file__)
