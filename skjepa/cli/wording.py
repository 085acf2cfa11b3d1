"""Reword error messages of Python functions for the command line: options instead of parameters."""

import inspect
import re

_OPTIONS = {
    "target_fpr": "--alpha",
    "n_directions": "--directions",
    "n_components": "--components",
    "n_resamples": "--resamples",
    "time_budget": "--budget",
    "random_state": "--seed",
    "n_jobs": "--read-threads",
    "memory_budget": "--memory-budget",
    "image_size": "--image-size",
    "batch_size": "--batch-size",
    "learning_rate": "--learning-rate",
    "on_error": "--on-error",
    "per_class": "--per-class",
    "drop_copies": "--drop-copies",
}
"""Parameter names that are not English words: they are replaced everywhere in a message."""
_WORDS = (
    *("contamination", "calibration", "formula", "method", "layers", "local", "views", "device", "encoder", "weights"),
    *("tiles", "folds", "rounds", "keep", "objective", "network", "epochs", "gallery", "passes", "seed"),
)
"""Parameter names that are English words: they are replaced only before a value, as in ``method='exact'``."""

_PYTHON_ALONE = re.compile(r", or give fit groups=[^;.]*")  # advice for which there is no option
_LOADED = re.compile(r"load_encoder\('([^']*)'(?:, weights=(\w+))?\)")
_GIVEN = re.compile(rf"\b({'|'.join([*_OPTIONS, *_WORDS])})=(None|True|'[^']*'|\w[\w.:/-]*\w|\w)")
_NAMED = re.compile(rf"(?<![-\w])({'|'.join(_OPTIONS)})(?!\w)")


def in_options(message: str) -> str:
    """Return the message of an error with parameters of Python replaced by options of the command line.

    Examples
    --------
    >>> in_options("give method='exact' or raise target_fpr")
    'give --method exact or raise --alpha'
    """
    message = _PYTHON_ALONE.sub("", message)
    message = _LOADED.sub(
        lambda found: f"--encoder {found[1]}" + (f" --weights {found[2]}" if found[2] else ""), message
    )
    message = _GIVEN.sub(lambda found: _option(found[1], found[2]), message)
    return _NAMED.sub(lambda found: _OPTIONS[found[1]], message)


def _option(name: str, value: str) -> str:
    option = _OPTIONS.get(name, f"--{name}")
    if value == "True":
        return option
    return f"{option} {'none' if value == 'None' else value.strip(chr(39))}"


def unwrapped(text: str) -> str:
    """Return a docstring with one line per paragraph and per example, for a terminal of any width."""
    return re.sub(r"(?<!\n)\n(?!\n|Example:)", " ", inspect.cleandoc(text))
