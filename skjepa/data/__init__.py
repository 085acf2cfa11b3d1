"""Whatever a user calls data: images, folders, arrays, splits."""

from skjepa._lazy import doors

__getattr__, __dir__, __all__ = doors(__name__, __file__)
