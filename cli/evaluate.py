"""``mri-ambient evaluate``: metrics of reconstructions against their targets."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import print_json, print_table
from .options import JSON

if TYPE_CHECKING:
    from mri_ambient.recon.evaluation import Mean


def evaluate(
    recon: Annotated[list[Path], typer.Argument(help="Reconstruction files, or folders of them.", show_default=False)],
    target: Annotated[
        list[Path],
        typer.Option("--target", help="Files with the truth, or folders of them; may be repeated.", show_default=False),
    ],
    as_json: JSON = False,
) -> None:
    """PSNR, SSIM and NMSE of every volume (fastMRI definitions), and means with 95 % intervals over patients."""
    from mri_ambient.recon.evaluation import evaluate as evaluate_files
    from mri_ambient.recon.meter import counted

    result = evaluate_files(recon, target)
    if as_json:
        print_json(result.as_dict())
        return
    titles = ["volume", "patient", "slices", "PSNR/dB", "SSIM", "NMSE"]
    rows = []
    for row in result.rows:
        name = row.name + (" (centre)" if row.cropped else "")
        rows.append([name, row.patient, f"{row.slices}", f"{row.psnr:.2f}", f"{row.ssim:.4f}", f"{row.nmse:.5f}"])
    print_table(titles, rows)
    volumes, patients = counted(len(rows), "volume"), counted(result.patients, "patient")
    means = {key: _interval(value) for key, value in result.summary.items()}
    print(f"mean of {volumes} of {patients}: PSNR {means['psnr']} dB, SSIM {means['ssim']}, NMSE {means['nmse']}")


def _interval(value: "Mean") -> str:
    if value.low is None or value.high is None:
        return f"{value.mean:.4g}"
    return f"{value.mean:.4g} [{value.low:.4g}, {value.high:.4g}]"
