"""What lies in a store is whole, is what was put there, and belongs to the settings it was made with."""

import errno
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from skjepa.extraction.store import shards as shards_module
from skjepa.extraction.store import store as store_module
from skjepa.extraction.store.settings import SETTINGS, SettingsMismatchError
from skjepa.extraction.store.store import Store

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
    "layers": ["stage 1", "stage 2"],
    "layers_dtype": "float32",
}


def some_rows(n: int, seed: int = 0, views: int = 2):
    rng = np.random.default_rng(seed)
    keys = [(f"{seed}/bild-ü-{i}.png", f"{seed:x}{i:x}") for i in range(n)]
    return keys, rng.normal(size=(n, 4)), rng.lognormal(sigma=20, size=(n, views, 3))


def written(path, *parts, failures=None, **options) -> Store:
    """A store that holds the parts, after one run."""
    with Store(path, AGREED, **options) as store:
        for part in parts:
            store.append(*part)
        store.append([], [], [], failures)
    return store


def abandoned(path, *parts, failures=None) -> Store:
    """A store whose writer was killed."""
    store = Store(path, AGREED)
    for part in parts:
        store.append(*part, failures)
    store._journal.release()
    return store


def assert_holds(store: Store, *parts) -> None:
    rows = store.read()
    assert set(rows) == {key for keys, _, _ in parts for key in keys}
    for keys, embeddings, sigma in parts:
        for i, key in enumerate(keys):
            np.testing.assert_array_equal(rows[key][0], embeddings[i])
            np.testing.assert_array_equal(rows[key][1], sigma[i])


def shards(store: Store) -> list:
    return store._shards()


def journals(store: Store) -> list:
    return sorted(store.path.glob("journals/*.journal"))


@pytest.fixture
def store(tmp_path):
    with closing(Store(tmp_path / "store", AGREED)) as opened:
        yield opened


class TestRoundTrip:
    def test_bit_for_bit(self, store):
        part = some_rows(7)
        store.append(*part)
        assert_holds(store, part)
        store.close()
        assert_holds(store, part)

    @pytest.mark.parametrize("n_singular_values", [0, 3])
    def test_layers(self, store, n_singular_values):
        keys, embeddings, sigma = some_rows(4)
        sigma = sigma[..., :n_singular_values]
        layers = np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)
        store.append(keys, embeddings, sigma, None, layers)
        for _ in range(2):  # from the journal, and from the shard
            assert_holds(store, (keys, embeddings, sigma))
            rows = store.read()
            np.testing.assert_array_equal([rows[key][2] for key in keys], layers)
            store.close()

    def test_without_layers_a_row_has_none(self, store):
        part = some_rows(2)
        store.append(*part)
        for _ in range(2):
            assert {row[2].shape for row in store.read().values()} == {(0,)}
            store.close()

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
        part = [(str(i), "") for i in range(len(embeddings))], embeddings, sigma
        store = written(tmp_path_factory.mktemp("any") / "store", part)
        assert_holds(store, part)

    def test_runs_add_up(self, tmp_path):
        parts = [some_rows(3, seed) for seed in range(3)]
        for part in parts:
            store = written(tmp_path / "store", part)
        assert_holds(store, *parts)
        assert len(shards(store)) == 3

    def test_one_run_one_shard(self, tmp_path):
        parts = [some_rows(2, seed) for seed in range(5)]
        store = written(tmp_path / "store", *parts)
        assert len(shards(store)) == 1
        assert not journals(store)
        assert_holds(store, *parts)

    def test_a_large_journal_becomes_a_shard(self, store, monkeypatch):
        monkeypatch.setattr(store, "_roll_at", 1000)
        monkeypatch.setattr(store, "_shard_bytes", 1000)
        parts = [some_rows(4, seed) for seed in range(4)]
        for part in parts:
            store.append(*part)
            assert not journals(store)
        assert len(shards(store)) == 4
        assert_holds(store, *parts)

    def test_nothing_to_keep(self, store):
        assert store.read() == {}
        store.append([], [], [])
        store.close()
        assert sorted(path.name for path in store.path.iterdir()) == [".lock", "manifest.json"]

    def test_rows_that_do_not_match_are_refused(self, store):
        keys, embeddings, sigma = some_rows(3)
        with pytest.raises(ValueError, match="3 samples, 2 embeddings, 3 singular values"):
            store.append(keys, embeddings[:2], sigma)
        with pytest.raises(ValueError, match="3 samples, 3 embeddings, 3 singular values and 2 layers"):
            store.append(keys, embeddings, sigma, None, np.zeros((2, 6)))
        assert store.read() == {}


