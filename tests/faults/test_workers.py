"""Real processes and a real dask cluster: many measure what one measures, and no death of a worker loses a sample."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import joblib
import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn

import skjepa
import skjepa._utils.hardware
import skjepa.extraction.batches.sizing
from skjepa import JEPAScoreDetector, extract, jepa_score, load_encoder
from skjepa.cli.app import main
from skjepa.extraction.processes.dispatch import WorkerLostError
from skjepa.extraction.processes.pools import workers
from skjepa.extraction.processes.worker import VersionMismatchError
from skjepa.extraction.store.store import Store

pytestmark = [
    pytest.mark.slow,
    # Of sockets and event loops that a killed process leaves behind.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:a worker process ended"),
]
N = 320


class Diary(nn.Module):
    """A linear encoder that takes its time, notes who unpacks and who uses it, and dies of a bright image."""

    def __init__(self, folder: Path, seconds: float = 0.0) -> None:
        super().__init__()
        self.folder, self.seconds = str(folder), seconds
        self.linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 6))
        self.home = os.getpid()

    def __setstate__(self, state):
        super().__setstate__(state)
        Path(self.folder, f"unpacked-{os.getpid()}-{time.monotonic_ns()}").touch()

    def forward(self, x):
        if os.getpid() != self.home:
            Path(self.folder, f"used-{os.getpid()}").touch()
            time.sleep(self.seconds)
            if bool((x == 1).flatten(1).all(1).any()):
                os._exit(13)
        return self.linear(x)


def unpacked(folder) -> list[str]:
    """Process ids, one for each time that an encoder was unpacked."""
    return [path.name.split("-")[1] for path in folder.glob("unpacked-*")]


def users(folder) -> list[int]:
    return [int(path.name.split("-")[1]) for path in folder.glob("used-*")]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 250, (N, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def diary(tmp_path):
    torch.manual_seed(0)
    return load_encoder(Diary(tmp_path, seconds=0.15), image_size=8)


@pytest.fixture
def client():
    distributed = pytest.importorskip("distributed", reason="needs dask: pip install 'skjepa[dask]'")
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with cluster, distributed.Client(cluster) as client:
        yield client


@pytest.fixture(params=["loky", "dask"])
def backend(request):
    if request.param == "loky":
        return {"backend": "loky", "n_jobs": 2}
    return {"backend": "dask", "client": request.getfixturevalue("client")}


def equal(a, b):
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("embeddings", "singular_values", "ids"))


def kill_when(ready, victims):
    """SIGKILL `victims()` as soon as `ready()`."""

    def watch():
        while not ready():
            time.sleep(0.02)
        for pid in victims():
            os.kill(pid, signal.SIGKILL)
        killed.set()

    killed = threading.Event()
    threading.Thread(target=watch, daemon=True).start()
    return killed


def test_workers_measure_bitwise_what_one_process_does(backend, images, diary, tmp_path):
    alone = extract(diary, images)
    with joblib.parallel_config(**backend):
        spread = extract(diary, images, store=tmp_path / "store")
        again = extract(diary, images)
    assert equal(spread, alone)
    assert equal(again, alone)
    assert spread.meta == alone.meta
    assert len(users(tmp_path)) == 2
    assert len(unpacked(tmp_path)) == len(set(unpacked(tmp_path)))  # once a process, for both passes


def test_the_named_encoder_and_a_detector(backend, tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (200, 32, 32, 3), dtype=np.uint8)
    detector = JEPAScoreDetector(method="sketch", n_directions=4, calibration=0.3).fit(images[:100])
    alone = detector.score_samples(images[100:])
    with joblib.parallel_config(**backend):
        fitted = JEPAScoreDetector(method="sketch", n_directions=4, calibration=0.3).fit(images[:100])
        assert np.array_equal(fitted.score_samples(images[100:]), alone)


@pytest.mark.parametrize("n_killed", [1, 2])
def test_killed_workers_lose_nothing(backend, n_killed, images, diary, tmp_path):
    alone = extract(diary, images)

    def victims():
        return [pid for pid in users(tmp_path) if psutil.pid_exists(pid)][:n_killed]

    killed = kill_when(lambda: len(users(tmp_path)) == 2, victims)
    with joblib.parallel_config(**backend):
        spread = extract(diary, images, store=tmp_path / "store")
    assert killed.is_set()
    assert n_killed == 1 or len(users(tmp_path)) > 2  # others went on in their place
    assert equal(spread, alone)
    with Store(tmp_path / "store", alone.meta) as store:
        assert len(store.read()) == N


@pytest.mark.parametrize("backend_name", ["loky", "dask"])
def test_a_sample_that_kills_its_worker_is_named(backend_name, images, diary, tmp_path, monkeypatch, request):
    monkeypatch.setattr(skjepa.extraction.batches.sizing, "MAX_BATCH", 4)
    images = images[:24]
    poisoned = images.copy()
    poisoned[17] = 255
    ids = [f"image {i}" for i in range(len(images))]
    if backend_name == "dask":  # by default it gives a task to four workers before it tells
        dask = pytest.importorskip("dask", reason="needs dask: pip install 'skjepa[dask]'")
        impatient = dask.config.set({"distributed.scheduler.allowed-failures": 0})
        request.addfinalizer(lambda: impatient.__exit__(None, None, None))
        backend = {"backend": "dask", "client": request.getfixturevalue("client")}
    else:
        backend = {"backend": "loky", "n_jobs": 2}
    with (
        joblib.parallel_config(**backend),
        pytest.raises(WorkerLostError, match="sample image 17 ends every process that measures it"),
    ):
        extract(diary, poisoned, ids=ids, store=tmp_path / "store")
    with joblib.parallel_config(backend="loky", n_jobs=2):
        rest = extract(diary, images, ids=ids, store=tmp_path / "store")  # only that one is left to do
    assert len(rest) == len(images)


def test_many_threads_of_one_worker(images, diary, tmp_path):
    distributed = pytest.importorskip("distributed", reason="needs dask: pip install 'skjepa[dask]'")
    alone = extract(diary, images)
    cluster = distributed.LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None)
    with cluster, distributed.Client(cluster) as client, joblib.parallel_config(backend="dask", client=client):
        spread = extract(diary, images)
    assert equal(spread, alone)
    assert len(unpacked(tmp_path)) == 1


def test_a_large_batch_goes_past_the_scheduler(client):
    images = np.random.default_rng(2).integers(0, 256, (40, 224, 224, 3), dtype=np.uint8)  # 6 MB
    encoder = load_encoder(nn.Sequential(nn.AvgPool2d(56), nn.Flatten(), nn.Linear(48, 4)), image_size=224)
    alone = jepa_score(encoder, images)
    with joblib.parallel_config(backend="dask", client=client):
        assert np.array_equal(jepa_score(encoder, images), alone)


def test_a_worker_of_another_version_is_refused(images, diary, tmp_path):
    distributed = pytest.importorskip("distributed", reason="needs dask: pip install 'skjepa[dask]'")
    other = tmp_path / "other"
    other.mkdir()
    package = Path(skjepa.__file__).parent
    for path in (*package.rglob("*.py"), *package.rglob("*.pyi")):
        text = path.read_text()
        if path == package / "__init__.py":
            assert f'__version__ = "{skjepa.__version__}"' in text
            text = text.replace(f'__version__ = "{skjepa.__version__}"', '__version__ = "0.0.9"')
        copied = other / "skjepa" / path.relative_to(package)
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_text(text)
    cluster = distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None)
    with cluster, distributed.Client(cluster) as client:
        command = [
            sys.executable,
            "-m",
            "distributed.cli.dask_worker",
            cluster.scheduler_address,
            "--no-dashboard",
            "--no-nanny",
        ]
        environment = os.environ | {"PYTHONPATH": f"{other}{os.pathsep}{Path(__file__).parent}"}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        stranger = subprocess.Popen(command, env=environment, cwd=tmp_path, **quiet)
        try:
            client.wait_for_workers(2, timeout=60)
            with joblib.parallel_config(backend="dask", client=client):
                for budget in (None, 2**30):  # asked beforehand, and in the task itself
                    with pytest.raises(VersionMismatchError, match=rf"skjepa 0\.0\.9 there, {skjepa.__version__} here"):
                        extract(diary, images, memory_budget=budget)
        finally:
            stranger.terminate()
            stranger.wait()


@pytest.fixture
def folders(tmp_path):
    rng = np.random.default_rng(3)
    for name, n in (("normal", 60), ("new", 30)):
        (tmp_path / name).mkdir()
        for i in range(n):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / name / f"{i:03}.png")
    (tmp_path / "new" / "broken.png").write_bytes(b"no image")
    return tmp_path


def test_the_command_line_spreads(folders, client):
    def scores(*options):
        out = folders / f"{len(options)}.parquet"
        command = ["score", "--fit", f"{folders}/normal", f"{folders}/new", "--out", f"{out}", "--no-picture"]
        command += ["--formula", "jepa", "--contamination", "0.1", "--on-error", "skip", "--quiet", *options]
        with pytest.raises(SystemExit) as end:
            main(command)
        assert end.value.code == 3
        return pq.read_table(out)

    alone = scores()
    assert scores("--n-jobs", "2").equals(alone)
    assert scores("--dask", client.scheduler.address, "--read-threads", "1").equals(alone)


def test_no_cluster_and_no_worker_are_said(tmp_path):
    distributed = pytest.importorskip("distributed", reason="needs dask: pip install 'skjepa[dask]'")
    dask = pytest.importorskip("dask")
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(OSError, match="Timed out"),
        workers(scheduler="tcp://127.0.0.1:9"),
    ):
        pass
    cluster = distributed.LocalCluster(n_workers=0, dashboard_address=None)
    with (
        cluster,
        distributed.Client(cluster) as client,
        joblib.parallel_config(backend="dask", client=client, wait_for_workers_timeout=0.2),
        pytest.raises(TimeoutError, match="has no worker"),
    ):
        extract("bundled", np.zeros((2, 32, 32, 3), dtype=np.uint8))


def recipe(word: str) -> str:
    """The snippet of docs/guide/scaling.md that holds a word."""
    document = Path(__file__).parents[2] / "docs" / "guide" / "scaling.md"
    (found,) = [code for code in re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL) if word in code]
    return found


@pytest.mark.parametrize("word", ["loky", "LocalCluster"])
def test_snippets_of_the_documentation(word, folders, monkeypatch):
    if word == "LocalCluster":
        pytest.importorskip("distributed", reason="needs dask: pip install 'skjepa[dask]'")
    monkeypatch.chdir(folders)
    (folders / "new" / "broken.png").unlink()
    (folders / "new").rename("incoming")
    found = {}
    exec(recipe(word), found)
    assert len(found["scores"] if word == "loky" else found["extraction"]) == 30


def test_the_recipe_for_ray(folders):
    ray = pytest.importorskip("ray", reason="needs ray, which this package does not: pip install ray")
    folder = folders / "normal"
    alone = extract("bundled", [f"{folder}/{path.name}" for path in sorted(folder.iterdir())])
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        found = {"folder": folder, "stores": folders / "stores"}
        exec(recipe("import ray").replace("64", "32"), found)
    finally:
        ray.shutdown()
    spread = found["extraction"]
    assert np.array_equal(spread.ids, alone.ids)
    np.testing.assert_allclose(spread.singular_values, alone.singular_values, rtol=1e-4, atol=1e-5)
    assert len(list((folders / "stores").iterdir())) == 2
