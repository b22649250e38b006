"""The program ``mri-ambient``: its commands, put together."""

import os
from typing import Annotated

import typer

from .audit import audit
from .benchmark import benchmark
from .common import BAD_INPUT, Commands, stop_on_termination
from .demo import demo
from .evaluate import evaluate
from .inspect import inspect
from .priors import priors
from .recon import recon
from .sample import sample
from .simulate import simulate
from .train import train

app = typer.Typer(
    name="mri-ambient",
    cls=Commands,
    help="Learn a prior from undersampled MRI scans; reconstruct scans with it, with an error bar. Research use only.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (demo, train, recon, simulate, inspect, evaluate, priors, sample, audit, benchmark):
    app.command(_command.__name__)(_command)


def _version(wanted: bool) -> None:
    if wanted:
        from mri_ambient import __version__

        print(f"mri-ambient {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _start(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(BAD_INPUT)


def run() -> None:
    """Entry point of the installed program."""
    # Threads that wait for each other sleep instead of spinning. On a machine that runs other jobs too, spinning makes
    # everything many times slower. It must be set before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    stop_on_termination()
    app()
