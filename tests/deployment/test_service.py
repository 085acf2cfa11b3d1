"""The service over loopback, with a real client: many at a time, damaged, slow and too large."""

import contextlib
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
from PIL import Image

from skjepa import JEPAScoreDetector, VectorJEPA

for package in ("fastapi", "uvicorn", "prometheus_client", "python_multipart"):
    pytest.importorskip(package, reason=f"{package} of the extra 'serve' is not installed")

RNG = np.random.default_rng(0)
NORMAL = RNG.integers(100, 156, size=(60, 32, 32, 3), dtype=np.uint8)
IMAGES = np.concatenate([RNG.integers(100, 156, size=(12, 32, 32, 3)), RNG.integers(0, 256, size=(8, 32, 32, 3))])
IMAGES = IMAGES.astype(np.uint8)
ROWS = RNG.normal(size=(120, 4))


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


FILES = [png(pixels) for pixels in IMAGES]


def multipart(files: list[tuple[str, bytes]]) -> tuple[bytes, dict[str, str]]:
    edge, body = b"edgeofparts", b""
    for name, content in files:
        body += b"--" + edge + b'\r\nContent-Disposition: form-data; name="images"; filename="' + name.encode()
        body += b'"\r\nContent-Type: image/png\r\n\r\n' + content + b"\r\n"
    return body + b"--" + edge + b"--\r\n", {"Content-Type": "multipart/form-data; boundary=edgeofparts"}


def head_of(n_bytes: int) -> bytes:
    """Of a request whose body is a picture of so many bytes."""
    return f"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {n_bytes}\r\n\r\n".encode()


