"""What a pass will take: the estimate, what "auto" chooses by it, and what is said and refused before it starts."""

import io
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from skjepa import JEPAScoreDetector, estimate_cost, extract, load_encoder
from skjepa.encoders.probe import probe
from skjepa.extraction import PassCost, TimeBudgetError, encoder_pass
from skjepa.extraction.batches.sizing import MAX_BATCH, MAX_GFLOP_ON_CPU, batch_size
from skjepa.extraction.cost import bill
from skjepa.extraction.cost.choice import AUTO_GFLOP, by_operations, by_time, offered
from skjepa.extraction.cost.pass_cost import duration

IMAGES = np.random.default_rng(0).integers(0, 256, size=(40, 32, 32, 3), dtype=np.uint8)
COST = PassCost(n_samples=100, n_components=384, forward=0.3, graph=0.4, backward=0.25, spectrum=1e-5)


def wide(n_components=100):
    """A convolutional network of more components than "auto" measures exactly."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 8 * 8, n_components)
    return load_encoder(nn.Sequential(*layers), image_size=32)


class TestPassCost:
    def test_seconds_are_those_of_its_parts(self):
        assert COST.seconds_per_sample(0) == 0.3
        assert COST.seconds_per_sample(16) == pytest.approx(0.3 + 0.4 + 16 * 0.25 + 16**2 * 1e-5)
        assert COST.seconds(16) == pytest.approx(100 * COST.seconds_per_sample(16))
        assert replace(COST, n_workers=4).seconds(16) == pytest.approx(COST.seconds(16) / 4)
        assert replace(COST, n_views=3).seconds_per_sample(16) == pytest.approx(0.3 + 3 * (0.4 + 4 + 256e-5))
        assert COST.of(7).n_samples == 7

    def test_too_little_time_is_refused_with_what_is_cheaper(self):
        COST.require(COST.seconds(384), 384)
        with pytest.raises(TimeBudgetError, match=r"100 samples with 384 backward passes .*method='forward': 30 s"):
            COST.require(60, 384)

    @pytest.mark.parametrize(
        ("seconds", "words"),
        [(0.034, "0.034 s"), (4.21, "4.2 s"), (99, "99 s"), (200, "3.3 min"), (3 * 3600, "3 h"), (1e6, "12 days")],
    )
    def test_duration(self, seconds, words):
        assert duration(seconds) == words


class TestEstimate:
    def test_it_is_of_any_number_of_samples(self):
        cost = estimate_cost("bundled", IMAGES, n_samples=1000)
        assert (cost.n_samples, cost.n_components) == (1000, 64)
        assert 0 < cost.seconds(0) < cost.seconds(4) < cost.seconds(64)
        assert cost.gflop > 0.01

    def test_without_backward_passes_none_is_made(self, monkeypatch):
        def refuse(*_, **__):
            raise AssertionError("a backward pass")

        monkeypatch.setattr("skjepa.extraction.batches.measurement.jacobian", refuse)
        cost = estimate_cost("bundled", IMAGES, has_passes=False)
        assert cost.seconds(0) > 0
        assert np.isnan(cost.seconds(4))

    def test_a_file_that_cannot_be_read_is_passed_by(self, tmp_path):
        (tmp_path / "a.png").write_bytes(b"no picture")
        (tmp_path / "b.png").write_bytes(b"no picture")
        with pytest.raises(ValueError, match="the first ones cannot be read"):
            estimate_cost("bundled", tmp_path)
        Image.fromarray(IMAGES[0]).save(tmp_path / "b.png")
        assert estimate_cost("bundled", tmp_path).seconds(0) > 0

    def test_the_encoder_is_as_before(self):
        encoder = wide()
        before = encoder.fingerprint
        estimate_cost(encoder, IMAGES)
        assert encoder.fingerprint == before
        assert all(parameter.grad is None for parameter in encoder.module.parameters())


class TestOperations:
    def test_are_counted_from_shapes(self):
        look = probe(nn.Linear(30, 20), (30,), dtype=torch.float32, device="cpu")
        assert look.gflop == pytest.approx(2 * 30 * 20 / 1e9)

    def test_auto_takes_few_and_cheap_passes(self):
        def choice(n_components, gflop, **about):
            return by_operations(n_components, lambda: gflop, **{"is_vector": False, "has_views": False} | about)

        assert choice(64, AUTO_GFLOP / 64).method == "exact"
        assert choice(64, 1.01 * AUTO_GFLOP / 64).method == "forward"
        assert choice(65, 1e-9).method == "forward"
        assert choice(64, 1e-9, is_vector=True).method == "forward"
        assert choice(65, 1e9, has_views=True).method == "exact"
        assert "65 backward passes per image are more than 64" in choice(65, 1e-9).reason

    def test_large_encoders_have_small_batches_on_the_cpu(self):
        assert batch_size(2**40, 1, is_vector=False) == MAX_BATCH
        assert batch_size(2**40, 1, is_vector=False, gflop=MAX_GFLOP_ON_CPU / 3) == 3
        assert batch_size(2**40, 1, is_vector=False, gflop=2 * MAX_GFLOP_ON_CPU) == 1
        assert batch_size(2**40, 1, is_vector=False, gflop=2 * MAX_GFLOP_ON_CPU, device="cuda") == MAX_BATCH


class TestTimeBudget:
    @pytest.mark.parametrize("n_passes", [384, 16, 4, 0])
    def test_auto_takes_as_many_passes_as_fit(self, n_passes):
        choice = by_time(COST, COST.seconds(n_passes) * 1.001)
        assert (choice.method, choice.n_directions, n_passes) in list(offered(384))
        assert duration(COST.seconds(n_passes)) in choice.reason

    def test_auto_refuses_what_does_not_fit_at_all(self):
        with pytest.raises(TimeBudgetError, match="the forward pass alone take"):
            by_time(COST, 1.0)
        with pytest.raises(TimeBudgetError, match="4 backward passes"):
            by_time(COST, COST.seconds(0), needs_passes=True)

    def test_extract_chooses_and_says_why(self):
        roomy = extract(wide(), IMAGES, method="auto", time_budget=3600)
        assert roomy.spectra.shape == (40, 1, 100)
        assert "the budget is 60 min" in roomy.meta["method_reason"]
        assert extract(wide(), IMAGES, method="auto").singular_values is None

    def test_other_methods_are_refused_before_any_sample_is_kept(self, tmp_path):
        with pytest.raises(TimeBudgetError, match=r"64 backward passes each take about .*time_budget is 1e-06 s"):
            extract("bundled", IMAGES, method="exact", time_budget=1e-6, store=tmp_path / "store")
        assert not (tmp_path / "store").exists()

    @pytest.mark.parametrize(("budget", "error"), [(0, ValueError), (-1, ValueError), ("10m", TypeError)])
    def test_it_is_a_number_of_seconds(self, budget, error):
        with pytest.raises(error, match="time_budget must"):
            extract("bundled", IMAGES, time_budget=budget)
        with pytest.raises(error, match="time_budget must"):
            JEPAScoreDetector(time_budget=budget).fit(IMAGES)

    def test_a_store_that_was_begun_keeps_its_method(self, tmp_path):
        extract(wide(), IMAGES[:10], method="sketch", n_directions=4, store=tmp_path)
        rest = extract(wide(), IMAGES, method="auto", time_budget=3600, store=tmp_path)
        assert rest.meta["method"] == "sketch of 4 directions"
        assert "begun" in rest.meta["method_reason"]

    def test_a_detector_scores_by_the_method_of_its_fit(self, tmp_path):
        detector = JEPAScoreDetector(wide(), time_budget=3600).fit(IMAGES)
        assert "100 backward passes per image" in detector.method_reason_
        detector.set_params(time_budget=1e-9)
        assert np.isfinite(detector.score_samples(IMAGES[:3])).all()
        detector.save(tmp_path / "detector")
        loaded = JEPAScoreDetector.load(tmp_path / "detector", encoder=wide())
        assert loaded.method_reason_ == detector.method_reason_
        np.testing.assert_array_equal(loaded.score_samples(IMAGES[:3]), detector.score_samples(IMAGES[:3]))


class TestSaidBefore:
    @pytest.fixture
    def slow(self, monkeypatch):
        """Every pass is said to take long."""
        monkeypatch.setattr(bill, "TOLD_FROM", 0.0)
        monkeypatch.setattr(bill, "WARNED_FROM", 0.0)
        monkeypatch.setattr(encoder_pass, "_FEW", 8)

    def test_a_line_before_the_bar(self, slow, monkeypatch):
        said = io.StringIO()
        monkeypatch.setattr(sys, "stderr", said)
        extract(wide(), IMAGES, method="exact", progress=True)
        line = next(line for line in said.getvalue().splitlines() if "about" in line)
        assert "for 40 samples" in line
        assert "by 100 backward passes (cheaper: method='sketch', n_directions=16: " in line

    def test_a_warning_without_a_bar(self, slow):
        with pytest.warns(UserWarning, match="this run will take about .* for 40 samples"):
            extract(wide(), IMAGES, method="exact")

    def test_nothing_of_what_is_quick(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            extract(wide(), IMAGES, method="exact")

    def test_nor_of_what_a_store_has_finished(self, slow, tmp_path):
        with pytest.warns(UserWarning, match="for 40 samples"):
            extract(wide(), IMAGES, method="exact", store=tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            extract(wide(), IMAGES, method="exact", store=tmp_path)


def test_the_bar_shows_the_passes_of_a_batch(monkeypatch):
    monkeypatch.setattr("skjepa.extraction.loop._BEAT", 0.0)
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    extract("bundled", IMAGES[:2], method="exact", progress=True)
    assert "pass 64 of 64" in said.getvalue()
