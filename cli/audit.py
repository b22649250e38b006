"""``mri-ambient audit``: whether a prior has memorised its training images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import Terminal, print_json, print_table
from .options import DEVICE, JSON, PRECISION, PRIOR_ARGUMENT, QUIET, SEED

if TYPE_CHECKING:
    from mri_ambient.recon.audit import Audit, Recovery


def audit(
    prior: PRIOR_ARGUMENT,
    data: Annotated[
        list[Path],
        typer.Option("--data", help="What it was trained on, as given to train; may be repeated.", show_default=False),
    ],
    heldout: Annotated[
        list[Path] | None,
        typer.Option(
            help="Scans or volumes of other patients; may be repeated.", show_default="what training put aside of DATA"
        ),
    ] = None,
    count: Annotated[int, typer.Option(help="Samples to draw.")] = 16,
    matrix: Annotated[
        list[int] | None,
        typer.Option(help="Matrices of volumes, as in training.", show_default="those of the run, or the volume's own"),
    ] = None,
    noise: Annotated[
        float | None,
        typer.Option(help="Noise per real component, in k-space's unit.", show_default="in the files, or estimated"),
    ] = None,
    seed: SEED = 0,
    device: DEVICE = "auto",
    precision: PRECISION = "auto",
    as_json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Is the prior memorising? Its samples and its denoising of training images, against images it never saw."""
    from mri_ambient.recon.audit import audit as audit_prior

    with Terminal(quiet=quiet, lines=not as_json) as terminal:
        found = audit_prior(
            prior, data, heldout or (), count=count, matrices=matrix or (), noise=noise, seed=seed, device=device,
            precision=precision, reporter=terminal,
        )  # fmt: skip
    if as_json:
        print_json(found.as_dict())
    elif not quiet:
        _show(found)


def _show(found: "Audit") -> None:
    from mri_ambient.recon.meter import counted

    training = f"{counted(found.training_slices, 'slice')} of {counted(found.training_patients, 'patient')}"
    unseen = f"{counted(found.heldout_slices, 'slice')} of {counted(found.heldout_patients, 'patient')}"
    print(f"prior {found.prior} ({found.prior_hash}); training: {training}; held out: {unseen}")
    print()
    near = found.similarity
    titles = ["median similarity to the nearest slice", "training", "held out"]
    samples = [f"{near.samples_to_training:.3f}", f"{near.samples_to_heldout:.3f}"]
    rows = [
        [counted(found.samples, "sample"), *samples],
        [counted(found.heldout_slices, "held-out slice"), f"{near.heldout_to_training:.3f}", "-"],
    ]
    print_table(titles, rows)
    print(
        f"{near.singled_out} of {counted(found.samples, 'sample')} closer to one training patient alone than any "
        f"held-out slice (by chance: {near.probability:.2g})"
    )
    print()
    titles = ["denoised from", "error, training", "error, held out", "ratio", "95 % interval"]
    print_table(titles, [_row(level) for level in found.recovery])
    print()
    for note in found.notes:
        print(f"Note: {note}")
    print(_verdict(found))


def _row(level: "Recovery") -> list[str]:
    interval = "-" if level.low is None or level.high is None else f"{level.low:.3f} to {level.high:.3f}"
    return [f"sigma {level.sigma:g}", f"{level.training:.3f}", f"{level.heldout:.3f}", f"{level.ratio:.3f}", interval]


def _verdict(found: "Audit") -> str:
    signs = []
    if found.similarity.copies:
        signs.append("it draws copies of training slices")
    if any(level.known for level in found.recovery):
        signs.append("it restores training slices much better than unseen ones")
    return f"The prior memorises: {', and '.join(signs)}." if signs else "No sign of memorisation."
