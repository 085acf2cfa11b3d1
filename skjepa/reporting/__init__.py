"""Write scored images as tables, figures and HTML reports."""

from skjepa._lazy import doors

__getattr__, __dir__, __all__ = doors(__name__, __file__)
