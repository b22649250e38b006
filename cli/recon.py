"""``mri-ambient recon``: from scans to reconstructions."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .common import BAD_INPUT, FAILED, Terminal, complain, print_json, report
from .completion import one_of
from .options import ACCEL, DEVICE, FORMATS, MASK, PRECISION, PRIOR, QUIET, RECON_METHODS, SEED, chosen_mask


def recon(
    scans: Annotated[
        list[str],
        typer.Argument(
            metavar="SCAN", help="Scan files of any format that inspect knows, folders, patterns.", show_default=False
        ),
    ],
    prior: PRIOR = "brain",
    method: Annotated[
        str, typer.Option(help=f"{', '.join(RECON_METHODS)}.", autocompletion=one_of(RECON_METHODS))
    ] = "posterior",
    samples: Annotated[int, typer.Option(help="Posterior samples; their spread is the error bar.")] = 8,
    steps: Annotated[int, typer.Option(help="Network evaluations of each sample.")] = 25,
    accel: ACCEL = None,
    mask: MASK = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("reconstructions"),
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help=f"{', '.join(FORMATS)}; may be repeated (h5 always is).",
            show_default="h5",
            autocompletion=one_of(FORMATS),
        ),
    ] = None,
    template: Annotated[
        Path | None,
        typer.Option(
            help="For --format dicom: folder of a series of the same slices, to copy the geometry from.",
            show_default="from the scan",
        ),
    ] = None,
    keep_identity: Annotated[
        bool, typer.Option("--keep-identity", help="Copy patient and study from the template, too.")
    ] = False,
    html: Annotated[bool, typer.Option("--report", help="Write an HTML report, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON summary instead of text.")] = False,
    seed: SEED = 0,
    noise: Annotated[
        float | None,
        typer.Option(help="Noise per real component, in k-space's unit.", show_default="in the file, or estimated"),
    ] = None,
    device: DEVICE = "auto",
    precision: PRECISION = "auto",
    keep_samples: Annotated[bool, typer.Option("--keep-samples", help="Store the samples, too.")] = False,
    keep_maps: Annotated[bool, typer.Option("--keep-maps", help="Store the sensitivity maps, too.")] = False,
    calibration: Annotated[
        bool,
        typer.Option(
            "--calibration/--no-calibration", help="Check against held-out k-space and scale the error bars by it."
        ),
    ] = True,
    quiet: QUIET = False,
) -> None:
    """Reconstruct scans, at any acceleration, with any Cartesian mask. A scan that fails does not stop the others."""
    from mri_ambient.recon.dicom_template import open_template
    from mri_ambient.recon.files import FileSettings, reconstruct_files
    from mri_ambient.recon.settings import Settings

    codes: list[int] = []
    failures: list[dict[str, Any]] = []

    def on_error(scan: Path, error: Exception) -> None:
        codes.append(report(error, str(scan)))
        failures.append({"scan": str(scan), "error": str(error)})

    settings = Settings(method, samples, steps, seed, keep_samples, keep_maps, calibration)
    series = None if template is None else open_template(template)
    files = FileSettings(accel, chosen_mask(accel, mask), noise, tuple(formats or ("h5",)), html, series, keep_identity)
    with Terminal(quiet=quiet, lines=not as_json) as terminal:
        done = reconstruct_files(
            scans, out, prior=prior, settings=settings, files=files, device=device, precision=precision,
            reporter=terminal, on_error=on_error,
        )  # fmt: skip
    if as_json:
        print_json([*done, *failures])
    if failures and len(done) + len(failures) > 1:
        complain(f"{len(failures)} of {len(done) + len(failures)} scans failed.")
    if codes:
        raise typer.Exit(FAILED if FAILED in codes else BAD_INPUT)
