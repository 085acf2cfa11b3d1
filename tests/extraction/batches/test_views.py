import random

import numpy as np
import pytest
import torch

from skjepa.extraction.batches.views import default_transform, keyed_randomness, make_view


def draw():
    return torch.rand(1).item(), np.random.rand(), random.random()  # noqa: NPY002 - what transforms may draw from


def keyed(*key):
    with keyed_randomness(*key):
        return draw()


def test_the_key_alone_decides():
    assert keyed(0, "a", 0) == keyed(0, "a", 0)
    others = [keyed(1, "a", 0), keyed(0, "b", 0), keyed(0, "a", 1), keyed(0, "a0", 0)]
    assert len({keyed(0, "a", 0), *others}) == 5


def test_the_callers_randomness_goes_on_as_before():
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    expected = [draw(), draw()]
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    first = draw()
    keyed(0, "a", 0)
    assert [first, draw()] == expected


def test_default_views_are_pictures_and_differ():
    image = torch.rand(3, 32, 32)
    views = [make_view(image, default_transform((32, 32)), seed=0, sample_id="a", view=v) for v in range(4)]
    assert len({tuple(view.flatten().tolist()) for view in views}) == 4
    assert all(view.min() >= 0 and view.max() <= 1 and view.shape == image.shape for view in views)


def test_a_transform_that_changes_the_shape_is_refused():
    with pytest.raises(ValueError, match=r"transform returned \(3, 2, 2\); it must keep the shape \(3, 4, 4\)"):
        make_view(torch.rand(3, 4, 4), lambda x: x[:, :2, :2], seed=0, sample_id="a", view=0)
