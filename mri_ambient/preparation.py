"""From files to prepared slices.

`prepare` turns every slice of every source into arrays ready for training (undersampled with its own fixed mask,
whitened, scaled, with maps from its own centre) and writes them once to a folder; a run that is started again finds
them there.

Sources are k-space files, used as acquired or undersampled retrospectively where fully sampled, or magnitude volumes
(NIfTI, DICOM folders), from which noisy multi-coil k-space is simulated. Mask and noise of a slice are fixed by the
seed.

A source that is done has a marker in the folder, JSON with its slices. It says which source that was, by the last two
parts of its path so that an archive can be moved, and whether it was the last one: a run never continues with others.

What decides the arrays of a source is hashed into its key in the cache (`mri_ambient.cache`): for a scan that was
acquired undersampled its content and name, the first reconstruction and a noise level that the user gave; for anything
else mask, acceleration, seed, simulation, and its number among the sources too, which the masks depend on.
"""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mri_ambient import __version__
from mri_ambient.cache import Cache, fingerprint, key_of
from mri_ambient.calibration import Calibration, PreparedSlice, calibrate, prepare_slice, whiten
from mri_ambient.dataset import KINDS, PreparedSlices, Record, save_array, write_atomically
from mri_ambient.errors import InputError
from mri_ambient.operators import MaskPattern, Sense, acs_width, ifft1c
from mri_ambient.readers import ENDINGS, is_result, is_scan, scan_files, split_part
from mri_ambient.scan import Scan, load_scan
from mri_ambient.simulate import sample_mask, simulate_scan
from mri_ambient.streams import stream
from mri_ambient.volumes import NIFTI, Volume, load_volume

VERSION = 1  # of the arrays; a test notices when they change, and then it must be raised
EMPTY = 0.02  # slices whose maps cover less of the field of view have no anatomy worth learning
_DICOM = (".dcm", ".DCM", ".IMA")
_FILES = (*ENDINGS, *NIFTI)


@dataclass(frozen=True)
class Simulation:
    """How volumes become scans: coils, noise (99th percentile of the image = 1), matrices that volumes take in turn."""

    coils: int = 8
    noise_std: float = 0.02
    matrices: tuple[int, ...] = ()


def find_sources(data: Sequence[str | Path]) -> list[Path]:
    """Expand files, folders and glob patterns to scans and volumes, sorted; no file is opened.

    A folder with DICOM files counts as one volume. Results of this program (`mri_ambient.readers.is_result`) are left
    out, unless they are named.

    Raises
    ------
    InputError
        If a pattern matches nothing, or nothing usable is found.
    """
    found: set[Path] = set()
    for item in data:
        path = Path(item)
        if split_part(path)[0].exists():
            matches = [path]
        else:
            matches = [match for match in _glob(path) if is_result(path) or not is_result(match)]
        if not matches:
            raise InputError(f"Nothing found at {item}.")
        for match in matches:
            found.update(_usable(match) if match.is_dir() else [match])
    if not found:
        raise InputError(f"No k-space, NIfTI (.nii, .nii.gz) or DICOM files in {', '.join(map(str, data))}.")
    return sorted(found)


def _glob(pattern: Path) -> list[Path]:
    return sorted(Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))))


