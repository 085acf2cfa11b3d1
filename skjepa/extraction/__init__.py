"""Run the encoder over samples: embeddings, hidden layers and Jacobian singular values."""

from skjepa._lazy import doors

__getattr__, __dir__, __all__ = doors(__name__, __file__)
