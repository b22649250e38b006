"""Where the arrays of a scan come from: memory, or a file read one slice at a time.

A file source holds a path and how the file is laid out, never an open file or an array: it is cheap to keep thousands
of them, and they can be sent to worker processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mri_ambient.errors import InputError
from mri_ambient.hdf5 import open_hdf5
from mri_ambient.header import Header, parse_header
from mri_ambient.sampling import Sampling, detect_samples, resolve_sampling
from mri_ambient.specification import Layout, load_specification, plain

if TYPE_CHECKING:
    import h5py

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
    array = torch.as_tensor(values).detach().cpu()
    if not array.is_complex():
        raise InputError(f"The {name} must be complex but is {array.dtype}: pass complex64.")
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise InputError(f"The {name} has shape {tuple(array.shape)}: pass (slice, coil, y, x) or (coil, y, x).")
    return array.to(torch.complex64).resolve_conj().reshape(-1, *array.shape[-3:])


def _target_array(values: Tensor | np.ndarray, slices: int) -> Tensor:
    """(slice, y, x), float32, on the CPU."""
    array = torch.as_tensor(values).detach().cpu()
    array = array[None] if array.ndim == 2 else array
    if array.is_complex() or array.ndim != 3 or len(array) != slices or 0 in array.shape:
        raise InputError(
            f"The target has shape {tuple(array.shape)} and type {array.dtype}: pass real magnitudes ({slices}, y, x)."
        )
    return finite(array.to(torch.float32), "the target")


@dataclass(frozen=True)
class FileSource:
    """A file in the fastMRI layout: its path, k-space shape (slice, coil, y, x) and which datasets serve as what."""

    path: Path
    shape: Shape
    axes: tuple[str, ...]
    target_name: str | None
    target_size: tuple[int, int] | None
    has_maps: bool

    def kspace(self, index: int) -> Tensor:
        _, coils, height, width = self.shape
        key = index if self.axes[0] == "slice" else slice(None)
        return self._read("kspace", key, np.complex64, (coils, height, width), index)

    def target(self, index: int) -> Tensor | None:
        if self.target_name is None or self.target_size is None:
            return None
        return self._read(self.target_name, index, np.float32, self.target_size, index)

    def sensitivity_maps(self, index: int) -> Tensor | None:
        return self._read("sensitivity_maps", index, np.complex64, self.shape[1:], index) if self.has_maps else None

    def _read(self, name: str, key: int | slice, dtype: type, shape: tuple[int, ...], index: int) -> Tensor:
        with open_hdf5(self.path) as file, np.errstate(over="ignore"):  # what overflows single precision shows as Inf
            values: NDArray[Any] = np.asarray(file[name][key]).astype(dtype, copy=False)
        if values.size != np.prod(shape):
            raise InputError(f"{self.path} changed since it was opened: load it again.")
        return finite(torch.from_numpy(values.reshape(shape)), f"slice {index} of dataset {name} in {self.path}")


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
    source : FileSource
        Reads the arrays.
    sampling : Sampling
        Mask, padding and notes.
    layout : Layout
        What the check against the specification found.
    header : Header
        Empty if the file has none.
    dtype : str
        How k-space is stored.
    attributes : dict
        All scalar attributes of the file.
    """

    source: FileSource
    sampling: Sampling
    layout: Layout
    header: Header
    dtype: str
    attributes: dict[str, str | float]


def examine(path: str | Path) -> ScanFile:
    """Check a scan file against the specification and read everything but its arrays.

    Of k-space one coil of one slice is read and a few lines of the others; all of it only if the file is sampled in
    another pattern than whole lines.

    Raises
    ------
    InputError
        If the file cannot be read, is not as specified, or has no signal.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        layout = load_specification("fastmri").check(file)
        sizes = layout.sizes
        shape = (sizes.get("slice", 1), sizes.get("coil", 1), sizes["y"], sizes["x"])
        try:
            header = parse_header(_text(file["ismrmrd_header"])) if "ismrmrd_header" in layout.axes else Header()
            given = _stored_mask(file["mask"]) if "mask" in layout.axes else None
            declared = header.padding(shape[3]) or layout.attributes.get("padding")
            sampling = resolve_sampling(_detect(file["kspace"], layout.axes["kspace"], shape), given, declared)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        scalars = {name: plain(value) for name, value in file.attrs.items()}
        return ScanFile(
            source=_file_source(path, layout, shape),
            sampling=sampling,
            layout=layout,
            header=header,
            dtype=str(file["kspace"].dtype),
            attributes={
                name: value if isinstance(value, str) else float(value)
                for name, value in scalars.items()
                if isinstance(value, str | int | float)
            },
        )


def _file_source(path: Path, layout: Layout, shape: Shape) -> FileSource:
    # An emulated single-coil file holds both references, and the one of the emulated coil is the right one there.
    preferred = ["reconstruction_rss", "reconstruction_esc"]
    if len(layout.axes["kspace"]) == 3:
        preferred.reverse()
    target = next((name for name in preferred if name in layout.axes), None)
    return FileSource(
        path=path,
        shape=shape,
        axes=layout.axes["kspace"],
        target_name=target,
        target_size=(layout.sizes["recon_y"], layout.sizes["recon_x"]) if target else None,
        has_maps="sensitivity_maps" in layout.axes,
    )


def _text(dataset: h5py.Dataset) -> str:
    return str(plain(np.asarray(dataset[()])))


def _stored_mask(dataset: h5py.Dataset) -> NDArray[np.bool_]:
    values = np.asarray(dataset[()])
    if not ((values == 0) | (values == 1)).all():
        raise InputError("Dataset mask holds other values than zeros and ones: store 1 where a sample was acquired.")
    return values.astype(bool)


def _detect(dataset: h5py.Dataset, axes: tuple[str, ...], shape: Shape) -> NDArray[np.bool_]:
    def read(index: int, coil: int, rows: slice) -> NDArray[Any]:
        position = {"slice": index, "coil": coil, "y": rows, "x": slice(None)}
        values = np.asarray(dataset[tuple(position[axis] for axis in axes)])
        if not np.isfinite(values).all():
            raise InputError(f"NaN or infinite values in slice {index} of dataset kspace: export the scan again.")
        return values

    return detect_samples(read, shape)
