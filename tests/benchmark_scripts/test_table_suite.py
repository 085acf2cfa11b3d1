"""The suite of tables: splits, rivals and their failures, what is kept, ranks and verdicts."""

import json
import sys
import time
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from benchmarks.accuracy import table_rivals, table_verdicts, tables
from benchmarks.common import markdown, table_sets
from benchmarks.render import vectors
from skjepa import JEPAScoreDetector


def table(n_normal=80, n_outliers=20, d=4, seed=0):
    """Rows whose first feature is their number: a row is known wherever it goes."""
    X = np.random.default_rng(seed).normal(size=(n_normal + n_outliers, d))
    X[n_normal:] += 4
    X[:, 0] = np.arange(len(X))
    return table_sets.Table(X, np.repeat([0, 1], [n_normal, n_outliers]))


def save(folder, name, made):
    np.savez(folder / f"{name}.npz", X=made.X, y=made.y)


@given(n_normal=st.integers(4, 200), n_outliers=st.integers(2, 60), share=st.floats(0.3, 1.0), seed=st.integers(0, 9))
def test_thinned_tables_keep_the_share_of_outliers(n_normal, n_outliers, share, seed):
    whole = table(n_normal, n_outliers)
    rows = max(4, int(share * len(whole.X)))
    few = table_sets.thinned(whole, rows, seed)
    assert rows - 1 <= len(few.X) <= rows
    assert len(few.X) == len(np.unique(few.X[:, 0]))
    assert abs(few.y.sum() - len(few.X) * whole.y.mean()) <= 1
    assert (few.y == whole.y[few.X[:, 0].astype(int)]).all()


@given(n_normal=st.integers(2, 60), n_outliers=st.integers(1, 20), seed=st.integers(0, 9))
def test_semi_supervised_fits_on_half_of_the_normal_rows_and_judges_all_others(n_normal, n_outliers, seed):
    whole = table(n_normal, n_outliers)
    parts = table_sets.split(whole, "semi-supervised", seed)
    fit, test = parts.fit[:, 0].astype(int), parts.test[:, 0].astype(int)
    assert len(fit) == n_normal // 2
    assert (whole.y[fit] == 0).all()
    assert sorted([*fit, *test]) == list(range(n_normal + n_outliers))
    assert (parts.outlier == (whole.y[test] == 1)).all()


def test_unsupervised_fits_on_all_rows_and_judges_them():
    whole = table()
    parts = table_sets.split(whole, "unsupervised", 0)
    assert parts.same
    assert parts.fit is parts.test is whole.X
    assert parts.outlier.sum() == 20


def test_seeds_draw_other_rows():
    halves = [table_sets.split(table(), "semi-supervised", seed).fit[:, 0] for seed in (0, 0, 1)]
    assert (halves[0] == halves[1]).all()
    assert set(halves[0]) != set(halves[2])


def test_files_are_known_by_their_names_without_a_number(tmp_path):
    for name in ("11_far", "1_near", "plain"):
        save(tmp_path, name, table())
    assert list(table_sets.tables_in(tmp_path)) == ["far", "near", "plain"]
    assert list(table_sets.tables_in(tmp_path, ("near",))) == ["near"]
    assert (table_sets.read(tmp_path / "plain.npz").X == table().X).all()
    with pytest.raises(ValueError, match=r"no table 'moon' .* far, near, plain"):
        table_sets.tables_in(tmp_path, ("moon",))
    with pytest.raises(ValueError, match=r"no \.npz files"):
        table_sets.tables_in(tmp_path / "elsewhere")
    save(tmp_path, "odd", table_sets.Table(np.zeros((3, 2)), np.zeros(3, dtype=int)))
    with pytest.raises(ValueError, match=r"odd\.npz: y must hold 0 \(normal\) and 1 \(outlier\); it holds \[0\]"):
        table_sets.read(tmp_path / "odd.npz")


def test_quick_tables_are_among_the_development_data(shared_data):
    order = list(table_sets.tables_in(shared_data / "adbench"))
    halves = [order.index(name) % 2 for name in table_sets.QUICK]
    assert len(halves) == 8
    assert sum(halves) == 4


