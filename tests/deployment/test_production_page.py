"""Snippets of docs/guide/production.md that need the extra `export`; the others run with those of all documents."""

import re
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
