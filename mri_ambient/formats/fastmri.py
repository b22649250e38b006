"""The fastMRI layout (``data_specs/fastmri.yaml``) and data sets that keep to it (``m4raw.yaml``).

References
----------
J. Zbontar et al., "fastMRI: an open dataset and benchmarks for accelerated MRI", arXiv:1811.08839, 2018.

M. Lyu et al., "M4Raw: a multi-contrast, multi-repetition, multi-channel MRI k-space dataset for low-field MRI
research", Scientific Data 10, 2023.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mri_ambient.errors import InputError
from mri_ambient.formats.base import ScanFile, Shape, choose_part, finite
from mri_ambient.hdf5 import open_hdf5
from mri_ambient.header import Header, has_encoding, parse_header
from mri_ambient.sampling import detect_samples, resolve_sampling
from mri_ambient.specification import Layout, load_specification, plain

if TYPE_CHECKING:
    import h5py


@dataclass(frozen=True)
class FastmriSource:
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


def examine(path: Path, part: str = "", opened: h5py.File | None = None) -> ScanFile:
    """Check a file against the specification and read everything but its arrays.

    Of k-space one coil of one slice is read and a few lines of the others; all of it only if the file is sampled in
    another pattern than whole lines.

    Raises
    ------
    InputError
        If the file cannot be read, is not as specified, or has no signal.
    """
    choose_part(path, [{}], part)
    with open_hdf5(path, opened) as file:
        specification = load_specification("m4raw" if _is_m4raw(file) else "fastmri")
        layout = specification.check(file, str(path), file.attrs)
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
            path=path,
            format=specification,
            source=_source(path, layout, shape),
            shape=shape,
            sampling=sampling,
            mask_source="zeros" if given is None else "dataset",
            layout=layout,
            header=header,
            dtype=str(file["kspace"].dtype),
            attributes={
                name: value if isinstance(value, str) else float(value)
                for name, value in scalars.items()
                if isinstance(value, str | int | float)
            },
            noise_std=layout.attributes.get("noise_std"),
        )


def _is_m4raw(file: h5py.File) -> bool:
    if not load_specification("m4raw").matches(file):
        return False
    try:
        return not has_encoding(_text(file["ismrmrd_header"]))
    except InputError:
        return False


def _source(path: Path, layout: Layout, shape: Shape) -> FastmriSource:
    # An emulated single-coil file holds both references, and the one of the emulated coil is the right one there.
    preferred = ["reconstruction_rss", "reconstruction_esc"]
    if len(layout.axes["kspace"]) == 3:
        preferred.reverse()
    target = next((name for name in preferred if name in layout.axes), None)
    return FastmriSource(
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