class Server:
    """`skjepa serve` in a process of its own."""

    def __init__(self, folder, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "skjepa", "serve", str(folder), "--port", str(self.port), *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.wait()

    def wait(self) -> None:
        until = time.monotonic() + 90
        while time.monotonic() < until and self.process.poll() is None:
            with contextlib.suppress(OSError):
                if self.ask("GET", "/health")[0] == 200:
                    return
            time.sleep(0.1)
        self.process.kill()
        raise AssertionError(self.process.communicate()[0])

    def ask(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        is_json = answer.headers.get_content_type() == "application/json"
        return answer.status, json.loads(content) if is_json else content.decode()

    def score(self, *files: tuple[str, bytes]):
        return self.ask("POST", "/score", *multipart(list(files)))

    def score_rows(self, rows):
        return self.ask("POST", "/score", json.dumps({"rows": rows}).encode(), {"Content-Type": "application/json"})

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=180)  # it may have to start a process to the end before
        return self.process.returncode


@pytest.fixture(scope="module")
def detector():
    return JEPAScoreDetector(method="forward", calibration=0.4, target_fpr=0.1).fit(NORMAL)


@pytest.fixture(scope="module")
def folder(detector, tmp_path_factory):
    return detector.save(tmp_path_factory.mktemp("saved") / "detector")


@pytest.fixture(scope="module")
def server(folder):
    server = Server(folder, "--max-body", "1", "--max-pixels", "1", "--max-samples", "20")
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module")
def expected(detector):
    return detector.judge([Image.fromarray(pixels) for pixels in IMAGES])


def require_answer(result, expected, i):
    assert result["score"] == pytest.approx(expected.scores[i], rel=1e-5)
    assert result["decision"] == pytest.approx(expected.decisions[i], rel=1e-5, abs=1e-5)
    assert (result["p_value"], result["label"]) == (pytest.approx(expected.p_values[i]), expected.labels[i])


def test_one_request_of_many_images(server, expected):
    status, answer = server.score(*[(f"{i}.png", content) for i, content in enumerate(FILES)])
    assert status == 200
    assert [result["name"] for result in answer["results"]] == [f"{i}.png" for i in range(20)]
    for i, result in enumerate(answer["results"]):
        require_answer(result, expected, i)
    assert answer["results"][-1]["label"] == -1
    assert answer["results"][-1]["reason"]


def test_an_image_as_it_is(server, expected):
    status, answer = server.ask("POST", "/score", FILES[13], {"Content-Type": "image/png"})
    assert status == 200
    require_answer(answer["results"][0], expected, 13)


@pytest.mark.parametrize("n_requests", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_many_clients_lose_nothing(server, expected, n_requests):
    used = psutil.Process(server.process.pid).memory_info().rss

    def ask(i: int):
        return server.score((f"request {i}", FILES[i % 20]))

    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(ask, range(n_requests)))
    for i, (status, answer) in enumerate(answers):
        assert status == 200
        (result,) = answer["results"]
        assert result["name"] == f"request {i}"
        require_answer(result, expected, i % 20)
    assert psutil.Process(server.process.pid).memory_info().rss - used < 100 << 20
    metrics = server.ask("GET", "/metrics")[1]
    batches, samples = (
        float(line.split()[1])
        for name in ("skjepa_batch_samples_count", "skjepa_batch_samples_sum")
        for line in metrics.splitlines()
        if line.startswith(name)
    )
    assert samples / batches > 1.2  # requests that come together are scored together


@pytest.mark.slow
def test_good_damaged_large_and_slow_together(server, expected):
    """1,000 requests from 16 clients: none is lost, each has the answer that it has alone, and memory stays flat."""

    def slowly(i: int):
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
            body = FILES[i % 20]
            client.sendall(head_of(len(body)) + body[:60])
            time.sleep(0.3)
            client.sendall(body[60:])
            answer = http.client.HTTPResponse(client, method="POST")
            answer.begin()
            return answer.status, json.loads(answer.read())

    def ask(i: int):
        if i % 10 == 3:
            return server.score(("bad.png", FILES[i % 20][:150]))
        if i % 25 == 4:
            return server.score(("large.png", bytes((1 << 20) + 1)))
        if i % 20 == 6:
            return slowly(i)
        return server.score((f"request {i}", FILES[i % 20]))

    used = []
    with ThreadPoolExecutor(16) as clients:
        for begin in range(0, 1000, 250):
            for i, (status, answer) in enumerate(clients.map(ask, range(begin, begin + 250)), start=begin):
                wanted = 422 if i % 10 == 3 else 413 if i % 25 == 4 else 200
                assert status == wanted, (i, answer)
                if status == 200:
                    require_answer(answer["results"][0], expected, i % 20)
            used.append(psutil.Process(server.process.pid).memory_info().rss)
    assert used[-1] - used[0] < 30 << 20


def test_several_processes_are_started_for_a_detector_that_loads_alone(folder, monkeypatch, capsys):
    from skjepa.cli.app import main
    from skjepa.deployment import workers

    started = []
    monkeypatch.setattr(workers, "serve_by_processes", lambda *given, **options: started.append(given))
    with pytest.raises(SystemExit) as end:
        main(["serve", str(folder), "--workers", "2"])
    assert (end.value.code, started) == (0, [(folder, 2)])
    with pytest.raises(SystemExit) as end:
        main(["serve", str(folder), "--workers", "2", "--encoder", "bundled"])
    assert end.value.code == 2
    assert "--workers cannot be combined with --encoder" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_process_is_replaced(folder, expected):
    """Clients that ask again where their connection broke have every answer; no more break than were in hand."""
    server = Server(folder, "--workers", "2")
    broken = []

    def ask(i: int):
        for _ in range(50):
            try:
                return server.score((f"request {i}", FILES[i % 20]))
            except (OSError, http.client.HTTPException):
                broken.append(i)
                time.sleep(0.2)
        raise AssertionError(f"request {i} was never answered")

    def workers() -> list[psutil.Process]:
        found = []
        for child in psutil.Process(server.process.pid).children():
            with contextlib.suppress(psutil.Error):  # it may end meanwhile
                found += [child] * any("spawn_main" in word for word in child.cmdline())
        return found

    try:
        first = {child.pid for child in workers()}
        assert len(first) == 2
        with ThreadPoolExecutor(8) as clients:
            answers = [clients.submit(ask, i) for i in range(200)]
            time.sleep(0.5)
            os.kill(min(first), signal.SIGKILL)
            for i, answer in enumerate(answers):
                status, found = answer.result()
                assert status == 200
                require_answer(found["results"][0], expected, i % 20)
        assert len(broken) <= 8
        until = time.monotonic() + 120
        while len(workers()) < 2 or {child.pid for child in workers()} == first:
            assert time.monotonic() < until
            time.sleep(0.2)
        counted = [line for line in server.ask("GET", "/metrics")[1].splitlines() if 'status="200"' in line]
        assert 192 <= float(counted[0].split()[-1]) <= 208  # of both, the killed one too
    finally:
        assert server.stop() == 0


class TestBadRequests:
    @pytest.fixture(autouse=True)
    def still_answers(self, server):
        yield
        assert server.score(("a.png", FILES[0]))[0] == 200

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"no image at all", "unknown format"),
            (FILES[0][:200], "cannot be read as an image"),
            (b"", "unknown format"),
            (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unknown format"),
        ],
        ids=["text", "cut off", "empty", "a program"],
    )
    def test_bad_files_are_named_with_the_reason(self, server, content, reason):
        status, answer = server.score(("good.png", FILES[0]), ("bad.png", content))
        assert status == 422
        (said,) = answer["detail"]
        assert said.startswith("bad.png: ")
        assert reason in said

    def test_too_many_pixels(self, server):
        file = io.BytesIO()
        Image.new("1", (2000, 600)).save(file, "png")
        status, answer = server.score(("large.png", file.getvalue()))
        assert status == 422
        assert "large.png: cannot be read as an image (more than 1,000,000 pixels)" in answer["detail"]

    def test_too_many_bytes(self, server):
        status, answer = server.score(("large.png", bytes(2 << 20)))
        assert (status, answer["detail"]) == (
            413,
            "a request may have at most 1,048,576 bytes: send fewer samples per request",
        )

    def test_too_many_bytes_in_chunks(self, server):
        chunks = (bytes(1 << 16) for _ in range(64))
        assert server.ask("POST", "/score", chunks, {"Content-Type": "image/png"})[0] == 413

    def test_too_many_files(self, server):
        status, answer = server.score(*[("a.png", b"x")] * 21)
        assert status == 400
        assert "Too many files" in answer["detail"]

    @pytest.mark.parametrize(
        ("body", "kind", "status"),
        [
            (b"--edge\r\nbroken", "multipart/form-data; boundary=edge", 422),
            (b"anything", "multipart/form-data", 400),
            (multipart([])[0], "multipart/form-data; boundary=edgeofparts", 422),
            (b'{"rows": [[1, 2]]}', "application/json", 415),
            (b"/etc/passwd", "text/plain", 415),
            (b"", "", 415),
        ],
    )
    def test_damaged_and_foreign_bodies(self, server, body, kind, status):
        assert server.ask("POST", "/score", body, {"Content-Type": kind} if kind else {})[0] == status

    def test_no_path_of_the_server_is_read(self, server, folder):
        secret = folder.parent / "secret.png"
        secret.write_bytes(FILES[0])
        field = b'--e\r\nContent-Disposition: form-data; name="images"\r\n\r\n' + os.fsencode(secret) + b"\r\n--e--\r\n"
        assert server.ask("POST", "/score", field, {"Content-Type": "multipart/form-data; boundary=e"})[0] in (400, 422)
        status, answer = server.score((str(secret), b""))
        assert status == 422
        assert "unknown format" in answer["detail"][0]

    def test_a_client_that_goes_away(self, server):
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", server.port)) as client:
                client.sendall(
                    b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 900\r\n\r\nx"
                )


