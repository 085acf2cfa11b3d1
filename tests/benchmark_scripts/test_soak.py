"""What benchmarks/reliability/soak.py makes of its samples; the run itself takes ten minutes."""

import numpy as np
import pytest

from benchmarks.reliability import soak
from skjepa import extract
from skjepa.data.sources import as_source


def watched(seconds_per_image, resident):
    """Samples of a run of 1,000 images, one for every ten of them."""
    begun = np.arange(0, 1001, 10)
    seconds = np.cumsum([0, *[10 * seconds_per_image(i) for i in begun[1:]]])
    return np.stack([begun, seconds, [resident(i) for i in begun]], axis=1)


def test_a_flat_run():
    found = soak.by_tenths(watched(lambda i: 0.02, lambda i: 5e8 if i < 90 else 6e8), 1000)
    assert found["growth"] == pytest.approx(0)  # the first tenth is the warm-up
    assert found["seconds_per_image"] == pytest.approx([0.02] * 10)
    assert found["slowest_over_fastest"] == pytest.approx(1)


def test_a_leak_and_a_run_that_slows_down_show():
    found = soak.by_tenths(watched(lambda i: 0.02 * (1 + i / 1000), lambda i: 5e8 * (1 + i / 1000)), 1000)
    assert found["growth"] == pytest.approx(0.8 / 1.15, rel=0.02)
    assert found["last_over_second"] == pytest.approx(1.95 / 1.15, rel=0.01)


def test_images_are_counted_and_no_others_are_measured(tmp_path):
    soak.write_images(tmp_path / "images", 6, np.random.default_rng(0))
    source, begun = soak.counted(as_source(tmp_path / "images"))
    assert len(extract("bundled", source)) == 6
    assert sorted(begun) == [0, *range(6)]  # at the first one the encoder is looked at before
