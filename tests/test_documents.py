"""README and examples are run as a reader would run them."""

import re
import runpy
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
SNIPPETS = [
    snippet
    for document in (
        "README.md",
        "docs/baselines.md",
        "docs/benchmark.md",
        "docs/curation.md",
        "docs/explain.md",
        "docs/fewer-passes.md",
        "docs/model_selection.md",
        "docs/pretraining.md",
        "docs/pyod.md",
        "docs/reports.md",
        "docs/scores.md",
        "docs/thresholds.md",
        "docs/vectors.md",
    )
    for snippet in re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), flags=re.DOTALL)
]


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_examples_run(path, capsys):
    runpy.run_path(str(path), run_name="__main__")
    assert "flagged" in capsys.readouterr().out


def test_readme_has_snippets():
    assert SNIPPETS


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_readme_snippets_run(snippet, tmp_path, monkeypatch):
    """With what the text around them speaks of: a folder of normal images, new ones, and a module."""
    from oracles import conv_net, random_images
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    n_images = 52 if "directions" in snippet else 25
    for folder in ("normal", "incoming"):
        (tmp_path / folder).mkdir()
        for i, image in enumerate(random_images(n_images, seed=len(folder))):
            Image.fromarray(image).save(tmp_path / folder / f"{i}.png")
    torch.manual_seed(0)
    exec(snippet, {"my_module": conv_net(), "images": random_images(4)})


def test_links_in_documents_lead_somewhere():
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}, which is not there"


def test_tables_are_those_of_the_measured_json():
    render = runpy.run_path(str(ROOT / "benchmarks" / "render.py"))
    for document, tables in render["TABLES"].items():
        text = (ROOT / document).read_text()
        assert render["rendered"](text, {name: table() for name, table in tables.items()}) == text, document
