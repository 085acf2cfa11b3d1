"""Resolve an estimator's parameter `encoder` to a frozen encoder, or to one that is trained on the rows of the fit."""

import sys
from typing import Any

from sklearn.base import clone
from torch import nn

from skjepa._utils import hardware
from skjepa._utils.progress import shows_bar
from skjepa.data.sources import Source
from skjepa.encoders.automatic import AUTO_ENCODERS, automatic_encoder, describe_automatic_encoder, is_auto
from skjepa.encoders.encoder import Encoder, FingerprintError, load_encoder
from skjepa.encoders.loading import require_known_source
from skjepa.pretraining.tables import VectorJEPA


def is_trained_on(encoder: Any, source: Source) -> bool:
    """Whether `encoder` has to be trained on these samples."""
    return isinstance(encoder, VectorJEPA) or (source.is_vector and is_auto(encoder))


def trained_encoder(encoder: Any, source: Source, seed: int) -> Encoder:
    """Train a clone of the `VectorJEPA` on the source; `seed` applies where it has no seed of its own."""
    jepa = VectorJEPA() if is_auto(encoder) else clone(encoder)
    if jepa.random_state is None:
        jepa.set_params(random_state=seed)
    return jepa.fit(source).encoder_


def frozen_encoder(encoder: Any, source: Source, *, verbose: float | bool | str = False) -> Encoder:
    """Return the encoder that is named or given, or that "auto" chooses for the images of a source.

    Where progress is shown, a line on standard error names the choice of "auto".
    Raises TypeError for anything else, and for a module that is not wrapped.
    """
    if isinstance(encoder, nn.Module):
        raise TypeError("encoder is a bare module, which sklearn.clone would copy: give encoder=load_encoder(module)")
    if not isinstance(encoder, str | Encoder):
        raise TypeError(f"encoder must be a name, an Encoder from load_encoder, or a VectorJEPA; got {encoder!r}")
    chosen = automatic_encoder(encoder, source)
    if is_auto(encoder) and shows_bar(verbose):
        print(describe_automatic_encoder(chosen.name), file=sys.stderr)
    return chosen


def named_encoder(encoder: Any, fingerprint: str | None) -> Encoder:
    """Return the encoder of a fit on an Extraction: the named one, or of those that "auto" takes the one it was."""
    if not is_auto(encoder):
        return load_encoder(encoder)
    found = (one for one in map(load_encoder, AUTO_ENCODERS) if one.fingerprint == fingerprint)
    return next(found, None) or load_encoder(AUTO_ENCODERS[0])


def encoder_of_fit(
    known: Encoder | None, encoder: Any, source: Source, fingerprint: str | None, *, estimator: str, act: str
) -> Encoder:
    """Return the encoder that an estimator was fitted with, without comparing its fingerprint.

    Parameters
    ----------
    known : Encoder or None
        None where the estimator was fitted on an Extraction: then the parameter `encoder` names the encoder.
    encoder : object
        The estimator's parameter.
    source : Source
        The samples to score or transform.
    fingerprint : str or None
        The one that the fit saw, by which "auto" finds the encoder of an Extraction.
    estimator, act : str
        The kind of estimator and the verb for what it does, for the error message.

    Raises
    ------
    ValueError
        The estimator was fitted on an Extraction of a trained encoder, which it does not hold.
    """
    if known is None and is_trained_on(encoder, source):
        raise ValueError(
            f"this {estimator} was fitted on an Extraction and lacks the trained encoder that made it: {act} an "
            "Extraction of that encoder, or fit again with encoder= that Encoder"
        )
    return known or named_encoder(encoder, fingerprint)


def use_here(estimator: Any, given: dict[str, Any]) -> None:
    """Make a loaded estimator's parameters usable on this machine: the encoder that was `given`, a device that is here.

    Raises
    ------
    ValueError
        The encoder is named by a source that a saved folder must not make this process follow.
    """
    if isinstance(estimator.encoder, str) and not is_auto(estimator.encoder):
        estimator.encoder = given.get("encoder", estimator.encoder)
        require_known_source(estimator.encoder)
    try:
        hardware.resolve_device(estimator.device)
    except ValueError:  # saved where there was a GPU
        estimator.device = "auto"


def require_fingerprint(found: str | None, expected: str | None, what: str) -> None:
    """Raise FingerprintError where an encoder is not the encoder of the fit."""
    if found != expected:
        raise FingerprintError(
            f"{what} has fingerprint {str(found)[:12]}, and the fit used {str(expected)[:12]}: give the encoder of the "
            "fit, or fit again with this one"
        )
