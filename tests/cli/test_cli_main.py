"""The program as a whole: help, usage errors, exit codes, what happens when things go wrong."""

import errno
import inspect
import os
import signal
import subprocess
import sys

import pytest
from cli_checks import one_line

from mri_ambient.cli import common, options
from mri_ambient.cli.common import Stopped, Terminal
from mri_ambient.cli.main import app
from mri_ambient.cli.train import train
from mri_ambient.errors import InputError

COMMANDS = ["demo", "train", "recon", "simulate", "inspect", "evaluate", "priors", "sample", "audit", "benchmark"]


def test_the_commands_are_those_of_the_documentation():
    assert sorted(command.name for command in app.registered_commands) == sorted(COMMANDS)


@pytest.mark.parametrize("words", [[], *([name] for name in COMMANDS)])
def test_help(run, words):
    result = run(*words, "--help")
    assert result.exit_code == 0
    assert "Usage: mri-ambient" in result.stdout
    assert result.stderr == ""


def parameters(command: str) -> set[str]:
    (found,) = [entry.callback for entry in app.registered_commands if entry.name == command]
    return set(inspect.signature(found).parameters)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_reports_as_json_and_can_be_silent(command):
    assert "as_json" in parameters(command)
    only_answers = {"inspect", "evaluate", "priors"}  # and show no progress
    assert ("quiet" in parameters(command)) == (command not in only_answers)


def test_help_does_not_load_torch():
    lines = ["import sys", "from mri_ambient.cli.main import app"]
    for words in ([], *([name] for name in COMMANDS)):
        lines += ["try:", f"    app({[*words, '--help']}, prog_name='mri-ambient')", "except SystemExit as end:"]
        lines += ["    assert end.code == 0"]
    lines += ["print([name for name in ('torch', 'numpy', 'h5py', 'matplotlib') if name in sys.modules])"]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_version(run):
    from mri_ambient import __version__

    assert run("--version").stdout == f"mri-ambient {__version__}\n"


def test_no_command_shows_help_and_fails(run):
    result = run()
    assert result.exit_code == 2
    assert "Usage" in result.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["reconstruct"], "reconstruct"),
        (["recon"], "SCAN"),
        (["recon", "a.h5", "--sample", "3"], "--sample"),
        (["recon", "a.h5", "--samples", "many"], "--samples"),
        (["inspect", "a.h5", "b.h5"], "b.h5"),
    ],
)
def test_wrong_usage(run, words, expected):
    result = run(*words)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert expected in one_line(result)
    assert "--help" in result.stderr


@pytest.fixture
def failing(monkeypatch):
    """Make `mri-ambient inspect` raise."""

    def prepare(error: BaseException) -> None:
        def fail(path):
            raise error

        monkeypatch.setattr("mri_ambient.inspection.inspect_scan", fail)

    return prepare


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (InputError("This is\nwrong."), 2, "Error: This is wrong."),
        (OSError(errno.ENOSPC, "No space left on device", "a.h5"), 2, "a.h5 cannot be used (No space left on device)"),
        (PermissionError(errno.EACCES, "Permission denied", "a.h5"), 2, "check the name and the permissions"),
        (OSError(errno.EIO, "Input/output error"), 1, "please report"),
        (MemoryError(), 1, "memory is full"),
        (ZeroDivisionError("division\nby zero"), 1, "Unexpected ZeroDivisionError (division): please report"),
        (AssertionError(), 1, "Unexpected AssertionError (no message): please report"),
        (KeyboardInterrupt(), 130, "Stopped."),
        (Stopped("Stopped; all is saved."), 130, "Stopped; all is saved."),
    ],
)
def test_exceptions_become_exit_codes_and_one_line(run, failing, error, code, expected):
    failing(error)
    result = run("inspect", "a.h5")
    assert result.exit_code == code
    assert expected in one_line(result)


def test_traceback_on_request(run, failing):
    failing(ZeroDivisionError("division by zero"))
    result = run("inspect", "a.h5", env={"MRI_AMBIENT_DEBUG": "1"})
    assert result.exit_code == 1
    assert "Traceback" in result.stderr


