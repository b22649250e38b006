"""From files to prepared slices.

`prepare` turns every slice of every source into arrays ready for training (undersampled with its own fixed mask,
whitened, scaled, with maps from its own centre) and writes them once to a folder; a run that is started again finds
them there.

Sources are k-space files, used as acquired or undersampled retrospectively where fully sampled, or magnitude volumes
(NIfTI, DICOM folders), from which noisy multi-coil k-space is simulated. Mask and noise of a slice are fixed by the
seed.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from mri_ambient.calibration import Calibration, PreparedSlice, calibrate, prepare_slice, whiten
from mri_ambient.dataset import PreparedSlices, Record, save_array, write_atomically
from mri_ambient.errors import InputError
from mri_ambient.operators import MaskPattern, Sense, acs_width, ifft1c
from mri_ambient.readers import PATTERNS, is_scan, split_part
from mri_ambient.scan import Scan, load_scan
from mri_ambient.simulate import simulate_scan
from mri_ambient.streams import stream
from mri_ambient.volumes import Volume, load_volume

EMPTY = 0.02  # slices whose maps cover less of the field of view have no anatomy worth learning


@dataclass(frozen=True)
class Simulation:
    """How volumes become scans: coils, noise (99th percentile of the image = 1), matrices that volumes take in turn."""

    coils: int = 8
    noise_std: float = 0.02
    matrices: tuple[int, ...] = ()


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
            if split_part(path)[0].exists()
            else sorted(Path().glob(str(item)))
            if not path.is_absolute()
            else _absolute_glob(path)
        )
        if not matches:
            raise InputError(f"Nothing found at {item}.")
        for match in matches:
            found.update(_usable(match))
    if not found:
        raise InputError(f"No k-space, NIfTI (.nii, .nii.gz) or DICOM files in {', '.join(map(str, data))}.")
    return sorted(found)


def _absolute_glob(path: Path) -> list[Path]:
    return sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))


def _usable(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    folders = {p.parent for pattern in ("*.dcm", "*.DCM", "*.IMA") for p in path.rglob(pattern)}
    yield from folders
    for pattern in (*PATTERNS, "*.nii", "*.nii.gz"):
        yield from path.rglob(pattern)


def is_volume(path: Path) -> bool:
    """Whether a source is a magnitude volume, to be simulated, rather than k-space."""
    return path.is_dir() or not is_scan(path)


def prepare(
    sources: Sequence[Path | Volume],
    folder: Path,
    *,
    mask: str,
    accel: Sequence[float],
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
    mask, accel
        Retrospective undersampling of what is fully sampled, a new mask for every slice: kind of `MaskPattern`, and
        accelerations that the sources take in turn.
    simulation : Simulation
        For volumes.
    seed : int
    reconstruct : callable, optional
        First image of an undersampled slice. None stores that of the fully sampled (for volumes: noise-free) data.
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
        pattern = MaskPattern(mask, accel[number % len(accel)])
        some = list(_prepare_scan(scan, clean, folder, number, pattern, seed, reconstruct, noise_std))
        write_atomically(done, json.dumps([asdict(r) for r in some]).encode())
        records += some
    progress(len(sources), len(sources))
    if not records:
        raise InputError("None of the training slices shows any anatomy.")
    return PreparedSlices(folder, records, mask)


def is_fully_sampled(scan: Scan) -> bool:
    """Whether every line was acquired, zero-padded ones apart."""
    return scan.acceleration < 1.01


def require_full_sampling(scan: Scan) -> None:
    """Refuse an undersampled scan where references are needed.

    Raises
    ------
    InputError
        If it is, with a method that works.
    """
    if not is_fully_sampled(scan):
        raise InputError(
            f"Supervised training needs fully sampled scans, but {scan.name} is undersampled: use --method ambient."
        )


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
    pattern: MaskPattern,
    seed: int,
    reconstruct: Callable[[PreparedSlice], Tensor] | None,
    noise_std: float | None,
) -> Iterator[Record]:
    full = scan
    retrospective = is_fully_sampled(scan)
    if reconstruct is None:
        require_full_sampling(scan)
    shape = scan.shape[2], scan.shape[3]
    if retrospective:
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
        acs = pattern.acs_size(shape) if retrospective else acs_width(scan.slice_mask(i))
        acceleration = pattern.accel if retrospective else 0.0
        yield Record(
            name, scan.patient or scan.name, (scan.shape[1], *shape), item.noise_std, line, acs, retrospective,
            acceleration, scan.padding,
        )  # fmt: skip


def _reference(scan: Scan, index: int, calibration: Calibration, operator: Sense) -> Tensor:
    """Image of fully sampled k-space in the same maps and scale."""
    everything = operator.with_mask(torch.ones(scan.shape[3], dtype=torch.bool))
    kspace = scan.read(index)
    if calibration.whitening is not None:
        kspace = whiten(kspace, calibration.whitening)
    return everything.adjoint(kspace / calibration.scale)
