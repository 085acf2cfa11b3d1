"""When, with what and on what a figure was measured."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from skjepa._utils.hardware import processor

PACKAGES = ("skjepa", "torch", "numpy", "scikit-learn", "scipy", "timm", "pyod")


def stamp(seed: int, **settings: Any) -> dict[str, Any]:
    """Date, seed, `settings`, versions and hardware, to be written beside what was measured.

    A package that is not installed, as `skjepa` itself run from a checkout, has no version.
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        **settings,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "machine": platform.machine(),
        "processor": processor(),
        "cores": os.cpu_count(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
