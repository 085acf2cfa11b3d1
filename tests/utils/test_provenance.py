"""What stands beside every figure."""

from importlib.metadata import version

from skjepa._utils import provenance


def test_a_package_that_is_not_installed_has_no_version(monkeypatch):
    monkeypatch.setattr(provenance, "PACKAGES", ("torch", "no-such-package"))
    found = provenance.stamp(7, device="cpu")
    assert found["versions"] == {"torch": version("torch"), "no-such-package": None}
    assert (found["seed"], found["device"]) == (7, "cpu")