class TestManyWriters:
    def test_at_once(self, tmp_path):
        parts = [some_rows(20, seed) for seed in range(4)]

        def run(part):
            for i in range(0, 20, 5):
                with Store(tmp_path / "store", AGREED) as store:
                    for j in range(i, i + 5):
                        store.append([part[0][j]], part[1][j : j + 1], part[2][j : j + 1])

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(run, parts))
        assert_holds(Store(tmp_path / "store", AGREED), *parts)
        assert not journals(Store(tmp_path / "store", AGREED))

    def test_made_by_many_at_once(self, tmp_path):
        parts = [some_rows(2, seed) for seed in range(8)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda part: written(tmp_path / "store", part), parts))
        assert_holds(Store(tmp_path / "store", AGREED), *parts)

    def test_made_at_once_with_other_settings(self, tmp_path):
        """One of them makes it, the others are refused: no rows under settings that are not theirs."""

        def run(seed):
            try:
                with Store(tmp_path / "store", {**AGREED, "seed": seed}) as store:
                    store.append(*some_rows(1, seed))
            except SettingsMismatchError:
                return None
            return seed

        with ThreadPoolExecutor(8) as pool:
            won = [seed for seed in pool.map(run, range(8)) if seed is not None]
        assert len(won) == 1
        assert_holds(Store(tmp_path / "store", {**AGREED, "seed": won[0]}), some_rows(1, won[0]))

    def test_a_sample_that_two_have_measured_is_one_row(self, tmp_path):
        part = some_rows(3)
        first, second = (Store(tmp_path / "store", AGREED) for _ in range(2))
        assert first.read() == second.read() == {}
        first.append(*part)
        second.append(*part)
        first.close()
        second.close()
        assert_holds(first, part)
        assert len(pd.read_parquet(tmp_path / "store" / "samples")) == 3

    def test_each_has_a_journal_and_sees_the_others(self, tmp_path):
        parts = [some_rows(2, seed) for seed in range(2)]
        stores = [Store(tmp_path / "store", AGREED) for _ in parts]
        for opened, part in zip(stores, parts, strict=True):
            opened.append(*part)
        assert len(journals(stores[0])) == 2
        for opened in stores:
            assert_holds(opened, *parts)
        stores[0].close()
        assert len(journals(stores[0])) == 1  # a writer's journal is its own as long as it lives
        stores[1].close()
        assert not journals(stores[0])

    def test_the_journal_of_the_dead_is_taken_over(self, tmp_path):
        part, more = some_rows(3, 0), some_rows(2, 1)
        code = (
            "import os, sys; sys.path.insert(0, sys.argv[2]); from test_store import *\n"
            "Store(sys.argv[1], AGREED).append(*some_rows(3, 0)); os.kill(os.getpid(), 9)"
        )
        here = os.path.dirname(__file__)
        assert subprocess.run([sys.executable, "-c", code, tmp_path / "store", here]).returncode == -9
        store = Store(tmp_path / "store", AGREED)
        assert_holds(store, part)
        (left,) = journals(store)
        store.append(*more)
        assert journals(store) == [left]
        store.close()
        assert not journals(store)
        assert_holds(store, part, more)

    def test_killed_between_shard_and_journal(self, tmp_path, monkeypatch):
        """The rows are in both: they count once."""
        part, more = some_rows(3, 0), some_rows(2, 1)
        with monkeypatch.context() as patch:
            patch.setattr(store_module.Journal, "remove", store_module.Journal.release)
            store = written(tmp_path / "store", part)
        assert len(shards(store)) == len(journals(store)) == 1
        again = Store(tmp_path / "store", AGREED)
        assert_holds(again, part)
        again.append(*more)
        again._roll()
        assert_holds(again, part, more)
        assert len(pd.read_parquet(tmp_path / "store" / "samples")) == 5

    def test_taken_over_from_one_who_did_the_same(self, tmp_path):
        """Two runs of the same samples; one is killed, and the other does not read again what is there."""
        part, more = some_rows(3, 0), some_rows(2, 1)
        store = Store(tmp_path / "store", AGREED)
        assert not store.read()
        abandoned(tmp_path / "store", part)
        store.append(*more)
        store._roll()
        store.append(*part)
        store._roll()
        assert_holds(store, part, more)
        assert len(pd.read_parquet(tmp_path / "store" / "samples")) == 5


