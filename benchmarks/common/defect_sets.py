"""Pictures of parts with and without a defect, and pixel masks of the defects, in the layouts of public sets."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

GOOD = "good"
PICTURES = (".png", ".jpg", ".jpeg", ".bmp")


@dataclass(frozen=True)
class DefectSet:
    """Pictures, what they show, and what they are pictures of.

    Attributes
    ----------
    pictures : list of Path
    kinds : array of shape (n,), str
        `GOOD`, or the kind of defect.
    groups : array of shape (n,), str
        The part that a picture is of: a split must not go through it.
    masks : list of Path or None
        Of the defect; None where there is none.
    is_train : array of shape (n,), bool, or None
        The split that the set comes with; None where it has none.
    """

    pictures: list[Path]
    kinds: NDArray[np.str_]
    groups: NDArray[np.str_]
    masks: list[Path | None]
    is_train: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def is_good(self) -> NDArray[np.bool_]:
        return self.kinds == GOOD

    def mask(self, i: int) -> NDArray[np.bool_]:
        """Which pixels of picture `i` are defect, (H, W)."""
        with Image.open(self.pictures[i]) as picture:
            width, height = picture.size
        path = self.masks[i]
        if path is None:
            return np.zeros((height, width), dtype=bool)
        with Image.open(path) as mask:
            grey = mask.convert("L") if mask.mode != "1" else mask.convert("1").convert("L")
            if grey.size != (width, height):
                grey = grey.resize((width, height), Image.Resampling.NEAREST)
            levels = np.asarray(grey)
        return levels > (127 if levels.max() > 127 else 0)


def magnetic_tiles(folder: Path) -> DefectSet:
    """Magnetic tiles; groups are tiles, inferred from time stamps by whoever made `tiles.csv`."""
    with open(folder / "tiles.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    masks = [None if row["kind"] == GOOD else (folder / "masks" / row["image"]).with_suffix(".png") for row in rows]
    return DefectSet(
        [folder / "images" / row["image"] for row in rows],
        np.array([row["kind"] for row in rows]),
        np.array([row["tile"] for row in rows]),
        masks,
    )


def mvtec(folder: Path) -> DefectSet:
    """One category of MVTec AD, or of a set in its layout: train/good, test/KIND and ground_truth/KIND/NAME_mask.png.

    Raises
    ------
    FileNotFoundError
        No pictures where they must be; names the folder.
    """
    found: list[tuple[Path, str, Path | None, bool]] = []
    found += [(path, GOOD, None, True) for path in _pictures(folder / "train" / GOOD)]
    for kind in sorted(path for path in (folder / "test").iterdir() if path.is_dir()):
        for path in _pictures(kind):
            mask = folder / "ground_truth" / kind.name / f"{path.stem}_mask.png"
            found.append((path, kind.name, None if kind.name == GOOD else mask, False))
    return _with_split(found)


def visa(folder: Path, category: str) -> DefectSet:
    """One category of VisA as it is published, by its table split_csv/1cls.csv: object, split, label, image, mask.

    Raises
    ------
    FileNotFoundError
        No table, or no rows of the category.
    """
    table = folder / "split_csv" / "1cls.csv"
    with open(table, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["object"] == category]
    if not rows:
        raise FileNotFoundError(f"{table} has no rows of {category}")
    return _with_split(
        [
            (
                folder / row["image"],
                GOOD if row["label"] == "normal" else "anomaly",
                folder / row["mask"] if row["mask"] else None,
                row["split"] == "train",
            )
            for row in rows
        ]
    )


def _with_split(found: list[tuple[Path, str, Path | None, bool]]) -> DefectSet:
    return DefectSet(
        [path for path, *_ in found],
        np.array([kind for _, kind, *_ in found]),
        np.array([str(path) for path, *_ in found]),
        [mask for *_, mask, _ in found],
        np.array([is_train for *_, is_train in found]),
    )


def _pictures(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in PICTURES) if folder.is_dir() else []
    if not found:
        raise FileNotFoundError(f"no pictures in {folder}")
    return found
