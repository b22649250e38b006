"""``mri-ambient train``: from undersampled scans to a prior."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .common import Stopped, Terminal, print_json
from .completion import one_of, prior_names
from .options import DEVICE, JSON, MASKS, PRECISION, PRESETS, QUIET, SEED, TRAINING_METHODS


def train(
    data: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DATA",
            help="k-space files, NIfTI volumes, DICOM folders, folders of these, or patterns. None: built-in phantoms.",
            show_default=False,
        ),
    ] = None,
    accel: Annotated[
        list[float] | None,
        typer.Option(
            help="Undersample what is fully sampled this many times; repeated: scans take them in turn.",
            show_default="4",
        ),
    ] = None,
    mask: Annotated[
        str, typer.Option(help=f"Pattern of that: {', '.join(MASKS)}.", autocompletion=one_of(MASKS))
    ] = "random",
    method: Annotated[
        str, typer.Option(help=f"{', '.join(TRAINING_METHODS)}.", autocompletion=one_of(TRAINING_METHODS))
    ] = "ambient",
    variant: Annotated[
        str,
        typer.Option(
            help="ambient, ssdu: weighted, published; bootstrap: undersampled, clean.",
            show_default="the first of these",
            autocompletion=one_of(("weighted", "published", "undersampled", "clean")),
        ),
    ] = "",
    view: Annotated[
        str, typer.Option(help="bootstrap: train the prior of a view: centre:LINES, whole.", show_default="none")
    ] = "",
    views: Annotated[
        list[str] | None, typer.Option(help="bootstrap: priors of views to compose; may be repeated.")
    ] = None,
    preset: Annotated[
        str, typer.Option(help=f"Size of the network: {', '.join(PRESETS)}.", autocompletion=one_of(PRESETS))
    ] = "small",
    images: Annotated[int, typer.Option(help="Training length, in examples.")] = 60_000,
    init: Annotated[
        str | None, typer.Option(help="Prior to start from.", show_default="none", autocompletion=prior_names)
    ] = None,
    laps: Annotated[
        int | None, typer.Option(help="em: how often to draw and learn, --images each.", show_default="1")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run.", show_default="runs/<method>-r<accel>")] = None,
    validation: Annotated[
        list[str] | None,
        typer.Option(help="Scans for the held-out error; may be repeated.", show_default="one patient in ten of DATA"),
    ] = None,
    noise: Annotated[
        float | None,
        typer.Option(
            help="Noise per real component.", show_default="in the files, or estimated; 0.02 for simulated scans"
        ),
    ] = None,
    coils: Annotated[int, typer.Option(help="Coils of simulated scans.")] = 8,
    matrix: Annotated[
        list[int] | None,
        typer.Option(help="Matrices of simulated scans, in turn; may be repeated.", show_default="the volume's own"),
    ] = None,
    device: DEVICE = "auto",
    precision: PRECISION = "auto",
    compile: Annotated[bool, typer.Option("--compile", help="Compile the network (torch.compile).")] = False,
    seed: SEED = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, write nothing.")] = False,
    as_json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Learn a prior from undersampled scans. The same command continues a run that was stopped."""
    accelerations = tuple(accel or (4.0,))
    settings: dict[str, Any] = {
        "accel": accelerations, "mask": mask, "method": method, "variant": variant,
        "view": view, "views": tuple(views or ()), "preset": preset, "images": images, "init": init, "laps": laps,
        "noise": noise, "coils": coils, "matrices": tuple(matrix or ()), "seed": seed,
    }  # fmt: skip
    folder = out or Path("runs") / f"{method}-r{'-'.join(f'{a:g}' for a in accelerations)}"
    if dry_run:
        from .dry_run import make_plan, print_plan

        plan = make_plan(data or [], validation or [], folder, settings, device, precision)
        if as_json:
            print_json(plan)
        elif not quiet:
            print_plan(plan)
        return
    from mri_ambient.recon.em import train as run_training

    try:
        with Terminal(quiet=quiet, lines=not as_json) as terminal:
            run = run_training(
                data or [], out=folder, validation=validation or [], device=device, precision=precision,
                compile=compile, reporter=terminal, **settings,
            )  # fmt: skip
            terminal.say(f"{run.prior}: use it with mri-ambient recon SCAN --prior {run.folder}")
    except KeyboardInterrupt as interruption:
        raise Stopped(f"Stopped; the same command continues the run in {folder}.") from interruption
    if as_json:
        print_json({"folder": str(run.folder), "prior": str(run.prior), "card": run.card})