class TestCache:
    def test_small_journals_stay(self, tmp_path):
        parts = [some_rows(1, seed) for seed in range(6)]
        for part in parts:
            store = written(tmp_path / "store", part, is_cache=True)
        assert len(journals(store)) == 1
        assert not shards(store)
        assert_holds(store, *parts)

    def test_large_ones_do_not(self, tmp_path, monkeypatch):
        monkeypatch.setattr(store_module, "_CACHE_SHARD_BYTES", 5000)
        parts = [some_rows(1, seed) for seed in range(12)]
        for part in parts:
            store = written(tmp_path / "store", part, is_cache=True)
        assert 1 <= len(shards(store)) < 6
        assert_holds(store, *parts)

    def test_what_cannot_be_read_is_not_kept(self, tmp_path):
        assert written(tmp_path / "store", failures={("a", ""): "broken"}, is_cache=True).failures() == {}

    def test_news_alone_are_read(self, tmp_path, monkeypatch):
        read = []
        original = shards_module.read_records
        monkeypatch.setattr(shards_module, "read_records", lambda *where: read.append(original(*where)) or read[-1])
        for seed in range(3):
            written(tmp_path / "store", some_rows(1, seed), is_cache=True).read()
        assert [len(found.records) for found in read] == [1, 1, 1]


class TestReading:
    def test_only_what_is_asked_for(self, store):
        part = some_rows(5)
        store.append(*part)
        for _ in range(2):
            assert set(store.read([part[0][3], ("another", "")])) == {part[0][3]}
            assert store.read([]) == {}
            store.close()

    def test_a_shard_is_read_once(self, tmp_path, monkeypatch):
        store = written(tmp_path / "store", some_rows(5))
        read = []
        monkeypatch.setattr(
            shards_module, "read_shard", lambda path, f=shards_module.read_shard: read.append(1) or f(path)
        )
        for _ in range(3):
            assert len(store.read()) == 5
        assert len(read) == 1

    def test_memory_for_shards_is_bounded(self, tmp_path, monkeypatch):
        parts = [some_rows(4, seed) for seed in range(5)]
        for part in parts:
            store = written(tmp_path / "store", part)
        one = shards_module.read_shard(shards(store)[0]).nbytes
        cache = shards_module.Cache(2 * one)
        monkeypatch.setattr(store_module, "_READ_LATELY", cache)
        for _ in range(2):
            assert_holds(store, *parts)
            assert len(cache._shards) == 2


class TestTable:
    """What others read: the folder `samples`, as it lies."""

    @pytest.fixture
    def folder(self, tmp_path):
        written(tmp_path / "store", some_rows(3, 0), failures={("broken.png", "ff"): "cut short"})
        written(tmp_path / "store", some_rows(2, 1))
        return tmp_path / "store" / "samples"

    def test_pandas(self, folder):
        table = pd.read_parquet(folder).set_index("id")
        assert table.columns.tolist() == ["content", "embedding", "singular_values", "status", "error", "layers"]
        assert table.status.value_counts().to_dict() == {"ok": 5, "unreadable": 1}
        assert table.error.dropna().to_dict() == {"broken.png": "cut short"}
        keys, embeddings, sigma = some_rows(3, 0)
        row = table.loc[keys[2][0]]
        np.testing.assert_array_equal(row.embedding, embeddings[2])
        np.testing.assert_array_equal(np.stack(row.singular_values), sigma[2])
        assert table.layers.isna().all()

    def test_polars(self, folder):
        polars = pytest.importorskip("polars")
        table = polars.scan_parquet(f"{folder}/*.parquet").filter(polars.col("status") == "ok").collect()
        assert np.stack(table["singular_values"].to_list()).shape == (5, 2, 3)

    def test_duckdb(self, folder):
        duckdb = pytest.importorskip("duckdb")
        (row,) = duckdb.sql(f"select count(*), sum(len(embedding)) from '{folder}/*.parquet'").fetchall()
        assert row == (6, 20)

    def test_manifest(self, folder):
        manifest = json.loads((folder.parent / "manifest.json").read_text())
        assert manifest["settings"] == AGREED
        assert (manifest["K"], manifest["D"]) == (4, 3 * 32 * 32)
        assert {"skjepa", "torch", "timm", "Pillow"} <= manifest["versions"].keys()


