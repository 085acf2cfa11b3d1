"""Check options when they are read, before torch is imported, so that a typing error is reported at once."""

import difflib
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import typer

_LARGEST_SEED = 2**32 - 1
_DEVICE = re.compile(r"(auto|cpu|cuda|mps|xpu|hpu|xla|meta)(:\d+)?")
_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}

Callback = Callable[[typer.CallbackParam, Any], Any]


def _callback(check: Callable[[str, Any], Any]) -> Callback:
    """Turn a check of (name, value) into a callback for Typer, which checks each item of a list and accepts None."""

    def called(param: typer.CallbackParam, value: Any) -> Any:
        name = option_name(param)
        if isinstance(value, list | tuple):
            return [check(name, item) for item in value]
        return None if value is None else check(name, value)

    return called


def option_name(param: Any) -> str:
    """Return the name under which a user knows a parameter: ``--alpha``, or the word in capitals of an argument."""
    options = [option for option in param.opts if option.startswith("--")]
    return options[0] if options else str(param.metavar or param.name).strip("[].")


def number(*, above: float = float("-inf"), below: float = float("inf"), closed: str = "") -> Callback:
    """Make a check that a number lies in an interval, see `check_number`."""

    def check(name: str, value: float) -> float:
        from skjepa._utils.validation import check_number

        check_number(name, value, above=above, below=below, closed=closed)
        return value

    return _callback(check)


def integer(minimum: int) -> Callback:
    """Make a check that an integer is at least `minimum`."""

    def check(name: str, value: int) -> int:
        if value < minimum:
            raise ValueError(f"{name} must be at least {minimum}; got {value}")
        return value

    return _callback(check)


def one_of(choices: Iterable[str]) -> Callback:
    """Make a check that a word is one of `choices`."""
    choices = list(choices)

    def check(name: str, value: str) -> str:
        if value not in choices:
            close = difflib.get_close_matches(value, choices, n=1)
            meant = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}{meant}")
        return value

    return _callback(check)


@_callback
def seed(name: str, value: int) -> int:
    if not 0 <= value <= _LARGEST_SEED:
        raise ValueError(f"{name} must lie between 0 and {_LARGEST_SEED}; got {value}")
    return value


@_callback
def processes(name: str, value: int) -> int:
    if value < 1 and value != -1:
        raise ValueError(f"{name} must be at least 1, or -1 for one per core; got {value}")
    return value


@_callback
def held_out(name: str, value: float) -> float:
    """Check a share between 0 and 1, or a number of folds."""
    if not (0 < value < 1 or (value >= 2 and value == int(value))):
        raise ValueError(f"{name} must be a share between 0 and 1, or a number of folds (2 or more); got {value:g}")
    return int(value) if value >= 2 else value


@_callback
def tile_sides(name: str, value: str) -> str:
    sides_of(value, name)
    return value


def sides_of(text: str | None, name: str = "--tiles") -> int | list[int] | None:
    """Return the sides in "224" or "224,448", or raise ValueError."""
    if text is None:
        return None
    sides = text.split(",")
    if not all(side.strip().isdecimal() and int(side) > 0 for side in sides):
        raise ValueError(f"{name} must be a number of pixels such as 224, or several such as 224,448; got {text!r}")
    return int(text) if len(sides) == 1 else [int(side) for side in sides]


@_callback
def device(name: str, value: str) -> str:
    if not _DEVICE.fullmatch(value):
        raise ValueError(f"{name} must be auto, cpu, cuda or, for a certain GPU, cuda:1; got {value!r}")
    return value


@_callback
def duration(name: str, value: str) -> str:
    seconds_of(value, name)
    return value


def seconds_of(text: str, name: str = "--budget") -> float:
    """Return the seconds in "90s", "10m", "1.5h", "2d" or "90", or raise ValueError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if found is None or (found[2] or "s") not in _UNITS or not float(found[1]):
        raise ValueError(f"{name} must be a time such as 90s, 10m or 1.5h; got {text!r}")
    return float(found[1]) * _UNITS[found[2] or "s"]


def require_folder(name: str, path: Path) -> Path:
    """Raise if the folder does not exist, and suggest a folder with a similar name."""
    if path.is_file():
        raise NotADirectoryError(f"{name}: {path} is a file; give a folder")
    if not path.is_dir():
        raise FileNotFoundError(f"{name}: no folder {path}{_meant(path, Path.is_dir)}")
    return path


def require_images(name: str, path: Path) -> Path:
    """Raise if the folder does not exist or holds no image."""
    from skjepa.data.folders import has_images, image_files

    require_folder(name, path)
    if not has_images(path):
        try:
            image_files(path)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return path


def require_file(name: str, path: Path) -> Path:
    if path.is_dir():
        raise IsADirectoryError(f"{name}: {path} is a folder; give a file")
    if not path.is_file():
        raise FileNotFoundError(f"{name}: no file {path}{_meant(path, Path.is_file)}")
    return path


def require_table(name: str, path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{name}: no table {path}{_meant(path, Path.is_file)}")
    return path


folder, image_folder, table_file = map(_callback, (require_folder, require_images, require_table))


@_callback
def saved_detector(name: str, path: Path) -> Path:
    from skjepa.persistence.folder import OBJECT_FILE

    require_folder(name, path)
    if not (path / OBJECT_FILE).is_file():
        raise FileNotFoundError(
            f"{name}: {path} is not a saved detector, because it has no {OBJECT_FILE}; `skjepa fit NORMAL_DIR --out "
            "detector` saves one"
        )
    return path


@_callback
def new_folder(name: str, path: Path) -> Path:
    """Check an output folder, which is created later if it is missing."""
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{name}: {path} is a file; give a folder")
    if not path.exists() and not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{name}: no folder {path.parent} to create {path.name} in")
    return path


def output(suffixes: Iterable[str]) -> Callback:
    """Make a check of an output file: its suffix, and that its folder exists and is writable."""
    suffixes = tuple(suffixes)

    def check(name: str, path: Path) -> Path:
        from skjepa._utils.files import check_output

        try:
            return check_output(path, suffixes)
        except (ValueError, OSError) as error:
            raise type(error)(f"{name}: {error}") from error

    return _callback(check)


@_callback
def weights(name: str, path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{name}: no file or folder {path}{_meant(path, Path.exists)}")
    return path


@_callback
def encoder(name: str, value: str) -> str:
    """Check that an encoder has a known name, or is an existing file or folder; its content is checked on loading."""
    from skjepa.encoders.names import hint, unknown_name

    prefix, colon, rest = value.partition(":")
    if colon and prefix == "local-dir":
        require_folder(name, Path(rest))
    elif colon and prefix in ("transformers", "hf-hub"):
        pass
    elif value.endswith(".safetensors"):
        require_file(name, Path(value))
    elif "/" in value or Path(value).is_dir():
        raise ValueError(f"{name}: unknown encoder {value!r}. {hint(value)}")
    elif why := unknown_name(value):
        raise ValueError(f"{name}: {why}")
    return value


def _meant(path: Path, kind: Callable[[Path], bool]) -> str:
    """Return a hint at an existing path with a similar name, or ""."""
    beside = path.absolute().parent
    if not beside.is_dir():
        return ""
    names = [other.name for other in beside.iterdir() if kind(other)]
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.with_name(close[0])}?" if close else ""
