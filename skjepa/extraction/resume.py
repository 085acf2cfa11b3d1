"""Find the samples that earlier runs finished, by id and content."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

from skjepa.data.sources import Source
from skjepa.extraction.batches.measurement import Arrays
from skjepa.extraction.store.shards import Key, Row
from skjepa.extraction.store.store import Store


class ResumedStore:
    """Look up the samples of one source in a store.

    Keys of the store include the content, so that a file that changed under its name is measured again.
    """

    def __init__(self, store: Store, source: Source, *, by_name: bool) -> None:
        self.store = store
        self.keys: dict[str, Key] = {}
        for name, i in first_positions(source).items():
            content = source.content(i)
            self.keys[name] = (name if by_name else content or name, content)

    @cached_property
    def rows(self) -> dict[str, Arrays]:
        """Rows that earlier runs finished, by id, read once; the current run adds its own."""
        rows, _ = self._read
        return {name: rows[key] for name, key in self.keys.items() if key in rows}

    @property
    def is_complete(self) -> bool:
        """Whether no sample is left to measure."""
        return 0 < len(self.rows) == len(self.keys)

    @cached_property
    def _read(self) -> tuple[dict[Key, Row], dict[Key, str]]:
        return self.store.read_all(self.keys.values())

    def in_turn(self, names: Iterable[str]) -> list[str]:
        """Sort samples that could not be read before to the end.

        The others then fall into the same batches as in a run without interruption.
        """
        _, failures = self._read
        return sorted(names, key=lambda name: self.keys[name] in failures)

    def append(self, names: Sequence[str], arrays: Sequence[Any], unreadable: dict[str, str]) -> None:
        """Store measured samples, and reasons for unreadable ones."""
        failures = {self.keys[name]: reason for name, reason in unreadable.items()}
        embeddings, sigma, layers = arrays
        self.store.append([self.keys[name] for name in names], embeddings, sigma, failures, layers)


def first_positions(source: Source) -> dict[str, int]:
    """Return the position at which each id first occurs."""
    first: dict[str, int] = {}
    for i, name in enumerate(source.ids.tolist()):
        first.setdefault(name, i)
    return first