def test_termination_is_an_interruption():
    before = signal.getsignal(signal.SIGTERM)
    try:
        common.stop_on_termination()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("before", "after"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_sleep_while_waiting_unless_told_otherwise(before, after):
    code = "import os, sys; from mri_ambient.cli import main; main.app = lambda: None; main.run(); "
    code += "print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": before} if before else {}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == f"{after} False\n"  # set while it can still have an effect


def test_installed_program(tmp_path):
    code = "from mri_ambient.cli.main import run; run()"
    words = ["inspect", str(tmp_path / "none.h5")]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == f"Error: There is no file {words[1]}: check the name and the folder.\n"


def test_offered_choices_are_those_of_the_library():
    from mri_ambient.config import MASKS, METHODS
    from mri_ambient.denoiser import PRESETS
    from mri_ambient.prior import DEFAULT_PRIOR
    from mri_ambient.recon.files import FORMATS, FileSettings
    from mri_ambient.recon.settings import METHODS as RECON_METHODS

    assert options.MASKS == MASKS
    assert options.TRAINING_METHODS == METHODS
    assert options.RECON_METHODS == RECON_METHODS
    assert tuple(PRESETS) == options.PRESETS
    assert options.FORMATS == FORMATS
    assert FileSettings().mask == options.DEFAULT_MASK
    assert defaults("recon")["prior"] == DEFAULT_PRIOR


def defaults(command: str) -> dict:
    (found,) = [entry.callback for entry in app.registered_commands if entry.name == command]
    return {name: parameter.default for name, parameter in inspect.signature(found).parameters.items()}


def test_defaults_are_those_of_the_library():
    from mri_ambient.config import TrainConfig
    from mri_ambient.preparation import Simulation
    from mri_ambient.recon.settings import Settings

    config = TrainConfig()
    shown = {name: value for name, value in defaults("train").items() if name in TrainConfig.__dataclass_fields__}
    assert {k: v for k, v in shown.items() if v is not None} == {
        name: getattr(config, name) for name, value in shown.items() if value is not None
    }
    assert shown["accel"] is None  # typer has no tuple of any length as a default; the help says 4
    assert config.accel == (4.0,)
    assert set(shown) > {"accel", "mask", "method", "preset", "images", "seed", "coils"}
    recon = defaults("recon")
    settings = Settings()
    names = ("method", "samples", "steps", "seed", "keep_samples", "keep_maps")
    assert {name: recon[name] for name in names} == {name: getattr(settings, name) for name in names}
    simulate, simulation = defaults("simulate"), Simulation()
    assert (simulate["coils"], simulate["noise"]) == (simulation.coils, simulation.noise_std)


def test_every_setting_of_training_has_an_option_or_is_left_alone_on_purpose():
    from mri_ambient.config import TrainConfig

    known = {"batch", "patch", "strip", "learning_rate", "ema", "refreshes", "matrices"}  # matrices: --matrix
    assert set(TrainConfig.__dataclass_fields__) - set(inspect.signature(train).parameters) == known


class TestTerminal:
    def test_lines_only_where_there_is_no_terminal(self, capsys):
        with Terminal() as terminal:
            terminal.stage("work", 1, 2)
            terminal.say("half done")
        assert capsys.readouterr() == ("half done\n", "")

    @pytest.mark.parametrize("settings", [{"quiet": True}, {"lines": False}])
    def test_silence(self, capsys, settings):
        with Terminal(**settings) as terminal:
            terminal.stage("work", 1, 2)
            terminal.say("half done")
        assert capsys.readouterr() == ("", "")

    def test_bar_on_a_terminal(self, capsys, monkeypatch):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "100")
        with Terminal() as terminal:
            terminal.stage("first", 1, 4)
            terminal.stage("second [x]", 3, 5)
            terminal.say("a line [x]")
            terminal._bar.refresh()
            assert [task.description for task in terminal._bar.tasks] == ["second [x]"]
        output = capsys.readouterr()
        assert output.out == "a line [x]\n"
        assert "second [x]" in output.err
        assert "3/5" in output.err

    def test_quiet_on_a_terminal(self, capsys, monkeypatch):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        with Terminal(quiet=True) as terminal:
            terminal.stage("work", 1, 2)
        assert capsys.readouterr() == ("", "")
