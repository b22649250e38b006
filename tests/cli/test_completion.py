"""Completion in the shell: scripts are printed, values are offered, and nothing heavy is loaded for it."""

import os
import subprocess
import sys

import pytest

from mri_ambient.cli import completion, options
from mri_ambient.cli.completion import one_of, prior_names
from mri_ambient.prior import DEFAULT_PRIOR, RUN_FILE, shipped_priors

RUN = "from mri_ambient.cli.main import app; app(prog_name='mri-ambient')"


def shell(*, code: str = RUN, **settings: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", code, *settings.pop("words", "").split()]
    return subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, **settings})


def completed(line: str) -> list[str]:
    """What bash is offered at the end of a line."""
    words = line.split(" ")
    settings = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1), "_MRI_AMBIENT_COMPLETE": "complete_bash"}
    done = shell(**settings)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_scripts(name):
    done = shell(_MRI_AMBIENT_COMPLETE=f"source_{name}")
    assert (done.returncode, done.stderr) == (0, "")
    assert "mri-ambient" in done.stdout
    assert f"complete_{name}" in done.stdout


def test_show_completion():
    done = shell(words="--show-completion bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert done.returncode == 0, done.stderr
    assert "complete -o default -F _mri_ambient_completion mri-ambient" in done.stdout


def test_install_completion_writes_below_home(tmp_path):
    settings = {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = shell(words="--install-completion bash", **settings)
    assert done.returncode == 0, done.stderr
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert any("_mri_ambient_completion" in text for text in written)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mri-ambient tr", ["train"]),
        ("mri-ambient recon --prior brain-", sorted(name for name in shipped_priors() if name.startswith("brain-"))),
        ("mri-ambient sample brain-r", ["brain-r4"]),
        ("mri-ambient train --method s", ["supervised", "ssdu"]),
        ("mri-ambient recon --mask e", ["equispaced"]),
        ("mri-ambient train --preset ", list(options.PRESETS)),
        ("mri-ambient recon --format p", ["png"]),
        ("mri-ambient benchmark scans --method gr", ["grappa"]),
        ("mri-ambient recon --prior ./x", []),  # so that the shell completes the name of a file
    ],
)
def test_values_in_bash(line, expected):
    assert completed(line) == expected


OPTIONS = {
    "train": ["mask", "method", "variant", "preset", "init", "device", "precision"],
    "recon": ["prior", "method", "mask", "formats", "device", "precision"],
    "benchmark": ["prior", "method", "mask", "device", "precision"],
    "simulate": ["mask"],
    "sample": ["prior", "device", "precision"],
    "audit": ["prior", "device", "precision"],
}


def test_every_choice_is_completed():
    import typer

    from mri_ambient.cli.main import app

    for name, command in typer.main.get_command(app).commands.items():
        found = [parameter.name for parameter in command.params if parameter._custom_shell_complete]
        assert sorted(found) == sorted(OPTIONS.get(name, [])), name


def test_completion_loads_no_torch():
    code = "import sys; from mri_ambient.cli.completion import prior_names; assert prior_names('brain-r4')\n"
    code += "import mri_ambient.cli.main; print([name for name in ('torch', 'numpy', 'h5py') if name in sys.modules])"
    assert shell(code=code).stdout == "[]\n"


def test_names_repeated_from_the_library():
    assert (completion.DEFAULT_PRIOR, completion.RUN_FILE) == (DEFAULT_PRIOR, RUN_FILE)


def test_priors_of_finished_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("done", "begun"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    (tmp_path / "runs" / "done" / RUN_FILE).touch()
    assert prior_names("") == [*shipped_priors(), "runs/done"]
    assert prior_names("runs/") == ["runs/done"]


def test_one_of():
    assert one_of(("ab", "ac", "b"))("a") == ["ab", "ac"]