@pytest.mark.parametrize("protocol", ["semi-supervised", "unsupervised"])
def test_the_default_is_judged_as_its_users_have_it(protocol):
    parts = table_sets.split(table(), protocol, 0)
    found = table_rivals.ours(parts, seed=3)
    for name, formula in table_rivals.FORMULAS.items():
        detector = JEPAScoreDetector(formula=formula, random_state=3).fit(parts.fit)
        np.testing.assert_allclose(found[name][0], -detector.score_samples(parts.test), rtol=1e-9, atol=1e-9)
        assert found[name][1] > 0
    assert JEPAScoreDetector().formula == table_rivals.FORMULAS[table_rivals.DEFAULT]


def test_without_network_nothing_is_trained():
    parts = table_sets.split(table(160), "semi-supervised", 0)
    first, second = (table_rivals.without_network(parts, seed)["skjepa, no network"][0] for seed in (0, 1))
    np.testing.assert_allclose(first, second)
    assert not np.allclose(first, table_rivals.ours(parts, 0)["skjepa"][0])


@pytest.mark.filterwarnings("ignore")
def test_pyod_gets_rows_standardised_by_the_fitted_ones():
    from pyod.models.knn import KNN

    parts = table_sets.split(table(), "semi-supervised", 0)
    scaler = StandardScaler().fit(parts.fit)
    model = KNN().fit(scaler.transform(parts.fit))
    np.testing.assert_allclose(
        table_rivals.RIVALS["KNN"](parts, 0)["KNN"][0], model.decision_function(scaler.transform(parts.test))
    )
    np.testing.assert_allclose(
        table_rivals.RIVALS["KNN, unscaled"](parts, 0)["KNN, unscaled"][0],
        KNN().fit(parts.fit).decision_function(parts.test),
    )
    same = table_sets.split(table(), "unsupervised", 0)
    assert (table_rivals.RIVALS["KNN"](same, 0)["KNN"][0] > 0).all()  # no row is its own neighbour


@pytest.mark.filterwarnings("ignore")
def test_pyod_has_its_defaults_but_for_seed_and_silence(capsys):
    assert list(table_rivals.PYOD) == ["KNN", "LOF", "IForest", "ECOD", "MCD", "OCSVM", "AutoEncoder"]
    assert table_rivals.LISTED[1:] == tuple(table_rivals.PYOD)
    for make in table_rivals.PYOD.values():
        model = make(7)
        changed = {key for key, value in model.get_params().items() if value != type(model)().get_params()[key]}
        assert changed <= {"random_state", "verbose", "device"}
        assert model.get_params().get("random_state", 7) == 7
    parts = table_sets.split(table(n_normal=70, n_outliers=5), "semi-supervised", 0)
    scores = [table_rivals.RIVALS["AutoEncoder"](parts, seed)["AutoEncoder"][0] for seed in (0, 0, 1)]
    assert (scores[0] == scores[1]).all()
    assert (scores[0] != scores[2]).any()
    assert capsys.readouterr().err == ""


@pytest.fixture
def suite(monkeypatch):
    """The suite with four quick rivals; `calls` counts how often each was asked."""
    calls = []

    def rival(name, judge):
        def judged(parts, seed):
            calls.append(name)
            return {name: (judge(parts), 0.25)}

        return judged

    def broken(parts):
        raise ValueError("singular")

    def slow(parts):
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            pass

    def good(parts):
        warnings.warn("rank: 3 (of 4)", UserWarning, stacklevel=1)
        warnings.warn("rank: 2 (of 4)", UserWarning, stacklevel=1)
        return parts.test[:, 1]

    rivals = {
        "skjepa": rival("skjepa", good),
        "KNN": rival("KNN", lambda parts: -parts.test[:, 1]),
        "MCD": rival("MCD", broken),
        "LOF": rival("LOF", slow),
    }
    monkeypatch.setattr(tables, "RIVALS", rivals)
    monkeypatch.setattr(tables, "NAMES", {})
    monkeypatch.setattr(tables, "LISTED", tuple(rivals))
    tables.calls = calls
    return tables


