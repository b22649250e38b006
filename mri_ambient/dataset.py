"""Training data: from files to prepared slices on disk, from prepared slices to batches.

`prepare` turns every slice of every source into arrays ready for training (undersampled with its own fixed mask,
whitened, scaled, with maps from its own centre) and writes them once to a folder; a run that is started again finds
them there. `PreparedSlices.batch` then reads only the rows it needs. For line masks the readout is stored transformed
back: rows are independent, so a random run of rows is an exact smaller scan.

Sources are k-space files, used as acquired or undersampled retrospectively where fully sampled, or magnitude volumes
(NIfTI, DICOM folders), from which noisy multi-coil k-space is simulated. Mask and noise of a slice are fixed by the
seed.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mri_ambient.calibration import Calibration, PreparedSlice, calibrate, prepare_slice, whiten
from mri_ambient.errors import InputError
from mri_ambient.objectives.base import Batch
from mri_ambient.operators import MaskPattern, Sense, acs_width, fft1c, ifft1c
from mri_ambient.scan import Scan, load_scan
from mri_ambient.simulate import simulate_scan
from mri_ambient.streams import stream
from mri_ambient.volumes import Volume, load_volume

INDEX = "index.json"
EMPTY = 0.02  # slices whose maps cover less of the field of view have no anatomy worth learning


@dataclass(frozen=True)
class Simulation:
    """How volumes become scans: coils, noise (99th percentile of the image = 1), matrices that volumes take in turn."""

    coils: int = 8
    noise_std: float = 0.02
    matrices: tuple[int, ...] = ()


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
    padding: tuple[int, int] = (0, 0)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Record":
        """Inverse of `dataclasses.asdict` and JSON, which turns tuples into lists."""
        return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def find_sources(data: Sequence[str | Path]) -> list[Path]:
    """Expand files, folders and glob patterns to scans and volumes, sorted.

    A folder with DICOM files counts as one volume.

    Raises
    ------
    InputError
        If a pattern matches nothing, or nothing usable is found.
    """
    found: set[Path] = set()
    for item in data:
        path = Path(item)
        matches = (
            [path]
            if path.exists()
            else sorted(Path().glob(str(item)))
            if not path.is_absolute()
            else _absolute_glob(path)
        )
        if not matches:
            raise InputError(f"Nothing found at {item}.")
        for match in matches:
            found.update(_usable(match))
    if not found:
        raise InputError(f"No k-space (.h5), NIfTI (.nii, .nii.gz) or DICOM files in {', '.join(map(str, data))}.")
    return sorted(found)


def _absolute_glob(path: Path) -> list[Path]:
    return sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))


def _usable(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    folders = {p.parent for pattern in ("*.dcm", "*.DCM", "*.IMA") for p in path.rglob(pattern)}
    yield from folders
    for pattern in ("*.h5", "*.nii", "*.nii.gz"):
        yield from path.rglob(pattern)


def is_volume(path: Path) -> bool:
    """Whether a source is a magnitude volume, to be simulated, rather than k-space."""
    return path.is_dir() or not path.name.endswith((".h5", ".hdf5"))


def prepare(
    sources: Sequence[Path | Volume],
    folder: Path,
    *,
    pattern: MaskPattern | None,
    simulation: Simulation,
    seed: int,
    reconstruct: Callable[[PreparedSlice], Tensor] | None = None,
    noise_std: float | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> "PreparedSlices":
    """Prepare every slice of the sources; slices that the folder holds already are not done again.

    Parameters
    ----------
    sources : sequence of Path or Volume
    folder : Path
        Where the arrays go.
    pattern : MaskPattern, optional
        Retrospective undersampling of what is fully sampled, a new mask for every slice. None keeps scans as they are.
    simulation : Simulation
        For volumes.
    seed : int
    reference : bool
        Store the image of the fully sampled (for volumes: noise-free) data, for supervised training; otherwise a first
        linear reconstruction of the undersampled data.
    noise_std : float, optional
        Noise of k-space files in their own units, where the user knows it.
    progress : callable
        Told the number of sources done and their total.

    Raises
    ------
    InputError
        If a source cannot be used, or references are asked of undersampled scans.
    """
    folder.mkdir(parents=True, exist_ok=True)
    records: list[Record] = []
    for number, source in enumerate(sources):
        progress(number, len(sources))
        done = folder / f"{number:05d}.json"
        if done.exists():
            records += [Record.from_json(values) for values in json.loads(done.read_text())]
            continue
        scan, clean = _open(source, simulation, seed, number)
        some = list(_prepare_scan(scan, clean, folder, number, pattern, seed, reconstruct, noise_std))
        write_atomically(done, json.dumps([asdict(r) for r in some]).encode())
        records += some
    progress(len(sources), len(sources))
    if not records:
        raise InputError("None of the training slices shows any anatomy.")
    prepared = PreparedSlices(folder, records, pattern)
    prepared.check_variety()
    return prepared


def _open(source: Path | Volume, simulation: Simulation, seed: int, number: int) -> tuple[Scan, Scan | None]:
    """The scan, and for volumes the noise-free one."""
    if isinstance(source, Path) and not is_volume(source):
        return load_scan(source), None
    volume = source if isinstance(source, Volume) else load_volume(source)
    matrix = simulation.matrices[number % len(simulation.matrices)] if simulation.matrices else None
    noisy, clean = (
        simulate_scan(volume, coils=simulation.coils, noise_std=noise, seed=seed, matrix=matrix)
        for noise in (simulation.noise_std, 0.0)
    )
    return noisy, clean


def _prepare_scan(
    scan: Scan,
    clean: Scan | None,
    folder: Path,
    number: int,
    pattern: MaskPattern | None,
    seed: int,
    reconstruct: Callable[[PreparedSlice], Tensor] | None,
    noise_std: float | None,
) -> Iterator[Record]:
    full = scan
    fully_sampled = scan.acceleration < 1.01
    retrospective = pattern is not None and fully_sampled
    if reconstruct is None and not fully_sampled:
        raise InputError(
            f"Supervised training needs fully sampled scans, but {scan.name} is undersampled: use --method ambient."
        )
    shape = scan.shape[2], scan.shape[3]
    if pattern is not None and retrospective:
        masks = [pattern.sample(shape, stream(seed, "mask", number, i)) for i in range(scan.shape[0])]
        scan = scan.undersample(torch.stack([m[None] if m.ndim == 1 else m for m in masks]))
    calibration = calibrate(scan, noise_std)
    for i in range(scan.shape[0]):
        item = prepare_slice(scan, i, calibration)
        if (item.operator.sensitivity_maps.abs().amax(0) > 0).float().mean() < EMPTY:
            continue
        image = reconstruct(item) if reconstruct else _reference(clean or full, i, calibration, item.operator)
        line = item.operator.is_line_mask
        kspace = ifft1c(item.kspace, dim=-2) if line else item.kspace
        name = f"{number:05d}_{i:04d}"
        save_array(folder / f"{name}_kspace.npy", kspace.movedim(0, 1) if line else kspace)
        save_array(folder / f"{name}_maps.npy", item.operator.sensitivity_maps.movedim(0, 1))
        save_array(folder / f"{name}_mask.npy", item.operator.mask)
        save_array(folder / f"{name}_image.npy", image)
        acs = pattern.acs_size(shape) if pattern is not None and retrospective else acs_width(scan.slice_mask(i))
        size = (scan.shape[1], *shape)
        yield Record(name, scan.patient or scan.name, size, item.noise_std, line, acs, retrospective, scan.padding)


def _reference(scan: Scan, index: int, calibration: Calibration, operator: Sense) -> Tensor:
    """Image of fully sampled k-space in the same maps and scale."""
    everything = operator.with_mask(torch.ones(scan.shape[3], dtype=torch.bool))
    kspace = scan.read(index)
    if calibration.whitening is not None:
        kspace = whiten(kspace, calibration.whitening)
    return everything.adjoint(kspace / calibration.scale)


def save_array(path: Path, array: Tensor) -> None:
    """Write a tensor as .npy under its final name only when complete."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        np.save(file, array.contiguous().numpy())
    os.replace(partial, path)


