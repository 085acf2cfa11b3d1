"""How an `Extraction` was measured: the text in its meta, read and written in one place."""

import re
from dataclasses import dataclass
from typing import Literal

_TEXT = re.compile(r"(sketch|subspace) of (\d+) directions(?:, ([0-9a-f]+))?")


@dataclass(frozen=True)
class PassMethod:
    """The directions of the output that a pass measured.

    Attributes
    ----------
    kind : {"forward", "exact", "sketch", "subspace"}
        None of them, all, random ones, or ones learned from samples measured exactly.
    n_directions : int or None
        m; None where all were measured.
    fingerprint : str or None
        First 16 digits of the fingerprint of learned directions; None for others.
    """

    kind: Literal["forward", "exact", "sketch", "subspace"]
    n_directions: int | None = None
    fingerprint: str | None = None

    @classmethod
    def parse(cls, text: str | None) -> "PassMethod":
        """From ``Extraction.meta["method"]``. An Extraction made by hand may say nothing: all it has then counts."""
        if text == "forward":
            return cls("forward")
        found = _TEXT.fullmatch(text or "")
        return cls("exact") if found is None else cls(found[1], int(found[2]), found[3])  # type: ignore[arg-type]

    def __str__(self) -> str:
        if self.kind in ("exact", "forward"):
            return self.kind
        name = f"{self.kind} of {self.n_directions} directions"
        return name if self.fingerprint is None else f"{name}, {self.fingerprint}"
