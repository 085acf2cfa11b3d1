"""Bars: told on, told off, and "auto", which looks whether somebody can see them."""

import sys
import time
from types import SimpleNamespace

import pytest

from skjepa._utils.progress import check_progress, progress_bar, shows_bar


class Terminal:
    def __init__(self, is_terminal: bool) -> None:
        self.is_terminal, self.text = is_terminal, ""

    def isatty(self) -> bool:
        return self.is_terminal

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None: ...


def test_auto_in_a_terminal_and_not_in_a_log(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal(True))
    assert shows_bar("auto")
    monkeypatch.setattr(sys, "stderr", Terminal(False))
    assert not shows_bar("auto")
    assert shows_bar(True)
    assert not shows_bar(False)


@pytest.mark.parametrize(("shell", "is_shown"), [("ZMQInteractiveShell", True), ("TerminalInteractiveShell", False)])
def test_auto_in_a_notebook(monkeypatch, shell, is_shown):
    running = type(shell, (), {})()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: running))
    monkeypatch.setattr(sys, "stderr", Terminal(False))
    assert shows_bar("auto") is is_shown


@pytest.mark.parametrize(("progress", "is_shown"), [(True, True), ("auto", False)])
def test_auto_is_silent_about_what_takes_a_moment(monkeypatch, progress, is_shown):
    terminal = Terminal(True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_bar(progress, total=3, file=terminal) as bar:
        bar.update(3)
    assert ("3/3" in terminal.text) is is_shown


def test_auto_shows_what_takes_longer(monkeypatch):
    terminal = Terminal(True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_bar("auto", total=3, file=terminal, mininterval=0) as bar:
        start = time.time()
        monkeypatch.setattr(time, "time", lambda: start + 3)
        bar.start_t -= 3
        bar.update(1)
    assert "1/3" in terminal.text


@pytest.mark.parametrize("value", ["always", None, []])
def test_what_is_no_choice(value):
    with pytest.raises((ValueError, TypeError), match="verbose must be 'auto', True or False"):
        check_progress("verbose", value)
