"""Collect the commands of this folder into one command line, and turn errors into messages and exit codes."""

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from skjepa import __version__
from skjepa.cli import checks
from skjepa.cli.bench import bench
from skjepa.cli.common import forget_what_is_kept, kept_so_far
from skjepa.cli.config_file import read_config
from skjepa.cli.encoders import encoders
from skjepa.cli.explain import explain
from skjepa.cli.fit import fit
from skjepa.cli.inspect import inspect
from skjepa.cli.pretrain import pretrain
from skjepa.cli.prune import prune
from skjepa.cli.report import report
from skjepa.cli.score import score
from skjepa.cli.serve import serve
from skjepa.cli.watch import watch
from skjepa.cli.wording import in_options, unwrapped

EXIT_OK, EXIT_CRASH, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130
_EXIT_CODES = (
    "Exit codes: 0 finished, every image was read; 1 a bug; 2 bad input or options, nothing was written; "
    "3 finished, but some images could not be read; 130 interrupted."
)

app = typer.Typer(
    help="Find the images that are unlike normal ones, with pretrained vision encoders.\n\n" + _EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_stdout, _stderr = Console(), Console(stderr=True)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"skjepa {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Options from a TOML file: one section per command, with lines such as image-size = 224.",
        ),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    os.environ["SKJEPA_DEBUG"] = "1" if debug else ""
    if config is not None:
        context.default_map = read_config(config, context.command.commands)  # type: ignore[attr-defined]


for command in (score, report, explain, inspect, fit, watch, serve, bench, prune, pretrain, encoders):
    app.command(help=unwrapped(command.__doc__ or ""))(command)


@app.command()
def demo(
    out: Annotated[
        Path,
        typer.Option(help="Folder for images, figures, scores.parquet and summary.json.", callback=checks.new_folder),
    ] = Path("demo-output"),
    seed: Annotated[int, typer.Option(help="Seed of the splits.", callback=checks.seed)] = 0,
) -> int:
    """Find coins, bricks and grass in images of gravel that an installed package contains: nothing is downloaded."""
    from skjepa.cli.demo import run_demo

    run_demo(out, seed=seed, console=_stdout)
    return EXIT_OK


def _show_warning(message: Any, *_: Any, **__: Any) -> None:
    _stderr.print(f"[yellow]warning:[/yellow] {escape(in_options(str(message)))}", highlight=False, soft_wrap=True)


def main(args: list[str] | None = None) -> None:
    """Run the command line; an error becomes one sentence and an exit code, and leaves no half-written file."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = _show_warning
        sys.exit(_run(args) or EXIT_OK)


def _run(args: list[str] | None) -> int | None:
    forget_what_is_kept()
    try:
        code = app(args=args, prog_name="skjepa", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = EXIT_INTERRUPTED
    except (ValueError, TypeError, OSError, MemoryError) as error:
        return _fail(error, EXIT_BAD_INPUT)
    except Exception as error:
        if hasattr(error, "show"):  # a wrong option: the command line library writes the message
            error.show()
            return EXIT_BAD_INPUT
        return _fail(error, EXIT_CRASH)
    if code == EXIT_INTERRUPTED:  # Typer turns Ctrl-C into this code
        _stderr.print(f"interrupted: {escape(kept_so_far())}", highlight=False, soft_wrap=True)
    return code


def _fail(error: Exception, code: int) -> int:
    if os.environ.get("SKJEPA_DEBUG"):
        raise error
    hint = "" if code == EXIT_BAD_INPUT else f" ({type(error).__name__}; run `skjepa --debug ...` for the traceback)"
    _stderr.print(f"[red]error:[/red] {escape(in_options(str(error)))}{hint}", highlight=False, soft_wrap=True)
    return code
