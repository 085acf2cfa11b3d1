"""What passes are worth: fewer of them derived from one measurement, decisions, and who takes turns at the clock."""

import numpy as np
import pytest
import torch
from oracles import conv_net, random_images

from benchmarks.accuracy import value_of_passes as suite
from benchmarks.accuracy.ways_of_passing import FORWARD, Way, costs, ways_of_output
from skjepa import JEPAScoreDetector, extract, load_encoder


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return load_encoder(conv_net(), image_size=32)


@pytest.mark.parametrize("most", [None, 8])
def test_fewer_passes_are_those_of_extract(encoder, most, tmp_path):
    images = list(random_images(44))
    groups = {"fit": images[:30], "test": images[30:40], "other": images[40:]}
    for _ in ("measured", "kept"):
        ways, n_components = ways_of_output(encoder, groups, (4, 16, 99), most, tmp_path)
        assert n_components == 16
        assert {name: way.passes for name, way in ways.items()} == {
            FORWARD: 0,
            "4 passes": 4,
            f"{most or 16} passes": most or 16,
        }
        sketch = {"method": "sketch", "n_directions": most or 4, "random_state": 0}
        fit, other = (extract(encoder, groups[name], **sketch) for name in ("fit", "other"))
        expected = JEPAScoreDetector().fit(fit).score_samples(other)
        np.testing.assert_allclose(ways[f"{most or 4} passes"].scores["other"], expected, rtol=1e-4)
    forward = JEPAScoreDetector().fit(extract(encoder, groups["fit"], method="forward"))
    assert set(ways[FORWARD].scores) == {"test", "other"}
    expected = forward.score_samples(extract(encoder, groups["test"], method="forward"))
    np.testing.assert_allclose(ways[FORWARD].scores["test"], expected, rtol=1e-6)


def test_decisions_are_compared_at_thresholds_of_their_own():
    calibration, test = np.arange(40.0), np.arange(40.0) + 0.5
    # Flagged below the second smallest score of calibration; the scale of a way does not matter.
    many = {"calibration": calibration, "test": test, "near": np.array([0.0, 0.5, 5.0, 6.0]), "far": np.full(4, -1.0)}
    none = {"calibration": 9 * calibration, "test": 9 * test, "near": np.full(4, 100.0), "far": np.full(4, -1.0)}
    ways = {FORWARD: Way(0, print, none), "16 passes": Way(16, print, many)}
    sets = suite.Groups({}, ["near"], ["far"])
    found = suite.compared(ways, sets, "16 passes", n_resamples=20)
    assert found["sets"]["near"][FORWARD]["flagged"] == 0.0
    assert found["sets"]["near"]["16 passes"]["flagged"] == 0.5
    assert found["sets"]["near"][FORWARD]["differ"] == 0.5
    assert found["sets"]["far"][FORWARD]["differ"] == 0.0
    assert found["normal"][FORWARD] == {"flagged": 1 / 40, "differ": 0.0}
    lead = found["means"]["foreign"]["16 passes"]
    assert lead["lead"] == pytest.approx(lead["auroc"] - found["means"]["foreign"][FORWARD]["auroc"])
    assert found["means"]["blind"]["16 passes"]["auroc"] == 1.0


def test_ways_take_turns_at_the_clock(encoder, monkeypatch):
    calls = []
    ways = {
        name: Way(passes, lambda _, images, name=name: calls.append((name, len(images))), {})
        for name, passes in (("none", 0), ("few", 4))
    }
    monkeypatch.setattr(
        "benchmarks.accuracy.ways_of_passing.extracting",
        lambda **how: lambda _, images: calls.append((how["method"], len(images))),
    )
    found = costs(encoder, list(random_images(6)), ways, n_components=1280, rounds=2)
    assert calls == [("none", 1), ("few", 1), ("none", 6), ("few", 6), ("exact", 2), ("none", 6), ("few", 6)]
    assert {name: cost["passes"] for name, cost in found.items()} == {"none": 0, "few": 4, "1280 passes": 1280}
