"""``mri-ambient simulate``: multi-coil k-space with known truth from a magnitude volume."""

from pathlib import Path
from typing import Annotated

import typer

from mri_ambient.errors import InputError

from .common import Terminal, print_json
from .options import JSON, MASK, QUIET, SEED, chosen_mask


def simulate(
    volume: Annotated[Path, typer.Argument(help="NIfTI file, DICOM folder or DICOM file.", show_default=False)],
    coils: Annotated[int, typer.Option(help="Number of receive coils.")] = 8,
    accel: Annotated[
        float | None, typer.Option(help="Undersample this many times.", show_default="fully sampled")
    ] = None,
    mask: MASK = None,
    noise: Annotated[
        float, typer.Option(help="Noise per real component; the 99th percentile of the volume is 1.")
    ] = 0.02,
    matrix: Annotated[
        int | None, typer.Option(help="Square matrix to bring slices to.", show_default="the volume's own")
    ] = None,
    seed: SEED = 0,
    out: Annotated[Path, typer.Option(help="Folder of the scan, which is named after the volume.")] = Path("simulated"),
    as_json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Simulate a scan of a volume: random coil array, phase and noise, written in the fastMRI layout with its truth."""
    from mri_ambient.operators import MaskPattern
    from mri_ambient.recon.meter import counted
    from mri_ambient.recon.places import check_folder
    from mri_ambient.scan import write_scan
    from mri_ambient.simulate import simulate_scan
    from mri_ambient.volumes import load_volume

    kind = chosen_mask(accel, mask)
    try:
        pattern = None if accel is None else MaskPattern(kind, accel)
    except ValueError as error:
        raise InputError(str(error)) from error
    check_folder(out)
    loaded = load_volume(volume)
    scan = simulate_scan(loaded, coils=coils, pattern=pattern, noise_std=noise, seed=seed, matrix=matrix)
    path = out / f"{scan.name}.h5"
    write_scan(scan, path)
    slices, coils, height, width = scan.shape
    if as_json:
        print_json(
            {
                "file": str(path),
                "slices": slices,
                "coils": coils,
                "matrix": [height, width],
                "acceleration": scan.acceleration,
                "noise_std": scan.noise_std,
                "seed": seed,
            }
        )
        return
    with Terminal(quiet=quiet) as terminal:
        size = f"{counted(slices, 'slice')}, {counted(coils, 'coil')}, {height} x {width}"
        terminal.say(f"{path}: {size}, R = {scan.acceleration:.3g}")
