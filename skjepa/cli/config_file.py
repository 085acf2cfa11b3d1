"""Options of the commands from a TOML file, for runs that can be repeated: a section a command, a key an option."""

import difflib
import tomllib
from pathlib import Path
from typing import Any


def read_config(path: Path, commands: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Defaults of each command's options, by the names that its function has for them.

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
        No such file, no TOML, a section that is no command, a key that is no option of it; names what is wrong.
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
            raise ValueError(f"{path}: [{section}] is no command; sections are {', '.join(commands)}")
        names = _names(commands[section])
        for key in given:
            if key not in names:
                close = difflib.get_close_matches(key, names, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise ValueError(f"{path}: [{section}] has no option {key!r}{hint}")
        defaults[section] = {names[key]: value for key, value in given.items()}
    return defaults


def _names(command: Any) -> dict[str, str]:
    """What a file may call each option, as the command line does, without dashes: the function's name for it."""
    names = {}
    for parameter in command.params:
        options = [option for option in parameter.opts if option.startswith("--")]
        for name in [option.removeprefix("--") for option in options] or [parameter.name]:
            names[name] = parameter.name
    names.pop("help", None)
    return names
