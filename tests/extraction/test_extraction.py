"""`Extraction`: an array to scikit-learn, whole on the disk, and never mixed with another encoder's."""

import json
import os
import pickle

import numpy as np
import pytest
from sklearn.base import BaseEstimator
from sklearn.model_selection import GridSearchCV, KFold, cross_val_predict, train_test_split
from sklearn.utils import _safe_indexing, check_consistent_length, indexable

from skjepa.extraction.extraction import Extraction
from skjepa.extraction.store.settings import SETTINGS, SettingsMismatchError

META = {
    "encoder": "bundled",
    "fingerprint": "0f",
    "method": "exact",
    "precision": "float32",
    "input_shape": [3, 32, 32],
    "n_components": 4,
    "views": 2,
    "transform": None,
    "seed": None,
    "layers": None,
    "layers_dtype": None,
    "versions": {"torch": "2"},
    "skipped": [[3, "bad.png", "cut short"]],
}


def make(n: int = 6, seed: int = 0, **meta) -> Extraction:
    rng = np.random.default_rng(seed)
    sigma = np.sort(rng.lognormal(sigma=10, size=(n, 2, 3)))[..., ::-1]
    return Extraction(rng.normal(size=(n, 4)), sigma, np.array([f"é-{seed}-{i}" for i in range(n)]), {**META, **meta})


def arrays_of(extraction: Extraction) -> tuple:
    return extraction.embeddings, extraction.singular_values, extraction.ids


def assert_same(a: Extraction, b: Extraction) -> None:
    np.testing.assert_array_equal(a.embeddings, b.embeddings)
    np.testing.assert_array_equal(a.singular_values, b.singular_values)
    np.testing.assert_array_equal(a.ids, b.ids)
    assert a.meta == b.meta


@pytest.fixture
def whole() -> Extraction:
    return make()


class TestIndexing:
    @pytest.mark.parametrize(
        ("index", "positions"),
        [
            (2, [2]),
            (-1, [5]),
            (np.int64(3), [3]),
            (slice(1, 4), [1, 2, 3]),
            (slice(None, None, -2), [5, 3, 1]),
            (slice(3, 3), []),
            ([4, 0, 4], [4, 0, 4]),
            (np.array([5, 1]), [5, 1]),
            (np.array([], dtype=int), []),
            (np.array([True, False, False, True, False, False]), [0, 3]),
            ([False] * 5 + [True], [5]),
        ],
    )
    def test_positions(self, whole, index, positions):
        part = whole[index]
        assert part.shape == (len(positions),)
        assert len(part) == len(positions)
        assert part.ids.tolist() == [whole.ids[i] for i in positions]
        np.testing.assert_array_equal(part.embeddings, whole.embeddings[positions])
        np.testing.assert_array_equal(part.singular_values, whole.singular_values[positions])

    def test_meta_goes_along_less_positions_of_the_whole(self, whole):
        assert whole[:2].meta == {key: value for key, value in META.items() if key != "skipped"}
        assert whole.meta == META

    @pytest.mark.parametrize("index", [6, -7, [9], np.array([True, False]), "a"])
    def test_no_such_position(self, whole, index):
        with pytest.raises(IndexError):
            whole[index]

    def test_iteration_ends(self, whole):
        assert [part.ids[0] for part in whole] == whole.ids.tolist()

    def test_identity_is_equality(self, whole):
        """An element-wise comparison has no truth value; whoever compares parameters must get one."""
        assert whole == whole
        assert whole != make()
        assert len({whole, whole}) == 1


class Nearest(BaseEstimator):
    """The least estimator that takes an Extraction."""

    def __init__(self, power=1):
        self.power = power

    def fit(self, X, y=None):
        assert isinstance(X, Extraction)
        self.center_ = X.embeddings.mean(axis=0)
        self.seen_ = set(X.ids)
        return self

    def predict(self, X):
        assert not self.seen_ & set(X.ids)
        return -(np.linalg.norm(X.embeddings - self.center_, axis=1) ** self.power)

    def score(self, X, y=None):
        return self.predict(X).mean()