class TestUnreadable:
    def test_noted_and_read_later(self, tmp_path):
        keys, *arrays = some_rows(2)
        store = written(tmp_path / "store", failures={keys[0]: "broken", keys[1]: "cut"})
        assert store.failures() == {keys[0]: "broken", keys[1]: "cut"}
        store = written(
            tmp_path / "store", ([keys[0]], *(array[:1] for array in arrays)), failures={keys[1]: "cut off"}
        )
        assert store.failures() == {keys[1]: "cut off"}
        assert len(pd.read_parquet(store.path / "samples")) == 2
        store = written(tmp_path / "store", ([keys[1]], *(array[1:] for array in arrays)))
        assert store.failures() == {}
        assert set(pd.read_parquet(store.path / "samples").status) == {"ok"}

    def test_a_file_that_could_not_be_opened(self, tmp_path):
        """Its content was not known then."""
        keys, *arrays = some_rows(1)
        written(tmp_path / "store", failures={(keys[0][0], ""): "permission denied"})
        assert written(tmp_path / "store", (keys, *arrays)).failures() == {}

    def test_in_one_record_with_their_batch(self, tmp_path):
        part = some_rows(2)
        store = abandoned(tmp_path / "store", part, failures={("broken", ""): "broken"})
        assert store.failures() == {("broken", ""): "broken"}
        assert_holds(store, part)

    def test_read_by_another_writer_meanwhile(self, tmp_path):
        keys, *arrays = some_rows(1)
        first, second = Store(tmp_path / "store", AGREED), Store(tmp_path / "store", AGREED)
        first.append([], [], [], {keys[0]: "a hiccup"})
        second.append(keys, *arrays)
        second.close()
        first.close()
        assert set(pd.read_parquet(tmp_path / "store" / "samples").status) == {"ok"}


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

    def test_a_shard_of_another_store_is_refused(self, tmp_path):
        (shard,) = shards(written(tmp_path / "store", some_rows(2)))
        other = Store(tmp_path / "other", {**AGREED, "views": 3})
        (other.path / "samples").mkdir()
        (other.path / "samples" / shard.name).write_bytes(shard.read_bytes())
        with pytest.raises(SettingsMismatchError, match=r"the shard .* and this run differ: views is 2, expected 3"):
            other.read()

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

    def test_folder_of_images_called_samples(self, tmp_path):
        (tmp_path / "samples").mkdir()
        with pytest.raises(ValueError, match="is not a store"):
            Store(tmp_path, AGREED)

    @pytest.mark.parametrize("content", ["", "{", "[]", "3", "{}", '{"format": 2}', '{"format": 2, "settings": 3}'])
    def test_manifest_of_something_else(self, tmp_path, content):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(ValueError, match=r"manifest\.json is not the manifest of a store"):
            Store(tmp_path, AGREED)
        assert (tmp_path / "manifest.json").read_text() == content

    @pytest.mark.parametrize("number", [1, 99])
    def test_another_format(self, store, number):
        manifest = json.loads((store.path / "manifest.json").read_text())
        (store.path / "manifest.json").write_text(json.dumps({**manifest, "format": number}))
        with pytest.raises(SettingsMismatchError, match=f"has format {number}; this version of skjepa reads format 2"):
            Store(store.path, AGREED)


