"""Finished samples of earlier runs, known again by id and content."""

from collections.abc import Iterable, Sequence
from typing import Any

from skjepa.data.sources import Source
from skjepa.extraction.batches.measurement import Arrays
from skjepa.extraction.store.shards import Key
from skjepa.extraction.store.store import Store


class ResumedStore:
    """A store as one source sees it, by ids. Its own keys hold the content: a name is not a sample for ever."""

    def __init__(self, store: Store, source: Source, *, by_name: bool) -> None:
        self.store = store
        self.keys: dict[str, Key] = {}
        for name, i in first_positions(source).items():
            content = source.content(i)
            self.keys[name] = (name if by_name else content or name, content)

    def read(self) -> dict[str, Arrays]:
        """What is finished."""
        rows, self.failures = self.store.read_all(self.keys.values())
        return {name: rows[key] for name, key in self.keys.items() if key in rows}

    def in_turn(self, names: Iterable[str]) -> list[str]:
        """What could not be read before comes last: so the rest is in the batches of a run without interruption."""
        return sorted(names, key=lambda name: self.keys[name] in self.failures)

    def append(self, names: Sequence[str], arrays: Sequence[Any], unreadable: dict[str, str]) -> None:
        failures = {self.keys[name]: reason for name, reason in unreadable.items()}
        embeddings, sigma = arrays
        self.store.append([self.keys[name] for name in names], embeddings, sigma, failures)


def finished_rows(store: Store, source: Source, *, by_name: bool) -> dict[str, Arrays] | None:
    """The rows of a source that has nothing left to measure; None where it has."""
    kept = ResumedStore(store, source, by_name=by_name)
    rows = kept.read()
    return rows if len(rows) == len(kept.keys) else None


def first_positions(source: Source) -> dict[str, int]:
    """Id -> where it first occurs."""
    first: dict[str, int] = {}
    for i, name in enumerate(source.ids.tolist()):
        first.setdefault(name, i)
    return first
