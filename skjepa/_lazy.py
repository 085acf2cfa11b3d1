"""Load public names on first use (PEP 562); a stub beside each `__init__.py` lists where they are defined."""

from collections.abc import Callable
from typing import Any

import lazy_loader


def doors(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__` and `__all__` of a package whose `__init__.pyi` names its public objects.

    `lazy_loader` and type checkers read the same stub. An unknown name raises Python's own message, which `lazy_loader`
    does not give.
    """
    load, _, stubbed = lazy_loader.attach_stub(package, file)
    names = sorted(stubbed)

    def getattribute(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return load(name)

    return getattribute, lambda: names.copy(), names
