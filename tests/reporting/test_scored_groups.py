import numpy as np
import pyarrow.parquet as pq
import pytest
from oracles import conv_net, random_images

from skjepa import JEPAScoreDetector, load_encoder
from skjepa._utils.files import check_output
from skjepa.data.images import ImageReadError
from skjepa.data.sources import Source, as_source
from skjepa.reporting.score_table import score_table, write_table
from skjepa.reporting.scored_groups import ScoredGroup, score_group, summary


@pytest.fixture(scope="module")
def detector():
    encoder = load_encoder(conv_net(), image_size=32)
    return JEPAScoreDetector(encoder, formula="jepa", calibration=0.5, target_fpr=0.2, on_error="skip").fit(
        random_images(20)
    )


def broken(n, position):
    source = as_source(random_images(n, seed=1), ids=[f"{i}.png" for i in range(n)])

    def load(i):
        if i == position:
            raise ImageReadError(f"{i}.png: truncated")
        return source.load(i)

    return Source(source.ids, load)


def test_a_group_agrees_with_the_detector(detector):
    group = score_group(detector, "new", as_source(random_images(6, seed=1)))
    X = random_images(6, seed=1)
    np.testing.assert_array_equal(group.scores, detector.score_samples(X))
    np.testing.assert_array_equal(group.labels, detector.predict(X))
    np.testing.assert_array_equal(group.p_values, detector.p_values(X))
    assert group.seconds_per_image > 0


def test_unreadable_images_keep_their_row(detector):
    with pytest.warns(UserWarning, match="truncated"):
        group = score_group(detector, "new", broken(4, 2))
    rows = score_table([group]).to_pydict()
    assert rows["id"] == ["0.png", "1.png", "2.png", "3.png"]
    for column in ("score", "p_value", "decision", "label"):
        assert [value is None for value in rows[column]] == [False, False, True, False]
    assert rows["error"] == [None, None, "2.png: truncated", None]
    row = summary(detector.calibration_scores_, [group])[0]
    assert (row["images"], row["unreadable"]) == (4, 1)
    assert 0 <= row["auroc"] <= 1


def test_summary_without_normal_scores_has_no_metrics(detector):
    group = score_group(detector, "new", as_source(random_images(3, seed=1)))
    assert "auroc" not in summary([], [group])[0]


def test_flagged_counts_what_predict_flags():
    scores = np.array([-1.0, 0.0, 1.0, np.nan])
    group = ScoredGroup("g", as_source(random_images(4)), scores, None, scores, {3: "broken"}, 0.1)
    assert summary([], [group])[0]["flagged"] == 1
    assert group.labels.tolist() == [-1, 1, 1, -1]


def test_output_is_checked_before_the_work(tmp_path):
    assert check_output(tmp_path / "a.parquet", (".parquet",)) == tmp_path / "a.parquet"
    (tmp_path / "folder.csv").mkdir()
    for path, error in (
        (tmp_path / "a.txt", ValueError),
        (tmp_path / "no" / "a.csv", FileNotFoundError),
        (tmp_path / "folder.csv", IsADirectoryError),
    ):
        with pytest.raises(error, match=path.name):
            check_output(path, (".parquet", ".csv"))


def test_a_failed_write_leaves_the_old_table(tmp_path, monkeypatch, detector):
    table = score_table([score_group(detector, "new", as_source(random_images(3, seed=1)))])
    path = write_table(table, tmp_path / "scores.parquet")

    def full(table, file, **options):
        file.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(OSError, match="No space left"):
        write_table(table.slice(0, 1), path)
    monkeypatch.undo()
    assert pq.read_table(path).equals(table)
    assert [file.name for file in tmp_path.iterdir()] == ["scores.parquet"]
