"""What every benchmark writes: its figures as JSON, stamped with date, seed, versions and hardware."""

import json
from pathlib import Path
from typing import Any

from skjepa._utils.files import written_whole
from skjepa._utils.provenance import stamp

RESULTS = Path(__file__).resolve().parents[1] / "results"
IMAGES = RESULTS.parents[1] / "docs" / "images"


def write(path: Path, results: dict[str, Any], *, seed: int, **settings: Any) -> None:
    """Write `results` under its stamp, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"stamp": stamp(seed, **settings), **results}, indent=1, allow_nan=False) + "\n"
    with written_whole(path) as partial:
        partial.write_text(text)
    print(f"wrote {path}")
