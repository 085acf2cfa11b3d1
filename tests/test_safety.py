"""What comes from strangers runs nothing: docs/guide/safety.md. Saved detectors and reports have tests of their own."""

import ast
from pathlib import Path

import pytest
import timm
import torch
from timm.models import save_for_hf

import skjepa
from skjepa import load_encoder

TINY = "test_vit.r160_in1k"
UNPICKLERS = {"extraction/processes/worker"}  # what this package itself has just pickled for its own processes


PACKAGE = Path(skjepa.__file__).parent


def module_name(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


class Bomb:
    """A pickle of it touches a file when it is read."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.fixture
def folder(tmp_path):
    """A model folder of timm's format, whose weights are a pickle that runs something."""
    model = timm.create_model(TINY, pretrained=False)
    save_for_hf(model, tmp_path / "model", safe_serialization=True)
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save({**model.state_dict(), "more": Bomb(tmp_path / "ran")}, tmp_path / "model" / "pytorch_model.bin")
    return tmp_path / "model"


@pytest.mark.parametrize("way", ["folder", "weights"])
def test_weights_are_not_unpickled(folder, way):
    options = {"weights": folder / "pytorch_model.bin"} if way == "weights" else {}
    with pytest.raises(ValueError, match="cannot load"):
        load_encoder(f"local-dir:{folder}", **options)
    assert not (folder.parent / "ran").exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert (folder.parent / "ran").exists()  # it would have


def calls(path: Path):
    """Names of what a module calls, with the call."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=module_name)
def test_no_shell_no_eval_no_pickle(path):
    for name, call in calls(path):
        options = {option.arg: ast.unparse(option.value) for option in call.keywords}
        assert not name.startswith(("os.system", "os.popen", "os.exec", "os.spawn", "subprocess.")), name
        assert name not in ("eval", "exec", "compile", "__import__", "importlib.import_module"), name
        if name.endswith(("pickle.load", "pickle.loads", "joblib.load", "pandas.read_pickle")):
            assert module_name(path) in UNPICKLERS, name
        if name == "torch.load":
            assert options.get("weights_only") == "True"
        if name == "np.load":
            assert options.get("allow_pickle", "False") == "False"
        assert options.get("trust_remote_code", "False") == "False"
