"""Record when, with which versions and on which machine a figure was measured."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from skjepa._utils.hardware import processor

PACKAGES = ("skjepa", "torch", "numpy", "scikit-learn", "scipy", "timm", "pyod")


def stamp(seed: int, **settings: Any) -> dict[str, Any]:
    """Return date, seed, `settings`, versions and hardware, to write beside measured figures.

    The version is None for a package that is not installed, such as `skjepa` run from a checkout.
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
