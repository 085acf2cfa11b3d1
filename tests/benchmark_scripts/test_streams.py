"""The studies of drift and shift draw what they say."""

import numpy as np
import pytest

from benchmarks.reliability import drift, shift

SIZES = {"fit": 0, "normal": 100, "stream": 300, "changed": 150, "before": 100}


@pytest.fixture
def pools(monkeypatch):
    """Values whose second term falls after the change."""
    monkeypatch.setattr(drift, "SEEDS", {"false alarms": 4, "delays": 4})
    rng = np.random.default_rng(0)
    normal = {name: rng.normal(size=400) for name in ("score", "term")}
    return normal, {"score": rng.normal(size=150), "term": rng.normal(size=150) - 2}


def test_a_change_of_one_term_is_noticed_by_that_term(pools):
    found = drift.delays(pools[0], {"fallen": pools[1]}, SIZES)["fallen"]["jumper"]
    assert found["first_stream"] == "term low"
    assert 5 < found["median"] <= found["quantile_95"] < 80
    assert found["missed"] == 0
    unchanged = drift.noticed(pools[0], {name: values[:150] for name, values in pools[0].items()}, SIZES, "jumper")
    assert unchanged["median"] is None
    assert unchanged["missed"] == 4


def test_normal_images_are_drawn_apart(pools):
    numbered = {"score": np.arange(400.0)}
    normal, stream = drift.shuffled(numbered, SIZES, seed=3)
    assert sorted([*normal["score"], *stream["score"]]) == list(range(400))
    assert drift.false_alarms(pools[0], SIZES)["jumper"] == 0.0


def test_shares_of_classes():
    is_vehicle = np.arange(1000) % 5 < 2
    rows = np.random.default_rng(0).permutation(1000)
    chosen = shift.with_share(rows, is_vehicle, 0.8, 200)
    assert is_vehicle[chosen].sum() == 160
    assert len(np.unique(chosen)) == 200
    assert shift.with_share(rows, is_vehicle, None, 5).tolist() == rows[:5].tolist()


def test_one_draw_without_a_shift_flags_alpha():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2000, 4))
    pool, foreign = (z.sum(axis=1), z), (np.full(50, -99.0), rng.normal(size=(50, 4)) + 5)
    found = shift.one_draw(pool, foreign, pool, np.zeros(2000, dtype=bool), None, 0)
    for way in ("plain", "fresh", "weighted"):
        assert found[way] < 0.1
    assert found["plain, digits"] == 1.0
    assert abs(found["adaptive"] - 0.05) < 0.03
