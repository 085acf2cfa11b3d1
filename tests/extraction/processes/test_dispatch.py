"""Batches handed to workers, without processes: a pool that measures in this one, and loses what it is told to lose."""

import pickle
from concurrent.futures import BrokenExecutor, Future
from dataclasses import replace
from types import SimpleNamespace

import joblib
import numpy as np
import pytest
import torch
from oracles import conv_net, mlp, random_images
from PIL import Image

import skjepa._utils.hardware
import skjepa.extraction.batches.measurement
import skjepa.extraction.batches.sizing
import skjepa.extraction.encoder_pass
import skjepa.extraction.processes.worker
from skjepa import JEPAScoreDetector, embed, extract, jepa_score, load_encoder
from skjepa.extraction.batches.measurement import Here
from skjepa.extraction.processes.dispatch import WorkerLostError
from skjepa.extraction.processes.pools import LocalPool, active_pool, workers
from skjepa.extraction.processes.worker import VersionMismatchError


class InlinePool:
    """Everything but the processes: parts travel pickled, come back in reverse order, and some end their worker."""

    is_here, device = True, "cpu"

    def __init__(self, *, poison: str | None = None, accidents: int = 0) -> None:
        self.poison, self.accidents = poison, accidents
        self.sizes, self.closed, self.mended = [], [], 0

    def budget(self):
        return 2**30

    def slots(self):
        return 2

    def open(self, parcel):
        self.parcel = parcel

    def part(self, *, is_budget_given, **content):
        return skjepa.extraction.processes.worker.Part(**content, threads=1, slots={}, is_limited=not is_budget_given)

    def submit(self, key, part):
        future, names = Future(), pickle.loads(part).ids.tolist()
        self.sizes.append(len(names))
        try:
            if self.accidents or self.poison in names:
                self.accidents = max(0, self.accidents - 1)
                raise BrokenExecutor("a process was terminated abruptly")
            future.set_result(
                skjepa.extraction.processes.worker.run(
                    skjepa.extraction.processes.worker.versions(), key, self.parcel, part
                )
            )
        except Exception as error:
            future.set_exception(error)
        return future

    def mend(self):
        self.mended += 1

    def close(self, *, at_once):
        self.closed.append(at_once)


