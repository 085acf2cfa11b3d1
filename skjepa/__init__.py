"""Pretrained JEPA-family encoders as calibrated anomaly detectors with a scikit-learn face.

Public names load on first use (PEP 562), so ``import skjepa`` alone imports neither torch nor timm. `__init__.pyi` says
where each of them lives, for the loader and for type checkers.
"""

from skjepa._lazy import doors

__version__ = "0.1.0"

__getattr__, _, _public = doors(__name__, __file__)
__all__ = [*_public, "__version__"]


def __dir__() -> list[str]:
    return sorted(__all__)