class TestScikitLearn:
    def test_safe_indexing(self, whole):
        assert _safe_indexing(whole, [3, 1]).ids.tolist() == [whole.ids[3], whole.ids[1]]
        assert _safe_indexing(whole, np.array([True] + [False] * 5)).ids.tolist() == [whole.ids[0]]
        assert _safe_indexing(whole, slice(0, 2)).ids.tolist() == whole.ids[:2].tolist()

    def test_is_indexable(self, whole):
        check_consistent_length(whole, np.zeros(6))
        assert indexable(whole)[0] is whole

    def test_splitters(self, whole):
        train, test = train_test_split(whole, test_size=2, random_state=0)
        assert (len(train), len(test)) == (4, 2)
        assert {*train.ids, *test.ids} == set(whole.ids)
        folds = [test for _, test in KFold(3).split(whole)]
        assert sorted(np.concatenate(folds)) == list(range(6))

    def test_cross_validation(self, whole):
        assert cross_val_predict(Nearest(), whole, cv=3).shape == (6,)

    def test_grid_search(self, whole):
        search = GridSearchCV(Nearest(), {"power": [1, 2, 3]}, cv=2, error_score="raise").fit(whole)
        assert search.best_params_["power"] in (1, 2, 3)
        assert search.predict(make(seed=1)).shape == (6,)


