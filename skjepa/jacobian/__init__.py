"""The mathematics of the Jacobian: rows, singular values, log-volume, fewer directions."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
