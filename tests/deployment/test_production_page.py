"""The snippets of docs/guide/production.md that need the extras `export` and `serve`; the others run with all pages."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from oracles import random_images
from PIL import Image

PAGE = (Path(__file__).parents[2] / "docs" / "guide" / "production.md").read_text()
SNIPPETS = re.findall(r"```{code-block} python\n:class: needs-export\n\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippets_run(snippet, tmp_path, monkeypatch, capsys):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} of the extra 'export' is not installed")
    monkeypatch.chdir(tmp_path)
    for folder in ("normal", "incoming"):
        (tmp_path / folder).mkdir()
        for i, image in enumerate(random_images(25, seed=len(folder))):
            Image.fromarray(image).save(tmp_path / folder / f"{i}.png")
    exec(snippet, {})
    assert capsys.readouterr().out


def test_there_are_some():
    assert SNIPPETS


def test_the_walk_from_a_folder_to_a_watched_service(tmp_path):
    """The lines of the page in a shell, but for the port, which may be taken here."""
    for package in ("fastapi", "uvicorn", "prometheus_client", "python_multipart"):
        pytest.importorskip(package, reason=f"{package} of the extra 'serve' is not installed")
    if missing := [name for name in ("bash", "curl") if shutil.which(name) is None]:
        pytest.skip(f"no {missing[0]} on this machine")
    (walk,) = re.findall(r"```{code-block} sh\n:class: walk\n\n(.*?)```", PAGE, flags=re.DOTALL)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        walk = walk.replace("8000", str(free.getsockname()[1]))
    for folder, n in {"normal": 120, "fresh": 25, "incoming": 12}.items():
        (tmp_path / folder).mkdir()
        for i, image in enumerate(random_images(n, seed=len(folder))):
            Image.fromarray(image).save(tmp_path / folder / f"{i}.png")
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "skjepa"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m skjepa "$@"\n')
    command.chmod(0o755)
    paths = {"PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(
        ["bash", "-e", "-c", f"trap 'kill $(jobs -p) 2> /dev/null' EXIT\n{walk}wait $!\ntrap - EXIT\n"],
        cwd=tmp_path,
        env=os.environ | paths,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    assert '"results":[{"name":"0.png","score":' in ran.stdout
    assert '"drift":[]' in ran.stdout
    assert 'skjepa_requests_total{status="200"} 1.0' in ran.stdout
    table = (tmp_path / "watched.csv").read_text().splitlines()
    assert len(table) == 1 + 12
    assert "stage 1 size" in table[0]
    assert "<html" in (tmp_path / "watched.html").read_text()
