"""A typo is answered by the option's name, before torch is imported."""

import subprocess
import sys

import pytest
import typer
from PIL import Image

from skjepa.cli import options, pretrain
from skjepa.cli.app import app, main
from skjepa.cli.wording import in_options
from skjepa.extraction.cost.choice import METHODS
from skjepa.pretraining import config
from skjepa.pretraining.images import IMAGE_NETWORKS
from skjepa.scores.model import FORMULAS

SCORE = ["score", "--normal", "normal", "incoming"]
TYPOS = [
    (["score", "--normal", "norml", "incoming"], "--normal: no folder norml; did you mean normal?"),
    (["score", "--normal", "normal", "incomin"], "TEST_DIR: no folder incomin; did you mean incoming?"),
    (["score", "--normal", "normal", "empty"], "TEST_DIR: no image files below empty"),
    ([*SCORE, "--alpha", "5"], "--alpha must lie in (0, 1); got 5.0"),
    ([*SCORE, "--calibration", "1.5"], "--calibration must be a share between 0 and 1, or a number of folds"),
    (
        [*SCORE, "--alpha", "0.1", "--contamination", "0.1"],
        "--contamination sets the threshold without held-out images",
    ),
    ([*SCORE, "--alpha", "0.01"], "--alpha 0.01 needs 99 held-out normal images; there are 20"),
    ([*SCORE, "--calibration", "0.2"], "--calibration 0.2 holds out 4 of 20"),
    ([*SCORE, "--encoder", "dinov2"], "Did you mean vit_small_patch14_dinov2.lvd142m"),
    ([*SCORE, "--encoder", "none.safetensors"], "--encoder: no file none.safetensors"),
    ([*SCORE, "--weights", "none.pth"], "--weights: no file or folder none.pth"),
    ([*SCORE, "--method", "exat"], "--method must be one of auto, forward, exact, sketch, subspace; got 'exat'"),
    ([*SCORE, "--directions", "4"], "--directions needs --method sketch or subspace; got --method auto"),
    ([*SCORE, "--method", "forward", "--formula", "jepa"], "--formula jepa needs backward passes"),
    ([*SCORE, "--local", "--layers", "none"], "--local reads hidden layers"),
    ([*SCORE, "--on-error", "ignore"], "--on-error must be one of skip, raise"),
    ([*SCORE, "--device", "gpu"], "--device must be auto, cpu, cuda"),
    ([*SCORE, "--seed", "-1"], "--seed must lie between 0 and"),
    ([*SCORE, "--n-jobs", "0"], "--n-jobs must be at least 1, or -1"),
    ([*SCORE, "--budget", "soon"], "--budget must be a time such as 90s"),
    ([*SCORE, "--out", "none/scores.csv"], "--out: there is no folder none"),
    ([*SCORE, "--maps", "normal/a.png/maps"], "--maps: no folder normal/a.png"),
    ([*SCORE, "--labels", "good"], "--labels is a table"),
    ([*SCORE, "--labels", "labels.csv"], "--labels: labels.csv has no column 'label'"),
    (["score", "--detector", "normal", "incoming"], "--detector: normal is not a saved detector"),
    (["fit", "normal", "--out", "incoming"], "--out: incoming exists and is not a saved detector"),
    (["bench", "--normal", "normal"], "give at least one folder of other images: --ood DIR"),
    (["prune", "normal", "--keep", "2"], "--keep must lie in (0, 1)"),
    (["pretrain", "normal", "--out", "a.pt"], "--out: a.pt: the name must end in .safetensors"),
    (["watch", "incoming", "--detector", "none"], "--detector: no folder none"),
    (["report", "score.csv"], "TABLE: no table score.csv; did you mean scores.csv?"),
    (["explain", "a.png", "--detector", "empty"], "--detector: empty is not a saved detector"),
    (["inspect", "empty"], "FOLDER: no image files below empty"),
    (["encoders", "--image-size", "0"], "--image-size must be at least 1"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    for name, n in (("normal", 20), ("incoming", 3), ("empty", 0)):
        (home / name).mkdir()
        for i in range(n):
            Image.new("RGB", (32, 32), (i, i, i)).save(home / name / f"{i:02d}.png")
    (home / "scores.csv").write_text("id,score\n")
    (home / "labels.csv").write_text("id,class\n")
    return home


def test_typos_do_not_import_torch(home):
    """All of them in one process: each is answered, and nothing heavy was needed for it."""
    code = (
        "import sys\n"
        "from skjepa.cli.app import main\n"
        f"for typo in {[typo for typo, _ in TYPOS]!r}:\n"
        "    try: main(typo)\n"
        "    except SystemExit as stop: print('@', stop.code, file=sys.stderr)\n"
        "print([name for name in ('torch', 'timm', 'sklearn', 'pyarrow', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=home)
    assert done.stdout == "[]\n"
    *answers, rest = done.stderr.split("@ 2\n")
    assert (len(answers), rest) == (len(TYPOS), "")
    for answer, (typo, message) in zip(answers, TYPOS, strict=True):
        assert message in " ".join(answer.split()), typo
        assert "Traceback" not in answer


def test_help_of_every_command_does_not_import_torch():
    names = sorted(command.name or command.callback.__name__ for command in app.registered_commands)
    code = (
        "import sys\n"
        "from skjepa.cli.app import main\n"
        f"for name in {names!r}:\n"
        "    try: main([name, '--help'])\n"
        "    except SystemExit as stop: assert stop.code == 0\n"
        "print([name for name in ('torch', 'timm', 'sklearn', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_choices_are_those_of_the_functions():
    assert set(options.FORMULAS) == set(FORMULAS)
    assert set(options.METHODS) == {*METHODS, "subspace"}
    assert set(pretrain.NETWORKS) == set(IMAGE_NETWORKS)
    assert set(pretrain.OBJECTIVES) == set(config.OBJECTIVES)
    assert set(pretrain.PRECISIONS) == set(config.PRECISIONS)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("the method takes 2 h; time_budget is 10 min", "the method takes 2 h; --budget is 10 min"),
        ("local=True reads hidden layers", "--local reads hidden layers"),
        ("give layers=None, or n_directions=16", "give --layers none, or --directions 16"),
        ("no weights: load_encoder('x', weights=FILE)", "no weights: --encoder x --weights FILE"),
        ("the method is another, and the views too", "the method is another, and the views too"),
        ("folds=20 need at least 40", "--folds 20 need at least 40"),
    ],
)
def test_parameters_become_options(message, expected):
    assert in_options(message) == expected


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        ([*SCORE, "--alpha", "0.1"], "interrupted: nothing was written; with --store FOLDER finished images are kept"),
        (
            [*SCORE, "--alpha", "0.1", "--store", "kept"],
            "finished images are kept in kept; type the same command again",
        ),
        (
            ["pretrain", "normal", "--out", "a.safetensors"],
            "interrupted: nothing was written, because no epoch had finished",
        ),
    ],
)
def test_an_interruption_says_what_is_kept(home, monkeypatch, capsys, arguments, kept):
    monkeypatch.chdir(home)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("skjepa.data.sources.folder_source", interrupted)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 130
    assert kept in " ".join(capsys.readouterr().err.split())
    (home / "a.checkpoint.pt").touch()
    with pytest.raises(SystemExit):
        main(["pretrain", "normal", "--out", "a.safetensors"])
    said = " ".join(capsys.readouterr().err.split())
    (home / "a.checkpoint.pt").unlink()
    assert "finished epochs are kept in a.checkpoint.pt; the same command with --resume continues" in said


def test_one_name_for_one_thing():
    """An option with the same name has the same words in every command, and former names stay hidden."""
    group = typer.main.get_command(app)
    shown = {}
    for name, command in group.commands.items():
        for parameter in command.params:
            for option in parameter.opts:
                if option.startswith("--") and not getattr(parameter, "hidden", False):
                    shown.setdefault(option, set()).add(name)
    assert "--memory" not in shown
    assert shown["--store"] >= {"fit", "score", "bench", "prune"}
    assert shown["--normal"] >= {"score", "bench", "prune", "watch", "report", "explain", "inspect"}
    assert shown["--on-error"] >= {"fit", "score", "bench", "prune", "pretrain"}
    defaults = {
        parameter.default
        for command in group.commands.values()
        for parameter in command.params
        if parameter.name == "on_error"
    }
    assert defaults == {"skip"}
