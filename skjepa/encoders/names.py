"""Check names of encoders without importing torch or timm, so that typing errors are reported at once."""

import difflib
import importlib.util
import re
from functools import cache
from pathlib import Path

from skjepa.encoders.catalog import FAMILIES

_REGISTERED = re.compile(r"^@register_model\b.*\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)
_QUOTED = re.compile(r"""['"](\w+(?:\.\w+)?)['"]\s*:""")
_SHOWN = 5


def unknown_name(name: str) -> str | None:
    """Return an error message for an unknown encoder name, with similar names; None if the name may be known.

    Parameters
    ----------
    name : str
        A timm name, with or without its tag. The caller handles prefixes and paths.
    """
    names = timm_names()
    if not names or name in ("auto", *FAMILIES["skjepa"]) or name.partition(".")[0] in names:
        return None
    return f"unknown encoder {name!r}. {hint(name)}"


def hint(name: str) -> str:
    """Return a sentence with what to type instead of an unknown name."""
    if Path(name).is_dir():
        return f"For a folder write 'local-dir:{name}', for one that transformers wrote 'transformers:{name}'."
    if "/" in name:
        return (
            f"For a timm model of the Hugging Face hub write 'hf-hub:{name}', for one of transformers "
            f"'transformers:{name}', for a folder 'local-dir:FOLDER' or 'transformers:FOLDER'."
        )
    close = close_names(name)
    return f"Did you mean {', '.join(close)}?" if close else "`skjepa encoders` lists encoders known to work."


def close_names(name: str) -> list[str]:
    """Return up to five encoder names that a mistyped or shortened name may mean, the most likely first.

    First come encoders listed by `skjepa encoders` whose name or family contains a word of the given name:
    "dinov2_vits14" finds the family "dinov2". Then come timm names that contain it, then names with similar spelling.
    """
    known = [(model, family) for family, models in FAMILIES.items() for model in models]
    words = {word for word in re.split(r"[^a-z0-9]+", name.lower()) if len(word) > 3}
    given = _letters(name)
    alike = difflib.get_close_matches(name, [model for model, _ in known], n=_SHOWN, cutoff=0.75)
    of_family = [
        model
        for model, family in known
        if given in _letters(model) or _letters(family) in {given, *words} or words & set(re.split(r"[._]", model))
    ]
    of_timm = [model for model in timm_names() if len(given) > 3 and given in _letters(model)]
    found = list(dict.fromkeys([*alike, *of_family, *sorted(of_timm, key=len)]))
    return found[:_SHOWN] or difflib.get_close_matches(name, timm_names(), n=_SHOWN, cutoff=0.5)


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


@cache
def timm_names() -> frozenset[str]:
    """Return the names of the models of the installed timm, with and without tags, read from its source files.

    The result is empty if timm is installed without its source files.
    """
    found = importlib.util.find_spec("timm")
    folders = [] if found is None else found.submodule_search_locations or []
    names: set[str] = set()
    for folder in folders:
        for file in Path(folder, "models").glob("*.py"):
            text = file.read_text(encoding="utf-8", errors="replace")
            if own := set(_REGISTERED.findall(text)):
                tagged = {name for name in _QUOTED.findall(text) if name.partition(".")[0] in own}
                names |= own | tagged | _former_names(text)
    return frozenset(names)


def _former_names(text: str) -> set[str]:
    """Return old names that timm still accepts for models it has renamed."""
    _, _, table = text.partition("register_model_deprecations(__name__, {")
    return set(_QUOTED.findall(table.partition("})")[0]))