def write_atomically(path: Path, content: bytes) -> None:
    """Write bytes under the final name only when complete."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)


class PreparedSlices:
    """Prepared slices in a folder, served as batches of strips.

    Parameters
    ----------
    folder : Path
    records : list of Record
    pattern : MaskPattern, optional
        The pattern that retrospective masks were drawn from. For all others, acquisition probabilities are the
        frequencies in the data.
    """

    def __init__(self, folder: Path, records: list[Record], pattern: MaskPattern | None = None) -> None:
        self.folder = folder
        self.records = records
        self.pattern = pattern
        self._probability: dict[tuple[int, ...], Tensor] = {}

    def __len__(self) -> int:
        return len(self.records)

    def split(self, patients: set[str]) -> tuple["PreparedSlices", "PreparedSlices"]:
        """Slices of all other patients, and of these."""
        inside = [r for r in self.records if r.patient in patients]
        outside = [r for r in self.records if r.patient not in patients]
        return PreparedSlices(self.folder, outside, self.pattern), PreparedSlices(self.folder, inside, self.pattern)

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
        table: dict[tuple[int, ...], list[Record]] = {}
        for record in self.records:
            coils, ny, nx = record.shape
            key = (coils, min(strip, ny), nx) if record.line_mask else (coils, ny, nx)
            table.setdefault(key, []).append(record)
        return [table[key] for key in sorted(table)]

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
            factor = math.exp((draw[2] - 0.5) * 0.7)
            phase = torch.polar(torch.tensor(factor), torch.tensor(2 * math.pi * draw[3]))
            kspace, image, noise_std = kspace * phase, image * phase, noise_std * factor
        if record.line_mask:
            kspace = fft1c(kspace, dim=-2)
        return kspace, maps, mask, probability, torch.tensor(record.acs), noise_std, image

    def probability(self, record: Record) -> Tensor:
        """Acquisition probability shaped like the mask, 0 in zero-padded columns.

        A fixed number of uniformly random lines has -1 instead, which asks for the exact conditional probabilities.
        """
        shape = record.shape[1:]
        key = (record.retrospective, record.line_mask, *record.padding, *shape)
        if key not in self._probability:
            if not record.retrospective or self.pattern is None:
                masks = [self.array(r, "mask") for r in self.records if self._comparable(r, record)]
                self._probability[key] = torch.from_numpy(np.mean(masks, axis=0, dtype=np.float32))
            elif self.pattern.kind == "random":
                self._probability[key] = torch.full((1, shape[1]), -1.0)
            else:
                self._probability[key] = self.pattern.probability(shape).reshape(-1, shape[1])
            left, right = record.padding
            self._probability[key][:, :left] = 0
            self._probability[key][:, shape[1] - right :] = 0
        return self._probability[key]

    def _comparable(self, a: Record, b: Record) -> bool:
        return (a.retrospective, a.line_mask, a.shape[1:]) == (b.retrospective, b.line_mask, b.shape[1:])

    def check_variety(self) -> None:
        """Refuse an archive from which held-out lines teach nothing: every scan acquired the same lines.

        Raises
        ------
        InputError
            If so.
        """
        frequencies = [self.probability(r) for r in self.records if not r.retrospective]
        if frequencies and all(bool(((p == 0) | (p == 1)).all() and (p == 0).any()) for p in frequencies):
            raise InputError(
                "All scans acquired the same lines, so that the others are never seen: ambient training needs scans "
                "with different masks (for example shifted offsets)."
            )


def reverse(x: Tensor, dim: int) -> Tensor:
    """Reflect an axis about its centre index ``N // 2``, which for even lengths differs from a plain flip.

    Reflecting an image this way reflects its centred k-space the same way.
    """
    flipped = x.flip(dim)
    return flipped if x.shape[dim] % 2 else flipped.roll(1, dim)
