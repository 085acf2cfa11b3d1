import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import random_images
from PIL import Image

from skjepa.data.sources import as_source, folder_source
from skjepa.data.splits import checked_classes, classes_of, repeats, split_source, without_repeats


@given(st.integers(10, 60), st.floats(0.2, 0.6), st.floats(0.1, 0.3), st.integers(0, 99))
def test_every_sample_is_in_one_split(n, fit, calibration, seed):
    source = as_source(np.arange(2.0 * n).reshape(n, 2))
    parts = split_source(source, fit=fit, calibration=calibration, random_state=seed)
    assert sorted(name for part in parts.values() for name in part.ids) == sorted(source.ids)
    assert len(parts["fit"]) == round(fit * n)


def test_limit_and_seed():
    source = as_source(np.arange(200.0).reshape(100, 2))
    first, again, other = (split_source(source, limit=20, random_state=seed)["test"].ids for seed in (0, 0, 1))
    assert first.tolist() == again.tolist() != other.tolist()
    assert len(first) == 6


def test_shares_that_leave_nothing():
    with pytest.raises(ValueError, match="leave 0 for calibration"):
        split_source(np.eye(4), fit=0.5, calibration=0.1)


def test_the_same_picture_is_found_in_another_file_of_another_format(tmp_path):
    images = random_images(6)
    for folder, chosen, suffix in (("a", (0, 1, 2), "png"), ("b", (2, 3), "bmp"), ("c", (3, 4), "tif")):
        (tmp_path / folder).mkdir()
        for i in chosen:
            Image.fromarray(images[i]).save(tmp_path / folder / f"{i}.{suffix}")
    groups = {"fit": tmp_path / "a", "test": tmp_path / "b", "foreign": tmp_path / "c", "more": tmp_path / "c"}
    groups = {name: folder_source(path) for name, path in groups.items()}
    found = repeats(groups)
    assert [(r.group, r.id, r.first_group, r.first_id) for r in found] == [
        ("test", "2.bmp", "fit", "2.png"),
        ("foreign", "3.tif", "test", "3.bmp"),
        ("more", "3.tif", "test", "3.bmp"),
    ]
    left = without_repeats(groups, found)
    assert {name: part.ids.tolist() for name, part in left.items()} == {
        "fit": ["0.png", "1.png", "2.png"],
        "test": ["3.bmp"],
        "foreign": ["4.tif"],
        "more": ["4.tif"],
    }
    assert repeats(left) == []


def test_classes():
    assert classes_of(as_source(np.eye(3))) is None
    assert checked_classes(None, 3) is None
    with pytest.raises(ValueError, match="one per fit sample: 3 samples, classes of shape"):
        checked_classes([1, 2], 3)