@pytest.fixture(autouse=True)
def one_thread():
    """Sums are of another order with another number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def pool(monkeypatch):
    def use(**options):
        pool = InlinePool(**options)
        monkeypatch.setattr(skjepa.extraction.encoder_pass, "active_pool", lambda *_: pool)
        return pool

    monkeypatch.setattr(skjepa.extraction.batches.sizing, "MAX_BATCH", 4)
    return use


@pytest.fixture
def folder(tmp_path):
    for i, image in enumerate(random_images(10)):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    (tmp_path / "5.png").write_bytes(b"no image")
    return tmp_path


def equal(a, b):
    return (
        np.array_equal(a.embeddings, b.embeddings)
        and np.array_equal(a.singular_values, b.singular_values)
        and np.array_equal(a.ids, b.ids)
        and a.meta == b.meta
    )


@pytest.fixture
def encoder():
    return load_encoder(conv_net(), image_size=32)


@pytest.mark.parametrize(
    "options",
    [{}, {"method": "sketch", "n_directions": 3, "random_state": 1}, {"views": 2}],
    ids=["exact", "sketch", "views"],
)
def test_bitwise_as_in_one_process(encoder, pool, options):
    X = random_images(10)[[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 3]]
    alone = extract(encoder, X, **options)
    used = pool()
    assert equal(extract(encoder, X, **options), alone)
    assert used.sizes == [4, 4, 2]  # the batches of one process; the repeat is measured once
    assert used.closed == [False]


def test_other_batches_and_threads_differ_by_rounding(encoder, pool, monkeypatch):
    """As docs/guide/scaling.md says: the order of sums is another one."""
    X = random_images(10)
    alone = jepa_score(encoder, X, floor=1e-3)
    used = pool()
    used.part = lambda **content: InlinePool.part(used, **content | {"batch_size": 3})
    torch.set_num_threads(2)
    np.testing.assert_allclose(jepa_score(encoder, X, floor=1e-3), alone, rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", ["vectors", "tensors", "pictures", "dataset", "paths"])
def test_every_kind_of_data_travels(kind, pool, folder):
    images = random_images(6)
    X = {
        "vectors": np.random.default_rng(0).normal(size=(6, 12)),
        "tensors": torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255,
        "pictures": [Image.fromarray(image) for image in images],
        "dataset": torch.utils.data.TensorDataset(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255),
        "paths": [str(folder / f"{i}.png") for i in range(5)],
    }[kind]
    encoder = load_encoder(mlp()) if kind == "vectors" else load_encoder(conv_net(), image_size=32)
    alone, scores = extract(encoder, X), embed(encoder, X)
    pool()
    assert equal(extract(encoder, X, n_jobs=2), alone)
    assert np.array_equal(embed(encoder, X), scores)


def test_a_sample_of_a_tensor_does_not_bring_the_whole_tensor(pool):
    X = torch.rand(200, 3, 32, 32)
    used, sent = pool(), []
    submit = used.submit
    used.submit = lambda key, part: sent.append(len(part)) or submit(key, part)
    embed(load_encoder(conv_net(), image_size=32), X)
    assert max(sent) < 2 * X[:4].nbytes


def test_skipped_images_are_named_and_warned_of_by_the_sender(encoder, pool, folder, monkeypatch):
    with pytest.warns(UserWarning, match=r"skipped .*5\.png"):
        alone = extract(encoder, folder, on_error="skip")
    pool()
    with pytest.warns(UserWarning, match=r"skipped .*5\.png") as caught:
        spread = extract(encoder, folder, on_error="skip")
    assert len(caught) == 1
    assert equal(spread, alone)
    with pytest.raises(ValueError, match=r"5\.png: cannot be read"):
        extract(encoder, folder)
    monkeypatch.chdir(folder)
    with pytest.warns(UserWarning, match=r"skipped 5\.png: cannot be read"):  # as it was given, not as it was sent
        extract(encoder, ["4.png", "5.png"], on_error="skip")
    with pytest.warns(UserWarning, match=r"skipped dataset item 1"):
        skipped = extract(encoder, Broken(), on_error="skip").meta["skipped"]
    assert [position for position, *_ in skipped] == [1]


class Broken(torch.utils.data.Dataset):
    """The second item is no image."""

    def __len__(self):
        return 5

    def __getitem__(self, i):
        return torch.full((3, 8, 8), 0.1 * i) if i != 1 else torch.zeros(5)


def test_a_file_that_only_the_worker_lacks_is_no_skipped_image(tmp_path):
    sample = skjepa.extraction.processes.worker.FileSample("a.png", str(tmp_path / "a.png"), exists=True)
    with pytest.raises(FileNotFoundError, match=r"worker .* does not find .*a\.png, which exists for the process"):
        sample.load()


def test_the_store_stays_with_the_sender_and_is_resumed(encoder, pool, tmp_path):
    X, alone = random_images(10), extract(encoder, random_images(10))
    used = pool()
    extract(encoder, X[:4], store=tmp_path / "store")
    assert equal(extract(encoder, X, store=tmp_path / "store"), alone)
    assert used.sizes == [4, 2]
    extract(encoder, X, store=tmp_path / "store")
    assert used.sizes == [4, 2]


def test_one_batch_stays_here(encoder, pool):
    used = pool()
    extract(encoder, random_images(4))
    assert used.sizes == []


def test_progress_counts_images(encoder, pool, capsys):
    pool()
    extract(encoder, random_images(10), progress=True)
    assert "10/10" in capsys.readouterr().err


def test_a_detector_scores_alike(pool):
    X = random_images(24)
    detector = JEPAScoreDetector("bundled", n_directions=4, method="sketch").fit(X[:16])
    alone = detector.score_samples(X[16:])
    used = pool()
    assert np.array_equal(detector.score_samples(X[16:]), alone)
    assert used.sizes == [4, 4]


class TestLosses:
    def test_accidents_lose_nothing(self, encoder, pool):
        X, alone = random_images(10), extract(encoder, random_images(10))
        used = pool(accidents=4)
        with pytest.warns(UserWarning, match="a worker process ended"):
            assert equal(extract(encoder, X), alone)
        assert used.mended
        assert used.closed == [False]

    @pytest.mark.filterwarnings("ignore:a worker process ended")
    def test_a_sample_that_ends_its_worker_is_named_after_all_others_are_kept(self, encoder, pool, tmp_path):
        X = random_images(10)
        ids = [f"image {i}" for i in range(10)]
        used = pool(poison="image 5")
        with pytest.raises(WorkerLostError, match="sample image 5 ends every process"):
            extract(encoder, X, ids=ids, store=tmp_path / "store")
        assert used.closed == [True]
        assert used.sizes[-2:] == [1, 1]  # halved down to it, and tried once more
        fine = pool()
        assert len(extract(encoder, X, ids=ids, store=tmp_path / "store")) == 10
        assert fine.sizes == [1]

    def test_an_error_of_a_sample_is_no_loss(self, encoder, pool, folder):
        used = pool()
        with pytest.raises(ValueError, match=r"5\.png"):
            extract(encoder, folder)
        assert used.closed == [True]
        assert not used.mended


class TestWorker:
    def test_another_version_is_refused_before_anything_is_unpacked(self):
        expected = skjepa.extraction.processes.worker.versions() | {"skjepa": "9.9"}
        with pytest.raises(VersionMismatchError, match=rf"skjepa {skjepa.__version__} there, 9\.9 here"):
            skjepa.extraction.processes.worker.run(expected, "", b"not a pickle", b"neither")
        with pytest.raises(VersionMismatchError, match="torch"):
            skjepa.extraction.processes.worker.survey(
                skjepa.extraction.processes.worker.versions() | {"torch": "1.0"}, "cpu", {}
            )

    def test_the_encoder_is_unpacked_once(self, encoder, pool, monkeypatch):
        opened = []
        loads = skjepa.extraction.processes.worker.cloudpickle.loads
        monkeypatch.setattr(skjepa.extraction.processes.worker, "_UNPACKED", {})
        monkeypatch.setattr(
            skjepa.extraction.processes.worker.cloudpickle,
            "loads",
            lambda data: opened.append(len(data)) or loads(data),
        )
        used = pool()
        extract(encoder, random_images(10))
        assert len(used.sizes) == 3
        assert len(opened) == 1

    def test_a_named_encoder_travels_without_its_weights(self):
        bundled = load_encoder("bundled")
        weights = sum(p.nbytes for p in bundled.module.parameters())
        assert (
            len(
                skjepa.extraction.processes.worker.packed(
                    skjepa.extraction.batches.measurement.Measurement(bundled, 64, 1)
                )
            )
            < weights / 50
        )

    @pytest.mark.filterwarnings("ignore:.*cannot be described")
    def test_what_cannot_be_pickled_is_refused(self, pool):
        pool()
        module = mlp()
        module.stream = (i for i in range(3))
        with pytest.raises(TypeError, match=r"encoder 'Sequential'.* cannot be pickled for other processes.*generator"):
            jepa_score(load_encoder(module), np.random.default_rng(0).normal(size=(99, 12)))

    def test_threads_are_those_asked_for_and_given_back(self, encoder, pool):
        seen = []
        encoder.module.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
        skjepa.extraction.processes.worker._UNPACKED["here"] = skjepa.extraction.batches.measurement.Measurement(
            encoder, 0, 1
        )
        part = InlinePool().part(
            ids=np.array(["a"]),
            samples=list(random_images(1)),
            is_vector=False,
            device="cpu",
            batch_size=1,
            is_budget_given=True,
        )
        try:
            torch.set_num_threads(2)
            skjepa.extraction.processes.worker.run(
                skjepa.extraction.processes.worker.versions(), "here", b"", pickle.dumps(part)
            )
            assert torch.get_num_threads() == 2
        finally:
            del skjepa.extraction.processes.worker._UNPACKED["here"]
        assert set(seen) == {1}

    def test_gpus_are_claimed_one_by_one(self, monkeypatch, tmp_path):
        monkeypatch.setattr(skjepa.extraction.processes.worker.tempfile, "gettempdir", lambda: str(tmp_path))
        names = ["GPU-a", "GPU-b"]
        locks = [skjepa.extraction.processes.worker._claim(names) for _ in range(3)]
        assert [lock.lock_file[-7:] for lock in locks[:2]] == ["GPU-a.0", "GPU-b.1"]
        assert not locks[2].is_locked  # shared: there is no third
        locks[0].release()
        assert skjepa.extraction.processes.worker._claim(names).lock_file == locks[0].lock_file
        locks[1].release()

    def test_a_worker_takes_one_of_the_gpus_it_sees(self, monkeypatch, tmp_path):
        monkeypatch.setattr(skjepa.extraction.processes.worker.tempfile, "gettempdir", lambda: str(tmp_path))
        monkeypatch.setattr(skjepa.extraction.processes.worker, "_CLAIMED", [])
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: type("GPU", (), {"uuid": f"gpu-{i}"}))
        assert (
            skjepa.extraction.processes.worker.own_device("cuda")
            == skjepa.extraction.processes.worker.own_device("cuda")
            == "cuda:0"
        )
        assert skjepa.extraction.processes.worker.own_device("cuda:1") == "cuda:1"
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # CUDA_VISIBLE_DEVICES names one
        assert skjepa.extraction.processes.worker.own_device("cuda") == "cuda"
        skjepa.extraction.processes.worker._CLAIMED[0].release()

    def test_memory_and_cores_of_a_machine_are_shared_out(self, monkeypatch):
        monkeypatch.setattr(skjepa.extraction.processes.worker, "default_budget", lambda device: 1200)
        assert skjepa.extraction.processes.worker.budget("cpu", {}) == 1200  # no dask worker
        state, manager = SimpleNamespace(nthreads=2), SimpleNamespace(memory_limit=0)
        worker = SimpleNamespace(address="tcp://10.0.0.7:1", state=state, memory_manager=manager)
        monkeypatch.setattr(skjepa.extraction.processes.worker, "_dask_worker", lambda: worker)
        assert skjepa.extraction.processes.worker.budget("cpu", {"10.0.0.7": 4, "10.0.0.8": 1}) == 300
        assert (
            skjepa.extraction.processes.worker.budget("cpu", {"10.0.0.8": 1}) == 600
        )  # it joined later: two threads of its own
        manager.memory_limit = 400
        assert skjepa.extraction.processes.worker.budget("cpu", {"10.0.0.7": 4}) == 100
        assert skjepa.extraction.processes.worker.budget("cuda", {"10.0.0.7": 4}) == 1200

    def test_the_room_is_that_of_the_first_look(self, encoder, pool, monkeypatch):
        free = iter([6 * 10**6, 10, 10])
        monkeypatch.setattr(skjepa.extraction.processes.worker, "default_budget", lambda device: next(free))
        sizes = []
        monkeypatch.setattr(
            skjepa.extraction.processes.worker, "Here", lambda *args: sizes.append(args[-1]) or Here(*args)
        )
        used = pool()
        used.part = lambda **content: replace(InlinePool.part(used, **content), is_limited=True)
        extract(encoder, random_images(12))
        assert sizes == [4, 4, 4]

    @pytest.mark.parametrize("address", ["tcp://10.0.0.7:4000", "tls://10.0.0.7:1"])
    def test_host_of_an_address(self, address):
        assert skjepa.extraction.processes.worker.host_of(address) == "10.0.0.7"


class TestActivePool:
    def active(self, device="cpu"):
        return active_pool(device)

    def test_this_process_alone_by_default(self):
        assert self.active() is None
        for config in ({"backend": "threading", "n_jobs": 2}, {"backend": "loky", "n_jobs": 1}, {"prefer": "threads"}):
            with joblib.parallel_config(**config):
                assert self.active() is None

    def test_processes_of_this_machine(self):
        with joblib.parallel_config(backend="loky", n_jobs=2):
            pool = self.active("auto")
        assert isinstance(pool, LocalPool)
        assert (pool.slots(), pool.device) == (2, "cpu")
        assert pool.threads <= max(1, joblib.cpu_count() // 2)
        with joblib.parallel_config(backend="loky", n_jobs=2, inner_max_num_threads=3):
            assert self.active().threads == 3

    def test_no_more_processes_than_gpus(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(skjepa._utils.hardware, "resolve_device", lambda name: name)  # as on a machine with two
        with joblib.parallel_config(backend="loky", n_jobs=8):
            assert self.active("cuda").slots() == 2
            assert self.active("cuda:1") is None

    def test_the_command_line_says_it_in_joblibs_words(self):
        with workers():
            assert self.active() is None
        with workers(2):
            assert self.active().slots() == 2
        with pytest.raises(ValueError, match="got both n_jobs and scheduler"), workers(2, "tcp://localhost:1"):
            pass


@pytest.mark.filterwarnings("ignore:skipped")
def test_two_processes_score_as_one(folder):
    """The real thing: loky starts two processes."""
    alone = extract("bundled", folder, on_error="skip", memory_budget=8 * 2**20)
    with joblib.parallel_config(backend="loky", n_jobs=2):
        spread = extract("bundled", folder, on_error="skip", memory_budget=8 * 2**20)
    assert equal(spread, alone)
