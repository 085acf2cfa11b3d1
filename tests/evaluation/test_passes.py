"""Numbers of passes in one benchmark: what is timed, and how."""

import time

import numpy as np
import pytest

from skjepa.data.sources import as_source
from skjepa.evaluation import passes
from skjepa.evaluation.passes import checked_passes, seconds_per_sample


def test_ways_take_turns_on_the_same_few_samples(monkeypatch):
    calls = []

    def working(encoder, source, *, method="embed", n_directions=0, **options):
        assert "memory" not in options  # it would make the pass look free
        calls.append((method, n_directions, len(source)))
        slow = 0.02 if len(calls) in (3, 5) else 0.0  # the first round was disturbed
        time.sleep(slow + {"embed": 0.001, "forward": 0.002, "sketch": 0.004, "exact": 0.008}[method])

    monkeypatch.setattr(passes, "embed", working)
    monkeypatch.setattr(passes, "extract", working)
    source = as_source(np.zeros((40, 3)))
    found = seconds_per_sample("encoder", source, [4], method="exact", views=2, memory="kept")
    assert calls[0] == ("embed", 0, 1)  # warms up
    a_round = [("embed", 0, 16), ("forward", 0, 16), ("exact", 0, 16), ("sketch", 4, 16)]
    assert calls[1:] == 5 * a_round
    assert found["samples"] == 0
    assert found["embeddings"] < found["forward"] < found[4] < found["extraction"] < 0.016 / 16


def test_a_slow_encoder_is_timed_once(monkeypatch):
    calls = []
    monkeypatch.setattr(passes, "embed", lambda *_, **__: calls.append("embed"))
    monkeypatch.setattr(passes, "extract", lambda *_, **__: calls.append("extract"))
    monkeypatch.setattr(passes, "_ENOUGH_SECONDS", 0.0)
    seconds_per_sample("encoder", as_source(np.zeros((4, 3))), [])
    assert calls == ["embed", "embed", "extract", "extract"]


def test_numbers_are_sorted_and_each_is_made_once():
    assert checked_passes((16, 4, 16, 0)) == [0, 4, 16]
    assert checked_passes("auto") == "auto"
    assert checked_passes(None) is None
    with pytest.raises(TypeError, match="a sequence of numbers such as"):
        checked_passes(4)