class TestDisk:
    def test_round_trip(self, whole, tmp_path):
        path = whole.save(tmp_path / "é.npz")
        assert path == tmp_path / "é.npz"
        assert_same(Extraction.load(path), whole)
        assert_same(pickle.loads(pickle.dumps(whole)), whole)

    def test_empty(self, whole, tmp_path):
        assert_same(Extraction.load(whole[:0].save(tmp_path / "x")), whole[:0])

    def test_suffix_is_added_and_found(self, whole, tmp_path):
        assert whole.save(tmp_path / "run.v1") == tmp_path / "run.v1.npz"
        assert_same(Extraction.load(str(tmp_path / "run.v1")), whole)

    def test_names_given_as_objects(self, whole, tmp_path):
        """No pickle goes to the disk, for none is read."""
        objects = Extraction(whole.embeddings, whole.singular_values, whole.ids.astype(object), META)
        assert_same(Extraction.load(objects.save(tmp_path / "x")), whole)

    @pytest.mark.parametrize("failure", ["replace", "meta"])
    def test_failure_keeps_the_former_file(self, whole, tmp_path, monkeypatch, failure):
        path = whole.save(tmp_path / "x.npz")

        def full(source, target):
            raise OSError(28, "No space left on device", str(target))

        other = make(seed=1, **({"bad": object()} if failure == "meta" else {}))
        with monkeypatch.context() as patch:
            if failure == "replace":
                patch.setattr(os, "replace", full)
            with pytest.raises((OSError, TypeError), match=r"No space|serializable"):
                other.save(path)
        assert [file.name for file in tmp_path.iterdir()] == ["x.npz"]
        assert_same(Extraction.load(path), whole)

    def test_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="gone"):
            Extraction.load(tmp_path / "gone.npz")

    @pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.7, 0.99])
    def test_cut_short(self, whole, tmp_path, share):
        path = whole.save(tmp_path / "x.npz")
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(ValueError, match=r"x\.npz is not a saved Extraction"):
            Extraction.load(path)

    def test_flipped_byte(self, whole, tmp_path):
        path = whole.save(tmp_path / "x.npz")
        content = bytearray(path.read_bytes())
        content[len(content) // 3] ^= 0xFF
        path.write_bytes(bytes(content))
        with pytest.raises(ValueError, match=r"x\.npz is not a saved Extraction"):
            Extraction.load(path)

    @pytest.mark.parametrize("kind", ["text", "one array", "other arrays", "meta", "lengths"])
    def test_something_else(self, whole, tmp_path, kind):
        path = tmp_path / "x.npz"
        arrays = {"embeddings": whole.embeddings, "singular_values": whole.singular_values, "ids": whole.ids}
        if kind == "text":
            path.write_text("words")
        elif kind == "one array":
            with open(path, "wb") as file:
                np.save(file, whole.embeddings)
        elif kind == "other arrays":
            np.savez(path, other=np.zeros(3))
        elif kind == "meta":
            np.savez(path, meta=np.array("{"), **arrays)
        else:
            np.savez(path, meta=np.array(json.dumps(META)), **{**arrays, "ids": whole.ids[:2]})
        with pytest.raises(ValueError, match=r"x\.npz is not a saved Extraction"):
            Extraction.load(path)


class TestConcat:
    def test_joins(self, whole):
        parts = [whole[:2], make(3, seed=1), whole[2:]]
        joined = Extraction.concat(parts)
        assert joined.ids.tolist() == [name for part in parts for name in part.ids]
        np.testing.assert_array_equal(joined.singular_values, np.concatenate([p.singular_values for p in parts]))
        assert joined.meta == whole[:0].meta
        assert_same(Extraction.concat([whole[:2], whole[2:]]), whole[:])

    def test_other_machine_is_no_difference(self, whole):
        assert len(Extraction.concat([whole, make(device="GPU", versions={})])) == 12

    @pytest.mark.parametrize("key", SETTINGS)
    def test_a_difference_is_named(self, whole, key):
        assert key in META
        with pytest.raises(SettingsMismatchError, match=f"concatenate differ: {key} is 'another', expected"):
            Extraction.concat([whole, Extraction(*arrays_of(whole), {**META, key: "another"})])

    def test_nothing(self):
        with pytest.raises(ValueError, match="got no extraction to concatenate"):
            Extraction.concat([])


class TestShapes:
    @pytest.mark.parametrize(
        ("embeddings", "sigma", "ids", "message"),
        [
            ((3,), (3, 1, 2), (3,), r"embeddings \(n, K\).*; got embeddings \(3,\), singular_values \(3, 1, 2\)"),
            ((3, 2), (3, 2), (3,), r"singular_values \(n, V, R\) or None.*; got .*singular_values \(3, 2\)"),
            ((3, 2), (3, 1, 2), (3, 1), r"ids \(n,\).*; got .*ids \(3, 1\)"),
            ((3, 2), (2, 1, 2), (3,), r"one row per sample; got .*embeddings \(3, 2\), singular_values \(2, 1, 2\)"),
            ((3, 2), (3, 1, 2), (4,), r"one row per sample; got .*singular_values \(3, 1, 2\), ids \(4,\)"),
        ],
    )
    def test_refused(self, embeddings, sigma, ids, message):
        with pytest.raises(ValueError, match=message):
            Extraction(np.zeros(embeddings), np.zeros(sigma), np.zeros(ids, dtype=str))


def test_numerical_rank_knows_the_arithmetic():
    sigma = np.array([[[1.0, 1e-5, 1e-9]]])
    ranks = {}
    for precision in ("float32", "float64"):
        extraction = Extraction(np.zeros((1, 3)), sigma, np.array(["a"]), {"precision": precision})
        assert extraction.eps == np.finfo(precision).eps
        ranks[precision] = int(extraction.numerical_rank[0, 0])
    assert ranks == {"float32": 2, "float64": 3}
    assert Extraction(np.zeros((1, 3)), sigma, np.array(["a"])).eps == np.finfo("float64").eps


class TestSkipped:
    """Three of five samples were measured; those at 1 and 4 could not be read."""

    @pytest.fixture
    def part(self):
        skipped = [[4, "late.png", "no image"], [1, "bad.png", "cut short"]]  # in any order
        return Extraction(np.eye(3), np.ones((3, 1, 2)), np.array(["a", "b", "c"]), {"skipped": skipped})

    def test_what_was_skipped(self, part):
        assert part.errors == {1: "cut short", 4: "no image"}
        assert part.all_ids.tolist() == ["a", "bad.png", "b", "c", "late.png"]
        assert part.measured.tolist() == [0, 2, 3]
        assert part[:2].errors == {}

    def test_values_at_the_places_of_all_samples(self, part):
        np.testing.assert_array_equal(part.aligned(np.arange(3.0)), [0, np.nan, 1, 2, np.nan])
        rows = part.aligned(part.embeddings)
        np.testing.assert_array_equal(rows[[0, 2, 3]], np.eye(3))
        assert np.isnan(rows[[1, 4]]).all()

    def test_nothing_skipped(self):
        whole = Extraction(np.eye(2), np.ones((2, 1, 2)), np.array(["a", "b"]))
        assert (whole.errors, whole.all_ids.tolist(), whole.measured.tolist()) == ({}, ["a", "b"], [0, 1])
