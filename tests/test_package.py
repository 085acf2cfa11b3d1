"""The house: what may import what, and how light the front door is."""

import ast
import importlib.resources
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import skjepa

PACKAGE = Path(skjepa.__file__).parent

ROOMS = [
    {"portable_schema"},
    {
        "_files",
        "_options",
        "config_file",
        "_validation",
        "journal",
        "many_passes",
        "memory",
        "persistence",
        "precision",
        "stamp",
    },
    {
        "augment",
        "calibration",
        "densities",
        "findings",
        "flows",
        "functionals",
        "jacobian",
        "lanczos",
        "losses",
        "networks",
        "preprocessing",
        "probe",
        "seen",
        "shapley",
        "shards",
        "spectrum",
        "stiefel",
        "views",
    },
    {"directions", "extraction", "hub", "isotropy", "recipes", "sources"},
    {"hugging_face"},
    {"complexity", "encoders", "loading", "store", "scores"},
    {"measurement"},
    {"worker"},
    {"pools"},
    {"spread"},
    {"catalog", "diagnostics", "engine", "explanation", "pretrain"},
    {"observed"},
    {"layers", "subspace", "vector", "volume_maps"},
    {"choice", "thresholds"},
    {"baselines", "detectors", "training", "transformers"},
    {"evaluation", "likeness", "model_selection", "plotting", "pyod", "report_results", "splits", "surroundings"},
    {"comparison", "pruning", "report_words"},
    {"benchmark_result", "curation", "report_page"},
    {"benchmark"},
    {"job"},
    {"report_table"},
    {"reporting"},
    {"bench_command", "demo", "pretrain_command", "prune_command", "report_command", "score_command"},
    {"cli"},
    {"__main__"},
]
LEVEL = {module: level for level, room in enumerate(ROOMS) for module in room}


def imports_of(module: str) -> set[str]:
    """Modules of the package named anywhere in the source, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("skjepa.")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "skjepa":
            parts = node.module.split(".")
            names = [parts[1]] if len(parts) > 1 else [skjepa._PUBLIC.get(a.name, a.name) for a in node.names]
            found |= {name for name in names if not name.startswith("__")}
    return found


def test_every_module_has_a_room():
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"} == set(LEVEL)


@pytest.mark.parametrize("module", LEVEL)
def test_imports_run_downward(module):
    upward = {name for name in imports_of(module) if LEVEL[name] >= LEVEL[module]}
    assert not upward, f"{module} imports {upward}, which lie no lower"


def test_import_is_light():
    heavy = ("torch", "timm", "pyod", "matplotlib", "sklearn", "numpy", "pyarrow")
    code = f"import sys, skjepa; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_annotations_are_for_users_too():
    """py.typed (PEP 561) lies in the package, and hatchling puts all of the package into the wheel."""
    assert (importlib.resources.files("skjepa") / "py.typed").is_file()
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"] == {"packages": ["skjepa"]}


def test_the_version_is_one():
    """`skjepa --version` says what the installer says."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
    assert skjepa.__version__ == project["project"]["version"]


def test_public_names():
    for name in skjepa.__all__:
        assert getattr(skjepa, name) is not None
    assert set(skjepa.__all__) <= set(dir(skjepa))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        skjepa.nothing  # noqa: B018


def test_no_public_name_is_shadowed_by_a_module():
    assert not set(skjepa._PUBLIC) & set(LEVEL)


@pytest.mark.parametrize("module", LEVEL)
def test_progress_bars_suit_notebooks(module):
    """`tqdm.auto` is a widget in a notebook and a line of text in a terminal."""
    source = (PACKAGE / f"{module}.py").read_text()
    assert "from tqdm import" not in source
    assert "import tqdm" not in source.replace("from tqdm.auto import tqdm", "")
