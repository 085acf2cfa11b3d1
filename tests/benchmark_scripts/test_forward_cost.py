"""What the forward method costs beside the bare encoder: what is timed, and how runs of one encoder come together."""

import json
import sys

import numpy as np
import pytest

from benchmarks.speed import forward_cost


def test_ratios_are_of_one_round():
    took = np.array([[2.0, 3.0], [4.0, 3.0], [9.0, 3.0]])
    found = forward_cost.summary(took, np.array([[2.0, 1.0], [2.0, 2.0], [3.0, 3.0]]))
    assert found["ratio"] == {"min": 1.0, "median": 2.0, "max": 3.0}
    assert found["processor_ratio"] == {"min": 1.0, "median": 1.5, "max": 3.0}
    assert found["ms_per_image"] == 4000


def test_an_encoder_measured_alone_keeps_the_others(tmp_path, monkeypatch):
    out = tmp_path / "forward_cost.json"
    out.write_text(json.dumps({"encoders": {"ConvNeXt-T": "as it was", "bundled": "replaced"}}))
    options = ["--quick", "--device", "cpu", "--only", "bundled", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["forward_cost", *options])
    forward_cost.main()
    encoders = json.loads(out.read_text())["encoders"]
    assert list(encoders) == ["bundled", "ConvNeXt-T"]
    assert encoders["ConvNeXt-T"] == "as it was"
    found = encoders["bundled"]
    assert found["numbers_per_image"] == 2 * (32 + 64 + 128 + 256)
    assert found["ways"]["bare encoder"]["ratio"] == {"min": 1.0, "median": 1.0, "max": 1.0}
    assert found["ways"]["measured batch"]["ms_per_image"] > 0
    assert found["fixed_ms_of_a_call"] > 0


def test_random_weights_are_loaded_by_name():
    encoder = forward_cost.encoder_of("EfficientNet-Lite0")
    assert encoder.channels_last
    assert encoder.input_shape == (3, 224, 224)
    with pytest.raises(KeyError):
        forward_cost.encoder_of("another")
