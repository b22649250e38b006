"""What all formats share: sources of arrays, the description of a file, and files that hold several scans.

A file source holds a path and how the file is laid out, never an open file or an array of samples: it is cheap to keep
thousands of them, and they can be sent to worker processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mri_ambient.errors import InputError
from mri_ambient.header import Header
from mri_ambient.operators.arrays import as_tensor
from mri_ambient.sampling import Sampling
from mri_ambient.specification import Layout, Specification

Shape = tuple[int, int, int, int]


class Source(Protocol):
    """Arrays of a scan, read when asked for."""

    def kspace(self, index: int) -> Tensor:
        """K-space (coil, y, x) of a slice, complex64, not masked."""

    def target(self, index: int) -> Tensor | None:
        """Reference magnitude (y, x) of a slice, float32, or None."""

    def sensitivity_maps(self, index: int) -> Tensor | None:
        """Coil maps (coil, y, x) of a slice, complex64, or None."""

    @property
    def target_size(self) -> tuple[int, int] | None:
        """Size (y, x) of the reference, None without one."""


class KspaceSource:
    """Base of sources that have neither references nor coil maps."""

    def target(self, index: int) -> Tensor | None:
        return None

    def sensitivity_maps(self, index: int) -> Tensor | None:
        return None

    @property
    def target_size(self) -> tuple[int, int] | None:
        return None


@dataclass(frozen=True, eq=False)
class ArraySource:
    """Arrays in memory: k-space (slice, coil, y, x), references (slice, y, x), maps (slice, coil, y, x)."""

    samples: Tensor
    targets: Tensor | None = None
    maps: Tensor | None = None

    @property
    def shape(self) -> Shape:
        slices, coils, height, width = self.samples.shape
        return slices, coils, height, width

    def kspace(self, index: int) -> Tensor:
        return finite(self.samples[index], f"slice {index} of k-space")

    def target(self, index: int) -> Tensor | None:
        return None if self.targets is None else self.targets[index]

    def sensitivity_maps(self, index: int) -> Tensor | None:
        return None if self.maps is None else self.maps[index]

    @property
    def target_size(self) -> tuple[int, int] | None:
        return None if self.targets is None else (self.targets.shape[-2], self.targets.shape[-1])


def array_source(
    kspace: Tensor | np.ndarray, target: Tensor | np.ndarray | None, maps: Tensor | np.ndarray | None
) -> ArraySource:
    """Bring arrays into the shapes and types of an `ArraySource`; raise InputError if they do not fit."""
    samples = _complex_array(kspace, "kspace")
    checked = None if maps is None else _complex_array(maps, "sensitivity_maps")
    if checked is not None and checked.shape != samples.shape:
        shapes = f"{tuple(checked.shape)} but the kspace {tuple(samples.shape)}"
        raise InputError(f"The sensitivity_maps have shape {shapes}: make them equal.")
    return ArraySource(samples, None if target is None else _target_array(target, len(samples)), checked)


def _complex_array(values: Tensor | np.ndarray, name: str) -> Tensor:
    """(slice, coil, y, x), complex64, on the CPU."""
    array = as_tensor(values).detach().cpu()
    if not array.is_complex():
        raise InputError(f"The {name} must be complex but is {array.dtype}: pass complex64.")
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise InputError(f"The {name} has shape {tuple(array.shape)}: pass (slice, coil, y, x) or (coil, y, x).")
    return array.to(torch.complex64).resolve_conj().reshape(-1, *array.shape[-3:])


def _target_array(values: Tensor | np.ndarray, slices: int) -> Tensor:
    """(slice, y, x), float32, on the CPU."""
    array = as_tensor(values).detach().cpu()
    array = array[None] if array.ndim == 2 else array
    if array.is_complex() or array.ndim != 3 or len(array) != slices or 0 in array.shape:
        raise InputError(
            f"The target has shape {tuple(array.shape)} and type {array.dtype}: pass real magnitudes ({slices}, y, x)."
        )
    return finite(array.to(torch.float32), "the target")


def finite(values: Tensor, what: str) -> Tensor:
    """Return the values, or raise InputError if one of them is NaN or infinite."""
    if not torch.isfinite(values).all():
        raise InputError(f"NaN or infinite values in {what}: export the scan again or remove the slice.")
    return values


@dataclass(frozen=True)
class ScanFile:
    """Everything about a scan file except its arrays.

    Attributes
    ----------
    path : Path
    format : Specification
        Of the format.
    source : Source
        Reads the arrays.
    shape : tuple of int
        (slice, coil, y, x).
    sampling : Sampling
        Mask, padding and notes.
    mask_source : str
        How the mask is known: "dataset", "zeros" or "readouts".
    layout : Layout
        What the check against the specification found.
    header : Header
        Empty if the file has none.
    dtype : str
        How k-space is stored.
    attributes : dict
        Scalar attributes of the file.
    part : str
        Which of several scans of the file, such as "contrast=1"; empty if there is only one.
    noise_std : float or None
        Per real component, where the file tells it.
    details : dict
        What else the format tells, for `inspect_scan`.
    """

    path: Path
    format: Specification
    source: Source
    shape: Shape
    sampling: Sampling
    mask_source: str
    layout: Layout = field(default_factory=Layout)
    header: Header = field(default_factory=Header)
    dtype: str = "complex64"
    attributes: dict[str, str | float] = field(default_factory=dict)
    part: str = ""
    noise_std: float | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def recon_size(self) -> tuple[int, int] | None:
        """Size (y, x) of the final image: of the reference, else of the header, else of the attributes."""
        return self.source.target_size or self.header.recon_size or self.layout.attributes.get("recon_size")

    @property
    def name(self) -> str:
        """Name of the scan: of the file without its ending, with the part of the file."""
        return self.path.stem + (f"_{self.part.replace(',', '_').replace('=', '')}" if self.part else "")


class SeveralScansError(InputError):
    """A file holds several scans and none was named.

    Attributes
    ----------
    path : Path
        The file.
    parts : list of str
        Their names.
    """

    def __init__(self, path: Path, parts: list[str]) -> None:
        self.path, self.parts = path, parts
        super().__init__(f"{path} holds {len(parts)} scans, {_listed(parts)}: name one, as in {self.name(parts[0])}.")

    def name(self, part: str) -> str:
        """What to open for one of them."""
        return f"{self.path}#{part}"


def choose_part(path: Path, scans: Sequence[Mapping[str, int]], wanted: str) -> tuple[int, str]:
    """Which of the scans in a file is meant.

    Parameters
    ----------
    path : Path
        For messages.
    scans : sequence of mappings
        Counters of every scan; those that are equal for all of them are not part of its name.
    wanted : str
        Name of one of them, or empty.

    Returns
    -------
    int, str
        Its index and name; the name is empty if there is only one scan.

    Raises
    ------
    InputError
        If it is not there, or if there are several and none is named (`SeveralScansError`).
    """
    varying = [name for name in scans[0] if len({scan[name] for scan in scans}) > 1]
    parts = [",".join(f"{name}={scan[name]}" for name in varying) for scan in scans]
    if wanted in parts:
        return parts.index(wanted), wanted
    if wanted:
        raise InputError(f"{path} holds no scan {wanted}: it holds {_listed(parts) if parts[0] else 'only one scan'}.")
    raise SeveralScansError(path, parts)


def _listed(parts: list[str]) -> str:
    return " and ".join(parts) if len(parts) < 3 else f"from {parts[0]} to {parts[-1]}"


@contextmanager
def open_raw(path: Path) -> Iterator[None]:
    """Say in one sentence what goes wrong while a file that is not HDF5 is read inside the ``with`` block."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"There is no file {error.filename or path}: check the name and the folder.") from error
    except PermissionError as error:
        raise InputError(f"{path} may not be read by this user: change its permissions.") from error
    except (OSError, ValueError, ArithmeticError, LookupError, EOFError) as error:
        raise InputError(f"{path} is truncated or damaged: copy or export it again.") from error
