"""The order of the examples in the gallery: from a folder of images to what is special."""

_FIRST = (
    "image_folder",
    "table_pipeline",
    "flag_foreign_images",
    "write_report",
    "grid_search",
    "ood_benchmark",
    "pyod_comparison",
    "curate_folder",
    "own_encoder",
    "resume_and_dask",
)


def key(filename: str) -> tuple[int, str]:
    """Those named above in their order, then all others by name."""
    name = filename.removesuffix(".py")
    return (_FIRST.index(name) if name in _FIRST else len(_FIRST), name)