def test_slow_bodies_do_not_block_others(server, expected):
    slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(10)]
    for client in slow:
        client.sendall(head_of(len(FILES[0])) + FILES[0][:50])
    status, answer = server.score(("a.png", FILES[3]))
    assert status == 200
    require_answer(answer["results"][0], expected, 3)
    for client in slow:
        client.sendall(FILES[0][50:])
        assert client.recv(100).startswith(b"HTTP/1.1 200")
        client.close()


def test_its_own_pages(server, detector):
    status, health = server.ask("GET", "/health")
    assert status == 200
    assert health["fingerprint"] == detector.models_[0].settings["fingerprint"]
    assert health["takes"] == "images"
    schema = server.ask("GET", "/openapi.json")[1]["paths"]
    assert set(schema["/score"]["post"]["requestBody"]["content"]) == {
        "multipart/form-data",
        "image/*",
        "application/json",
    }
    assert health["drift"] == [] or "drift since about" in health["drift"][0]
    assert server.score(("a.png", FILES[0]))[0] == 200
    assert 'skjepa_requests_total{status="200"}' in server.ask("GET", "/metrics")[1]


def test_a_stream_that_drifts_is_told_of(folder):
    server = Server(folder, "--drift-level", "0.05")
    rng = np.random.default_rng(3)
    try:
        for n, spread in ((20, (100, 156)), (40, (0, 256))):
            new = rng.integers(*spread, size=(n, 32, 32, 3), dtype=np.uint8)
            for begin in range(0, n, 20):
                assert server.score(*[("x.png", png(pixels)) for pixels in new[begin : begin + 20]])[0] == 200
        said = server.ask("GET", "/health")[1]["drift"]
        assert said
        assert "drift since about sample" in said[0]
        assert "skjepa_drift_alarms_total{" in server.ask("GET", "/metrics")[1]
    finally:
        assert server.stop() == 0


