r"""From a list of readouts to Cartesian k-space, slice by slice.

Scanners store readouts with counters and flags, in the order of acquisition. A readout goes to column
``line - center + E // 2`` of a matrix of E columns, and its samples to rows such that the sample that the format calls
the centre of k-space lies in row ``N // 2``; a readout flagged as reversed is turned round first. What no readout
reaches (partial Fourier, asymmetric echoes, discarded samples, undersampling) was not acquired, and stays zero.

Averages of a line are averaged. With noise of standard deviation s in every readout and n averages, the line has noise
:math:`s / \sqrt{n}`; where lines differ, the scan states the noise of those averaged least.

Oversampling of the readout is removed by cropping the image along it, which keeps noise white with its standard
deviation, as transforms are orthonormal. After an asymmetric echo, the rows that it did not reach are set to zero
again; next to them, the interpolation misses the neighbours that were not acquired.

A noise scan gives the covariance of the coils. The variance of a sample is proportional to the bandwidth, hence, for
dwell times t and a receiver that takes noise from a share b of its nominal bandwidth [1]_,

.. math:: \Psi = \Psi_\text{noise scan} \, t_\text{noise} / (b \, t) .

Coils are whitened with it to their common root mean square, so that k-space keeps its unit.

Readouts for calibration alone lie in the same k-space if the header calls them embedded or interleaved or, where it
says nothing, if no image readout has their place; they then count as acquired. Others were acquired separately,
possibly with another contrast, and are left out.

References
----------
.. [1] P. Kellman, E. R. McVeigh, "Image reconstruction in SNR units: a general method for SNR measurement",
   Magn. Reson. Med. 54, 2005.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mri_ambient.errors import InputError
from mri_ambient.formats.base import KspaceSource, ScanFile, Shape, choose_part, finite
from mri_ambient.header import Header
from mri_ambient.operators import center_crop, fft1c, ifft1c
from mri_ambient.operators.noise import whitening_matrix
from mri_ambient.sampling import resolve_sampling
from mri_ambient.specification import Layout, ReadoutSpecification, Specification

Numbers = NDArray[Any]
_LARGEST = 2**34  # bytes of a slice; more is a damaged header
_IMAGE, _CALIBRATION, _BOTH, _NOISE, _OTHER = range(5)


@dataclass(frozen=True, eq=False)
class Readouts:
    """A list of readouts; every array has one entry each.

    Attributes
    ----------
    flags : ndarray of uint64
    counters : dict of str to ndarray
        ``line``, ``partition``, ``slice``, ``average``, and those of which every entry is a scan of its own.
    samples, coils, centre : ndarray of int
        Length, number of coils, and sample at the centre of k-space (where acquired in the usual direction).
    before, after : ndarray of int
        Samples to discard at either end, in the order of acquisition.
    dwell : ndarray of float
        Time of a sample, in any unit; 0 where not known.
    along : ndarray of float
        Position of the slice along its normal in mm.
    encoding : ndarray of int
        Number of the encoding in the header.
    address : ndarray of int
        Where the samples are.
    """

    flags: Numbers
    counters: dict[str, Numbers]
    samples: Numbers
    coils: Numbers
    centre: Numbers
    before: Numbers
    after: Numbers
    dwell: Numbers
    along: Numbers
    encoding: Numbers
    address: Numbers

    def __len__(self) -> int:
        return len(self.flags)

    def at(self, chosen: Numbers) -> Readouts:
        """Some of them, by index or mask."""
        arrays = {f.name: getattr(self, f.name)[chosen] for f in fields(self) if f.name != "counters"}
        return replace(self, **arrays, counters={name: values[chosen] for name, values in self.counters.items()})

    def kinds(self, flags: dict[str, int], ignored: dict[str, int]) -> Numbers:
        """What every readout is for."""
        kinds = np.full(len(self), _IMAGE)
        kinds[self.flagged(flags["calibration"])] = _CALIBRATION
        kinds[self.flagged(flags["calibration_and_imaging"])] = _BOTH
        for bit in ignored.values():
            kinds[self.flagged(bit)] = _OTHER
        kinds[self.flagged(flags["noise"])] = _NOISE
        return kinds

    def flagged(self, bit: int) -> Numbers:
        return (self.flags >> np.uint64(bit)) & np.uint64(1) == 1


Fetch = Callable[[Path, Numbers, Numbers, Numbers], list[NDArray[np.complex64]]]
"""Samples (coil, sample) of readouts of a file, by their addresses, coils and lengths."""

Noise = tuple[Readouts, Fetch]


@dataclass(frozen=True, eq=False)
class ReadoutSource(KspaceSource):
    """Readouts with their places.

    Attributes
    ----------
    path, fetch
        The file and what reads from it.
    shape : tuple of int
        (slice, coil, y, x), without oversampling.
    length : int
        Rows before oversampling is removed.
    index, column : ndarray of int
        Slice and column of every readout.
    first, last : ndarray of int
        Rows of the oversampled matrix that it fills, the last one excluded.
    skip : ndarray of int
        Sample that goes to the first row, in the usual direction.
    turned : ndarray of bool
        Whether it is stored in reverse.
    coils, samples, address : ndarray of int
        As in `Readouts`.
    whitening : Tensor (coil, coil) or None
    """

    path: Path
    fetch: Fetch
    shape: Shape
    length: int
    index: Numbers
    column: Numbers
    first: Numbers
    last: Numbers
    skip: Numbers
    turned: Numbers
    coils: Numbers
    samples: Numbers
    address: Numbers
    whitening: Tensor | None

    def kspace(self, index: int) -> Tensor:
        _, coils, height, width = self.shape
        chosen = np.flatnonzero(self.index == index)
        columns, place = np.unique(self.column[chosen], return_inverse=True)
        grid = np.zeros((coils, self.length, len(columns)), np.complex64)
        count = np.zeros((self.length, len(columns)), np.float32)
        stored = self.fetch(self.path, self.address[chosen], self.coils[chosen], self.samples[chosen])
        for number, column, values in zip(chosen, place, stored, strict=True):
            rows = slice(self.first[number], self.last[number])
            start = self.skip[number]
            forward = values[:, ::-1] if self.turned[number] else values
            grid[:, rows, column] += forward[:, start : start + rows.stop - rows.start]
            count[rows, column] += 1
        lines = torch.from_numpy(grid / np.maximum(count, 1))
        if height < self.length:
            lines = fft1c(center_crop(ifft1c(lines, dim=-2), (height, len(columns))), dim=-2)
            lines *= torch.from_numpy(_covered(count > 0, height))
        if self.whitening is not None:
            lines = torch.einsum("dc,cyx->dyx", self.whitening, lines)
        kspace = torch.zeros(coils, height, width, dtype=torch.complex64)
        kspace[:, :, torch.from_numpy(columns)] = lines
        return finite(kspace, f"slice {index} of {self.path}")

    def mask(self) -> NDArray[np.bool_]:
        """Samples that the readouts reach, (slice, y, x)."""
        slices, _, height, width = self.shape
        mask = np.zeros((slices, height, width), bool)
        ranges, kind = np.unique(np.stack([self.first, self.last]), axis=1, return_inverse=True)
        for number, (first, last) in enumerate(ranges.T):
            full = np.zeros((self.length, 1), bool)
            full[first:last] = True
            chosen = kind == number
            mask[self.index[chosen], :, self.column[chosen]] |= _covered(full, height)[:, 0]
        return mask


def _covered(acquired: NDArray[np.bool_], height: int) -> NDArray[np.bool_]:
    """Rows (height, ...) of the matrix without oversampling that acquired rows (length, ...) determine.

    Complete columns stay complete; of others, a row counts if the nearest oversampled row was acquired.
    """
    length = len(acquired)
    position = (np.arange(height) - height // 2) * (length / height) + length // 2
    nearest = np.clip(np.round(position).astype(int), 0, length - 1)
    return acquired[nearest] | acquired.all(0)


def assemble(
    path: Path,
    specification: Specification,
    readouts: Readouts,
    fetch: Fetch,
    headers: Callable[[int], Header],
    part: str,
    noise: Noise | None = None,
    layout: Layout | None = None,
) -> ScanFile:
    """Describe the scan that readouts make.

    Parameters
    ----------
    path : Path
    specification : Specification
        Of the format, with what its flags and counters mean.
    readouts : Readouts
        All of them.
    fetch : callable
        Reads samples.
    headers : callable
        Header by number of the encoding.
    part : str
        Which of several scans.
    noise : tuple, optional
        Readouts of a noise scan from another place of the file, with what reads them.
    layout : Layout, optional

    Raises
    ------
    InputError
        If they do not make one Cartesian 2-D scan.
    """
    meaning = specification.readouts
    assert meaning is not None
    kinds = readouts.kinds(meaning.flags, meaning.ignored)
    image = readouts.at((kinds == _IMAGE) | (kinds == _BOTH))
    if not len(image):
        raise InputError(f"{path} holds no readout of an image: convert the measurement that has the scan.")
    header = _one_encoding(path, image, headers)
    counters = np.unique(np.stack([image.counters[name] for name in meaning.separate], axis=1), axis=0)
    scans = [dict(zip(meaning.separate, map(int, row), strict=True)) for row in counters]
    chosen, label = choose_part(path, scans, part)
    image = image.at(_belong(image, scans[chosen]))
    calibration = readouts.at((kinds == _CALIBRATION) & (readouts.encoding == image.encoding[0]))
    calibration = calibration.at(_belong(calibration, scans[chosen]))
    used, notes = _with_calibration(image, calibration, header)
    _check(path, used)
    source, counts = _place(path, used, fetch, header, meaning)
    _probe(path, used, fetch)
    own = readouts.at(kinds == _NOISE)
    covariance = _covariance((own, fetch) if len(own) else noise, path, used, header, notes)
    noise_std = None
    if covariance is not None:
        level = float(np.sqrt(np.trace(covariance).real / (2 * len(covariance))))
        source = replace(source, whitening=_whitening(path, covariance, level))
        noise_std = level / float(np.sqrt(counts.min()))
        if counts.min() < counts.max():
            notes.append(
                f"Lines were averaged {counts.min()} to {counts.max()} times: the noise stated is that of the former."
            )
    try:
        mask = source.mask()
        sampling = resolve_sampling(mask, None, header.padding(source.shape[3]))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    marked = int(np.sum(kinds == _CALIBRATION) + np.sum(kinds == _BOTH))
    return ScanFile(
        path=path,
        format=specification,
        source=source,
        shape=source.shape,
        sampling=replace(sampling, notes=(*sampling.notes, *notes)),
        mask_source="readouts",
        layout=layout or Layout(),
        header=header,
        attributes=_voxels(header),
        part=label,
        noise_std=noise_std,
        details={
            "readouts": len(used),
            "noise_scan": len(own) or (len(noise[0]) if noise else 0),
            "calibration": marked,
            "averages": int(counts.max()),
            "oversampling": source.length / source.shape[2],
        },
    )


def _belong(readouts: Readouts, scan: dict[str, int]) -> Numbers:
    return np.all([readouts.counters[name] == value for name, value in scan.items()], axis=0)


def _voxels(header: Header) -> dict[str, str | float]:
    return {} if header.trajectory is None else {"trajectory": header.trajectory}


def _one_encoding(path: Path, image: Readouts, headers: Callable[[int], Header]) -> Header:
    numbers = np.unique(image.encoding)
    if len(numbers) > 1:
        raise InputError(f"{path} holds images of {len(numbers)} encodings: convert them to a file each.")
    header = headers(int(numbers[0]))
    if header.trajectory not in (None, "cartesian"):
        why = "whose ghosts need a correction" if header.trajectory == "epi" else "which is not Cartesian"
        raise InputError(
            f"{path} has the trajectory {header.trajectory}, {why}, and is not supported: use a Cartesian 2-D scan."
        )
    return header


def _with_calibration(image: Readouts, calibration: Readouts, header: Header) -> tuple[Readouts, list[str]]:
    """The readouts that make the scan: of the image, and for calibration where these lie in the same k-space."""
    if not len(calibration):
        return image, []
    places = set(zip(image.counters["slice"].tolist(), image.counters["line"].tolist(), strict=True))
    own = zip(calibration.counters["slice"].tolist(), calibration.counters["line"].tolist(), strict=True)
    embedded = header.calibration_mode in ("embedded", "interleaved")
    if not embedded and (header.calibration_mode is not None or any(place in places for place in own)):
        return image, [f"{len(calibration)} calibration readouts were acquired separately and are not used."]
    arrays = {
        f.name: np.concatenate([getattr(image, f.name), getattr(calibration, f.name)])
        for f in fields(image)
        if f.name != "counters"
    }
    counters = {name: np.concatenate([image.counters[name], calibration.counters[name]]) for name in image.counters}
    return Readouts(**arrays, counters=counters), []


def _check(path: Path, used: Readouts) -> None:
    if used.counters["partition"].any():
        raise InputError(f"{path} is encoded in 3-D, which is not supported: use a 2-D multi-slice scan.")
    coils = np.unique(used.coils)
    if len(coils) > 1 or coils[0] < 1:
        raise InputError(
            f"{path} has readouts of {' and '.join(map(str, coils[:4]))} coils: convert the measurement again."
        )
    place = np.stack([used.counters[name] for name in ("slice", "line", "average")])
    places, count = np.unique(place, axis=1, return_counts=True)
    if count.max() > 1:
        index, line, _ = places[:, count.argmax()]
        raise InputError(
            f"{path} holds line {line} of slice {index} {count.max()} times with the same counters: convert the "
            "measurement again."
        )


def _probe(path: Path, used: Readouts, fetch: Fetch) -> None:
    """Read one readout of every slice, to notice damage before the scan is used."""
    some = used.at(np.unique(used.counters["slice"], return_index=True)[1])
    for values in fetch(path, some.address, some.coils, some.samples):
        finite(torch.from_numpy(values), str(path))


def _place(
    path: Path, used: Readouts, fetch: Fetch, header: Header, meaning: ReadoutSpecification
) -> tuple[ReadoutSource, Numbers]:
    """Where every readout goes, and how many there are of every line."""
    length, width = header.encoded_size or (int(used.samples.max()), int(used.counters["line"].max()) + 1)
    height = header.readout_size or length
    order = _slice_order(used)
    shape = (len(order), int(used.coils[0]), height, width)
    if 8 * shape[1] * length * width > _LARGEST:
        raise InputError(f"{path} declares a matrix of {length} x {width}, which is absurd: convert it again.")
    centre = width // 2 if header.center is None else header.center
    column = used.counters["line"].astype(np.int64) - centre + width // 2
    outside = (column < 0) | (column >= width)
    if outside.any():
        line = used.counters["line"][outside][0]
        raise InputError(f"{path}: line {line} lies outside the matrix of {width} lines: correct the encoding limits.")
    first, last, skip, turned = _rows(path, used, length, meaning)
    index = order[np.unique(used.counters["slice"], return_inverse=True)[1]]
    source = ReadoutSource(
        path, fetch, shape, length, index, column, first, last, skip, turned,
        used.coils, used.samples, used.address, None,
    )  # fmt: skip
    return source, np.unique(np.stack([index, column]), axis=1, return_counts=True)[1]


def _rows(path: Path, used: Readouts, length: int, meaning: ReadoutSpecification) -> tuple[Numbers, ...]:
    """Rows that readouts fill, the sample that goes to the first of them, and whether they are stored in reverse."""
    samples, centre = used.samples.astype(np.int64), used.centre.astype(np.int64)
    turned = used.flagged(meaning.flags["reversed"])
    before = np.where(turned, used.after, used.before).astype(np.int64)
    after = np.where(turned, used.before, used.after).astype(np.int64)
    centre = np.where((centre == 0) & (samples == length), length // 2, centre)  # not filled in
    start = length // 2 - centre
    first = np.maximum(start + before, 0)
    last = np.minimum(start + samples - after, length)
    lost = samples - before - after - (last - first)  # a centre that is off by one loses one
    if ((centre >= samples) | (first > length // 2) | (last <= length // 2) | (lost > length // 16)).any():
        raise InputError(
            f"{path} has readouts that do not fit about the centre of a matrix of {length} samples: correct their "
            "length, their centre or the matrix."
        )
    return first, last, first - start, turned


def _slice_order(used: Readouts) -> Numbers:
    """Place in the volume of every slice counter that occurs: by position, or as counted where that does not tell."""
    _, where = np.unique(used.counters["slice"], return_index=True)
    along = used.along[where]
    if len(where) > 1 and np.isfinite(along).all() and np.diff(np.sort(along)).min() > 1e-3:
        return np.argsort(np.argsort(along))
    return np.arange(len(where))


def _covariance(
    noise: Noise | None, path: Path, used: Readouts, header: Header, notes: list[str]
) -> NDArray[np.complex128] | None:
    """Coil covariance of the noise in a readout of the image."""
    if noise is None:
        return None
    readouts, fetch = noise
    readouts = readouts.at(readouts.coils == used.coils[0])
    stored = fetch(path, readouts.address, readouts.coils, readouts.samples)
    samples = np.concatenate(stored, axis=1).astype(np.complex128) if stored else np.zeros((0, 0))
    if samples.shape[1] < 4 * used.coils[0]:
        notes.append("The noise scan has other coils or too few samples and is not used.")
        return None
    finite(torch.from_numpy(samples), f"the noise scan of {path}")
    dwell, own = float(readouts.dwell[0]), float(used.dwell[0])
    factor = dwell / own if dwell > 0 and own > 0 else 1.0
    covariance: NDArray[np.complex128] = samples @ samples.conj().T / samples.shape[1]
    return covariance * factor / header.noise_bandwidth


def _whitening(path: Path, covariance: NDArray[np.complex128], level: float) -> Tensor:
    try:
        return whitening_matrix(covariance) * level
    except ValueError as error:
        raise InputError(f"The noise scan of {path} cannot be used ({str(error).rstrip('.')}): remove it.") from error
