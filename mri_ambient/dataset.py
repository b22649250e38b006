"""Prepared slices on disk, served as training batches.

For line masks the readout is stored transformed back: rows are independent, so that a random run of rows is an exact
smaller scan, and only the rows that are needed are read.
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor

from mri_ambient.objectives.base import Batch
from mri_ambient.operators import MaskPattern, Sense, fft1c

KINDS = ("kspace", "maps", "mask", "image")  # arrays of a slice
WHOLE = 10**6  # rows of a strip that is a whole slice
UNFINISHED = ".unfinished"  # ends the names of files that are being written


@dataclass(frozen=True)
class Record:
    """One prepared slice.

    Attributes
    ----------
    name : str
        File stem of its arrays.
    patient : str
        Unit by which data are split.
    shape : tuple of int
        (coil, y, x).
    noise_std : float
        In prior units.
    line_mask : bool
        Whether rows are independent.
    acs : int
        Lines (or side of the square) of the fully sampled centre.
    retrospective : bool
        Whether the mask was drawn here, from a known pattern, rather than by the scanner.
    acceleration : float
        Of that pattern; 0 if the scanner drew the mask.
    padding : tuple of int
        Zero-padded columns (left, right), which cannot be acquired.
    """

    name: str
    patient: str
    shape: tuple[int, int, int]
    noise_std: float
    line_mask: bool
    acs: int
    retrospective: bool
    acceleration: float
    padding: tuple[int, int] = (0, 0)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Record":
        """Inverse of `dataclasses.asdict` and JSON, which turns tuples into lists."""
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**fields)


def save_array(path: Path, array: Tensor) -> None:
    """Write a tensor as .npy under its final name only when complete."""
    with _replacing(path) as file:
        np.save(file, array.contiguous().numpy())


def write_atomically(path: Path, content: bytes) -> None:
    """Write bytes under the final name only when complete."""
    with _replacing(path) as file:
        file.write(content)


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file of a name of its own that takes the place of another one when it is on the disk, or is removed.

    Without that order, a power cut could leave the new name without the content.
    """
    unfinished = path.with_name(f".{uuid4().hex}{UNFINISHED}")
    try:
        with open(unfinished, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


class PreparedSlices:
    """Prepared slices in a folder, served as batches of strips, at a cost that does not depend on their number.

    Parameters
    ----------
    folder : Path
    records : list of Record
    mask : str
        Kind of `MaskPattern` that retrospective masks were drawn from. For all others, acquisition probabilities are
        the frequencies in the data.
    archive : sequence of Record, optional
        Slices of the same folder whose masks these frequencies are of; default: `records`.
    """

    def __init__(
        self, folder: Path, records: list[Record], mask: str = "random", archive: Sequence[Record] | None = None
    ) -> None:
        self.folder = folder
        self.records = records
        self.mask = mask
        self.archive = archive
        self._probability: dict[tuple[float, ...], Tensor] = {}
        self._groups: dict[int, list[list[Record]]] = {}

    def __len__(self) -> int:
        return len(self.records)

    def accelerations(self) -> list[float]:
        """All accelerations, rising: of the pattern where a mask was drawn here, else what the mask says."""
        found = set()
        for record in self.records:
            if record.retrospective:
                found.add(record.acceleration)
            else:
                able = 1 - sum(record.padding) / record.shape[2]
                found.add(round(able / float(self.array(record, "mask").mean()), 1))
        return sorted(found)

    def split(self, patients: set[str]) -> tuple["PreparedSlices", "PreparedSlices"]:
        """Slices of all other patients, and of these, whose lines have the frequencies of the others."""
        inside = [r for r in self.records if r.patient in patients]
        outside = [r for r in self.records if r.patient not in patients]
        rest = PreparedSlices(self.folder, outside, self.mask)
        return rest, PreparedSlices(self.folder, inside, self.mask, archive=outside)

    def array(self, record: Record, kind: str) -> np.ndarray:
        """One array of a slice (kspace, maps, mask, image), mapped from disk."""
        array: np.ndarray = np.load(self.folder / f"{record.name}_{kind}.npy", mmap_mode="r")
        return array

    def slice(self, record: Record) -> tuple[Tensor, Sense]:
        """k-space (coil, y, x) and operator of a whole slice."""
        kspace, maps, mask = (torch.from_numpy(np.array(self.array(record, k))) for k in ("kspace", "maps", "mask"))
        if record.line_mask:
            kspace = fft1c(kspace.movedim(1, 0), dim=-2)
        return kspace, Sense(maps.movedim(1, 0), mask)

    def groups(self, strip: int) -> list[list[Record]]:
        """Records that can share a batch: same coils, same width, and same height for 2-D masks."""
        if strip not in self._groups:
            table: dict[tuple[int, ...], list[Record]] = {}
            for record in self.records:
                coils, ny, nx = record.shape
                key = (coils, min(strip, ny), nx) if record.line_mask else (coils, ny, nx)
                table.setdefault(key, []).append(record)
            self._groups[strip] = [table[key] for key in sorted(table)]
        return self._groups[strip]

    @cached_property
    def smallest_side(self) -> int:
        """Pixels of the shortest side of all images."""
        return min(n for record in self.records for n in record.shape[1:])

    def batch(self, size: int, strip: int, generator: torch.Generator, augment: bool = True) -> Batch:
        """Random strips of `strip` rows (whole slices for 2-D masks), augmented.

        Augmentations act on image, maps and k-space alike and keep the measurement exact: flips of both axes, a global
        phase, and an intensity factor (which changes the noise level with it).
        """
        groups = self.groups(strip)
        weights = torch.tensor([float(len(g)) for g in groups])
        group = groups[int(torch.multinomial(weights, 1, generator=generator))]
        chosen = torch.randint(len(group), (size,), generator=generator).tolist()
        items = [self._strip(group[i], strip, generator, augment) for i in chosen]
        return Batch(*(torch.stack(column) for column in zip(*items, strict=True)))

    def patches(self, count: int, size: int, generator: torch.Generator) -> Tensor:
        """Random square crops (count, y, x) of the images: flipped, transposed, with a global phase and intensity.

        The side is `size`, or that of the smallest image.
        """
        size = min(size, self.smallest_side)
        return torch.stack([self._patch(size, generator) for _ in range(count)])

    def _patch(self, size: int, generator: torch.Generator) -> Tensor:
        record = self.records[int(torch.randint(len(self), (), generator=generator))]
        top, left = (int(torch.randint(n - size + 1, (), generator=generator)) for n in record.shape[1:])
        image = torch.from_numpy(np.array(self.array(record, "image")[top : top + size, left : left + size]))
        draw = torch.rand(5, generator=generator).tolist()
        for turn, u in zip((lambda x: x.flip(-1), lambda x: x.flip(-2), lambda x: x.mT), draw[:3], strict=True):
            image = turn(image) if u < 0.5 else image
        return image * _random_factor(*draw[3:])

    def _strip(self, record: Record, strip: int, generator: torch.Generator, augment: bool) -> tuple[Tensor, ...]:
        ny = record.shape[1]
        rows = min(strip, ny) if record.line_mask else ny
        top = int(torch.randint(ny - rows + 1, (), generator=generator))
        window = slice(top, top + rows)
        maps = torch.from_numpy(np.array(self.array(record, "maps")[window])).movedim(1, 0)
        image = torch.from_numpy(np.array(self.array(record, "image")[window]))
        mask = torch.from_numpy(np.array(self.array(record, "mask")))
        probability = self.probability(record)
        if record.line_mask:
            kspace = torch.from_numpy(np.array(self.array(record, "kspace")[window])).movedim(1, 0)
        else:
            kspace = torch.from_numpy(np.array(self.array(record, "kspace")))
        noise_std = torch.tensor(record.noise_std)
        if augment:
            draw = torch.rand(4, generator=generator).tolist()
            if draw[0] < 0.5:
                kspace, maps, mask, probability, image = (
                    reverse(a, -1) for a in (kspace, maps, mask, probability, image)
                )
            if draw[1] < 0.5:
                kspace, maps, image = (reverse(a, -2) for a in (kspace, maps, image))
                if not record.line_mask:
                    mask, probability = reverse(mask, -2), reverse(probability, -2)
            factor = _random_factor(*draw[2:])
            kspace, image, noise_std = kspace * factor, image * factor, noise_std * factor.abs()
        if record.line_mask:
            kspace = fft1c(kspace, dim=-2)
        return kspace, maps, mask, probability, torch.tensor(record.acs), noise_std, image

    def probability(self, record: Record) -> Tensor:
        """Acquisition probability shaped like the mask, 0 in zero-padded columns.

        A fixed number of uniformly random lines has -1 instead, which asks for the exact conditional probabilities.
        """
        shape = record.shape[1:]
        key = (record.retrospective, record.acceleration, record.line_mask, *record.padding, *shape)
        if key not in self._probability:
            self._probability[key] = self._padded_probability(record, shape)
        return self._probability[key]

    def _padded_probability(self, record: Record, shape: tuple[int, int]) -> Tensor:
        if not record.retrospective:
            probability = self._frequency(record)
        elif self.mask == "random":
            probability = torch.full((1, shape[1]), -1.0)
        else:
            pattern = MaskPattern(self.mask, record.acceleration)
            probability = pattern.probability(shape).reshape(-1, shape[1])
        left, right = record.padding
        probability[:, :left] = 0
        probability[:, shape[1] - right :] = 0
        return probability

    def _frequency(self, record: Record) -> Tensor:
        """How often each line or sample was acquired in comparable slices of the archive.

        What the archive never shows could still have been acquired here: there, these slices count too.
        """
        total, count = self._acquired(self.records if self.archive is None else self.archive, record)
        if self.archive is None:
            return total / count
        more, further = self._acquired(self.records, record)
        return torch.where(total > 0, total / max(1, count), (total + more) / (count + further))

    def _acquired(self, records: Sequence[Record], record: Record) -> tuple[Tensor, int]:
        """In how many of the comparable slices each line was acquired, and their number; reads mask after mask."""
        total, count = torch.zeros(()), 0
        for other in records:
            if _comparable(other, record):
                total, count = total + torch.from_numpy(np.array(self.array(other, "mask"))), count + 1
        return total, count

    def patterns(self) -> list[tuple[Tensor, int]]:
        """Probability and size of the fully sampled centre of every sampling pattern in the data."""
        table = {(r.retrospective, r.acceleration, r.line_mask, r.padding, r.shape[1:], r.acs): r for r in self.records}
        return [(self.probability(record), record.acs) for record in table.values()]


def _comparable(a: Record, b: Record) -> bool:
    """Whether masks have the same places; those of lines do not depend on the readout."""
    axes = slice(2, 3) if a.line_mask else slice(1, 3)
    return (a.retrospective, a.line_mask, a.shape[axes]) == (b.retrospective, b.line_mask, b.shape[axes])


def _random_factor(u: float, v: float) -> Tensor:
    """Intensity between about 0.7 and 1.4 and any phase, from two uniform numbers."""
    return torch.polar(torch.tensor(math.exp((u - 0.5) * 0.7)), torch.tensor(2 * math.pi * v))


def reverse(x: Tensor, dim: int) -> Tensor:
    """Reflect an axis about its centre index ``N // 2``, which for even lengths differs from a plain flip.

    Reflecting an image this way reflects its centred k-space the same way.
    """
    flipped = x.flip(dim)
    return flipped if x.shape[dim] % 2 else flipped.roll(1, dim)
