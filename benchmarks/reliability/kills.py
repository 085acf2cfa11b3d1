"""What a store loses when its processes are killed, its files cut or damaged, and its disk refuses to write.

    python -m benchmarks.reliability.kills              # a few minutes; writes benchmarks/results/reliability.json
    python -m benchmarks.reliability.kills --kills 5 --share 0.02 --out FILE

The killed are real processes, forked from this one, which has run no encoder itself. POSIX systems only.
"""

import argparse
import os
import resource
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from PIL import Image

import skjepa.extraction.encoder_pass
from benchmarks.common import record
from skjepa import extract, load_encoder
from skjepa.extraction.batches.measurement import Here
from skjepa.extraction.store import store as store_module
from skjepa.extraction.store.store import Store

N_IMAGES, BATCH, BROKEN = 90, 4, 6
SMALL_SHARD = 8_000  # bytes: a dozen shards a run, so that kills meet their writing, too
SETTINGS = {"fingerprint": "0", "method": "exact", "precision": "float32", "input_shape": [8], "n_components": 4}
NOBODY = 65534


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kills", type=int, default=300)
    options.add_argument("--share", type=float, default=1.0, help="of the other trials")
    options.add_argument("--only", help="name of one trial")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path, default=record.RESULTS / "reliability.json")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")

    def often(n: int) -> int:
        return max(2, round(chosen.share * n))

    trials: dict[str, Callable[[Path, np.random.Generator], dict[str, Any]]] = {
        "killed": lambda folder, rng: killed(folder, rng, chosen.kills),
        "two writers killed": lambda folder, rng: two_writers_killed(folder, rng, -(-chosen.kills // 3)),
        "journal cut": lambda folder, rng: journal_cut(folder, rng, often(1000)),
        "bit of a journal": lambda folder, rng: bit_flipped(folder, rng, often(500), of="journal"),
        "bit of a shard": lambda folder, rng: bit_flipped(folder, rng, often(500), of="shard"),
        "file size limit": lambda folder, rng: disk_full(folder, rng, often(200)),
        "no permission": lambda folder, rng: no_permission(folder, rng, often(20)),
        "one cache, four processes": lambda folder, rng: shared_cache(folder, rng, often(200)),
    }
    results = {}
    for name in [chosen.only] if chosen.only else trials:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            Path(folder).chmod(0o755)
            found = trials[name](Path(folder), np.random.default_rng(chosen.seed))
        if found is not None:
            results[name] = found
            print(f"{name}: {found} ({time.perf_counter() - started:.0f} s)", flush=True)
    sizes = {"batch": BATCH, "images": N_IMAGES, "broken": BROKEN}
    record.write(chosen.out, {**sizes, "trials": results}, seed=chosen.seed)


# ------------------------------------------------------------------------------------------ killed processes


def killed(folder: Path, rng: np.random.Generator, kills: int) -> dict[str, int]:
    """Runs killed at random moments and started again, until one ends; as often as it takes."""
    images = make_images(folder / "images", rng)
    expected, seconds = uninterrupted(folder, images)
    found: Counter[str] = Counter(times=0, runs=0, repeated_batches=0, repeated_at_most=0, lost=0, different=0)
    while found["times"] < kills:
        store, log = folder / f"store-{found['runs']}", folder / f"log-{found['runs']}"
        died = 0
        while True:
            child = forked(run, images, store, log)
            # Often early: the last kill of a run should not be long after its first.
            if not kill_after(child, rng.uniform(0, 0.5 * seconds)):
                break
            died += 1
        compare(found, expected, store, log, died)
        found["times"] += died
        found["runs"] += 1
    return dict(found)


def two_writers_killed(folder: Path, rng: np.random.Generator, kills: int) -> dict[str, int]:
    """Two processes that score the same images into one store; one of them is killed at a random moment."""
    images = make_images(folder / "images", rng)
    expected, seconds = uninterrupted(folder, images)
    found: Counter[str] = Counter(times=0, runs=0, lost=0, different=0)
    while found["times"] < kills:
        store = folder / f"store-{found['runs']}"
        children = [forked(run, images, store, folder / "log") for _ in range(2)]
        found["times"] += kill_after(children[0], rng.uniform(0, seconds))
        check_end(os.waitpid(children[1], 0)[1])
        check_end(os.waitpid(forked(run, images, store, folder / "log"), 0)[1])
        compare(found, expected, store)
        found["runs"] += 1
    return dict(found)


def make_images(folder: Path, rng: np.random.Generator) -> Path:
    folder.mkdir()
    for i in range(N_IMAGES):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{i:03}.png")
    for i in rng.choice(N_IMAGES, BROKEN, replace=False):
        (folder / f"{i:03}.png").write_bytes(b"no picture")
    return folder


def run(images: Path, store: Path, log: Path) -> None:
    """One run in a process of its own; every batch is written to the log before it is measured."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(392, 16)
    )
    batches = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    class Logged(Here):
        def __call__(self, positions: Sequence[int]) -> Any:
            self.halving.batch_size = BATCH
            for batch, x, views in self.loader.batches(list(positions), lambda: BATCH):
                os.write(batches, f"{' '.join(self.loader.source.ids[batch])}\n".encode())
                yield batch, self.halving(x, views)

    skjepa.extraction.encoder_pass.Here = Logged
    store_module._SHARD_BYTES = SMALL_SHARD
    extract(load_encoder(net, image_size=16), images, store=store, on_error="skip", device="cpu")


def uninterrupted(folder: Path, images: Path) -> tuple[pa.Table, float]:
    """The table of a run that nobody kills, and how long it takes."""
    started = time.perf_counter()
    check_end(os.waitpid(forked(run, images, folder / "whole", folder / "whole-log"), 0)[1])
    seconds = time.perf_counter() - started
    return table(folder / "whole"), seconds


def forked(work: Callable[..., None], *arguments: Any) -> int:
    """The process that does the work."""
    child = os.fork()
    if child:
        return child
    try:
        work(*arguments)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def kill_after(child: int, seconds: float) -> bool:
    """Whether it was still running then."""
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return True
    check_end(status)
    return False


def check_end(status: int) -> None:
    if status:
        raise RuntimeError(f"a run ended with status {status}")


def table(store: Path) -> pa.Table:
    return pq.read_table(store / "samples").sort_by("id").combine_chunks()


def compare(found: Counter, expected: pa.Table, store: Path, log: Path | None = None, kills: int = 0) -> None:
    """Count what is missing from, doubled or different in the finished store, and the batches begun again."""
    end = table(store)
    found["lost"] += len(set(expected["id"].to_pylist()) - set(end["id"].to_pylist()))
    found["different"] += not alike(end, expected, to_the_bit=log is not None)
    if any((store / "journals").glob("*.journal")):
        raise RuntimeError("a finished store has journals left")
    if log is not None:
        again = Counter(log.read_text().splitlines())
        repeated = sum(again.values()) - len(again)
        found["repeated_batches"] += repeated
        found["repeated_at_most"] = max(found["repeated_at_most"], int(np.ceil(repeated / max(1, kills))))
        if len(again) != len(set(log.with_name("whole-log").read_text().splitlines())):
            raise RuntimeError("a run that was killed measured other batches")
    shutil.rmtree(store)


def alike(found: pa.Table, expected: pa.Table, *, to_the_bit: bool) -> bool:
    """The same rows, with the same values; two writers at once may meet in other batches, and round otherwise."""
    if to_the_bit:
        return found.equals(expected)
    names = ["id", "content", "status", "error"]
    return found.select(names).equals(expected.select(names)) and all(
        np.allclose(flat(found, name), flat(expected, name), rtol=1e-4, atol=1e-6)
        for name in ("embedding", "singular_values")
    )


def flat(rows: pa.Table, name: str) -> np.ndarray:
    column = rows[name].drop_null()
    while pa.types.is_list(column.type):
        column = pc.list_flatten(column)
    return column.to_numpy()


# ------------------------------------------------------------------------------------------ damage, and full disks


def rows(names: Sequence[str]) -> tuple[list[tuple[str, str]], np.ndarray, np.ndarray]:
    """Samples whose values follow from their names."""
    values = np.array([[int(name) + k / 8 for k in range(4)] for name in names]).reshape(-1, 4)
    return [(name, "") for name in names], values, values[:, None, :]


def check(found: Counter, store: Store, names: Sequence[str]) -> None:
    """Count names that are not there, and rows that are not what was written."""
    there = store.read()
    found["lost"] += len({(name, "") for name in names} - there.keys())
    found["different"] += sum(
        not np.array_equal(embedding, rows([name])[1][0]) or not np.array_equal(sigma, rows([name])[2][0])
        for (name, _), (embedding, sigma, _) in there.items()
    )


def parts_of(n: int) -> list[list[str]]:
    return [[str(BATCH * i + j) for j in range(BATCH)] for i in range(n)]


def left_behind(path: Path, parts: list[list[str]]) -> Path:
    """The journal of a writer that was killed."""

    def work() -> None:
        store = Store(path, SETTINGS)
        for part in parts:
            store.append(*rows(part))
        os.kill(os.getpid(), signal.SIGKILL)

    os.waitpid(forked(work), 0)
    (journal,) = (path / "journals").glob("*.journal")
    return journal


def journal_cut(folder: Path, rng: np.random.Generator, times: int) -> dict[str, int]:
    """A journal cut at a random byte: all before the torn record is there; the rest is written again."""
    parts = parts_of(5)
    journal = left_behind(folder / "whole", parts)
    whole = journal.read_bytes()
    ends = [len(whole) * (i + 1) // len(parts) for i in range(len(parts))]
    found: Counter[str] = Counter(times=times, lost=0, different=0, repeated_at_most=0)
    for _ in range(times):
        cut = int(rng.integers(len(whole)))
        store = prepared(folder, journal, whole[:cut])
        before = [part for part, end in zip(parts, ends, strict=True) if end <= cut]
        check(found, store, [name for part in before for name in part])
        after = [part for part in parts if (part[0], "") not in store.read()]
        found["repeated_at_most"] = max(found["repeated_at_most"], len(after) - sum(end > cut for end in ends) + 1)
        finish(found, store, parts)
    return dict(found)


def bit_flipped(folder: Path, rng: np.random.Generator, times: int, *, of: str) -> dict[str, int]:
    """One bit of a file is turned: its record or shard is written again, and no other."""
    parts = parts_of(5)
    file = left_behind(folder / "whole", parts)
    if of == "shard":
        Store(folder / "whole", SETTINGS).close()
        (file,) = (folder / "whole" / "samples").glob("*.parquet")
    whole = file.read_bytes()
    found: Counter[str] = Counter(times=times, lost=0, different=0, found=0, repeated_at_most=0)
    for _ in range(times):
        content = bytearray(whole)
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        store = prepared(folder, file, bytes(content))
        check(found, store, [])
        missing = len(parts) - len(store.read()) // BATCH
        found["found"] += missing > 0
        found["repeated_at_most"] = max(found["repeated_at_most"], missing)
        finish(found, store, parts)
    return dict(found)


def prepared(folder: Path, file: Path, content: bytes) -> Store:
    """A copy of the store of a file, with another content of that."""
    store = Path(tempfile.mkdtemp(dir=folder)) / "store"
    shutil.copytree(folder / "whole", store)
    (store / file.relative_to(folder / "whole")).write_bytes(content)
    return Store(store, SETTINGS)


def finish(found: Counter, store: Store, parts: list[list[str]]) -> None:
    """Write what is missing, as a run would, and check all of it."""
    there = store.read()
    for part in parts:
        missing = [name for name in part if (name, "") not in there]
        if missing:
            store.append(*rows(missing))
    store.close()
    names = [name for part in parts for name in part]
    check(found, store, names)
    found["different"] += len(table(store.path)) != len(names)
    shutil.rmtree(store.path.parent)


def disk_full(folder: Path, rng: np.random.Generator, times: int) -> dict[str, int]:
    """The system refuses to let a file grow beyond a random size, in the midst of a write; later it does again."""
    parts = parts_of(20)
    found: Counter[str] = Counter(times=0, named=0, lost=0, different=0, repeated_at_most=0)
    for i in range(times):
        path = folder / str(i) / "store"
        path.parent.mkdir()
        store, done = Store(path, SETTINGS), folder / f"{i}.done"
        limit = int(rng.integers(1, 20_000))

        def work(store=store, done=done, limit=limit) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            for n, part in enumerate(parts):
                try:
                    store.append(*rows(part))
                except OSError as error:
                    os._exit(3 if f"the store {store.path} cannot be written" in str(error) else 4)
                done.with_name(f"{done.name}-{n}").touch()

        code = os.waitstatus_to_exitcode(os.waitpid(forked(work), 0)[1])
        if code:
            found["times"] += 1
            found["named"] += code == 3
        finished = len(list(folder.glob(f"{i}.done-*")))
        check(found, Store(path, SETTINGS), [name for part in parts[:finished] for name in part])
        found["repeated_at_most"] = max(
            found["repeated_at_most"], finished - len(Store(path, SETTINGS).read()) // BATCH
        )
        finish(found, Store(path, SETTINGS), parts)
    return dict(found)


def no_permission(folder: Path, rng: np.random.Generator, times: int) -> dict[str, int] | None:
    """A store of another user: what it holds can be read, and the refusal to write names it."""
    if os.getuid():
        return None  # nobody else to be
    found: Counter[str] = Counter(times=times, named=0, lost=0, different=0)
    parts = parts_of(2)
    for i in range(times):
        path = folder / str(i)
        if i % 2:
            left_behind(path, parts)
        else:
            with Store(path, SETTINGS) as store:
                store.append(*rows(parts[0] + parts[1]))

        def work(path=path) -> None:
            os.setuid(NOBODY)
            store, mine = Store(path, SETTINGS), Counter(lost=0, different=0)
            check(mine, store, parts[0] + parts[1])
            store.close()
            try:
                store.append(*rows(["999"]))
            except PermissionError as error:
                os._exit(3 if f"the store {path} cannot be written" in str(error) and not any(mine.values()) else 4)

        found["named"] += os.waitstatus_to_exitcode(os.waitpid(forked(work), 0)[1]) == 3
        check(found, Store(path, SETTINGS), parts[0] + parts[1])
    return dict(found)


def shared_cache(folder: Path, rng: np.random.Generator, times: int) -> dict[str, int]:
    """Four processes that keep one sample at a time in one cache; some keep the same ones."""
    store_module._CACHE_SHARD_BYTES = SMALL_SHARD

    def work(seed: int) -> None:
        for name in np.random.default_rng(seed).permutation(times):
            with Store(folder / "cache", SETTINGS, is_cache=True) as store:
                if (str(name), "") not in store.read([(str(name), "")]):
                    store.append(*rows([str(name)]))

    children = [forked(work, seed) for seed in range(4)]
    for child in children:
        check_end(os.waitpid(child, 0)[1])
    found: Counter[str] = Counter(times=4 * times, lost=0, different=0)
    check(found, Store(folder / "cache", SETTINGS, is_cache=True), [str(i) for i in range(times)])
    Store(folder / "cache", SETTINGS).close()
    found["different"] += len(table(folder / "cache")) != times
    return dict(found)


if __name__ == "__main__":
    main()
