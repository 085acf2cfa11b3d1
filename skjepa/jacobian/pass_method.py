"""Parse and format the method in the meta of an `Extraction`."""

import re
from dataclasses import dataclass
from typing import Literal

_TEXT = re.compile(r"(sketch|subspace) of (\d+) directions(?:, ([0-9a-f]+))?")


@dataclass(frozen=True)
class PassMethod:
    """Describe which output directions were measured.

    Attributes
    ----------
    kind : {"forward", "exact", "sketch", "subspace"}
        No directions, all outputs, random directions, or directions learned from samples measured exactly.
    n_directions : int or None
        Number m of directions; None for "forward" and "exact".
    fingerprint : str or None
        First 16 digits of the fingerprint of learned directions; otherwise None.
    """

    kind: Literal["forward", "exact", "sketch", "subspace"]
    n_directions: int | None = None
    fingerprint: str | None = None

    @classmethod
    def parse(cls, text: str | None) -> "PassMethod":
        """Parse ``Extraction.meta["method"]``; an unknown or missing text, as in hand-made meta, means "exact"."""
        if text == "forward":
            return cls("forward")
        found = _TEXT.fullmatch(text or "")
        return cls("exact") if found is None else cls(found[1], int(found[2]), found[3])  # type: ignore[arg-type]

    def __str__(self) -> str:
        if self.kind in ("exact", "forward"):
            return self.kind
        name = f"{self.kind} of {self.n_directions} directions"
        return name if self.fingerprint is None else f"{name}, {self.fingerprint}"
