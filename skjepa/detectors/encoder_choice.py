"""What an estimator's parameter `encoder` means: a frozen encoder, or one to be trained on the rows it is given."""

from typing import Any

from sklearn.base import clone
from torch import nn

from skjepa.data.sources import Source
from skjepa.encoders.automatic import AUTO_ENCODERS, automatic_encoder
from skjepa.encoders.encoder import Encoder, FingerprintError, load_encoder
from skjepa.pretraining.tables import VectorJEPA


def is_auto(encoder: Any) -> bool:
    """Whether the data choose the encoder: see `automatic_encoder_name` for images, a `VectorJEPA` for vectors."""
    return isinstance(encoder, str) and encoder == "auto"


def is_trained_on(encoder: Any, source: Source) -> bool:
    """Whether `encoder` has to be trained on these samples."""
    return isinstance(encoder, VectorJEPA) or (source.is_vector and is_auto(encoder))


def trained_encoder(encoder: Any, source: Source, seed: int) -> Encoder:
    """A clone of the `VectorJEPA`, trained on the source; `seed` is for one that has none of its own."""
    jepa = VectorJEPA() if is_auto(encoder) else clone(encoder)
    if jepa.random_state is None:
        jepa.set_params(random_state=seed)
    return jepa.fit(source).encoder_


def frozen_encoder(encoder: Any, source: Source) -> Encoder:
    """Return the encoder that is named or given, or that "auto" chooses for the images of a source.

    Raises TypeError for anything else, and for a module that is not wrapped.
    """
    if isinstance(encoder, nn.Module):
        raise TypeError("encoder is a bare module, which sklearn.clone would copy: wrap it in load_encoder(module)")
    if not isinstance(encoder, str | Encoder):
        raise TypeError(f"encoder must be a name, an Encoder from load_encoder or a VectorJEPA; got {encoder!r}")
    return automatic_encoder(encoder, source)


def named_encoder(encoder: Any, fingerprint: str | None) -> Encoder:
    """Return the encoder of a fit on an Extraction: the named one, or of those that "auto" takes the one it was."""
    if not is_auto(encoder):
        return load_encoder(encoder)
    automatic = [load_encoder(name) for name in AUTO_ENCODERS]
    return next((one for one in automatic if one.fingerprint == fingerprint), automatic[0])


def encoder_of_fit(
    known: Encoder | None, encoder: Any, source: Source, fingerprint: str | None, *, estimator: str, act: str
) -> Encoder:
    """The encoder that an estimator was fitted with, to `act` on a source; its fingerprint is not compared yet.

    Parameters
    ----------
    known : Encoder or None
        None where the estimator was fitted on an Extraction: then the parameter `encoder` says which it was.
    encoder : object
        The estimator's parameter.
    source : Source
    fingerprint : str or None
        The one that the fit saw, by which "auto" finds the encoder of an Extraction.
    estimator, act : str
        What the estimator is and does, for the error.

    Raises
    ------
    ValueError
        The encoder was trained outside the estimator, which never saw it.
    """
    if known is None and is_trained_on(encoder, source):
        raise ValueError(
            f"fitted on an Extraction, this {estimator} does not know the trained encoder it came from: {act} an "
            "Extraction, or fit with that Encoder as encoder"
        )
    return known or named_encoder(encoder, fingerprint)


def require_fingerprint(found: str | None, expected: str | None, what: str) -> None:
    """Raise FingerprintError where an encoder is not the one of the fit."""
    if found != expected:
        raise FingerprintError(
            f"{what} is not the one of the fit: fingerprint {str(found)[:12]}, expected {str(expected)[:12]}"
        )
