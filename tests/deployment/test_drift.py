"""The alarm holds its level, finds changes, says where; monitors survive a file, and refuse a damaged one."""

import itertools
import json

import numpy as np
import pytest
from scipy.stats import binom, kstest

from skjepa.deployment.betting import BETTINGS, factors, log_martingale, n_bets, next_capital
from skjepa.deployment.drift import DriftMonitor
from skjepa.deployment.score_monitor import FIRST, ScoreMonitor
from skjepa.deployment.window_tests import window_tests

SEEDS, SAMPLES = 200, 10_000
ALARM = {"noticed": 1, "log_martingale": 3.0, "side": "low"}


def highest(betting, p):
    """Highest log-martingale of each of the streams p, (n_samples, n_streams), within one horizon."""
    capital, top = np.zeros((p.shape[1], n_bets(betting))), np.full(p.shape[1], -np.inf)
    for n, row in enumerate(p, start=1):
        capital = next_capital(capital, factors(betting, row), 1 / len(p))
        top = np.maximum(top, log_martingale(capital, n, len(p)))
    return top


@pytest.mark.parametrize("betting", BETTINGS)
def test_false_alarms_hold_the_level(betting):
    """Of 200 streams of 10,000 uniform p-values; the bounds are those of a binomial law at 99.9 %."""
    top = highest(betting, np.random.default_rng(0).random((SAMPLES, SEEDS)))
    for level in (0.01, 0.05, 0.2):
        assert (top >= np.log(1 / level)).sum() <= binom.ppf(0.999, SEEDS, level)
    assert (top >= np.log(1 / 0.5)).sum() >= 20  # the test can fail: the level is used, not undercut by far


@pytest.mark.parametrize("betting", BETTINGS)
def test_bets_gain_nothing_on_average(betting):
    """The mean of every factor over uniform p, by a fine rule that meets the poles of powers."""
    u = (np.arange(200_000) + 0.5) / 200_000
    p = u**6 / (u**6 + (1 - u) ** 6)  # dense at both ends
    dp = np.diff(np.concatenate([[0.0], (p[1:] + p[:-1]) / 2, [1.0]]))
    found = (factors(betting, p) * dp[:, None]).sum(axis=0)
    assert (found <= 1 + 1e-3).all()
    np.testing.assert_allclose(found, 1, atol=0.03)  # p-values under 1e-9 are cut off
    assert factors(betting, np.array([0.0, 1.0])).min() >= 0
    assert (factors(betting, np.array(np.nan)) == 1).all()


def test_the_martingale_is_the_mixture_over_change_points():
    """Against a double sum over change points in float64, with capital that changes bets."""
    p, horizon = np.random.default_rng(3).beta(1, 2, size=60), 100
    capital = np.zeros(n_bets("jumper"))
    for value in p:
        capital = next_capital(capital, factors("jumper", value), 1 / horizon)
    total = 1 - len(p) / horizon
    for begin in range(len(p)):
        stake = np.full(4, 0.25)
        for i, value in enumerate(p[begin:]):
            stake = stake if i == 0 else 0.99 * stake + 0.01 * stake.mean()
            stake = stake * (1 + np.array([-2.0, -1.0, 1.0, 2.0]) * (value - 0.5))
        total += stake.sum() / horizon
    assert log_martingale(capital, len(p), horizon) == pytest.approx(np.log(total), abs=1e-12)


@pytest.mark.parametrize("betting", BETTINGS)
@pytest.mark.parametrize(("a", "b", "side"), [(1, 4, "low"), (4, 1, "high")])
@pytest.mark.parametrize("change", [50, 3000, 12_500])
def test_a_change_is_found_and_dated(a, b, side, betting, change):
    rng = np.random.default_rng(change)
    monitor = DriftMonitor(0.01, betting=betting)
    assert monitor.update(rng.random(change)) == []
    (alarm,) = monitor.update(rng.beta(a, b, size=200))
    assert monitor.alarm == alarm
    assert monitor.since == alarm.since
    assert change <= alarm.noticed < change + 120
    assert abs(alarm.since - change) < 30
    assert alarm.side == side
    assert monitor.log_martingale["score"] > monitor.threshold


def test_power_bets_find_both_ends_at_once():
    rng = np.random.default_rng(0)
    p = np.concatenate([rng.random(300), rng.beta(0.4, 0.4, size=300)])
    assert DriftMonitor(0.01, betting="power").update(p)
    assert not DriftMonitor(0.01).update(p)  # linear bets cannot see it


