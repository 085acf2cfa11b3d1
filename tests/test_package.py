"""The doors of the package: what they name, how light they are. The order of the folders is import-linter's."""

import ast
import importlib.resources
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import skjepa

PACKAGE = Path(skjepa.__file__).parent

MODULES = sorted(path for path in PACKAGE.rglob("*.py"))
DOORS = sorted(path.parent for path in PACKAGE.glob("*/__init__.pyi"))


def module_name(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def is_module(name: str) -> bool:
    path = PACKAGE.parent / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").exists()


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_no_module_imports_through_a_door(path):
    """What a module needs it takes from the module that defines it: import-linter sees only those imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (PACKAGE.parent / (node.module or "-").replace(".", "/")).is_dir():
            for alias in node.names:
                assert alias.name == "__version__" or is_module(f"{node.module}.{alias.name}"), alias.name


DETECTORS = PACKAGE / "detectors"


def private_names(path: Path) -> set[str]:
    """Methods, properties and declared attributes of the classes of a module that begin with one underscore."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            names |= {member.name for member in node.body if isinstance(member, ast.FunctionDef)}
            declared = [member.target for member in node.body if isinstance(member, ast.AnnAssign)]
            names |= {target.id for target in declared if isinstance(target, ast.Name)}
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def private_accesses(code: str, private: set[str]) -> list[str]:
    """Where code takes private names of an object that is not its own `self` or `cls`."""
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Attribute)
        and node.attr in private
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    ]


def test_what_is_private_to_detectors_stays_there():
    """What others need of a detector it says publicly: `is_cross_calibrated`, `needs_samples`, ..."""
    private = set().union(*map(private_names, DETECTORS.glob("*.py")))
    assert {"_fold_scores", "_is_exact", "_is_own", "_fitted_encoder"} <= private
    assert private_accesses("detector._fold_scores; self._fold_scores", private) == ["detector._fold_scores"]
    found = {
        module_name(path): private_accesses(path.read_text(), private)
        for path in MODULES
        if DETECTORS not in path.parents
    }
    assert {name: accesses for name, accesses in found.items() if accesses} == {}


@pytest.mark.parametrize("folder", DOORS, ids=lambda folder: folder.name)
def test_doors_open(folder):
    door = importlib.import_module(f"skjepa.{folder.name}")
    assert door.__all__
    for name in door.__all__:
        assert getattr(door, name) is not None
    assert set(door.__all__) <= set(dir(door))


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
    assert not set(skjepa.__all__) & {module_name(path).split("/")[0] for path in MODULES}


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_progress_bars_suit_notebooks(path):
    """`tqdm.auto` is a widget in a notebook and a line of text in a terminal."""
    source = path.read_text()
    assert "from tqdm import" not in source
    assert "import tqdm" not in source.replace("from tqdm.auto import tqdm", "")
