"""Options and data shared by the tests."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from skjepa._utils import hardware

# A busy machine is no failure, and two runs try the same examples.
settings.register_profile("skjepa", deadline=None, derandomize=True)
settings.load_profile("skjepa")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="what 'auto' means in the tests: cpu, cuda, cuda:1 ...")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    return request.config.getoption("--device")


@pytest.fixture(scope="session", autouse=True)
def _auto_is_the_chosen_device(device: str) -> None:
    """The same tests run on a GPU by the option, and on the CPU of a machine that has one without it."""
    resolve = hardware.resolve_device
    hardware.resolve_device = lambda name: resolve(device if name == "auto" else name)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of development data beside the checkout (or SKJEPA_DATA); tests that need it skip without it."""
    folder = Path(os.environ.get("SKJEPA_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "spectra.npz").exists():
        pytest.skip(f"needs the development data: no {folder.name} folder beside the checkout")
    return folder
