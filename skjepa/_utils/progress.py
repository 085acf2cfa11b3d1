"""Progress bars: shown as told, or by "auto" where somebody can see them and the work takes longer than a moment."""

import sys
from typing import Any

from tqdm.auto import tqdm

AUTO = "auto"

_MOMENT = 2.0  # seconds before a bar that nobody asked for appears


def check_progress(name: str, value: Any) -> None:
    """Raise ValueError or TypeError where `value` is neither "auto" nor a number or truth value."""
    if isinstance(value, str) and value != AUTO:
        raise ValueError(f"{name} must be 'auto', True or False (or a number, 0 for no bar); got {value!r}")
    if not isinstance(value, str | bool | int | float):
        raise TypeError(f"{name} must be 'auto', True or False (or a number, 0 for no bar); got {value!r}")


def shows_bar(progress: float | bool | str) -> bool:
    """Return whether a bar is shown; "auto" shows one in a terminal and in a notebook, not in a log file or a pipe."""
    if progress == AUTO:
        return sys.stderr.isatty() or _is_notebook()
    return bool(progress)


def progress_bar(progress: float | bool | str, **options: Any) -> tqdm:
    """Return a tqdm bar, disabled where none is to be shown; that of "auto" appears after two seconds."""
    return tqdm(disable=not shows_bar(progress), delay=_MOMENT if progress == AUTO else 0, **options)


def _is_notebook() -> bool:
    shell = sys.modules.get("IPython")  # not imported for this: where it is not loaded there is no notebook
    return shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"
