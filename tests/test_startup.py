"""What is loaded before anything is asked for: modules are counted, as seconds depend on the machine."""

import ast
import subprocess
import sys

OWN_OF_TORCH = """
import sys, torch
before = set(sys.modules)
import mri_ambient as ma
for name in ma.__all__:
    getattr(ma, name)
"""
NEW = """
before, after = ({name.partition(".")[0] for name in names} for names in (before, set(sys.modules)))
print(sorted(after - before - set(sys.stdlib_module_names)))
"""
HELP = """
import sys, typer
from typer.testing import CliRunner
app = typer.Typer(add_completion=False)
app.command()(lambda number=1: None)
CliRunner().invoke(app, ["--help"])
before = set(sys.modules)
from mri_ambient.cli.main import app
assert CliRunner().invoke(app, ["--help"]).exit_code == 0
"""


def loaded(code):
    """Projects outside the standard library of which a fresh interpreter loads more by some code."""
    done = subprocess.run([sys.executable, "-c", code + NEW], capture_output=True, text=True, check=True)
    return ast.literal_eval(done.stdout.splitlines()[-1])


def test_the_package_with_all_its_names_loads_nothing_that_torch_does_not():
    assert loaded(OWN_OF_TORCH) == ["mri_ambient"]


def test_help_loads_nothing_that_a_bare_program_does_not():
    assert loaded(HELP) == ["mri_ambient"]