def test_each_start_may_alarm_once_and_reset_forgets():
    monitor = DriftMonitor(0.05, horizon=100)
    alarms = monitor.update(np.full(250, 0.01))
    assert len(alarms) == 3
    assert [alarm.noticed // 100 for alarm in alarms] == [0, 1, 2]
    assert {alarm.since for alarm in alarms} == {0}
    assert len(monitor.alarms) == 1
    monitor.reset()
    assert (monitor.n, monitor.alarm, monitor.since) == (0, None, None)
    assert monitor.log_martingale == {"score": 0.0}


def test_the_alarm_names_the_stream_and_what_to_do():
    rng = np.random.default_rng(1)
    monitor = DriftMonitor(streams=("score", "layer stage 1", "neighbours"))
    p = {name: rng.random(400) for name in monitor.streams}
    p["layer stage 1"][200:] *= 0.3
    (alarm,) = monitor.update(p)
    assert alarm.stream == "layer stage 1"
    for word in ("'layer stage 1' is lower", "calibrate", "layer 'stage 1' is unlike normal"):
        assert word in str(alarm)
    p["score"] = 1 - 0.2 * p["score"]
    assert "unusually typical" in " ".join(map(str, monitor.update(p)))


def test_one_by_one_is_all_at_once():
    p = np.random.default_rng(0).beta(1, 1.5, size=300)
    p[5] = np.nan
    one, all_ = DriftMonitor(0.05), DriftMonitor(0.05)
    alarms = list(itertools.chain.from_iterable(one.update(value) for value in p))
    assert alarms == all_.update(p)
    assert one.state == all_.state
    assert one.n == 300


@pytest.mark.parametrize("bad", [1.5, -0.1, [0.2, np.inf], {"other": 0.1}, [[0.1, 0.2]]])
def test_wrong_p_values_are_refused_and_change_nothing(bad):
    monitor = DriftMonitor()
    with pytest.raises(ValueError, match=r"\[0, 1\]|stream|length"):
        monitor.update(bad)
    assert monitor.n == 0


def test_wrong_parameters_are_refused():
    with pytest.raises(ValueError, match="level"):
        DriftMonitor(1.0)
    with pytest.raises(ValueError, match="'jumper', 'power'"):
        DriftMonitor(betting="poker")
    with pytest.raises(ValueError, match="different names"):
        DriftMonitor(streams=("a", "a"))
    with pytest.raises(ValueError, match="dict with values for each stream"):
        DriftMonitor(streams=("a", "b")).update(0.5)


class TestScoreMonitor:
    def test_p_values_are_independent_and_uniform(self):
        """Of few calibration samples and scores with many ties, where those against a fixed set are not uniform."""
        rng = np.random.default_rng(0)
        p = []
        for seed in range(40):
            monitor = ScoreMonitor({"score": rng.integers(0, 6, size=20)}, random_state=seed)
            monitor.update({"score": rng.integers(0, 6, size=400)})
            p.append(monitor.p_values["score"])
        p = np.stack(p)
        assert kstest(p.ravel(), "uniform").pvalue > 0.001
        lagged = np.corrcoef(p[:, :-1].ravel(), p[:, 1:].ravel())[0, 1]
        assert abs(lagged) < 4 / np.sqrt(p.size)
        assert kstest(p.mean(axis=1), "norm", (0.5, np.sqrt(1 / 12 / 400))).pvalue > 0.001

    def test_a_fixed_calibration_set_would_alarm(self):
        """Why ranks take the stream in: p-values against 20 calibration samples alarm on normal streams."""
        rng = np.random.default_rng(1)
        fixed = ranked = 0
        for _ in range(15):
            normal, stream = rng.normal(size=20), rng.normal(size=3000)
            p = (np.searchsorted(np.sort(normal), stream) + rng.random(3000)) / 21
            fixed += bool(DriftMonitor(0.01).update(p))
            ranked += bool(ScoreMonitor({"score": normal}).update({"score": stream}))
        assert ranked <= 1
        assert fixed >= 5

    def test_a_shift_is_found_after_a_new_start_too(self):
        rng = np.random.default_rng(2)
        monitor = ScoreMonitor({"score": rng.normal(size=300), "term": []}, horizon=1000)
        assert not monitor.update({"score": rng.normal(size=2100), "term": rng.normal(size=2100)})
        alarms = monitor.update({"score": rng.normal(size=150), "term": rng.normal(size=150) + 1.5})
        assert [(alarm.stream, alarm.side) for alarm in alarms] == [("term", "high")]
        assert abs(monitor.alarm.since - 2100) < 30
        assert max(map(len, monitor.state["first"])) == FIRST
        assert max(map(len, monitor.state["since_start"])) <= 1000

    def test_saved_and_loaded_it_goes_on_alike(self, tmp_path):
        rng = np.random.default_rng(3)
        normal = {"score": rng.normal(size=50), "term": []}
        stream = {"score": rng.integers(-1, 2, size=3000), "term": rng.normal(np.arange(3000) / 500)}
        whole = ScoreMonitor(normal, 0.05, horizon=700, random_state=5)
        told = whole.update(stream)
        parts, heard = ScoreMonitor(normal, 0.05, horizon=700, random_state=5), []
        for begin in range(0, 3000, 350):
            heard += parts.update({name: values[begin : begin + 350] for name, values in stream.items()})
            parts.save(tmp_path / "monitor.json")
            parts = ScoreMonitor.load(tmp_path / "monitor.json")
        assert heard == told
        assert parts.state == whole.state
        assert told  # so that alarms were among what was written

    def test_infinite_scores_are_refused(self):
        monitor = ScoreMonitor({"score": [1.0, 2.0]})
        with pytest.raises(ValueError, match="finite"):
            monitor.update({"score": [np.inf]})
        monitor.update({"score": np.nan})
        assert monitor.monitor.n == 1
        assert np.isnan(monitor.p_values["score"]).all()


class TestFiles:
    def test_a_monitor_comes_back(self, tmp_path):
        monitor = DriftMonitor(0.05, streams=("a", "b"), betting="power", horizon=77)
        monitor.update({"a": np.full(90, 0.01), "b": np.linspace(0, 1, 90)})
        assert monitor.alarms
        assert monitor.save(tmp_path / "m.json") == tmp_path / "m.json"
        assert DriftMonitor.load(tmp_path / "m.json").state == monitor.state

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("level", 2),
            ("streams", []),
            ("betting", "poker"),
            ("n", -1),
            ("n", 3.5),
            ("capital", [[1.0]]),
            ("capital", [["x"] * 4]),
            ("capital", [[-1.0, 0, 0, 0]]),
            ("gain", None),
            ("start", [[0, 0, 0, 10**6]]),
            ("alarms", [{"stream": "score"}]),
            ("alarms", [ALARM | {"stream": "x", "since": 0}]),
            ("alarms", [ALARM | {"stream": "score", "since": 9}]),
            ("class", "ScoreMonitor"),
            ("format", 99),
            ("extra", 1),
        ],
    )
    def test_damage_is_named(self, tmp_path, name, value):
        path = DriftMonitor().save(tmp_path / "m.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
        with pytest.raises((ValueError, TypeError), match=r"[a-z]"):
            DriftMonitor.load(path)

    def test_half_a_file_and_none(self, tmp_path):
        path = ScoreMonitor({"score": [1.0, 2.0]}).save(tmp_path / "m.json")
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(ValueError, match="damaged"):
            ScoreMonitor.load(path)
        with pytest.raises(FileNotFoundError, match="no file"):
            ScoreMonitor.load(tmp_path / "other.json")

    def test_a_monitor_of_scores_is_checked_too(self, tmp_path):
        path = ScoreMonitor({"score": [1.0, 2.0]}, horizon=3).save(tmp_path / "m.json")
        good = json.loads(path.read_text())
        for name, value in [("normal", [["x"]]), ("first", []), ("since_start", [[1.0] * 9]), ("monitor", 3)]:
            path.write_text(json.dumps(good | {name: value}))
            with pytest.raises(ValueError, match=r"numbers|list|at most|state"):
                ScoreMonitor.load(path)


def test_window_tests_against_scipy_and_on_wrong_input():
    p = np.random.default_rng(0).beta(1, 4, size=200)
    found = window_tests([*p, np.nan], alpha=0.1)
    assert found.n == 200
    assert found.n_flagged == (p <= 0.1).sum()
    assert found.kolmogorov_smirnov == pytest.approx(kstest(p, "uniform").pvalue)
    assert found.binomial == pytest.approx(binom.sf(found.n_flagged - 1, 200, 0.1))
    assert max(found.kolmogorov_smirnov, found.binomial) < 0.01
    assert window_tests(np.linspace(0.005, 0.995, 100)).kolmogorov_smirnov > 0.99
    with pytest.raises(ValueError, match="at least one"):
        window_tests([np.nan])
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        window_tests([2.0])