def test_what_it_has_is_finished_on_sigterm(folder, expected):
    server = Server(folder)
    half = socket.create_connection(("127.0.0.1", server.port))
    half.sendall(head_of(len(FILES[1])) + FILES[1][:50])
    answers = []
    asking = [threading.Thread(target=lambda i=i: answers.append(server.score((str(i), FILES[i])))) for i in range(8)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    half.sendall(FILES[1][50:])  # of a request that had begun
    with half:
        received = b""
        while chunk := half.recv(65536):
            received += chunk
    assert received.startswith(b"HTTP/1.1 200")
    require_answer(json.loads(received.partition(b"\r\n\r\n")[2])["results"][0], expected, 1)
    assert server.stop() == 0
    assert [status for status, _ in answers] == [200] * 8
    with pytest.raises(OSError, match="refused"):
        server.ask("GET", "/health")


def test_rows(tmp_path):
    jepa = VectorJEPA(n_components=4, widths=(8,), n_steps=10)
    detector = JEPAScoreDetector(jepa, method="forward", calibration=3, target_fpr=0.2).fit(ROWS)
    server = Server(detector.save(tmp_path / "detector"))
    try:
        fresh = RNG.normal(size=(9, 4)) * 2
        status, answer = server.score_rows(fresh.tolist())
        assert status == 200
        expected = detector.judge(fresh)
        for i, result in enumerate(answer["results"]):
            require_answer(result, expected, i)
        for rows, status, said in [
            ([[1, 2, 3]], 422, "row 0: a row must have 4 numbers; got 3"),
            ([[1, 2, 3, "4"]], 422, "row 0: a row must hold numbers alone"),
            ([[1, 2, 3, True]], 422, "row 0: a row must hold numbers alone"),
            (["/etc/passwd"], 422, "row 0: a row must have 4 numbers; got str"),
            ([[1, 2, 3, float("nan")]], 422, "rows must hold finite numbers"),
            ([[1, 2, 3, 10**400]], 422, "rows must hold finite numbers"),
            ([], 422, 'the JSON holds no list of rows: send {"rows": [[...], ...]}'),
            ([[0.0] * 4] * 65, 413, "a request may have at most 64 rows; got 65"),
        ]:
            assert server.score_rows(rows) == (status, {"detail": said})
        assert server.ask("POST", "/score", b"[" * 100_000, {"Content-Type": "application/json"})[0] == 400
        assert server.score(("a.png", FILES[0]))[0] == 415
        assert server.ask("GET", "/health")[1]["takes"] == "rows of 4 numbers"
    finally:
        assert server.stop() == 0
