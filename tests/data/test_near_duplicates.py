"""Near-duplicates: what is found, what is not, and the projection against all pairs."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from skjepa.data.near_duplicates import Look, _pairs, alike, is_alike, look_of


def photograph(seed: int, side: int = 64) -> Image.Image:
    """Smooth structure, as photographs have."""
    coarse = np.random.default_rng(seed).integers(0, 256, size=(6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image,
        lambda image: image.resize((200, 200), Image.Resampling.BICUBIC),
        lambda image: ImageEnhance.Brightness(image).enhance(1.04),
        lambda image: image.quantize(64).convert("RGB"),
    ],
    ids=["same", "scaled", "brighter", "fewer colours"],
)
def test_a_changed_copy_is_found(change):
    pictures = [photograph(seed) for seed in range(20)]
    pictures.append(change(pictures[7]))
    assert alike([look_of(picture) for picture in pictures]) == [[7, 20]]
    assert is_alike(look_of(pictures[7]), look_of(pictures[20]))
    assert not is_alike(look_of(pictures[7]), look_of(pictures[8]))


def test_other_pictures_and_missing_ones_are_not():
    turned = photograph(0).rotate(90)
    assert alike([look_of(photograph(0)), None, look_of(turned), look_of(photograph(1)), None]) == []
    assert alike([None]) == alike([]) == []


def test_groups_hold_all_copies_the_largest_first():
    looks = [look_of(photograph(seed)) for seed in (1, 2, 1, 3, 2, 1)]
    assert alike(looks) == [[0, 2, 5], [1, 4]]


def test_pale_pictures_need_more_likeness():
    """A difference of ten grey levels is little between night and day, and much between two walls."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(2, 768))
    pale = [Look(np.clip(200 + 5 * row, 0, 255).astype(np.uint8)) for row in noise]
    assert alike(pale) == []
    assert alike([Look(np.full(768, 200, np.uint8)), Look(np.full(768, 201, np.uint8))]) == [[0, 1]]


def test_projection_loses_no_pair():
    rng = np.random.default_rng(1)
    base = rng.integers(0, 256, size=(30, 768))
    small = np.clip(np.repeat(base, 3, axis=0) + rng.normal(scale=11, size=(90, 768)), 0, 255).astype(np.float32)
    reach = (0.2 * small.std(axis=1) + 1) * np.sqrt(768)
    distance = np.linalg.norm(small[:, None] - small[None], axis=2)
    expected = np.argwhere(np.triu(distance <= np.minimum(reach[:, None], reach), k=1))
    found = np.column_stack(_pairs(small, 0.2))
    assert len(expected) > 20
    assert found[np.lexsort(found.T[::-1])].tolist() == expected.tolist()
