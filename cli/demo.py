"""``mri-ambient demo``: everything once, on a simulated scan."""

from pathlib import Path
from typing import Annotated

import typer

from .common import Terminal, print_json
from .options import JSON, QUIET


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("demo"),
    as_json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Simulate a scan of a phantom at R = 4, reconstruct it with the shipped prior, and compare with the truth."""
    from mri_ambient.recon.demo import run_demo

    with Terminal(quiet=quiet, lines=not as_json) as terminal:
        result = run_demo(out, reporter=terminal)
    if as_json:
        print_json(result)
