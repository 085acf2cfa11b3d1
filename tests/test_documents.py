"""README and examples are run as a reader would run them."""

import json
import re
import runpy
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch

import skjepa
from benchmarks.render import __main__ as render

ROOT = Path(__file__).parents[1]
SNIPPETS = [
    snippet
    for document in (
        "README.md",
        "docs/guide/baselines.md",
        "docs/results/benchmark.md",
        "docs/guide/curation.md",
        "docs/guide/explain.md",
        "docs/guide/local-defects.md",
        "docs/results/fewer-passes.md",
        "docs/guide/model_selection.md",
        "docs/guide/pretraining.md",
        "docs/guide/pyod.md",
        "docs/guide/production.md",
        "docs/guide/reports.md",
        "docs/guide/scores.md",
        "docs/guide/streams.md",
        "docs/start.md",
        "docs/theory/derivation.md",
        "docs/guide/thresholds.md",
        "docs/guide/vectors.md",
    )
    for snippet in re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), flags=re.DOTALL)
]

GALLERY = runpy.run_path(str(ROOT / "docs" / "_site" / "gallery_order.py"))


def example(path):
    """Those that measure hundreds of images take half a minute each: here they are slow tests, `make docs` runs all."""
    slow = re.search("(demo|gravel)_images", path.read_text()) is not None or path.stem in GALLERY["NEEDS"]
    return pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize("path", [example(path) for path in sorted((ROOT / "examples").glob("*.py"))])
def test_examples_run(path, capsys, monkeypatch, tmp_path):
    """As the gallery runs them: without a screen, with at least one picture."""
    if missing := GALLERY["missing"](path.stem):
        pytest.skip(f"needs {', '.join(missing)}")
    if "from distributed" in path.read_text():
        pytest.importorskip("distributed", reason="needs dask: pip install 'skjepa[dask]'")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(plt, "show", lambda: None)
    plt.switch_backend("agg")
    try:
        runpy.run_path(str(path), run_name="__main__")
        assert plt.get_fignums()
    finally:
        plt.close("all")
    assert capsys.readouterr().out.strip()


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
    for document in [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        ROOT / "benchmarks" / "README.md",
        *ROOT.glob("docs/**/*.md"),
    ]:
        for target, heading in re.findall(r"\]\((?!https?:|#)([^)#]+)#?([^)]*)", document.read_text()):
            found = document.parent / target
            assert found.exists(), f"{document.name} links to {target}, which is not there"
            assert not heading or heading in anchors(found), f"{document.name}: {target} has no heading {heading}"


def anchors(document: Path) -> set[str]:
    """Headings as links name them, on code hosts and on the site."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_on_the_site():
    listed = {
        (page.parent / f"{name.strip('<>')}.md").resolve()
        for page in ROOT.glob("docs/**/index.md")
        for tree in re.findall(r"```{toctree}(.*?)```", page.read_text(), flags=re.DOTALL)
        for name in tree.split()  # or: Title <name>
    }
    assert set(ROOT.glob("docs/**/*.md")) - {ROOT / "docs" / "index.md"} <= listed


def test_reference_has_every_public_name():
    reference = (ROOT / "docs" / "reference.rst").read_text().split()
    assert set(skjepa.__all__) - {"__version__"} <= set(reference)


def test_citation_is_of_this_version():
    assert f"version: {skjepa.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_tables_are_those_of_the_measured_json():
    for document, tables in render.TABLES.items():
        text = (ROOT / document).read_text()
        assert render.rendered(text, {name: table() for name, table in tables.items()}) == text, document


def test_the_bill_has_the_measured_auroc():
    assert json.loads(render.AUROC_OF_PASSES.read_text()) == render.passes.of_the_command_line()
