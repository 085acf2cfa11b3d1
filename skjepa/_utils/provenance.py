"""When, with what and on what a figure was measured."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from skjepa._utils.hardware import processor

PACKAGES = ("skjepa", "torch", "numpy", "scikit-learn", "scipy", "timm", "pyod")


def stamp(seed: int, **settings: Any) -> dict[str, Any]:
    """Date, seed, `settings`, versions and hardware, to be written beside what was measured."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        **settings,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "machine": platform.machine(),
        "processor": processor(),
        "cores": os.cpu_count(),
    }
