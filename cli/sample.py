"""``mri-ambient sample``: images drawn from a prior, without data."""

from pathlib import Path
from typing import Annotated

import typer

from .common import Terminal, print_json
from .options import DEVICE, JSON, PRECISION, PRIOR_ARGUMENT, QUIET, SEED


def sample(
    prior: PRIOR_ARGUMENT,
    count: Annotated[int, typer.Option(help="Number of images.")] = 16,
    matrix: Annotated[int, typer.Option(help="Rows and columns of an image.")] = 160,
    steps: Annotated[int, typer.Option(help="Noise levels, two network evaluations each.")] = 50,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("samples"),
    seed: SEED = 0,
    device: DEVICE = "auto",
    precision: PRECISION = "auto",
    as_json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Draw images from a prior, to see what it has learned: samples.h5 and a picture, samples.png."""
    from mri_ambient.recon.generation import generate_files

    with Terminal(quiet=quiet, lines=not as_json) as terminal:
        done = generate_files(
            prior, out, count=count, matrix=matrix, steps=steps, seed=seed, device=device, precision=precision,
            reporter=terminal,
        )  # fmt: skip
        terminal.say(f"{', '.join(done['files'])}: {count} images of {matrix} x {matrix} from prior {done['prior']}")
    if as_json:
        print_json(done)
