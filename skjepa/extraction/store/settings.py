"""Compare the settings that must agree before results are mixed."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from skjepa.persistence.schema import Above

SETTINGS = (
    "fingerprint",
    "method",
    "precision",
    "input_shape",
    "n_components",
    "views",
    "transform",
    "seed",
    "layers",
    "layers_dtype",
)
"""Keys of `Extraction.meta` that must agree before two results may be mixed."""

LATER = ("layers", "layers_dtype")
"""Keys that results of earlier versions lack, which read no hidden layers."""


class Settings(TypedDict):
    """Hold the values of `SETTINGS`, the encoder's name and the reason for the method.

    A value is None where an Extraction does not know it.
    """

    encoder: str | None
    fingerprint: str | None
    method: str | None
    precision: str | None
    input_shape: list[int] | tuple[int, ...] | None
    n_components: int | None
    views: int | None
    transform: str | None
    seed: Annotated[int, Above(-1, below=2**32)] | None
    layers: NotRequired[list[str] | tuple[str, ...] | None]
    layers_dtype: NotRequired[Literal["float32", "float16"] | None]
    method_reason: NotRequired[str | None]


class SettingsMismatchError(ValueError):
    """Raised when results of different encoders or settings would be mixed."""


def require_same_settings(expected: Mapping[str, Any], found: Mapping[str, Any], what: str) -> None:
    """Raise SettingsMismatchError if any of `SETTINGS` differs; the message names every difference."""
    different = [key for key in ("encoder", *SETTINGS) if found.get(key) != expected.get(key)]
    if set(different) & set(SETTINGS):  # another name of the same encoder is no difference
        reasons = [f"{key} is {found.get(key)!r}, expected {expected.get(key)!r}" for key in different]
        if "layers" in different and None in (found.get("layers"), expected.get("layers")):
            reasons.append("results of earlier versions have no hidden layers: give layers=None to continue them")
        raise SettingsMismatchError(f"{what} differ: {'; '.join(reasons)}")
