"""From a scan to a reconstruction: calibrate once, then slice by slice with any method.

Slices are read, reconstructed and handed on one at a time, so that memory does not depend on their number. The whole
field of view is reconstructed in prior units; the last steps undo the scale and crop to the image size in the header.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mri_ambient.allocator import keep_freed_memory
from mri_ambient.calibration import Calibration, PreparedSlice, calibrate, prepare_slice
from mri_ambient.denoiser import set_precision
from mri_ambient.errors import InputError
from mri_ambient.operators import MaskPattern, center_crop
from mri_ambient.operators.classical import cg_sense, l1_wavelet, tv, zero_filled
from mri_ambient.posterior import ERROR_FACTOR, MIN_NOISE, PosteriorDenoiser, refine
from mri_ambient.prior import DEFAULT_PRIOR, Prior, load_prior
from mri_ambient.recon.posterior import sample_posterior
from mri_ambient.recon.result import Reconstruction, image_geometry
from mri_ambient.scan import Scan
from mri_ambient.streams import stream
from mri_ambient.training import choose_device

CLASSICAL: dict[str, Callable[[PreparedSlice], Tensor]] = {
    "zero-filled": lambda item: zero_filled(item.kspace, item.operator),
    "sense": lambda item: cg_sense(item.kspace, item.operator, item.noise_std),
    "l1-wavelet": lambda item: l1_wavelet(item.kspace, item.operator, item.noise_std),
    "tv": lambda item: tv(item.kspace, item.operator, item.noise_std),
}
LEARNED = ("posterior", "mmse")
METHODS = (*LEARNED, *CLASSICAL)
REFINEMENT = 10  # noise-free steps from the average of the samples to the estimate


@dataclass(frozen=True)
class Settings:
    """How to reconstruct.

    Attributes
    ----------
    method : str
        One of `METHODS`.
    samples, steps : int
        Posterior samples, and noise levels (network evaluations) of each.
    seed : int
    keep_samples, keep_maps : bool
        Hand on the samples and the sensitivity maps too.
    """

    method: str = "posterior"
    samples: int = 8
    steps: int = 25
    seed: int = 0
    keep_samples: bool = False
    keep_maps: bool = False

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"The method {self.method!r} is not one of {', '.join(METHODS)}.")
        if not 1 <= self.samples <= 4096 or not 1 <= self.steps <= 10_000:
            raise InputError("A posterior needs between 1 and 4096 samples and between 1 and 10000 steps.")


@dataclass(frozen=True)
class SliceResult:
    """One reconstructed slice, in input units, cropped to the image.

    Attributes
    ----------
    index : int
    mean : Tensor (y, x), complex64
    std : Tensor (y, x), float32, or None
        Standard deviation of the magnitude over samples.
    samples : Tensor (sample, y, x) or None
    sensitivity_maps : Tensor (coil, y, x) or None
        Of the full field of view.
    evaluations : int
        Network evaluations, all samples together.
    """

    index: int
    mean: Tensor
    std: Tensor | None
    samples: Tensor | None
    sensitivity_maps: Tensor | None
    evaluations: int


def _check_use(prior: Prior, method: str) -> None:
    """Refuse what a prior was not trained for."""
    if "view" in prior.card:
        raise InputError(f"{prior.name} is the prior of a view, not of images: compose it by training with --views.")
    if prior.card.get("method") == "ssdu" and method != "mmse":
        raise InputError(f"{prior.name} is an SSDU reconstruction network, not a prior: use --method mmse.")


def undersample(scan: Scan, accel: float | None, mask: str = "random", seed: int = 0) -> Scan:
    """Retrospective undersampling with one mask for the scan.

    Raises
    ------
    InputError
        If the acceleration is below 1 or the pattern unknown, or the scan is undersampled already.
    """
    if accel is None:
        return scan
    if scan.acceleration > 1.01:
        raise InputError(
            f"{scan.name} is undersampled already (R = {scan.acceleration:.2f}); --accel is for fully sampled scans."
        )
    try:
        pattern = MaskPattern(mask, accel)
        return scan.undersample(pattern.sample(scan.shape[2:], stream(seed, "mask", scan.name)))
    except ValueError as error:
        raise InputError(str(error)) from error


class Reconstructor:
    """Reconstructs the slices of one scan; calibrates it when made.

    Parameters
    ----------
    scan : Scan
    prior : Prior, optional
        Needed by the learned methods.
    settings : Settings
    noise_std : float, optional
        Noise per real component in the unit of k-space; default: from the file, or estimated.
    device : torch.device

    Raises
    ------
    InputError
        If the scan cannot be calibrated or a prior is missing.
    """

    def __init__(
        self,
        scan: Scan,
        prior: Prior | None,
        settings: Settings,
        noise_std: float | None = None,
        device: torch.device | None = None,
    ) -> None:
        if settings.method in LEARNED and prior is None:
            raise InputError(f"The method {settings.method!r} needs a prior.")
        if settings.method in LEARNED and prior is not None:
            _check_use(prior, settings.method)
        if noise_std is not None and not noise_std >= 0:
            raise InputError(f"The noise must not be negative, but is {noise_std:g}.")
        self.scan = scan
        self.prior = prior
        self.settings = settings
        self.device = device or torch.device("cpu")
        self.calibration: Calibration = calibrate(scan, noise_std)

    def slice(self, index: int) -> SliceResult:
        """Reconstruct one slice."""
        item = prepare_slice(self.scan, index, self.calibration, self.device)
        samples, evaluations = None, 0
        if not bool(item.operator.sensitivity_maps.abs().any()):
            mean = torch.zeros(self.scan.shape[2:], dtype=torch.complex64)
            samples = mean.expand(self.settings.samples, -1, -1) if self.settings.method == "posterior" else None
        elif self.settings.method in CLASSICAL:
            mean = CLASSICAL[self.settings.method](item)
        else:
            mean, samples, evaluations = self._learned(item, index)
        return self._finish(index, mean, samples, item.operator.sensitivity_maps, evaluations)

    @torch.no_grad()
    def _learned(self, item: PreparedSlice, index: int) -> tuple[Tensor, Tensor | None, int]:
        assert self.prior is not None
        denoiser = self.prior.denoiser
        noise_std = max(item.noise_std, MIN_NOISE)
        mmse = denoiser(item.operator.adjoint(item.kspace)[None], noise_std, item.operator)[0]
        if self.settings.method == "mmse":
            return mmse, None, 1
        posterior = PosteriorDenoiser(denoiser, item.kspace, item.operator, noise_std, self._error)
        streams = [
            stream(self.settings.seed, "posterior", self.scan.name, index, k) for k in range(self.settings.samples)
        ]
        samples = sample_posterior(
            posterior, samples=self.settings.samples, steps=self.settings.steps, start=mmse, generators=streams
        )
        evaluations = 1 + posterior.evaluations * self.settings.samples + REFINEMENT
        return refine(posterior, samples.mean(0), steps=REFINEMENT), samples, evaluations

    def _error(self, sigma: float) -> float:
        assert self.prior is not None
        return ERROR_FACTOR * self.prior.error(sigma)

    def _finish(self, index: int, mean: Tensor, samples: Tensor | None, maps: Tensor, evaluations: int) -> SliceResult:
        def final(x: Tensor) -> Tensor:
            return center_crop(x * self.calibration.scale, self.scan.recon_size).cpu()

        std = None
        if samples is not None:
            samples = final(samples)
            std = samples.abs().std(0, correction=1) if len(samples) > 1 else torch.zeros(samples.shape[-2:])
        return SliceResult(
            index,
            final(mean),
            std,
            samples if self.settings.keep_samples else None,
            maps.cpu() if self.settings.keep_maps else None,
            evaluations,
        )

    def slices(self, indices: Sequence[int] | None = None) -> Iterator[SliceResult]:
        """Reconstruct slices (default: all) one after the other."""
        for index in range(self.scan.shape[0]) if indices is None else indices:
            yield self.slice(index)

    def attributes(self, evaluations: int, seconds: float) -> dict[str, Any]:
        """Provenance of the result."""
        from mri_ambient import __version__

        prior = self.prior if self.settings.method in LEARNED else None
        return {
            "method": self.settings.method,
            "prior": prior.name if prior else "none",
            "prior_hash": prior.hash if prior else "none",
            "samples_drawn": self.settings.samples if self.settings.method == "posterior" else 0,
            "steps": self.settings.steps if self.settings.method == "posterior" else 0,
            "network_evaluations": evaluations,
            "seed": self.settings.seed,
            "acceleration": round(self.scan.acceleration, 4),
            "noise_std": self.calibration.noise_std,
            "scale": self.calibration.scale,
            "seconds": round(seconds, 3),
            "versions": {"mri-ambient": __version__, "torch": torch.__version__},
        }


def reconstruct(
    scan: Scan,
    prior: Prior | str = DEFAULT_PRIOR,
    *,
    method: str = "posterior",
    samples: int = 8,
    steps: int = 25,
    seed: int = 0,
    noise_std: float | None = None,
    slices: Sequence[int] | None = None,
    keep_samples: bool = False,
    keep_maps: bool = False,
    device: str = "auto",
    precision: str = "auto",
) -> Reconstruction:
    """Reconstruct a scan in memory.

    Parameters
    ----------
    scan : Scan
        See `load_scan` and `Scan.from_arrays`; any Cartesian mask, any acceleration.
    prior : Prior or str
        A loaded prior, or what `load_prior` takes. Not used by the classical methods.
    method : str
        "posterior" (estimate and standard deviation from samples), "mmse" (one network evaluation), "zero-filled",
        "sense", "l1-wavelet", "tv".
    samples, steps : int
        Posterior samples, and network evaluations of each.
    seed : int
        Sample k of slice i has its own stream: it does not depend on which other slices or samples are drawn.
    noise_std : float, optional
        Noise per real component in the unit of k-space; default: from the file, or estimated.
    slices : sequence of int, optional
        Default: all.
    keep_samples, keep_maps : bool
        Keep samples and sensitivity maps in the result.
    device, precision : str
        As in `mri_ambient.train`.

    Returns
    -------
    Reconstruction
        In the units of the input k-space, cropped to the scan's image size.

    Raises
    ------
    InputError
        If scan, prior or settings cannot be used.
    """
    keep_freed_memory()
    settings = Settings(method, samples, steps, seed, keep_samples, keep_maps)
    place, number_type = choose_device(device, precision)
    loaded = open_prior(prior, place, number_type) if method in LEARNED else None
    began = time.monotonic()
    reconstructor = Reconstructor(scan, loaded, settings, noise_std, place)
    results = list(reconstructor.slices(slices))
    voxel, affine = image_geometry(scan)
    evaluations = sum(r.evaluations for r in results)

    def stacked(name: str) -> Any:
        values = [getattr(r, name) for r in results]
        return None if values[0] is None else torch.stack(values)

    return Reconstruction(
        mean=stacked("mean"),
        std=stacked("std"),
        samples=stacked("samples"),
        sensitivity_maps=stacked("sensitivity_maps"),
        attributes=reconstructor.attributes(evaluations, time.monotonic() - began),
        name=scan.name,
        voxel_size=voxel,
        affine=affine,
    )


def open_prior(prior: Prior | str, device: torch.device, precision: torch.dtype) -> Prior:
    """Load a prior if it is given by name, put it on the device and set the precision of its network."""
    loaded = prior if isinstance(prior, Prior) else load_prior(prior)
    set_precision(loaded.denoiser, precision)
    return loaded.to(device)