def run(suite, monkeypatch, tmp_path, *options):
    command = ["tables.py", "--data", str(tmp_path), "--out", str(tmp_path / "out.json"), "--limit", "0.05", *options]
    monkeypatch.setattr(sys, "argv", command)
    suite.main()
    return json.loads((tmp_path / "out.json").read_text())


def test_a_failure_is_a_constant_with_its_reason(suite):
    parts = table_sets.split(table(), "semi-supervised", 0)
    broken = suite.judged("MCD", parts, 0, limit=5)
    assert broken["failed"] == "ValueError: singular"
    assert broken["MCD"]["auroc"] == roc_auc_score(parts.outlier, np.zeros(len(parts.test)))
    assert broken["MCD"]["aupr_out"] == parts.outlier.mean()
    late = suite.judged("LOF", parts, 0, limit=0.05)
    assert late["failed"] == "out of time, more than 0.05 s"
    good = suite.judged("skjepa", parts, 0, limit=5)
    assert good["skjepa"]["auroc"] == roc_auc_score(parts.outlier, parts.test[:, 1])
    assert good["warned"] == ["rank"]
    assert "failed" not in good


def test_scores_that_are_not_finite_are_a_failure(suite, monkeypatch):
    parts = table_sets.split(table(), "semi-supervised", 0)
    monkeypatch.setitem(suite.RIVALS, "KNN", lambda parts, seed: {"KNN": (np.full(len(parts.test), np.nan), 0.1)})
    assert "NaN" in suite.judged("KNN", parts, 0, limit=5)["failed"]


def test_a_run_goes_on_from_what_is_kept(suite, monkeypatch, tmp_path):
    for name in ("1_a", "2_b"):
        save(tmp_path, name, table())
    run(suite, monkeypatch, tmp_path, "--seeds", "2", "--keep")
    # Two sets, two protocols, two seeds; what ran out of time is not tried with the second.
    assert {name: suite.calls.count(name) for name in suite.RIVALS} == {"skjepa": 8, "KNN": 8, "MCD": 8, "LOF": 4}
    kept = tmp_path / "out.runs"
    with kept.open("a") as file:
        file.write('{"KNN": {"auroc"')  # cut off
    suite.calls.clear()
    found = run(suite, monkeypatch, tmp_path, "--seeds", "2", "--keep")
    assert suite.calls == []
    again = run(suite, monkeypatch, tmp_path, "--seeds", "2", "--again", "skjepa")
    assert suite.calls == ["skjepa"] * 8
    assert found["sets"] == again["sets"]
    assert not kept.exists()
    assert (tmp_path / "tables_ranks.png").stat().st_size > 1000


def test_the_result_tells_halves_failures_and_verdicts(suite, monkeypatch, tmp_path):
    for name in ("1_a", "2_b", "3_c"):
        save(tmp_path, name, table())
    found = run(suite, monkeypatch, tmp_path, "--seeds", "1", "--max-rows", "50")
    assert {name: row["half"] for name, row in found["sets"].items()} == {"a": "tuned", "b": "confirmed", "c": "tuned"}
    assert found["sets"]["a"]["n_samples"] == 100
    assert found["stamp"]["max_rows"] == 50
    assert len(found["failed"]) == 12
    assert {note["rival"] for note in found["failed"]} == {"MCD", "LOF"}
    assert {note["rival"] for note in found["warned"]} == {"skjepa"}
    assert list(found["verdicts"]["unsupervised"]) == ["all", "tuned", "confirmed"]  # nowhere did all finish
    every = found["verdicts"]["semi-supervised"]["all"]
    assert every["sets"] == 3
    assert every["detectors"]["skjepa"]["mean_rank"] == 1
    assert every["detectors"]["MCD"]["mean_rank"] == every["detectors"]["LOF"]["mean_rank"] == 2.5
    assert every["bar"]["best mean rank"]["met"]


def scored(**auroc):
    n = len(next(iter(auroc.values())))
    return {
        f"set {i}": {name: {"auroc": values[i], "aupr_out": 0.5, "seconds": 1.0} for name, values in auroc.items()}
        for i in range(n)
    }


