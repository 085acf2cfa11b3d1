"""What every benchmark writes: its figures as JSON, stamped with date, seed, versions and hardware."""

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from skjepa._files import written_whole

PACKAGES = ("skjepa", "torch", "numpy", "scikit-learn", "scipy", "timm", "pyod")
RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
IMAGES = RESULTS.parent / "images"


def stamp(seed: int, **settings: Any) -> dict[str, Any]:
    """When, with what and on what a figure was measured; `settings` are the script's own arguments."""
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


def processor() -> str:
    """The processor's name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def write(path: Path, results: dict[str, Any], *, seed: int, **settings: Any) -> None:
    """Write `results` under its stamp, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"stamp": stamp(seed, **settings), **results}, indent=1, allow_nan=False) + "\n"
    with written_whole(path) as partial:
        partial.write_text(text)
    print(f"wrote {path}")
