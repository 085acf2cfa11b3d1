"""Find the image files below a folder, without hidden files and files of the operating system."""

import os
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

IMAGE_SUFFIXES = frozenset(
    [
        ".apng",
        ".avif",
        ".avifs",
        ".bmp",
        ".dds",
        ".dib",
        ".gif",
        ".icb",
        ".icns",
        ".ico",
        ".j2c",
        ".j2k",
        ".jfif",
        ".jp2",
        ".jpc",
        ".jpe",
        ".jpeg",
        ".jpf",
        ".jpg",
        ".jpx",
        ".pbm",
        ".pcx",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".psd",
        ".qoi",
        ".ras",
        ".sgi",
        ".tga",
        ".tif",
        ".tiff",
        ".vda",
        ".vst",
        ".webp",
        ".xbm",
        ".xpm",
    ]
)
"""Endings of image files that Pillow reads."""

_SYSTEM_FOLDERS = frozenset(
    ["__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found"]
)
NO_PICTURES = frozenset(
    [
        ".cfg",
        ".csv",
        ".db",
        ".doc",
        ".docx",
        ".gz",
        ".html",
        ".ini",
        ".ipynb",
        ".json",
        ".jsonl",
        ".lnk",
        ".log",
        ".md",
        ".parquet",
        ".pdf",
        ".pickle",
        ".pkl",
        ".pt",
        ".pth",
        ".py",
        ".rst",
        ".safetensors",
        ".sh",
        ".tar",
        ".toml",
        ".tsv",
        ".txt",
        ".xls",
        ".xlsx",
        ".xml",
        ".yaml",
        ".yml",
        ".zip",
    ]
)
"""Endings of files that often lie beside images, and are ignored without a warning."""


def image_files(root: Path) -> list[Path]:
    """Return the image files below a folder, sorted; warns about ignored files that may be images.

    Raises
    ------
    ValueError
        If there are none.
    """
    found = sorted(files_below(root))
    files = [file for file in found if file.suffix.lower() in IMAGE_SUFFIXES]
    others = Counter(file.suffix.lower() or "no ending" for file in found if file.suffix.lower() not in IMAGE_SUFFIXES)
    others = Counter({suffix: n for suffix, n in others.items() if suffix not in NO_PICTURES})
    passed_over = ", ".join(f"{n} with {suffix}" for suffix, n in others.most_common(5))
    if not files:
        also = f"; found {passed_over}: convert or rename them" if others else ": give a folder of images"
        raise ValueError(
            f"no image files below {root} (looked for .jpg, .png, .tif, .webp and {len(IMAGE_SUFFIXES) - 4} other "
            f"endings){also}"
        )
    if others:
        warnings.warn(
            f"{others.total()} files below {root} are ignored, because their endings are not of images: {passed_over}. "
            "If they are images, convert or rename them",
            stacklevel=4,
        )
    return files


def has_images(root: Path) -> bool:
    """Whether there is an image file below a folder; stops at the first."""
    return any(file.suffix.lower() in IMAGE_SUFFIXES for file in files_below(root))


def files_below(root: Path) -> Iterator[Path]:
    """Yield files that are neither hidden nor of the operating system; follows links to folders, but not in circles."""
    way: dict[str, set[str]] = {os.fspath(root): {os.path.realpath(root)}}
    for parent, folders, names in os.walk(root, onerror=_raise, followlinks=True):
        above = way.pop(parent)
        kept = []
        for name in folders:
            real = os.path.realpath(os.path.join(parent, name))
            if not (_is_hidden(name) or real in above):
                way[os.path.join(parent, name)] = above | {real}
                kept.append(name)
        folders[:] = kept
        yield from (Path(parent, name) for name in names if not _is_hidden(name))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM_FOLDERS


def _raise(error: OSError) -> None:
    """Raise, since `os.walk` would otherwise skip a folder that cannot be read."""
    raise error