def test_verdicts_of_known_tables():
    own = [0.9, 0.8, 0.7, 0.6]
    sets = scored(ours=own, even=[0.9, 0.82, 0.69, 0.6], worse=[0.5, 0.5, 0.5, 0.8], extra=[1.0] * 4)
    found = table_verdicts.verdicts(sets, "ours", ("ours", "even", "worse"))
    assert found["detectors"]["ours"]["mean_auroc"] == pytest.approx(0.75)
    assert found["detectors"]["ours"]["mean_rank"] == (1.5 + 2 + 1 + 2.5) / 4
    assert "mean_rank" not in found["detectors"]["extra"]  # who is not listed does not count
    even, worse = found["tests"]
    assert (even["wins"], even["ties"], even["losses"]) == (0, 3, 1)
    assert (worse["wins"], worse["ties"], worse["losses"]) == (3, 0, 1)
    assert worse["difference"] == pytest.approx(0.175)
    bar = found["bar"]["best mean AUROC"]
    assert (bar["best_rival"], bar["met"]) == ("even", False)
    assert found["detectors"]["even"]["mean_rank"] == found["detectors"]["ours"]["mean_rank"]
    assert found["bar"]["best mean rank"]["met"] is False  # to be level is not to be best


def test_signed_ranks_against_the_exact_distribution():
    """Six sets, all won: of 2^6 signs two are as extreme. Holm doubles the smaller of two p-values."""
    gaps = np.array([0.02, 0.03, 0.05, 0.07, 0.11, 0.13])
    own = np.full(6, 0.8)
    won, mixed, same = table_verdicts.signed_ranks(
        own, {"won": own - gaps, "mixed": own + gaps * [1, -1, 1, -1, 1, -1], "same": own}
    )
    assert won["p_value"] == pytest.approx(2 / 64)
    assert won["adjusted_p_value"] == pytest.approx(3 * 2 / 64)
    assert mixed["p_value"] > 0.5
    assert (same["p_value"], same["ties"]) == (1.0, 6)


@settings(max_examples=20)  # of equal ranks SciPy goes through all signs
@given(st.lists(st.floats(0, 1), min_size=2, max_size=8), st.randoms())
def test_the_two_sides_of_a_comparison_mirror_each_other(auroc, random):
    own, other = np.array(auroc), np.array(random.sample(auroc, len(auroc)))
    one, two = (table_verdicts.signed_ranks(a, {"b": b})[0] for a, b in ((own, other), (other, own)))
    assert one["difference"] == pytest.approx(-two["difference"])
    assert (one["wins"], one["ties"], one["losses"]) == (two["losses"], two["ties"], two["wins"])
    assert one["p_value"] == pytest.approx(two["p_value"])


def test_documents_tell_what_was_measured(suite, monkeypatch, tmp_path):
    for name in ("1_a", "2_b"):
        save(tmp_path, name, table())
    run(suite, monkeypatch, tmp_path, "--seeds", "2")
    (tmp_path / "out.json").rename(tmp_path / "tables.json")
    monkeypatch.setattr(markdown, "RESULTS", tmp_path)
    assert "2 sets, means over 2 seeds, at most 10,000 rows per set" in vectors.run_line()
    rows = [row.split(" | ") for row in vectors.bar_table().splitlines()[2:]]
    assert [row[0] for row in rows[:3]] == [f"| semi-supervised, {part}" for part in ("all sets", "tuned", "confirmed")]
    assert all(row[4] == "met" for row in rows)
    assert "- **unsupervised, against KNN**: wins 2 (a +" in vectors.verdict_list()
    failures = vectors.failures_list().splitlines()
    assert "- MCD failed on a, semi-supervised, with 2 of 2 seeds: ValueError: singular." in failures
    assert '- skjepa warned "rank" on a, b; its scores count.' in failures
    table_rows = vectors.protocol_table("semi-supervised").splitlines()
    assert len({row.count("|") for row in table_rows}) == 1
    assert table_rows[2].startswith("| skjepa | **")
    assert len(vectors.by_set_table().splitlines()) == 2 + 2
    assert len(vectors.ranks_table().splitlines()) == 2 + 4 + 2
