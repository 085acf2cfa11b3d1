"""What lies in a store is whole, is what was put there, and belongs to the settings it was made with."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from skjepa import store as store_module
from skjepa.extraction import SETTINGS, SettingsMismatchError
from skjepa.store import Store

AGREED = {
    "encoder": "bundled",
    "fingerprint": "0f" * 32,
    "method": "exact",
    "precision": "float32",
    "input_shape": [3, 32, 32],
    "n_components": 4,
    "views": 2,
    "transform": "Compose(Ä)",
    "seed": 0,
}


def some_rows(n: int, seed: int = 0, views: int = 2):
    rng = np.random.default_rng(seed)
    ids = [f"{seed}/bild-ü-{i}.png" for i in range(n)]
    return ids, rng.normal(size=(n, 4)), rng.lognormal(sigma=20, size=(n, views, 3))


def assert_holds(store: Store, *parts) -> None:
    rows = store.read()
    assert set(rows) == {name for ids, _, _ in parts for name in ids}
    for ids, embeddings, sigma in parts:
        for i, name in enumerate(ids):
            np.testing.assert_array_equal(rows[name][0], embeddings[i])
            np.testing.assert_array_equal(rows[name][1], sigma[i])


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store", AGREED)


class TestRoundTrip:
    def test_bit_for_bit(self, store):
        part = some_rows(7)
        store.append(*part)
        store.flush()
        assert_holds(store, part)

    @given(
        st.integers(1, 3).flatmap(
            lambda n: st.tuples(
                hnp.arrays(np.float64, (n, 2), elements=st.floats(allow_nan=False)),
                hnp.arrays(np.float64, (n, 1, 3), elements=st.floats(0, allow_infinity=False)),
            )
        )
    )
    @settings(max_examples=15, deadline=None)
    def test_any_numbers(self, tmp_path_factory, arrays):
        embeddings, sigma = arrays
        part = [str(i) for i in range(len(embeddings))], embeddings, sigma
        store = Store(tmp_path_factory.mktemp("any") / "store", AGREED)
        store.append(*part)
        store.flush()
        assert_holds(store, part)

    def test_shards_add_up_over_runs(self, tmp_path):
        parts = [some_rows(3, seed) for seed in range(3)]
        for part in parts:
            store = Store(tmp_path / "store", AGREED)
            store.append(*part)
            store.flush()
        assert_holds(Store(tmp_path / "store", AGREED), *parts)

    def test_many_appends_one_shard(self, store):
        parts = [some_rows(2, seed) for seed in range(5)]
        for part in parts:
            store.append(*part)
        assert store.read() == {}
        store.flush()
        store.flush()
        assert len(list(store.path.glob("*.parquet"))) == 1
        assert_holds(store, *parts)

    def test_time_flushes_too(self, store, monkeypatch):
        monkeypatch.setattr(store_module, "_FLUSH_SECONDS", -1.0)
        part = some_rows(2)
        store.append(*part)
        assert_holds(store, part)

    def test_empty(self, store):
        assert store.read() == {}
        store.flush()
        assert [path.name for path in store.path.iterdir()] == ["manifest.json"]

    def test_two_runs_at_once(self, tmp_path):
        parts = [some_rows(20, seed) for seed in range(4)]

        def run(part):
            store = Store(tmp_path / "store", AGREED)
            for i in range(20):
                store.append([part[0][i]], part[1][i : i + 1], part[2][i : i + 1])
                store.flush()

        Store(tmp_path / "store", AGREED)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(run, parts))
        assert_holds(Store(tmp_path / "store", AGREED), *parts)

    def test_made_by_many_at_once(self, tmp_path):
        parts = [some_rows(2, seed) for seed in range(8)]

        def run(part):
            with Store(tmp_path / "store", AGREED) as store:
                store.append(*part)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(run, parts))
        assert_holds(Store(tmp_path / "store", AGREED), *parts)


class TestReading:
    def test_only_what_is_asked_for(self, store):
        part = some_rows(5)
        store.append(*part)
        store.flush()
        assert set(store.read([part[0][3], "another"])) == {part[0][3]}
        assert store.read([]) == {}

    def test_a_shard_is_read_once_and_again_when_it_has_changed(self, store, monkeypatch):
        store.append(*some_rows(5))
        store.flush()
        (shard,) = store.path.glob("*.parquet")
        read = []
        monkeypatch.setattr(
            store_module, "_read_shard", lambda path, f=store_module._read_shard: read.append(1) or f(path)
        )
        for _ in range(3):
            assert len(store.read()) == 5
        assert len(read) == 1
        pq.write_table(pq.read_table(shard).slice(0, 2), shard)
        assert len(store.read()) == 2
        assert len(read) == 2

    def test_memory_for_shards_is_bounded(self, tmp_path, monkeypatch):
        parts = [some_rows(4, seed) for seed in range(5)]
        with Store(tmp_path / "store", AGREED) as store:
            for part in parts:
                store.append(*part)
                store.flush()
        one = store_module._read_shard(next(store.path.glob("*.parquet"))).nbytes
        shards = store_module._Shards(2 * one)
        monkeypatch.setattr(store_module, "_SHARDS", shards)
        for _ in range(2):
            assert_holds(store, *parts)
            assert len(shards._kept) == 2


class TestSettings:
    def test_same(self, store):
        Store(store.path, dict(reversed(AGREED.items())))
        Store(str(store.path), {**AGREED, "device": "another", "input_shape": (3, 32, 32)})

    @pytest.mark.parametrize("key", SETTINGS)
    def test_a_difference_is_named(self, store, key):
        assert key in AGREED
        with pytest.raises(SettingsMismatchError, match=rf"store.*differ: {key} is .*, expected 'another'$"):
            Store(store.path, {**AGREED, key: "another"})

    def test_every_difference_is_named(self, store):
        with pytest.raises(SettingsMismatchError, match=r"precision is 'float32', expected 'float64'; seed is 0.*7"):
            Store(store.path, {**AGREED, "precision": "float64", "seed": 7})

    def test_the_refused_leaves_no_trace(self, store):
        before = {path.name: path.read_bytes() for path in store.path.iterdir()}
        with pytest.raises(SettingsMismatchError):
            Store(store.path, {**AGREED, "views": 3})
        assert {path.name: path.read_bytes() for path in store.path.iterdir()} == before


class TestForeign:
    def test_folder_of_something_else(self, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(ValueError, match="is not a store"):
            Store(tmp_path, AGREED)
        assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]

    def test_file(self, tmp_path):
        (tmp_path / "file").write_text("mine")
        with pytest.raises(ValueError, match="is not a store"):
            Store(tmp_path / "file", AGREED)

    def test_empty_folder_is_taken(self, tmp_path):
        Store(tmp_path, AGREED)
        assert (tmp_path / "manifest.json").is_file()

    @pytest.mark.parametrize("content", ["", "{", "[]", "3", "{}", '{"format": 1}', '{"format": 1, "settings": 3}'])
    def test_manifest_of_something_else(self, tmp_path, content):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(ValueError, match=r"manifest\.json is not the manifest of a store"):
            Store(tmp_path, AGREED)
        assert (tmp_path / "manifest.json").read_text() == content

    def test_future_format(self, store):
        manifest = json.loads((store.path / "manifest.json").read_text())
        (store.path / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
        with pytest.raises(SettingsMismatchError, match="has format 99; this version of skjepa reads 1"):
            Store(store.path, AGREED)


class TestFailure:
    """Killed, full or broken: what was finished stays, nothing half-written counts."""

    @staticmethod
    def broken_replace(source, target):
        raise OSError(28, "No space left on device", str(target))

    def test_manifest(self, tmp_path, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", self.broken_replace)
            with pytest.raises(OSError, match="No space"):
                Store(tmp_path / "store", AGREED)
        assert list((tmp_path / "store").iterdir()) == []
        Store(tmp_path / "store", AGREED)

    @pytest.mark.parametrize("call", ["replace", "fsync"])
    def test_shard(self, store, monkeypatch, call):
        """The rows stay pending: the next flush writes them."""
        first, second = some_rows(2, 0), some_rows(2, 1)
        store.append(*first)
        store.flush()
        store.append(*second)
        with monkeypatch.context() as patch:
            patch.setattr(os, call, self.broken_replace if call == "replace" else lambda fd: os.stat("/nowhere/at/all"))
            with pytest.raises(OSError, match="No s"):
                store.flush()
            assert_holds(store, first)
        assert len(list(store.path.iterdir())) == 2
        store.flush()
        assert_holds(store, first, second)

    def test_killed_while_the_manifest_was_written(self, tmp_path):
        (tmp_path / ".manifest.json.123.partial").write_text('{"for')
        Store(tmp_path, AGREED)

    def test_killed_while_a_shard_was_written(self, store):
        part = some_rows(2)
        store.append(*part)
        store.flush()
        (store.path / ".5-abc.parquet.123.partial").write_bytes(b"PAR1")
        assert_holds(Store(store.path, AGREED), part)

    @pytest.mark.parametrize("damage", ["cut", "empty", "text", "columns", "types", "null", "ragged"])
    def test_damaged_shard_is_named(self, store, damage):
        store.append(*some_rows(20))
        store.flush()
        (shard,) = store.path.glob("*.parquet")
        table = pq.read_table(shard)
        if damage in ("cut", "empty", "text"):
            content = shard.read_bytes()
            shard.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "text": b"words"}[damage])
        elif damage == "columns":
            pq.write_table(table.drop_columns(["embedding"]), shard)
        elif damage == "types":
            pq.write_table(table.set_column(1, "embedding", pa.array(range(20))), shard)
        else:
            rows = [None] * 20 if damage == "null" else [[1.0]] * 10 + [[1.0, 2.0, 3.0]] * 10
            pq.write_table(table.set_column(1, "embedding", pa.array(rows, pa.list_(pa.float64()))), shard)
        with pytest.raises(ValueError, match=f"{shard.name} is damaged.*Move it away"):
            store.read()
        shard.unlink()
        assert store.read() == {}
