"""Detect anomalies with pretrained JEPA-family encoders, by calibrated detectors with scikit-learn's interface.

Public names load on first use (PEP 562), so ``import skjepa`` alone imports neither torch nor timm. ``__init__.pyi``
lists where each of them is defined, for the loader and for type checkers.
"""

from skjepa._lazy import doors

__version__ = "0.1.0"

__getattr__, _, _public = doors(__name__, __file__)
__all__ = [*_public, "__version__"]


def __dir__() -> list[str]:
    return sorted(__all__)
