"""What a scan file is, and what is wrong with it.

Files that cannot be used at all raise InputError. For the others every sample is read once and what looks wrong is
listed, each problem as one sentence.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mri_ambient.errors import InputError
from mri_ambient.formats.base import ScanFile
from mri_ambient.header import Header
from mri_ambient.operators import acs_width, estimate_noise
from mri_ambient.readers import examine
from mri_ambient.scan import Scan, require_acs, scan_of

MASK_SOURCES = {"dataset": "from the file", "zeros": "detected from zeros", "readouts": "from the readouts"}
_USUAL_COILS = 64  # more are rare enough to suspect that the axes are in another order


def inspect_scan(path: str | Path) -> dict[str, Any]:
    """Describe a scan file and check all of it.

    Parameters
    ----------
    path : str or Path
        A scan file, as in `mri_ambient.load_scan`.

    Returns
    -------
    dict
        Ready for JSON. ``matrix``, ``recon_size`` are (y, x) and ``padding`` is (left, right); ``acceleration`` leaves
        padding out; ``acs_lines`` is the smallest number of contiguous central lines (2-D: side of the central square)
        of any slice; ``noise_std`` is per real and per imaginary component in the unit of k-space, from the file or
        estimated from the outer samples of the middle slice, as ``noise_source`` says; ``details`` tells
        of formats that store readouts how many there are, for the noise scan and for calibration too, how many
        averages, and the oversampling that was removed; ``problems`` is empty if all is well.

    Raises
    ------
    InputError
        If the file cannot be used as a scan.
    """
    found = examine(path)
    scan = scan_of(found)
    contents = _survey(scan)
    noise_std, noise_problem = _noise(scan)
    problems = [*found.sampling.notes, *_structure_problems(found, scan), *contents.problems(scan), *noise_problem]
    return {
        "path": str(path),
        "name": scan.name,
        "format": found.format.name,
        "format_title": found.format.title,
        "part": found.part,
        "stored_as": found.dtype,
        "slices": scan.shape[0],
        "coils": scan.shape[1],
        "matrix": list(scan.shape[2:]),
        "recon_size": list(scan.recon_size),
        "padding": list(scan.padding),
        "mask_source": found.mask_source,
        "mask_kind": "lines" if _is_lines(scan) else "2-D",
        "mask_per_slice": scan.mask.ndim == 3,
        "acceleration": scan.acceleration,
        "acs_lines": min(int(acs_width(scan.slice_mask(index))) for index in range(scan.shape[0])),
        "noise_std": noise_std,
        "noise_source": None if noise_std is None else "file" if scan.noise_std is not None else "estimated",
        "header": "ismrmrd_header" in found.layout.axes or found.header != Header(),
        "target": getattr(found.source, "target_name", None),
        "sensitivity_maps": getattr(found.source, "has_maps", False),
        "patient": scan.patient,
        "attributes": scan.attributes,
        "details": found.details,
        "problems": problems,
    }


def _is_lines(scan: Scan) -> bool:
    return scan.mask.ndim == 1 or (scan.mask.ndim == 3 and scan.mask.shape[1] == 1)


def _noise(scan: Scan) -> tuple[float | None, list[str]]:
    if scan.noise_std is not None:
        return scan.noise_std, []
    middle = scan.shape[0] // 2
    try:
        return estimate_noise(scan.read(middle), scan.slice_mask(middle)), []
    except ValueError as error:  # an InputError about the slice is one, too, and the survey reports it
        return None, [] if isinstance(error, InputError) else [f"The noise cannot be estimated: {error}"]


def _structure_problems(found: ScanFile, scan: Scan) -> list[str]:
    """What is suspicious in sizes, header and mask."""
    slices, coils, height, width = scan.shape
    problems = []
    try:
        require_acs(scan)
    except InputError as error:
        problems.append(str(error))
    if coils > _USUAL_COILS:
        problems.append(f"{coils} coils are unusually many: check that the axes are (slice, coil, y, x).")
    if found.layout.axes.get("kspace") == ("slice", "y", "x") and not scan.has_target:
        problems.append(
            f"The first axis of the 3-D k-space is read as {slices} slices of one coil: if it counts coils, set the "
            'attribute axes of the dataset kspace to "coil,y,x".'
        )
    encoded = found.header.encoded_size
    if encoded is not None and encoded[1] != width:
        problems.append(f"The header declares {encoded[1]} phase-encoding columns but k-space has {width}.")
    size = scan.source.target_size
    if size is not None and (size[0] > height or size[1] > width):
        problems.append(f"The target of {size[0]} x {size[1]} is larger than the field of view of {height} x {width}.")
    return problems


@dataclass(frozen=True)
class _Contents:
    """What reading everything showed: unreadable slices, slices and coils without signal, samples against the mask."""

    errors: list[str]
    blank: list[int]
    silent_coils: list[int]
    outside: float
    missing: float

    def problems(self, scan: Scan) -> list[str]:
        found = list(self.errors)
        if self.blank:
            found.append(f"Slices without any signal: {_listed(self.blank)} of {scan.shape[0]}.")
        if self.silent_coils:
            found.append(f"Coils without any signal: {_listed(self.silent_coils)} of {scan.shape[1]}.")
        if self.outside > 0:
            found.append(f"{self.outside:.1%} of the samples that the mask leaves out are not zero; they are ignored.")
        if self.missing > 0.01:
            found.append(f"{self.missing:.1%} of the samples that the mask calls acquired are zero.")
        return found


def _survey(scan: Scan) -> _Contents:
    errors, blank = [], []
    signal = np.zeros(scan.shape[1], bool)
    counts = np.zeros((2, 2))  # [mask, sample is not zero]
    for index in range(scan.shape[0]):
        try:
            present = (scan.source.kspace(index) != 0).numpy()
            if scan.has_target:
                scan.read_target(index)
        except InputError as error:
            errors.append(str(error))
            continue
        if not present.any():
            blank.append(index)
            continue
        signal |= present.any((1, 2))
        mask = torch.broadcast_to(scan.slice_mask(index), scan.shape[2:]).numpy()
        sampled = present.any(0)
        for masked in (0, 1):
            counts[masked] += [np.sum(~sampled & (mask == masked)), np.sum(sampled & (mask == masked))]
    return _Contents(
        errors=errors,
        blank=blank,
        silent_coils=[] if errors else np.flatnonzero(~signal).tolist(),
        outside=counts[0, 1] / max(counts[0].sum(), 1),
        missing=counts[1, 0] / max(counts[1].sum(), 1),
    )


def _listed(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return shown if len(numbers) <= 8 else f"{shown} and {len(numbers) - 8} more"
