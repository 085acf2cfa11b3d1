"""The Dockerfile, as far as a machine without Docker can tell."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from skjepa.cli.app import app

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
STEPS = [line.split(maxsplit=1) for line in TEXT.splitlines() if line and not line.startswith("#")]


def arguments(instruction: str) -> list[str]:
    return [rest for name, rest in STEPS if name == instruction]


def test_what_is_copied_is_there_and_not_ignored():
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [name for rest in arguments("COPY") if "--from" not in rest for name in rest.split()[:-1]]
    assert copied
    for name in copied:
        assert (ROOT / name).exists()
        assert name in kept
    needed = re.search(r'readme = "(.*)"', (ROOT / "pyproject.toml").read_text())
    assert needed[1] in copied


def test_it_runs_as_a_normal_user():
    last_stage = STEPS[max(i for i, (name, _) in enumerate(STEPS) if name == "FROM") :]
    user = next(rest for name, rest in last_stage if name == "USER")
    assert re.search(rf"useradd .*\b{user}\b", TEXT)
    assert user != "root"
    assert [name for name, _ in last_stage].index("USER") < [name for name, _ in last_stage].index("ENTRYPOINT")


def test_its_command_is_one_of_this_version():
    """What the container runs is parsed as the program would."""
    words = [
        word
        for name in ("ENTRYPOINT", "CMD")
        for word in shlex.split(arguments(name)[-1].strip("[]").replace(",", " "))
    ]
    assert words[:2] == ["skjepa", "serve"]
    command = get_command(app).commands["serve"]
    # Where the container is not running there is no detector, which is checked first.
    with pytest.raises(FileNotFoundError, match="DETECTOR: no folder /detector"):
        command.make_context("serve", words[2:])
    context = command.make_context("serve", words[2:], resilient_parsing=True)
    assert (context.params["host"], context.params["port"]) == ("0.0.0.0", 8000)
    assert (words[-1], context.args) == ("/detector", [])


@pytest.mark.parametrize("extra", re.findall(r'pip install .*"\.\[(.*?)\]"', TEXT))
def test_its_extras_exist(extra):
    assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
