"""A scan: k-space with its mask, noise level and geometry, read one slice at a time.

    scan = load_scan("scan.h5")
    kspace, mask = scan.read(0), scan.slice_mask(0)     # (coil, y, x) and (x,) or (y, x)

Arrays stay on disk until they are asked for, so a Scan is cheap to hold, to copy and to send to another process. What
``read`` returns is zero wherever the mask is False, including after `Scan.undersample`.

The acceleration of a scan is R = (samples that could have been acquired) / (samples acquired); zero-padded columns are
in neither number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mri_ambient.errors import InputError
from mri_ambient.formats.base import ScanFile, SeveralScansError, Shape, Source, array_source
from mri_ambient.hdf5 import create_hdf5
from mri_ambient.operators import acs_width
from mri_ambient.readers import examine
from mri_ambient.sampling import collapse_mask, detect_samples, fitting_mask, resolve_sampling

_FEWEST = 5  # lines without which no sensitivity can be calibrated, not even of a tiny matrix
_OWN_FIELDS = ("noise_std", "patient_id", "recon_size", "padding")  # kept as fields of Scan, not among its attributes


@dataclass(frozen=True, eq=False, repr=False)
class Scan:
    """A multi-coil Cartesian scan. Made by `load_scan` or `Scan.from_arrays`.

    Attributes
    ----------
    name : str
        Name of the scan; of the file without its ending.
    shape : tuple of int
        (slice, coil, y, x) of the full k-space.
    mask : Tensor
        bool, True = acquired: (x,) for lines, (y, x) for other patterns, (slice, 1 or y, x) if slices differ.
    noise_std : float or None
        Standard deviation of the noise per real and per imaginary component, in the unit of k-space; None if not known.
    recon_size : tuple of int
        Central part (y, x) of the field of view that is the final image; at most the size of k-space.
    padding : tuple of int
        Zero-padded phase-encoding columns (left, right); the mask is False there.
    patient : str or None
        Pseudonym of the patient.
    attributes : dict
        Further text and numbers from the file.
    path : Path or None
        The file, None if in memory.
    source : Source
        Where the arrays come from; read them with the methods below, which apply the mask.
    """

    name: str
    shape: Shape
    mask: Tensor
    noise_std: float | None
    recon_size: tuple[int, int]
    padding: tuple[int, int]
    patient: str | None
    attributes: dict[str, str | float]
    path: Path | None
    source: Source

    @staticmethod
    def from_arrays(
        kspace: Tensor | np.ndarray,
        mask: Tensor | np.ndarray | None = None,
        *,
        noise_std: float | None = None,
        recon_size: tuple[int, int] | None = None,
        name: str = "scan",
        target: Tensor | np.ndarray | None = None,
        patient: str | None = None,
        sensitivity_maps: Tensor | np.ndarray | None = None,
    ) -> Scan:
        """Make a scan from arrays in memory.

        Parameters
        ----------
        kspace : Tensor or ndarray
            (slice, coil, y, x), or (coil, y, x) for one slice; complex.
        mask : Tensor or ndarray, optional
            (x,), (y, x) or (slice, 1 or y, x), True = acquired. By default samples that are zero were not acquired.
            Columns that are zero in all slices are not acquired in any case.
        noise_std : float, optional
            Noise per real and per imaginary component.
        recon_size : tuple of int, optional
            Central part (y, x) that is the final image. Default: the size of the target, else everything.
        name, patient : str, optional
            Name of the scan and pseudonym of the patient.
        target : Tensor or ndarray, optional
            Reference magnitude (slice, y, x), or (y, x) for one slice.
        sensitivity_maps : Tensor or ndarray, optional
            Coil maps of the shape of k-space, for the caller: reconstruction and training calibrate their own.

        Returns
        -------
        Scan
            The scan. Arrays are kept, not copied, where they are complex64 or float32 already.

        Raises
        ------
        InputError
            If shapes do not fit, k-space is real or zero everywhere, or the noise is negative. Values that are not
            finite are found when they are read.
        """
        if noise_std is not None and not (isfinite(noise_std) and noise_std >= 0):
            raise InputError(f"The noise_std is {noise_std}: give a number that is not negative.")
        source = array_source(kspace, target, sensitivity_maps)
        shape = source.shape
        array = source.samples.numpy()
        detected = detect_samples(lambda index, coil, rows: array[index, coil, rows], shape)
        sampling = resolve_sampling(detected, None if mask is None else fitting_mask(mask, shape))
        return Scan(
            name=name,
            shape=shape,
            mask=torch.from_numpy(sampling.mask),
            noise_std=None if noise_std is None else float(noise_std),
            recon_size=_fitting(recon_size or source.target_size, shape),
            padding=sampling.padding,
            patient=patient,
            attributes={},
            path=None,
            source=source,
        )

    def __repr__(self) -> str:
        slices, coils, height, width = self.shape
        return f"Scan({self.name!r}, {slices} slices, {coils} coils, {height} x {width}, R={self.acceleration:.3g})"

    def read(self, index: int) -> Tensor:
        """Read k-space of one slice, and nothing else of the file.

        Parameters
        ----------
        index : int
            Slice; negative numbers count from the end.

        Returns
        -------
        Tensor
            (coil, y, x), complex64, zero where `slice_mask` is False.

        Raises
        ------
        IndexError
            If there is no such slice.
        InputError
            If the file cannot be read any more, or the slice holds NaN or infinite values.
        """
        index = self._slice(index)
        samples = self.source.kspace(index)
        return torch.where(self.slice_mask(index), samples, torch.zeros((), dtype=samples.dtype))

    def slice_mask(self, index: int) -> Tensor:
        """Mask of one slice, (x,) or (y, x), bool."""
        index = self._slice(index)
        mask = self.mask[index] if self.mask.ndim == 3 else self.mask
        return mask[0] if mask.ndim == 2 and mask.shape[0] == 1 else mask

    @property
    def kspace(self) -> Tensor:
        """K-space of all slices, (slice, coil, y, x), complex64, zero where not acquired; reads the whole file."""
        return torch.stack([self.read(index) for index in range(self.shape[0])])

    @property
    def has_target(self) -> bool:
        """Whether there is a reference; reads nothing."""
        return self.source.target_size is not None

    @property
    def target(self) -> Tensor | None:
        """Reference magnitude (slice, y, x), float32, in the unit of k-space, or None."""
        return self._all(self.read_target)

    def read_target(self, index: int) -> Tensor | None:
        """Reference magnitude (y, x) of one slice, float32, or None."""
        return self.source.target(self._slice(index))

    @property
    def sensitivity_maps(self) -> Tensor | None:
        """Coil maps (slice, coil, y, x), complex64, or None if the scan does not come with them."""
        return self._all(self.read_sensitivity_maps)

    def read_sensitivity_maps(self, index: int) -> Tensor | None:
        """Coil maps (coil, y, x) of one slice, complex64, or None."""
        return self.source.sensitivity_maps(self._slice(index))

    @property
    def acceleration(self) -> float:
        """Effective acceleration: samples that could have been acquired over samples that were, padding left out."""
        width = self.shape[3]
        rows = self.mask.shape[-2] if self.mask.ndim > 1 else 1
        slices = self.mask.shape[0] if self.mask.ndim == 3 else 1
        return slices * rows * (width - sum(self.padding)) / int(self.mask.sum())

    @property
    def is_fully_sampled(self) -> bool:
        """Whether nothing was left out, a stray sample in a hundred and zero-padded columns apart."""
        return self.acceleration < 1.01

    def undersample(self, mask: Tensor | np.ndarray) -> Scan:
        """Leave out samples retrospectively.

        Parameters
        ----------
        mask : Tensor or ndarray
            (x,), (y, x) or (slice, 1 or y, x), True = keep. What the scan did not acquire stays not acquired.

        Returns
        -------
        Scan
            The same scan with a mask that is True where both masks are; k-space is masked when it is read.

        Raises
        ------
        InputError
            If the mask does not fit the scan or leaves nothing.
        """
        kept = self.mask.numpy() & fitting_mask(mask, self.shape)
        if not kept.any():
            raise InputError(f"No sample of {self.name} is left under this mask: use a denser one.")
        return replace(self, mask=torch.from_numpy(collapse_mask(kept)))

    def _slice(self, index: int) -> int:
        if not -self.shape[0] <= index < self.shape[0]:
            raise IndexError(f"slice {index} of {self.name}, which has {self.shape[0]}")
        return index % self.shape[0]

    def _all(self, read: Callable[[int], Tensor | None]) -> Tensor | None:
        slices = [read(index) for index in range(self.shape[0])]
        present = [values for values in slices if values is not None]
        return torch.stack(present) if present else None


def load_scan(path: str | Path) -> Scan:
    """Open a scan file in any of the formats of ``data_specs``, recognised by its content.

    Parameters
    ----------
    path : str or Path
        The file (of a BART pair either, or their name without ending). If it holds several scans, with the name of one
        of them, as in ``scan.h5#contrast=1``. It is checked, and read only as far as that needs; it must stay in place
        while the scan is used.

    Returns
    -------
    Scan
        The scan. Where the format does not tell what was acquired, it is detected from samples that are exactly zero.

    Raises
    ------
    InputError
        If the file cannot be used, or holds several scans and none is named; the message says what to do.
    """
    return scan_of(examine(path))


def load_scans(path: str | Path) -> list[Scan]:
    """Open all scans of a file; parameters and errors as in `load_scan`."""
    try:
        return [load_scan(path)]
    except SeveralScansError as several:
        return [scan for part in several.parts for scan in load_scans(several.name(part))]


def scan_of(found: ScanFile) -> Scan:
    """Make the scan of an examined file."""
    attributes = {name: value for name, value in found.attributes.items() if name not in _OWN_FIELDS}
    if found.header.voxel_size is not None:
        names = ("voxel_mm_slice", "voxel_mm_y", "voxel_mm_x")
        attributes.update(zip(names, found.header.voxel_size, strict=True))
    return Scan(
        name=found.name,
        shape=found.shape,
        mask=torch.from_numpy(found.sampling.mask),
        noise_std=found.noise_std,
        recon_size=_fitting(found.recon_size, found.shape),
        padding=found.sampling.padding,
        patient=found.layout.attributes.get("patient_id"),
        attributes=attributes,
        path=found.path,
        source=found.source,
    )


def write_scan(scan: Scan, path: str | Path) -> None:
    """Write a scan in the fastMRI HDF5 layout, slice by slice; the file appears only when it is complete.

    Parameters
    ----------
    scan : Scan
        What to write. Masked samples are written as zeros.
    path : str or Path
        The file, replaced if it exists; missing folders are created.

    Raises
    ------
    InputError
        If the file cannot be written, or the scan cannot be read.
    """
    with create_hdf5(path) as file:
        slices = range(scan.shape[0])
        kspace = file.create_dataset("kspace", shape=scan.shape, dtype=np.complex64)
        for index in slices:
            kspace[index] = scan.read(index)
        if scan.read_sensitivity_maps(0) is not None:
            stored = file.create_dataset("sensitivity_maps", shape=scan.shape, dtype=np.complex64)
            for index in slices:
                stored[index] = scan.read_sensitivity_maps(index)
        file["mask"] = scan.mask.numpy().astype(np.uint8)
        file.attrs.update(scan.attributes)
        target = scan.target
        if target is not None:
            file["reconstruction_rss"] = target.numpy()
            file.attrs.setdefault("max", float(target.max()))
            file.attrs.setdefault("norm", float(target.norm()))
        file.attrs.update({"recon_size": scan.recon_size, "padding": scan.padding})
        if scan.noise_std is not None:
            file.attrs["noise_std"] = scan.noise_std
        if scan.patient is not None:
            file.attrs["patient_id"] = scan.patient


def require_acs(scan: Scan, minimum: int = 8) -> int:
    """Make sure that the centre of k-space was acquired, which coil calibration and scaling need.

    Parameters
    ----------
    scan : Scan
        The scan.
    minimum : int
        Fewest contiguous central lines (for a 2-D pattern: side of the central square) in any slice. A matrix that
        has fewer must be sampled completely.

    Returns
    -------
    int
        Contiguous central lines in the slice that has fewest.

    Raises
    ------
    InputError
        If there are fewer than `minimum`.
    """
    masks = scan.mask if scan.mask.ndim == 3 else scan.mask[None]
    widths = [int(acs_width(mask[0] if mask.ndim == 2 and len(mask) == 1 else mask)) for mask in masks]
    fewest = min(widths)
    side = min(scan.shape[2:])
    if min(fewest, side) < min(minimum, max(_FEWEST, side)):
        where = scan.name if len(widths) == 1 else f"slice {widths.index(fewest)} of {scan.name}"
        raise InputError(
            f"Only {min(fewest, side)} contiguous central k-space lines were acquired in {where}, and coil calibration "
            f"needs {minimum}: use a mask with a wider fully sampled centre."
        )
    return fewest


def _fitting(size: tuple[int, int] | None, shape: Shape) -> tuple[int, int]:
    """A size (y, x) that is not larger than k-space; all of it by default."""
    height, width = size or shape[2:]
    return min(height, shape[2]), min(width, shape[3])
