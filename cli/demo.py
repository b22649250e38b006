"""``mri-ambient demo``: everything once, on a simulated scan."""

from pathlib import Path
from typing import Annotated

import typer

from .common import Terminal
from .options import QUIET


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("demo"),
    quiet: QUIET = False,
) -> None:
    """Simulate a scan of a phantom at R = 4, reconstruct it with the shipped prior, and compare with the truth."""
    from mri_ambient.recon.demo import run_demo

    with Terminal(quiet=quiet) as terminal:
        run_demo(out, reporter=terminal)
