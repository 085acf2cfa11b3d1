"""Samples measured exactly with their Gram matrices G = J J^T, from which any m output directions can be judged.

The singular values of U^T J are the roots of the eigenvalues of U^T G U: one exact pass serves all directions. Of a
sketch, whose M directions give the Gram matrix (M, M), any m of them can be judged likewise.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skjepa import Encoder, Extraction, extract
from skjepa._utils.files import written_whole
from skjepa.data.sources import as_source
from skjepa.jacobian.spectrum import gram_matrices

_CHUNK = 20


@dataclass(frozen=True)
class Measured:
    """Samples measured exactly, with their Gram matrices (n, K, K); or by a sketch, with those of its directions."""

    exact: Extraction
    grams: NDArray[np.float64]

    def seen_by(self, components: NDArray, method: str) -> Extraction:
        """The extraction that m passes give."""
        squares = np.linalg.eigvalsh(components.T @ self.grams @ components)[:, ::-1]
        sigma = np.sqrt(np.maximum(squares, 0))[:, None]
        return replace(self.exact, singular_values=sigma, meta=self.exact.meta | {"method": method})

    def __getitem__(self, index: NDArray) -> "Measured":
        return Measured(self.exact[index], self.grams[index])


def measure(encoder: Encoder, sets: dict[str, Any], cache: Path | None = None, **how: Any) -> dict[str, Measured]:
    """Every set measured, a few images at a time: with a `cache` folder a run that was cut off goes on.

    `how` is for `skjepa.extract`: the method, where it is not the exact one.
    """
    measured = {}
    for name, images in sets.items():
        parts = [_measure(encoder, images[at : at + _CHUNK], cache, how) for at in range(0, len(images), _CHUNK)]
        exact = Extraction.concat([part.exact for part in parts])
        measured[name] = Measured(exact, np.concatenate([part.grams for part in parts]))
        print(f"{name}: {len(exact)} images", flush=True)
    return measured


def _measure(encoder: Encoder, images: Any, cache: Path | None, how: dict[str, Any]) -> Measured:
    if cache is None:
        return _measured(encoder, images, how)
    told = [encoder.fingerprint, *as_source(images).ids.tolist(), *map(str, how.items())]
    key = hashlib.sha256("".join(told).encode()).hexdigest()[:32]
    path, grams = cache / f"{key}.npz", cache / f"{key}.npy"
    if not (path.exists() and grams.exists()):
        cache.mkdir(parents=True, exist_ok=True)
        found = _measured(encoder, images, how)
        with written_whole(grams) as partial, open(partial, "wb") as file:
            np.save(file, found.grams)
        found.exact.save(path)
    return Measured(Extraction.load(path), np.load(grams))


def _measured(encoder: Encoder, images: Any, how: dict[str, Any]) -> Measured:
    grams: list[NDArray] = []
    how = {"method": "exact", "random_state": 0, **how}
    exact = extract(encoder, images, observe=lambda J: grams.extend(gram_matrices(J).cpu().numpy()), **how)
    place = {key: i for i, key in enumerate(dict.fromkeys(exact.ids.tolist()))}  # equal images are measured once
    return Measured(exact, np.stack(grams)[[place[key] for key in exact.ids.tolist()]])
