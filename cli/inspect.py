"""``mri-ambient inspect``: what a scan file is, and what is wrong with it."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .common import print_json
from .options import JSON


def inspect(
    scan: Annotated[Path, typer.Argument(help="Scan file; of several scans in a file FILE#NAME.", show_default=False)],
    as_json: JSON = False,
) -> None:
    """Describe a scan file and check all of it: sizes, coils, mask, noise, problems."""
    from mri_ambient.inspection import inspect_scan

    found = inspect_scan(scan)
    if as_json:
        print_json(found)
        return
    for title, text in _lines(found):
        print(f"{title:<14}{text}")
    for problem in found["problems"]:
        print(f"{'problem':<14}{problem}")
    if not found["problems"]:
        print(f"{'problems':<14}none")


def _lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    noise = "cannot be estimated"
    if found["noise_std"] is not None:
        noise = f"{found['noise_std']:.4g} per real component ({_NOISE_SOURCES[found['noise_source']]})"
    left, right = found["padding"]
    from mri_ambient.inspection import MASK_SOURCES

    mask = f"{found['mask_kind']}, {MASK_SOURCES[found['mask_source']]}"
    return [
        ("file", found["path"]),
        ("format", found["format_title"]),
        ("slices", f"{found['slices']}"),
        ("coils", f"{found['coils']}"),
        ("k-space", f"{_size(found['matrix'])}, {found['stored_as']}"),
        ("image", _size(found["recon_size"])),
        ("acceleration", f"{found['acceleration']:.3g}"),
        ("mask", mask + (", differs between slices" if found["mask_per_slice"] else "")),
        ("centre lines", f"{found['acs_lines']}"),
        ("zero padding", f"{left} columns left, {right} right"),
        ("noise", noise),
        ("target", found["target"] or "none"),
        ("coil maps", "in the file" if found["sensitivity_maps"] else "none"),
        ("header", "in the file" if found["header"] else "none"),
        ("patient", found["patient"] or "not given"),
        *((name.replace("_", " "), f"{value:.4g}") for name, value in found["details"].items()),
    ]


def _size(size: list[int]) -> str:
    return f"{size[0]} x {size[1]} (y x x)"


_NOISE_SOURCES = {"file": "from the file", "estimated": "estimated from outer k-space"}
