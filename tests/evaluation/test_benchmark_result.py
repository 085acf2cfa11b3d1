import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from skjepa.data.sources import as_source
from skjepa.evaluation.benchmark_result import BenchmarkResult
from skjepa.evaluation.metrics import detection_metrics


def result_of(detectors=("ours", "theirs"), seed=0):
    rng = np.random.default_rng(seed)
    sizes = {"fit": 30, "calibration": 40, "test": 50, "near": 20, "far": 30}
    shift = {"near": -1.0, "far": -3.0}
    groups = {name: as_source(rng.normal(size=(size, 2))) for name, size in sizes.items()}
    scores = {
        detector: {
            name: rng.normal(shift.get(name, 0.0) / (1 + 9 * d), 0.5, size=size)
            for name, size in sizes.items()
            if name != "fit"
        }
        for d, detector in enumerate(detectors)
    }
    costs = {name: {"passes_per_sample": 1, "seconds_per_sample": 0.01, "fit_seconds": 0.1} for name in detectors}
    return BenchmarkResult({"seed": 0}, groups, scores, costs, [], detectors[0], n_resamples=50)


def test_json_holds_every_metric_and_a_stamp(tmp_path):
    result = result_of()
    found = json.loads(result.to_json(tmp_path / "out.json").read_text())
    assert found["stamp"]["versions"]["skjepa"]
    scores = result.scores["theirs"]
    expected = detection_metrics(scores["test"], scores["near"])
    near = found["detectors"]["theirs"]["sets"]["near"]
    assert {metric: row["value"] for metric, row in near.items()} == pytest.approx(expected)
    assert all(row["low"] <= row["value"] <= row["high"] for row in near.values())
    mean = found["detectors"]["theirs"]["mean"]["auroc"]["value"]
    assert mean == pytest.approx((expected["auroc"] + detection_metrics(scores["test"], scores["far"])["auroc"]) / 2)
    assert [row["alpha"] for row in found["detectors"]["ours"]["false_positives"]] == [0.01, 0.05, 0.1]
    assert {found["detectors"][name]["mean_rank"] for name in ("ours", "theirs")} == {1.0, 2.0}


def test_parquet_holds_every_score(tmp_path):
    result = result_of()
    rows = pq.read_table(result.to_parquet(tmp_path / "scores.parquet")).to_pydict()
    assert len(rows["score"]) == 2 * (40 + 50 + 20 + 30)
    place = rows["detector"].index("theirs") + 40
    assert (rows["group"][place], rows["id"][place]) == ("test", str(result.groups["test"].ids[0]))
    assert rows["score"][place] == result.scores["theirs"]["test"][0]


def test_markdown(tmp_path):
    first, second = result_of().to_markdown().split("\n\n")
    assert first.splitlines()[0].startswith("| AUROC | near | far | mean (95 %) | rank | ours ahead by |")
    assert first.count("**") == 2
    assert [line.split("|")[-2].strip() for line in first.splitlines()[2:]] == [
        "yes",
        "",
    ]  # costs alike, ours is better
    assert "nominal 1% (too few to calibrate)" in second
    assert "nominal 5% (expected " in second


def test_some_of_the_sets():
    result = result_of()
    near = result.on(["near"])
    assert near.sets == ["near"]
    assert near.summary["detectors"]["ours"]["mean"]["auroc"]["value"] == pytest.approx(
        result.summary["detectors"]["ours"]["sets"]["near"]["auroc"]["value"]
    )
    with pytest.raises(ValueError, match="there is no set 'middle': give one of 'near', 'far'"):
        result.on(["middle"])


def test_pictures():
    result = result_of()
    squares = result.roc().axes
    assert [axes.get_title() for axes in squares] == ["near", "far"]
    curve = squares[1].lines[0].get_xydata()
    area = np.trapezoid(curve[:, 1], curve[:, 0])
    assert area == pytest.approx(result.summary["detectors"]["ours"]["sets"]["far"]["auroc"]["value"])
    gallery = result.gallery("theirs")
    assert "theirs, threshold for 0.05 of normal samples" in gallery.subfigs[0].axes[0].get_title()
    text = " ".join(t.get_text() for t in result.ranks().axes[0].texts)
    assert "1.00  " in text
    diamonds = result.pareto().axes[0].lines[-1].get_xydata()
    mean = result.summary["detectors"]["ours"]["mean"]["auroc"]["value"]
    assert diamonds == pytest.approx(np.array([[10.0, mean]]))  # milliseconds
    with pytest.raises(ValueError, match="two detectors"):
        result_of(("ours",)).ranks()
