"""One reconstruction of one scan with known truth, scored: the unit of work of a benchmark.

Everything a `Cell` needs is in it, so that it can be done in any process and in any order. What cells share (an opened
or simulated scan, its truth, an undersampled version, a loaded prior) is remembered per process.

*Truth.* Of volumes, which are simulated as `mri-ambient simulate` does, the noise-free image. Of k-space files the
target in the file if the noise level is known, so that coils are left as they are; otherwise (as scans of unknown noise
are whitened, which changes intensities) and without a target, the root sum of squares of the fully sampled coil images,
whitened likewise. All within the image size of the scan.

Weights of CG-SENSE (relative to the largest eigenvalue), L1-wavelet, TV (in noise standard deviations) and GRAPPA (its
ridge) can be chosen: `tune` finds the best of `WEIGHTS` on scans that are not scored.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mri_ambient.calibration import MIN_ACS, PreparedSlice, calibrate, prepare_slice, whiten
from mri_ambient.errors import InputError
from mri_ambient.metrics import nmse, psnr, ssim
from mri_ambient.operators import center_crop, ifft2c, rss
from mri_ambient.operators.classical import cg_sense, l1_wavelet, tv
from mri_ambient.preparation import is_volume
from mri_ambient.prior import Prior
from mri_ambient.recon.coverage import coverage
from mri_ambient.recon.grappa import RIDGE, grappa
from mri_ambient.recon.pipeline import Reconstructor, open_prior, undersample
from mri_ambient.recon.settings import SAMPLED, Settings
from mri_ambient.run_state import choose_device
from mri_ambient.scan import Scan, load_scan, require_acs
from mri_ambient.simulate import simulate_scan
from mri_ambient.volumes import load_volume

METRICS: dict[str, Callable[[Any, Any], float]] = {"psnr": psnr, "ssim": ssim, "nmse": nmse}
LEAST_NOISE = 0.002  # of prior units; undersampling errors remain to be removed where there is no noise
WEIGHTED: dict[str, Callable[[PreparedSlice, float], Tensor]] = {
    "sense": lambda item, weight: cg_sense(item.kspace, item.operator, regularisation=weight),
    "l1-wavelet": lambda item, weight: l1_wavelet(item.kspace, item.operator, regularisation=weight * _noise(item)),
    "tv": lambda item, weight: tv(item.kspace, item.operator, regularisation=weight * _noise(item)),
    "grappa": grappa,
}
WEIGHTS = {
    "sense": (0.005, 0.01, 0.02, 0.04, 0.08),
    "l1-wavelet": (0.1, 0.2, 0.4, 0.8, 1.6),
    "tv": (0.1, 0.2, 0.4, 0.8, 1.6),
    "grappa": (0.01, 0.03, 0.1, 0.3, 1.0),
}


@dataclass(frozen=True)
class Source:
    """A scan or volume with known truth; `digest` is the SHA-256 of its content."""

    path: Path
    label: str
    patient: str
    digest: str


@dataclass(frozen=True)
class Conditions:
    """What all cells of a benchmark share.

    Attributes
    ----------
    slices : int
        Of each scan, evenly spread.
    seed : int
        Of masks, samples and simulations.
    coils, matrix, noise
        Of the simulation of volumes, as in `simulate_scan`; a noise level also replaces that of k-space files.
    samples, steps : int
        Of posterior sampling.
    coverage : bool
        Compare samples with the truth.
    device, precision : str
        As in `mri_ambient.train`.
    """

    slices: int = 3
    seed: int = 0
    coils: int = 8
    matrix: int | None = None
    noise: float | None = None
    samples: int = 8
    steps: int = 25
    coverage: bool = False
    device: str = "auto"
    precision: str = "auto"


@dataclass(frozen=True)
class Method:
    """A method under the name it has in tables; learned ones with the name and hash of their prior."""

    label: str
    method: str
    prior: str | None = None
    prior_hash: str | None = None


@dataclass(frozen=True)
class Cell:
    """One scan, undersampled in one way, reconstructed by one method."""

    conditions: Conditions
    source: Source
    accel: float
    mask: str
    method: Method
    weight: float | None = None

    @property
    def key(self) -> str:
        """Names it within a benchmark."""
        return f"{self.source.label} | R = {self.accel:g} | {self.mask} | {self.method.label}"


@dataclass(frozen=True)
class Tuning:
    """The search for the best weights of one acceleration and mask on scans that are not scored."""

    conditions: Conditions
    sources: tuple[Source, ...]
    accel: float
    mask: str
    methods: tuple[str, ...]

    @property
    def key(self) -> str:
        """Names it within a benchmark."""
        return f"tuning | R = {self.accel:g} | {self.mask}"


@dataclass(frozen=True)
class Estimate:
    """Reconstructed slices.

    Attributes
    ----------
    magnitude, std : array (slice, y, x)
        std is None where the method has none; scaled by `std_factor` (`Reconstructor.check`) where coverage is asked
        for.
    samples : array (slice, sample, y, x) or None
        Kept where coverage is asked for.
    seconds : float
    evaluations : int
        Of the network, the check included.
    std_factor : float
    """

    magnitude: np.ndarray
    std: np.ndarray | None
    samples: np.ndarray | None
    seconds: float
    evaluations: int
    std_factor: float = 1.0


def do(task: Cell | Tuning) -> dict[str, Any]:
    """The result of a task, JSON values."""
    return score(task) if isinstance(task, Cell) else tune(task)


def score(cell: Cell) -> dict[str, Any]:
    """Quality, cost and, if asked for, coverage of a cell; ``skipped`` and the reason where its mask is impossible."""
    row: dict[str, Any] = {
        "volume": cell.source.label, "patient": cell.source.patient, "accel": cell.accel, "mask": cell.mask,
        "method": cell.method.label,
    }  # fmt: skip
    scan = _undersampled(cell.source, cell.conditions, cell.accel, cell.mask)
    if isinstance(scan, str):
        return {**row, "skipped": scan}
    if cell.method.method == "grappa" and scan.slice_mask(0).ndim == 2:
        return {**row, "skipped": f"grappa with {cell.mask} masks: it fills missing lines, not single samples."}
    _, indices, truth = _opened(cell.source, cell.conditions)
    found = estimate(cell, indices)
    row |= {name: metric(truth, found.magnitude) for name, metric in METRICS.items()}
    row |= {"acceleration": round(scan.acceleration, 3), "seconds": round(found.seconds / len(indices), 4)}
    row |= {"evaluations": found.evaluations / len(indices)}
    if cell.weight is not None:
        row["weight"] = cell.weight
    if cell.conditions.coverage and found.samples is not None and found.std is not None and cell.conditions.samples > 1:
        covered = coverage(truth, found.magnitude, found.std, found.samples).as_dict()
        spread_of_samples = np.abs(found.samples).std(1, ddof=1)
        plain = coverage(truth, found.magnitude, spread_of_samples, found.samples)
        row["coverage"] = {**covered, "uncalibrated": plain.normal, "std_factor": found.std_factor}
    return row


def tune(task: Tuning) -> dict[str, Any]:
    """For every method the weight with the best mean PSNR; none where the mask is impossible."""
    best = {}
    for name in task.methods:
        quality: dict[float, float] = {}
        for weight in WEIGHTS[name]:
            cells = [
                Cell(task.conditions, source, task.accel, task.mask, Method(name, name), weight)
                for source in task.sources
            ]
            values = [row["psnr"] for row in map(score, cells) if "psnr" in row]
            if values:
                quality[weight] = float(np.mean(values))
        if quality:
            best[name] = max(quality, key=lambda weight: quality[weight])
    return {"weights": best}


def estimate(cell: Cell, indices: list[int]) -> Estimate:
    """Reconstruct slices of a cell's scan, whose mask must be possible.

    Raises
    ------
    InputError
        If the scan cannot be calibrated, or the prior is not made for the method.
    """
    given, scan = cell.conditions, _undersampled(cell.source, cell.conditions, cell.accel, cell.mask)
    if isinstance(scan, str):
        raise InputError(scan)
    place, _ = choose_device(given.device, given.precision)
    prior = None
    if cell.method.prior is not None:
        prior = _loaded(cell.method.prior, cell.method.prior_hash, given.device, given.precision)
    weight = RIDGE if cell.weight is None and cell.method.method == "grappa" else cell.weight
    began = time.perf_counter()
    if weight is not None:
        images = weighted(scan, indices, _noise_of_files(cell.source, given), cell.method.method, weight)
        return Estimate(images, None, None, time.perf_counter() - began, 0)
    keep = given.coverage and cell.method.method in SAMPLED
    numbers = (given.samples, given.steps, given.seed)
    settings = Settings(cell.method.method, *numbers, keep_samples=keep, calibrate=given.coverage)
    reconstructor = Reconstructor(scan, prior, settings, _noise_of_files(cell.source, given), place)
    results = list(reconstructor.slices(indices))
    seconds = time.perf_counter() - began
    std = [r.std.numpy() for r in results if r.std is not None]
    samples = [r.samples.numpy() for r in results if r.samples is not None]
    return Estimate(
        np.stack([r.mean.abs().numpy() for r in results]),
        np.stack(std) if std else None,
        np.stack(samples) if samples else None,
        seconds,
        sum(r.evaluations for r in results) + reconstructor.check.evaluations,
        reconstructor.check.std_factor,
    )


def weighted(scan: Scan, indices: list[int], noise_std: float | None, method: str, weight: float) -> np.ndarray:
    """Magnitudes (slice, y, x) of a classical method with a given weight, in input units."""
    calibration, images = calibrate(scan, noise_std), []
    for index in indices:
        item = prepare_slice(scan, index, calibration)
        image = WEIGHTED[method](item, weight) * item.scale
        images.append(center_crop(image, scan.recon_size).abs())
    return torch.stack(images).numpy()


def _noise(item: PreparedSlice) -> float:
    return max(item.noise_std, LEAST_NOISE)


def opened(source: Source, conditions: Conditions) -> tuple[Scan, list[int], np.ndarray]:
    """A source as a fully sampled scan, the slices to use, and their truth (slice, y, x).

    Raises
    ------
    InputError
        If it cannot be read, or is undersampled.
    """
    if is_volume(source.path):
        volume = load_volume(source.path)
        chosen = spread(volume.shape[0], conditions.slices)
        scan = simulate_scan(
            volume, coils=conditions.coils, noise_std=0.02 if conditions.noise is None else conditions.noise,
            seed=conditions.seed, matrix=conditions.matrix, slices=chosen, name=source.label,
        )  # fmt: skip
        return scan, list(range(len(chosen))), reference(scan, list(range(len(chosen))), None)
    scan = replace(load_scan(source.path), name=source.label)
    require_full(scan)
    chosen = spread(scan.shape[0], conditions.slices)
    return scan, chosen, reference(scan, chosen, conditions.noise)


def require_full(scan: Scan) -> None:
    """Refuse scans that cannot be undersampled in any way."""
    if not scan.is_fully_sampled:
        raise InputError(
            f"{scan.name} is undersampled (R = {scan.acceleration:.2f}): a benchmark needs fully sampled scans or "
            "magnitude volumes, as it undersamples them itself."
        )


def spread(count: int, wanted: int) -> list[int]:
    """Slices spread evenly over a volume, its ends left out; all of them if there are no more."""
    if wanted >= count:
        return list(range(count))
    return [(number + 1) * count // (wanted + 1) for number in range(wanted)]


def reference(scan: Scan, indices: list[int], noise_std: float | None) -> np.ndarray:
    """The truth (slice, y, x) of a fully sampled scan, see the module."""
    known = scan.noise_std if noise_std is None else noise_std
    if scan.has_target and known is not None:
        targets = [scan.read_target(index) for index in indices]
        return torch.stack([center_crop(t, scan.recon_size) for t in targets if t is not None]).numpy()
    matrix = calibrate(scan, noise_std).whitening
    images = []
    for index in indices:
        kspace = scan.read(index) if matrix is None else whiten(scan.read(index), matrix)
        images.append(center_crop(rss(ifft2c(kspace), dim=-3), scan.recon_size))
    return torch.stack(images).numpy()


def _noise_of_files(source: Source, conditions: Conditions) -> float | None:
    return None if is_volume(source.path) else conditions.noise


@lru_cache(maxsize=2)
def _opened(source: Source, conditions: Conditions) -> tuple[Scan, list[int], np.ndarray]:
    return opened(source, conditions)


@lru_cache(maxsize=4)
def _undersampled(source: Source, conditions: Conditions, accel: float, mask: str) -> Scan | str:
    """The undersampled scan, or why there is none."""
    scan = _opened(source, conditions)[0]
    try:
        scan = undersample(scan, accel, "random" if accel == 1 else mask, conditions.seed)
        require_acs(scan, MIN_ACS)
    except InputError as error:
        return str(error)
    return scan


@lru_cache(maxsize=4)
def _loaded(name: str, prior_hash: str | None, device: str, precision: str) -> Prior:
    """A prior on its device; the hash is there so that another content is another entry."""
    return open_prior(name, *choose_device(device, precision))
