"""Pairs of files of BART, ``name.hdr`` and ``name.cfl`` (``data_specs/bart.yaml``).

The second line of the header lists the dimensions. The data file has neither a signature nor a mark of byte order; that
numbers of the other order were read shows in absurd magnitudes.

References
----------
M. Uecker et al., "Berkeley Advanced Reconstruction Toolbox", Proc. ISMRM 23, 2015; the manual describes the format.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mri_ambient.errors import InputError
from mri_ambient.formats.base import KspaceSource, ScanFile, Shape, choose_part, finite, open_raw
from mri_ambient.sampling import detect_samples, resolve_sampling
from mri_ambient.specification import load_specification

_SIGNATURE = b"# Dimensions"
_ABSURD = 1e30
_BYTES = np.dtype("<c8").itemsize


def header_of(path: Path) -> Path | None:
    """The header of the pair that a path names: either file, or their name without ending; None if it is no pair."""
    if not path.name:  # "." and the root
        return None
    base = path.with_suffix("") if path.suffix in (".cfl", ".hdr") else path
    header = base.with_name(base.name + ".hdr")
    if not header.is_file():
        return None
    with open_raw(header), header.open("rb") as file:
        return header if file.read(len(_SIGNATURE)) == _SIGNATURE else None


@dataclass(frozen=True)
class BartSource(KspaceSource):
    """A data file with its dimensions, and the index of the scan in those that are neither k-space nor slices."""

    path: Path
    dimensions: tuple[int, ...]
    axes: tuple[str, ...]
    fixed: tuple[tuple[str, int], ...]

    @property
    def shape(self) -> Shape:
        sizes = dict(zip(self.axes, self.dimensions, strict=True))
        return sizes["slice"], sizes["coil"], sizes["y"], sizes["x"]

    def kspace(self, index: int) -> Tensor:
        with open_raw(self.path):
            values = np.ascontiguousarray(self.plane(index, slice(None), slice(None)))
        return finite(torch.from_numpy(values), f"slice {index} of {self.path}")

    def plane(self, index: int, coils: int | slice, rows: slice) -> NDArray[Any]:
        """K-space ([coil,] rows, x) of a slice; mapped, not read as a whole."""
        check_length(self.path, self.dimensions)
        values = np.memmap(self.path, "<c8", "r", shape=self.dimensions, order="F")
        position: dict[str, Any] = {"y": rows, "x": slice(None), "coil": coils, "slice": index, **dict(self.fixed)}
        chosen = np.asarray(values[tuple(position.get(axis, 0) for axis in self.axes)])
        return chosen.astype(np.complex64, copy=False).transpose((2, 0, 1) if chosen.ndim == 3 else (0, 1))


def examine(path: Path, part: str = "") -> ScanFile:
    """Check a pair of files; parameters and errors as in `mri_ambient.readers.examine`."""
    header = header_of(path)
    if header is None:
        raise InputError(f"{path} has no BART header beside it: copy the .hdr file too.")
    data, specification = header.with_suffix(".cfl"), load_specification("bart")
    expected = specification.datasets["kspace"]
    with open_raw(header):
        dimensions = _dimensions(header, len(expected.axes[0]))
    with open_raw(data):
        check_length(data, dimensions)
        layout = specification.check({"kspace": np.memmap(data, "<c8", "r", shape=dimensions, order="F")}, str(header))
        ranges = [range(layout.sizes[axis]) for axis in expected.separate]
        scans = [dict(zip(expected.separate, indices, strict=True)) for indices in product(*ranges)]
        chosen, label = choose_part(path, scans, part)
        source = BartSource(data, dimensions, layout.axes["kspace"], tuple(scans[chosen].items()))
        try:
            sampling = resolve_sampling(detect_samples(lambda *block: _checked(source.plane(*block)), source.shape))
        except InputError as error:
            raise InputError(f"{data}: {error}") from error
    return ScanFile(header, specification, source, source.shape, sampling, "zeros", layout, part=label)


def write_cfl_pair(data: Path, header: Path, array: NDArray[Any], axes: tuple[str, ...]) -> None:
    """Write an array as a pair of files, directly under their names.

    Parameters
    ----------
    data, header : Path
        The ``.cfl`` and the ``.hdr`` file.
    array : ndarray
        Stored as single-precision complex numbers.
    axes : tuple of str
        Names of its axes, of those in the specification and in their order there; all others get length 1.

    Raises
    ------
    OSError
        If they cannot be written.
    """
    names = load_specification("bart").datasets["kspace"].axes[0]
    sizes = dict(zip(axes, array.shape, strict=True))
    dimensions = " ".join(str(sizes.get(name, 1)) for name in names)
    header.write_text(f"{_SIGNATURE.decode()}\n{dimensions}\n", encoding="ascii")
    data.write_bytes(array.astype("<c8").tobytes(order="F"))


def _dimensions(header: Path, count: int) -> tuple[int, ...]:
    with header.open("rb") as file:
        lines = file.read(4096).decode("ascii", "replace").splitlines()
    words = lines[1].split() if len(lines) > 1 else []
    if not words or len(words) > count or not all(word.lstrip("-").isdecimal() for word in words):
        raise InputError(f"{header} does not list up to {count} dimensions in its second line: write it again.")
    numbers = [int(word) for word in words]
    if min(numbers) < 1 or prod(numbers) > 2**48:
        raise InputError(f"{header} declares the dimensions {' '.join(words)}: all must be at least 1 and reasonable.")
    return (*numbers, *[1] * (count - len(numbers)))


def check_length(data: Path, dimensions: tuple[int, ...]) -> None:
    """Raise InputError unless the data file has as many bytes as the dimensions ask for."""
    found, needed = data.stat().st_size, _BYTES * prod(dimensions)
    if found != needed:
        raise InputError(f"{data} has {found} bytes where its header asks for {needed}: copy both files again.")


def _checked(values: NDArray[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore", invalid="ignore"):
        if not (np.abs(values) < _ABSURD).all():
            raise InputError(
                "K-space holds values that are not finite or above 1e30: write it as little-endian single precision."
            )
    return values
