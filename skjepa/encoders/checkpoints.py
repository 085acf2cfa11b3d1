"""Read state dicts of other training programs, without their wrappers, prefixes and heads."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

# Prefixes that DataParallel, torch.compile, Lightning and self-supervised training programs put before every name.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "encoder.", "student.", "teacher.")
_WRAPPERS = ("model_state_dict", "model_state", "teacher", "student", "net", "network", "weights", "params", "module")


def read_checkpoint(path: str | os.PathLike) -> dict[str, Tensor]:
    """Read names and tensors of a checkpoint file, without wrappers and prefixes, and without running pickled code.

    Raises
    ------
    ValueError
        If the file holds no named tensors.
    """
    from timm.models import load_state_dict

    found: Any = load_state_dict(os.fspath(path), weights_only=True)
    for _ in range(3):
        inner = next((found[key] for key in _WRAPPERS if isinstance(found.get(key), Mapping)), None)
        if inner is None:
            break
        found = inner
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(
            f"{Path(path).name} holds no named tensors, but {', '.join(map(str, list(found)[:5])) or 'nothing'}: "
            "give a file that torch.save(model.state_dict(), FILE) wrote"
        )
    return _without_prefix(tensors)


def _without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Strip a prefix that most names have, and drop the others, which belong to a loss or another head."""
    while True:
        for prefix in _PREFIXES:
            below = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            if 2 * len(below) > len(tensors):
                tensors = below
                break
        else:
            return tensors


def classes_of(tensors: dict[str, Tensor], classifier: Any) -> int | None:
    """Return the number of classes of the head in a state dict; 0 if there is none, None if its name is unknown."""
    names = [classifier] if isinstance(classifier, str) else list(classifier or [])
    if not names:
        return None
    heads = [tensors[f"{name}.weight"] for name in names if f"{name}.weight" in tensors]
    return int(heads[0].shape[0]) if heads else 0
