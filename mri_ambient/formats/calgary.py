r"""The Calgary-Campinas layout (``data_specs/calgary.yaml``), HDF5 or NumPy.

The readout is in image space already, and the samples of N columns are those of an uncentred transform with zero
frequency moved to index :math:`c = \lfloor N/2 \rfloor`: image index 0, not c, is the origin. Moving the origin of the
image by c multiplies k-space by a phase,

.. math:: X[k] = K[k] \exp(2\pi i (k - c) c / N) ,

which keeps zeros and the statistics of the noise.

References
----------
R. Souza et al., "An open, multi-vendor, multi-field-strength brain MR dataset and analysis of publicly available skull
stripping methods agreement", NeuroImage 170, 2018; raw data: https://www.ccdataset.com.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mri_ambient.errors import InputError
from mri_ambient.formats.base import KspaceSource, ScanFile, Shape, choose_part, finite, open_raw
from mri_ambient.hdf5 import open_hdf5
from mri_ambient.sampling import detect_samples, resolve_sampling
from mri_ambient.specification import load_specification

if TYPE_CHECKING:
    import h5py

NUMPY_SIGNATURE = b"\x93NUMPY"


@contextmanager
def open_array(path: Path, opened: h5py.File | None = None) -> Iterator[Any]:
    """The array of a file, HDF5 (which may be open already) or NumPy, which reads what it is indexed by."""
    with path.open("rb") as file:
        is_numpy = file.read(len(NUMPY_SIGNATURE)) == NUMPY_SIGNATURE
    if is_numpy:
        with open_raw(path):
            yield _mapped(path)
    else:
        with open_hdf5(path, opened) as file:
            yield file["kspace"]


def _mapped(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # a header is parsed as Python, and what fails depends on the damage
        raise ValueError("header") from error
    return array


@dataclass(frozen=True)
class CalgarySource(KspaceSource):
    """A file, its shape (slice, coil, y, x) and the columns that were acquired."""

    path: Path
    shape: Shape
    columns: int

    def kspace(self, index: int) -> Tensor:
        with open_raw(self.path), open_array(self.path) as array:
            values = np.asarray(array[index])
        if values.shape != (*self.shape[2:], 2 * self.shape[1]):
            raise InputError(f"{self.path} changed since it was opened: load it again.")
        samples = _complex(values, self.columns) * _phase(self.shape[2])[:, None, None] * _phase(self.shape[3])[:, None]
        kspace = torch.from_numpy(np.ascontiguousarray(samples.transpose(2, 0, 1), dtype=np.complex64))
        return finite(kspace, f"slice {index} of {self.path}")


def examine(path: Path, part: str = "", opened: h5py.File | None = None) -> ScanFile:
    """Check a file; parameters and errors as in `mri_ambient.readers.examine`."""
    choose_part(path, [{}], part)
    specification = load_specification("calgary")
    with open_raw(path), open_array(path, opened) as array:
        layout = specification.check({"kspace": array}, str(path))
        sizes = layout.sizes
        shape = (sizes["slice"], sizes["part"] // 2, sizes["y"], sizes["x"])
        columns = ceil(specification.acquired["x"] * shape[3])

        def read(index: int, coil: int, rows: slice) -> NDArray[Any]:
            values = _complex(np.asarray(array[index, rows, :, 2 * coil : 2 * coil + 2]), columns)[..., 0]
            return finite(torch.from_numpy(values), f"slice {index}").numpy()

        try:
            sampling = resolve_sampling(detect_samples(read, shape), None, (0, shape[3] - columns))
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        dtype = str(array.dtype)
    return ScanFile(
        path, specification, CalgarySource(path, shape, columns), shape, sampling, "zeros", layout, dtype=dtype
    )


def _complex(values: NDArray[Any], columns: int) -> NDArray[np.complex64]:
    """Complex (y, x, coil) of (y, x, part); zero after the acquired columns."""
    with np.errstate(over="ignore"):
        pairs = np.array(values, dtype=np.float32, order="C")  # a copy: a mapped file may not be changed
    samples = pairs.view(np.complex64)
    samples[:, columns:] = 0
    return samples


def _phase(length: int) -> NDArray[np.complex128]:
    centre = length // 2
    steps = (np.arange(length) - centre) * centre % length
    phase: NDArray[np.complex128] = np.exp(2j * np.pi * steps / length)
    return phase