def _usable(folder: Path) -> Iterator[Path]:
    """Scans and volumes in a folder, and folders of DICOM files, in one walk that leaves results out."""
    for place, below, names in os.walk(folder):
        below[:] = [name for name in below if not is_result(name)]
        if any(name.endswith(_DICOM) for name in names):
            yield Path(place)
        yield from (Path(place, name) for name in names if name.endswith(_FILES) and not is_result(name))


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
    scans: Mapping[Path, Scan] | None = None,
    cache: Cache | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PreparedSlices:
    """Prepare every slice of the sources; slices that the folder or the cache holds already are not done again.

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
        First image of an undersampled slice. None stores that of the fully sampled (for volumes: noise-free) data. With
        a cache it is a function of a module, as its name is part of the key.
    noise_std : float, optional
        Noise of k-space files in their own units, where the user knows it.
    scans : mapping of Path to Scan, optional
        Sources that are open already.
    cache : Cache, optional
    progress : callable
        Told the number of sources done and their total.

    Raises
    ------
    InputError
        If a source cannot be used, the folder holds slices of others, or references are asked of undersampled scans.
    """
    folder.mkdir(parents=True, exist_ok=True)
    labels = [_label(source) for source in sources]
    done = _begun(folder, labels)
    names = own_names(sources)
    for number, source in enumerate(sources):
        progress(number, len(sources))
        if number not in done:
            matrix = simulation.matrices[number % len(simulation.matrices)] if simulation.matrices else None
            pattern = MaskPattern(mask, accel[number % len(accel)])
            recipe = _Recipe(number, pattern, simulation, matrix, seed, reconstruct, noise_std)
            scan = (scans or {}).get(source) if isinstance(source, Path) else None
            own, distinct = names[number]
            found = _records(source, scan, folder, recipe, cache)
            done[number] = [replace(r, patient=distinct) if r.patient == own else r for r in found]
            last = number + 1 == len(sources)
            marker = {"source": labels[number], "last": last, "records": [asdict(r) for r in done[number]]}
            write_atomically(folder / f"{number:05d}.json", json.dumps(marker).encode())
    progress(len(sources), len(sources))
    records = [record for number in range(len(sources)) for record in done[number]]
    if not records:
        raise InputError("None of the training slices shows any anatomy.")
    return PreparedSlices(folder, records, mask)


def own_names(sources: Sequence[Path | Volume]) -> list[tuple[str, str]]:
    """The name of each source, which stands for a patient that is not known, and one that tells it from the others.

    The second is the first where no other source has it, else with the folders in which the sources differ. Both are
    empty for sources whose names never stand for a patient. No file is opened.
    """
    names = [_own_name(source) for source in sources]
    folders = [Path(os.path.abspath(s)).parent if isinstance(s, Path) else Path() for s in sources]
    places = defaultdict(list)
    for name, folder in zip(names, folders, strict=True):
        places[name].append(folder)
    common = {name: os.path.commonpath(some) for name, some in places.items() if name and len(some) > 1}
    return [
        (name, (folder.relative_to(common[name]) / name).as_posix() if name in common else name)
        for name, folder in zip(names, folders, strict=True)
    ]


def _own_name(source: Path | Volume) -> str:
    if isinstance(source, Volume) or source.name.lower().endswith(NIFTI):  # the folder of a NIfTI file is its patient
        return ""
    if source.is_dir():
        return source.resolve().name
    file, part = split_part(source)
    return file.stem + (f"_{part.replace(',', '_').replace('=', '')}" if part else "")  # as `ScanFile.name`


def _label(source: Path | Volume) -> str:
    """What a marker calls a source."""
    return source.name if isinstance(source, Volume) else "/".join(source.resolve().parts[-2:])


def _begun(folder: Path, labels: Sequence[str]) -> dict[int, list[Record]]:
    """Slices in the folder, by the number of their source.

    Raises
    ------
    InputError
        If they are of other sources than these.
    """
    done = {}
    for path in sorted(folder.glob("[0-9]*.json")):
        try:
            number = int(path.stem)
            marker = json.loads(path.read_text())
            before, last = marker["source"], marker["last"]
            done[number] = [Record.from_json(values) for values in marker["records"]]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is damaged or of another version: choose another --out.") from error
        now = labels[number] if number < len(labels) else "missing"
        changed = ""
        if before != now:
            changed = f"number {number + 1} was {before}, now it is {now}"
        elif last and number + 1 < len(labels):
            changed = f"they were {number + 1}, now they are {len(labels)}"
        if changed:
            raise InputError(f"{folder} was begun with other scans ({changed}): choose another --out.")
    return done


def require_full_sampling(scan: Scan) -> None:
    """Refuse an undersampled scan where references are needed.

    Raises
    ------
    InputError
        If it is, with a method that works.
    """
    if not scan.is_fully_sampled:
        raise InputError(
            f"Supervised training needs fully sampled scans, but {scan.name} is undersampled: use --method ambient."
        )


@dataclass(frozen=True)
class _Recipe:
    """What is done with the source of a number; see `prepare`."""

    number: int
    pattern: MaskPattern
    simulation: Simulation
    matrix: int | None
    seed: int
    reconstruct: Callable[[PreparedSlice], Tensor] | None
    noise_std: float | None

    @property
    def prefix(self) -> str:
        """Of the names of its arrays."""
        return f"{self.number:05d}_"

    def keys(self, source: Path | Volume) -> tuple[str, str] | None:
        """Names in the cache if the scanner undersampled the source, and if it is done here; None if unreadable."""
        try:
            content = _identity(source)
        except (OSError, InputError):  # opening the source will say what is wrong
            return None
        first = f"{self.reconstruct.__module__}.{self.reconstruct.__qualname__}" if self.reconstruct else "reference"
        common = (VERSION, __version__, content, first, self.noise_std)
        simulation = (self.simulation.coils, self.simulation.noise_std, self.matrix)
        return key_of(*common), key_of(*common, self.number, asdict(self.pattern), self.seed, simulation)


