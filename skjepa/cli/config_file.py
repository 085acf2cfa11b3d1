"""Read options of the commands from a TOML file: one section per command, one key per option."""

import difflib
import tomllib
from pathlib import Path
from typing import Any


def read_config(path: Path, commands: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the options in the file for each command, keyed by parameter names of its function.

    Parameters
    ----------
    path : Path
        For example::

            [score]
            fit = "normal/"
            tests = ["incoming/"]
            image-size = 224

    commands : dict of name -> command of the command line library

    Raises
    ------
    FileNotFoundError, ValueError
        The file is missing or not TOML, a section is not a command, or a key is not one of its options.
    """
    try:
        sections = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {path}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from error
    defaults = {}
    for section, given in sections.items():
        if section not in commands or not isinstance(given, dict):
            raise ValueError(f"{path}: [{section}] is not a command; commands are {', '.join(commands)}")
        names = _names(commands[section])
        for key in given:
            if key not in names:
                close = difflib.get_close_matches(key, names, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise ValueError(f"{path}: [{section}] has no option {key!r}{hint}")
        defaults[section] = {names[key]: value for key, value in given.items()}
    return defaults


def _names(command: Any) -> dict[str, str]:
    """Map each name that a file may use, an option without dashes, to the parameter of the function."""
    names = {}
    for parameter in command.params:
        options = [option for option in parameter.opts if option.startswith("--")]
        for name in [option.removeprefix("--") for option in options] or [parameter.name]:
            names[name] = parameter.name
    names.pop("help", None)
    return names
