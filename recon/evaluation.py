"""Reconstruction files against their targets: fastMRI's metrics per volume, means with intervals over patients.

A reconstruction is matched to its target by name: ``scan_recon.h5`` (or ``scan.h5`` in another folder) to ``scan.h5``.
The target is the dataset ``reconstruction_rss``, or ``reconstruction_esc``, which comes first where k-space has no coil
axis.

*Sizes.* Both volumes must have the same shape, with one exception. A target is the centre of a field of view, and its
file holds the k-space of that whole field of view. Where the reconstruction has exactly this larger size (it was not
cropped by the tool that made it), its centre is compared, and the row says ``cropped``. Anything else is an error: a
shift or a change of resolution would pass for a bad reconstruction.

Intervals are percentile bootstrap intervals over patients (attribute ``patient_id`` of the target; without it every
volume counts as a patient of its own).
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mri_ambient.errors import InputError
from mri_ambient.hdf5 import open_hdf5
from mri_ambient.metrics import bootstrap_interval, nmse, psnr, ssim
from mri_ambient.operators import center_crop
from mri_ambient.readers import RESULT
from mri_ambient.specification import plain


@dataclass(frozen=True)
class VolumeScore:
    """Metrics of one volume: PSNR in dB, SSIM and NMSE without unit; ``cropped`` if only its centre was compared."""

    name: str
    patient: str
    slices: int
    psnr: float
    ssim: float
    nmse: float
    cropped: bool


@dataclass(frozen=True)
class Mean:
    """Mean over volumes, with the ends of its interval over patients; None where there is only one patient."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Evaluation:
    """Rows (one a volume) and the summary of each metric ("psnr", "ssim", "nmse") over `patients` patients."""

    rows: tuple[VolumeScore, ...]
    summary: dict[str, Mean]
    patients: int
    level: float

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionaries and lists, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Target:
    volume: np.ndarray
    patient: str | None
    field_of_view: tuple[int, int] | None


def evaluate(
    reconstructions: Iterable[str | Path], targets: Iterable[str | Path], *, level: float = 0.95, seed: int = 0
) -> Evaluation:
    """Compare reconstruction files with their targets, one volume in memory at a time.

    Parameters
    ----------
    reconstructions, targets : paths
        HDF5 files, or folders whose ``.h5`` files are taken. Targets without a reconstruction are ignored.
    level : float
        Coverage of the intervals.
    seed : int
        Of the bootstrap.

    Returns
    -------
    Evaluation

    Raises
    ------
    InputError
        If a file cannot be read, a reconstruction has no target or an ambiguous one, or volumes do not fit.
    """
    rows = tuple(score(path, target) for path, target in match(_files(reconstructions), _files(targets)))
    patients = [row.patient for row in rows]
    summary = {}
    for metric in ("psnr", "ssim", "nmse"):
        values = [getattr(row, metric) for row in rows]
        low, high = bootstrap_interval(values, patients, level=level, seed=seed)
        summary[metric] = Mean(float(np.mean(values)), None if isnan(low) else low, None if isnan(high) else high)
    return Evaluation(rows, summary, len(set(patients)), level)


def match(reconstructions: Sequence[Path], targets: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Pair every reconstruction with the target of its name.

    Raises
    ------
    InputError
        If there are no reconstructions, or one has no target or several.
    """
    if not reconstructions:
        raise InputError("There is no reconstruction to evaluate: name .h5 files or folders that hold some.")
    named: dict[str, list[Path]] = {}
    for path in targets:
        named.setdefault(path.stem, []).append(path)
    pairs = []
    for path in reconstructions:
        stem = path.stem.removesuffix(RESULT)
        found = named.get(stem, [])
        if not found:
            raise InputError(f"There is no target for {path}: a file named {stem}.h5 must be among the targets.")
        if len(found) > 1:
            raise InputError(f"There are {len(found)} targets for {path}, {found[0]} and {found[1]}: name one of them.")
        pairs.append((path, found[0]))
    return pairs


def score(reconstruction: str | Path, target: str | Path) -> VolumeScore:
    """Metrics of one reconstruction file against one target file.

    Raises
    ------
    InputError
        If a file cannot be read or the volumes do not fit.
    """
    truth = _read_target(Path(target))
    with open_hdf5(reconstruction) as file:
        if "reconstruction" not in file:
            raise InputError(f"{reconstruction} has no dataset named reconstruction: it is not a reconstruction.")
        volume = np.asarray(file["reconstruction"][()])
    size = truth.volume.shape[-2:]
    cropped = volume.shape[-2:] == truth.field_of_view != size and all(np.greater_equal(volume.shape[-2:], size))
    if cropped:
        volume = center_crop(torch.from_numpy(volume), (size[0], size[1])).numpy()
    if volume.shape != truth.volume.shape:
        raise InputError(
            f"{reconstruction} has the shape {volume.shape} and its target in {target} {truth.volume.shape}: "
            "reconstruct the same slices at the same size."
        )
    try:
        values = {metric.__name__: metric(truth.volume, volume) for metric in (psnr, ssim, nmse)}
    except ValueError as error:
        raise InputError(f"{reconstruction} cannot be compared with {target}: {error}.") from error
    name = Path(target).stem
    return VolumeScore(name, truth.patient or name, len(volume), **values, cropped=cropped)


def _read_target(path: Path) -> _Target:
    with open_hdf5(path) as file:
        kspace = file.get("kspace")
        names = ["reconstruction_rss", "reconstruction_esc"]
        if kspace is not None and kspace.ndim == 3:
            names.reverse()
        name = next((name for name in names if name in file), None)
        if name is None:
            raise InputError(f"{path} holds no target: it needs the dataset reconstruction_rss or reconstruction_esc.")
        patient = plain(file.attrs.get("patient_id"))
        field_of_view = None if kspace is None else (int(kspace.shape[-2]), int(kspace.shape[-1]))
        return _Target(np.asarray(file[name][()]), None if patient is None else str(patient), field_of_view)


def _files(paths: Iterable[str | Path]) -> list[Path]:
    found: list[Path] = []
    for path in (Path(path) for path in paths):
        if not path.exists():
            raise InputError(f"There is no file {path}: check the name and the folder.")
        found += sorted(path.glob("*.h5")) if path.is_dir() else [path]
    return found