def _identity(source: Path | Volume) -> list[Any]:
    """Content of a source, and what its name decides: of a scan its own, of a volume its patient, a folder's."""
    if isinstance(source, Volume):
        digest = hashlib.sha256(source.magnitude.tobytes() + source.affine.tobytes()).hexdigest()
        return [digest, list(source.shape), source.patient, source.name]
    if source.is_dir():
        return [fingerprint(sorted(p for p in source.iterdir() if p.is_file())), str(source.resolve())]
    content = fingerprint(scan_files(source))
    return [content, str(source.resolve()) if is_volume(source) else source.name]


def _records(
    source: Path | Volume, scan: Scan | None, folder: Path, recipe: _Recipe, cache: Cache | None
) -> list[Record]:
    """Slices of a source, whose arrays are in the folder afterwards: from the cache, else prepared and put there."""
    keys = recipe.keys(source) if cache else None
    if not cache or not keys:
        return list(_prepare_scan(*_open(source, scan, recipe), folder, recipe))
    with cache.turn(keys[0]):
        for key in keys:
            found = cache.fetch(key, folder, recipe.prefix)
            if found is not None:
                return [replace(r, name=recipe.prefix + r.name) for r in map(Record.from_json, found)]
        acquired, clean = _open(source, scan, recipe)
        records = list(_prepare_scan(acquired, clean, folder, recipe))
        files = {f"{r.name}_{kind}.npy" for r in records for kind in KINDS}
        note = [asdict(replace(r, name=r.name.removeprefix(recipe.prefix))) for r in records]
        key = keys[1] if acquired.is_fully_sampled else keys[0]
        cache.store(key, {name.removeprefix(recipe.prefix): folder / name for name in files}, note)
    return records


def _open(source: Path | Volume, scan: Scan | None, recipe: _Recipe) -> tuple[Scan, Scan | None]:
    """The scan, which may be open already, and for volumes the noise-free one."""
    if scan:
        return scan, None
    if isinstance(source, Path) and not is_volume(source):
        return load_scan(source), None
    volume = source if isinstance(source, Volume) else load_volume(source)
    noisy, clean = (
        simulate_scan(volume, coils=recipe.simulation.coils, noise_std=noise, seed=recipe.seed, matrix=recipe.matrix)
        for noise in (recipe.simulation.noise_std, 0.0)
    )
    return noisy, clean


def _prepare_scan(scan: Scan, clean: Scan | None, folder: Path, recipe: _Recipe) -> Iterator[Record]:
    full = scan
    pattern = recipe.pattern
    retrospective = scan.is_fully_sampled
    if recipe.reconstruct is None:
        require_full_sampling(scan)
    shape = scan.shape[2], scan.shape[3]
    if retrospective:
        streams = (stream(recipe.seed, "mask", recipe.number, i) for i in range(scan.shape[0]))
        masks = [sample_mask(pattern, shape, one) for one in streams]
        scan = scan.undersample(torch.stack([m[None] if m.ndim == 1 else m for m in masks]))
    calibration = calibrate(scan, recipe.noise_std)
    for i in range(scan.shape[0]):
        item = prepare_slice(scan, i, calibration)
        if (item.operator.sensitivity_maps.abs().amax(0) > 0).float().mean() < EMPTY:
            continue
        first = recipe.reconstruct
        image = first(item) if first else _reference(clean or full, i, calibration, item.operator)
        line = item.operator.is_line_mask
        kspace = ifft1c(item.kspace, dim=-2) if line else item.kspace
        name = f"{recipe.prefix}{i:04d}"
        arrays = (
            kspace.movedim(0, 1) if line else kspace,
            item.operator.sensitivity_maps.movedim(0, 1),
            item.operator.mask,
            image,
        )
        for kind, array in zip(KINDS, arrays, strict=True):
            save_array(folder / f"{name}_{kind}.npy", array)
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