class TestFailure:
    """Killed, full or broken: what was finished stays, nothing half-written counts."""

    @staticmethod
    def no_space(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def test_manifest(self, tmp_path, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", self.no_space)
            with pytest.raises(OSError, match=r"the store .*/store cannot be written .No space left on device"):
                Store(tmp_path / "store", AGREED)
        assert [path.name for path in (tmp_path / "store").iterdir()] == [".lock"]
        Store(tmp_path / "store", AGREED)

    @pytest.mark.parametrize("after", [0, 10])
    def test_journal(self, store, monkeypatch, after):
        """Also where a part of the record was written: the next one begins where it should."""
        first, second = some_rows(2, 0), some_rows(2, 1)
        store.append(*first)
        left = [after]
        write = os.write

        def full(descriptor, data):
            n = write(descriptor, data[: left[0]])
            left[0] = 0
            return n or self.no_space()

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(
                OSError, match=r"cannot be written \(No space.*intact, and a run with the same store resumes"
            ):
                store.append(*second)
        assert_holds(store, first)
        store.append(*second)
        store.close()
        assert_holds(store, first, second)

    @pytest.mark.parametrize("call", ["replace", "fsync"])
    def test_shard(self, store, monkeypatch, call):
        """Results are not thrown away because they cannot be tidied up: they stay in the journal."""
        part = some_rows(2)
        store.append(*part)
        with monkeypatch.context() as patch:
            patch.setattr(os, call, self.no_space)
            with pytest.warns(UserWarning, match=r"no shard could be written \(No space left on device\).*journals"):
                store.close()
        assert not shards(store)
        assert_holds(store, part)
        store.close()
        assert not journals(store)
        assert_holds(store, part)

    def test_read_only(self, tmp_path, monkeypatch):
        """All is there: nothing needs to be written."""
        part = some_rows(2)
        abandoned(tmp_path / "store", part)

        def denied(*_, **__):
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(store_module.FileLock, "acquire", denied)
        with Store(tmp_path / "store", AGREED) as store:
            assert_holds(store, part)
            with pytest.raises(PermissionError, match=r"cannot be written .Permission denied"):
                store.claim()

    def test_killed_while_the_manifest_was_written(self, tmp_path):
        (tmp_path / ".manifest.json.123.partial").write_text('{"for')
        Store(tmp_path, AGREED)

    def test_killed_while_a_shard_was_written(self, tmp_path):
        parts = [some_rows(2, seed) for seed in range(2)]
        store = written(tmp_path / "store", parts[0])
        partial = store.path / "samples" / ".5-abc.parquet.123.partial"
        partial.write_bytes(b"PAR1")
        assert_holds(Store(store.path, AGREED), parts[0])
        written(store.path, parts[1])
        assert not partial.exists()

    @given(st.data())
    @settings(max_examples=25, deadline=None)
    def test_journal_cut_anywhere(self, tmp_path_factory, data):
        """All records before the cut are there, and the torn one is named."""
        parts = [some_rows(1, seed) for seed in range(3)]
        store = abandoned(tmp_path_factory.mktemp("cut") / "store", *parts)
        (journal,) = journals(store)
        content = journal.read_bytes()
        ends = [i for i in range(1, len(content)) if content[i : i + 4] == b"SKJ2"] + [len(content)]
        cut = data.draw(st.integers(0, len(content)))
        journal.write_bytes(content[:cut])
        whole = sum(end <= cut for end in ends)
        assert_holds(Store(store.path, AGREED), *parts[:whole])
        if cut in (0, *ends):
            Store(store.path, AGREED).close()
        else:
            with pytest.warns(
                UserWarning, match=f"{journal.name} ended in {cut - ([0, *ends][whole])} bytes of an incomplete record"
            ):
                Store(store.path, AGREED).close()
        assert_holds(written(store.path, *parts[whole:]), *parts)

    @pytest.mark.parametrize("where", [0, 6, 20, 200])
    def test_journal_damaged_in_the_midst(self, tmp_path, where):
        """In the magic, the length, the hash or the content of a record: the others are read."""
        parts = [some_rows(1, seed) for seed in range(3)]
        store = abandoned(tmp_path / "store", *parts)
        (journal,) = journals(store)
        content = bytearray(journal.read_bytes())
        content[content.index(b"SKJ2", 1) + where] ^= 1
        journal.write_bytes(content)
        with pytest.warns(UserWarning, match=f"{journal.name} is damaged in 1 records"):
            assert_holds(Store(store.path, AGREED), parts[0], parts[2])

    @pytest.mark.parametrize("damage", ["cut", "empty", "text", "a bit", "rewritten"])
    def test_damaged_shard_is_set_aside(self, tmp_path, damage):
        good, bad = some_rows(3, 1), some_rows(20, 2)
        written(tmp_path / "store", good)
        store = written(tmp_path / "store", bad)
        shard = shards(store)[1]
        content = shard.read_bytes()
        if damage == "rewritten":
            pq.write_table(pq.read_table(shard).slice(0, 5), shard)
        else:
            half = len(content) // 2
            flipped = content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
            shard.write_bytes({"cut": content[:half], "empty": b"", "text": b"words", "a bit": flipped}[damage])
        with pytest.warns(UserWarning, match=f"{shard.name} is damaged: .*moved to .*damaged.*computed again"):
            assert_holds(store, good)
        assert (store.path / "damaged" / shard.name).exists()
        assert_holds(store, good)
        assert_holds(written(store.path, bad), good, bad)

    def test_table_of_unreadable_samples(self, tmp_path):
        store = written(tmp_path / "store", failures={("a", ""): "broken"})
        (store.path / "samples" / "unreadable.parquet").write_bytes(b"PAR1")
        assert store.failures() == {}
        assert written(store.path, failures={("b", ""): "cut"}).failures() == {("b", ""): "cut"}
