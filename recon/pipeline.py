"""From a scan to a reconstruction: calibrate once, then slice by slice with any method.

Slices are read, reconstructed and handed on one at a time, so that memory does not depend on their number. The whole
field of view is reconstructed in prior units; the last steps undo the scale and crop to the image size in the header.

Before the first slice, a few slices are reconstructed from a part of their k-space and compared with the rest
(`consistency`): the standard deviations of the volume are scaled by what that says, and scans that prior or noise level
do not fit are named.

Where one set of coil maps cannot explain the data (`mri_ambient.calibration`), there are two, with an image each. The
result, and each sample, is their root sum of squares, with the phase of the first. A-DPS is left with one set.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mri_ambient.allocator import keep_freed_memory
from mri_ambient.calibration import MAX_ACS, Calibration, PreparedSlice, calibrate, map_sets, prepare_slice
from mri_ambient.denoiser import set_precision
from mri_ambient.errors import InputError
from mri_ambient.operators import MaskPattern, acs_width, center_crop
from mri_ambient.operators.classical import cg_sense
from mri_ambient.operators.sense import SoftSense, side_by_side
from mri_ambient.posterior import MIN_NOISE, ImageDenoiser, refine
from mri_ambient.prior import DEFAULT_PRIOR, Prior, load_prior
from mri_ambient.recon.batches import Batches
from mri_ambient.recon.consistency import (
    Check,
    HeldOut,
    acquired_chi_square,
    compare,
    hold_out,
    outside_centre,
    rounded,
)
from mri_ambient.recon.posterior import sample_posterior
from mri_ambient.recon.result import Reconstruction, image_geometry
from mri_ambient.recon.samplers import SAMPLERS, Problem, further_mask, sample, through_mask
from mri_ambient.recon.settings import CLASSICAL, LEARNED, SAMPLED, Settings, check_use
from mri_ambient.run_state import choose_device
from mri_ambient.scan import Scan
from mri_ambient.streams import stream

REFINEMENT = 5  # noise-free steps from the average of the samples to the estimate
CHECKED_SLICES = 3  # of a volume, evenly spread
CHECKED_SAMPLES = 4
NO_SIGNAL = 1.5  # mean power of a slice's centre over that of the noise, below which there is nothing to reconstruct


@dataclass(frozen=True)
class SliceResult:
    """One reconstructed slice, in input units, cropped to the image.

    Attributes
    ----------
    index : int
    mean : Tensor (y, x), complex64
    std : Tensor (y, x), float32, or None
        Standard deviation of the magnitude over two or more samples, scaled by `Reconstructor.check`.
    samples : Tensor (sample, y, x) or None
    sensitivity_maps : Tensor (coil, y, x) or None
        Of the full field of view; two sets lie side by side along x.
    evaluations : int
        Network evaluations, all samples together.
    chi_square : float or None
        `consistency.acquired_chi_square`, where samples were drawn.
    empty : bool
        There is no signal; image and standard deviation are zero.
    """

    index: int
    mean: Tensor
    std: Tensor | None
    samples: Tensor | None
    sensitivity_maps: Tensor | None
    evaluations: int
    chi_square: float | None = None
    empty: bool = False

    def without_images(self) -> "SliceResult":
        """What `Reconstructor.attributes` needs to know of a slice."""
        return replace(self, mean=torch.empty(0), std=None, samples=None, sensitivity_maps=None)


def undersample(scan: Scan, accel: float | None, mask: str = "random", seed: int = 0) -> Scan:
    """Retrospective undersampling with one mask for the scan.

    Raises
    ------
    InputError
        If the acceleration is below 1 or the pattern unknown, or the scan is undersampled already.
    """
    if accel is None:
        return scan
    if not scan.is_fully_sampled:
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
            check_use(prior, settings.method)
        if noise_std is not None and not noise_std >= 0:
            raise InputError(f"The noise must not be negative, but is {noise_std:g}.")
        self.scan = scan
        self.prior = prior
        self.settings = settings
        self.device = device or torch.device("cpu")
        self.calibration: Calibration = calibrate(scan, noise_std)
        self._batches = Batches(max(settings.samples, CHECKED_SAMPLES))

    @cached_property
    def map_sets(self) -> int:
        """How many sets of coil maps are used."""
        return 1 if self.settings.method == "adps" else map_sets(self.scan, self.calibration, self.device)

    @property
    def evaluations_per_slice(self) -> int:
        """Network evaluations of a slice with signal."""
        return self._cost(self.settings.samples)

    @property
    def evaluations_of_check(self) -> int:
        """Network evaluations of `check`, if all its slices have signal."""
        return len(self._checked_slices) * self._cost(CHECKED_SAMPLES)

    def _cost(self, samples: int) -> int:
        method, steps = self.settings.method, self.settings.steps
        if method == "posterior":
            return self.map_sets * (1 + samples * steps + REFINEMENT)
        if method in SAMPLERS:
            return self.map_sets * (1 + samples * steps * SAMPLERS[method].evaluations_per_step)
        return self.map_sets if method == "mmse" else 0

    @cached_property
    def _checked_slices(self) -> list[int]:
        """Evenly spread, and with something to hold out."""
        if self.settings.method != "posterior" or not self.settings.calibrate:
            return []
        count = self.scan.shape[0]
        spread = sorted({int((i + 0.5) * count / CHECKED_SLICES) for i in range(CHECKED_SLICES)})
        return [i for i in spread if int(outside_centre(torch.atleast_2d(self.scan.slice_mask(i))).sum()) > 1]

    @cached_property
    def check(self) -> Check:
        """Held-out runs of a few slices, made when first asked for; which ones does not depend on what is wanted."""
        parts: dict[int, HeldOut] = {}
        acquired, evaluations = [], 0
        for index in self._checked_slices:
            item = self._prepare(index)
            kept = hold_out(item.operator.mask, stream(self.settings.seed, "held out", self.scan.name, index))
            if kept is None or self._is_empty(item):
                continue
            seen = replace(item, kspace=torch.where(kept, item.kspace, 0.0), operator=item.operator.with_mask(kept))
            address = ("held out samples", self.scan.name, index)
            estimate, samples, spent = self._posterior(seen, CHECKED_SAMPLES, address)
            parts[index] = compare(item.kspace, item.operator, kept, item.noise_std, estimate, samples)
            acquired.append(acquired_chi_square(seen.kspace, seen.operator, item.noise_std, samples))
            evaluations += spent
        return Check(
            tuple(parts), tuple(parts.values()), tuple(acquired), evaluations, self.scan.shape[1], self._noise_is_small
        )

    def slice(self, index: int) -> SliceResult:
        """Reconstruct one slice."""
        item = self._prepare(index)
        method, count = self.settings.method, self.settings.samples
        if self._is_empty(item):
            zero = torch.zeros(item.operator.image_shape, dtype=torch.complex64)
            result = self._finish(index, item, zero, zero.expand(count, -1, -1) if method in SAMPLED else None, 0)
            return replace(result, chi_square=None, empty=True)
        if method in CLASSICAL:
            return self._finish(index, item, CLASSICAL[method](item), None, 0)
        if method == "mmse":
            return self._finish(index, item, self._mmse(item), None, self._cost(1))
        return self._finish(index, item, *self._posterior(item, count, ("posterior", self.scan.name, index)))

    @property
    def _noise_is_small(self) -> bool:
        """Whether there is less noise than learned methods assume at least."""
        return self.calibration.noise_std / self.calibration.scale < MIN_NOISE

    def _prepare(self, index: int) -> PreparedSlice:
        item = prepare_slice(self.scan, index, self.calibration, self.device, self.map_sets)
        if self.settings.method in LEARNED:
            return replace(item, noise_std=max(item.noise_std, MIN_NOISE))
        return item

    @staticmethod
    def _is_empty(item: PreparedSlice) -> bool:
        """Whether a slice has no coil sensitivities, or hardly more power in its centre than noise has."""
        if not bool(item.operator.sensitivity_maps.abs().any()):
            return True
        mask = item.operator.mask
        side = min(acs_width(mask[0] if len(mask) == 1 else mask), MAX_ACS, *item.kspace.shape[-2:])
        power = float(center_crop(item.kspace, (side, side)).abs().square().mean())
        return power < NO_SIGNAL * 2 * item.noise_std**2

    @torch.no_grad()
    def _mmse(self, item: PreparedSlice) -> Tensor:
        """One network evaluation a set; each set is given the data less what the linear estimates of the others say."""
        assert self.prior is not None
        operator, kspace = item.operator, item.kspace
        if not isinstance(operator, SoftSense):
            return self.prior.denoiser(operator.adjoint(kspace)[None], item.noise_std, operator)[0]
        linear = operator.each.forward(operator.apart(cg_sense(kspace, operator, item.noise_std)))
        own = operator.each.adjoint(kspace - linear.sum(0) + linear)
        return side_by_side(self.prior.denoiser(own, item.noise_std, operator.each))

    @torch.no_grad()
    def _posterior(self, item: PreparedSlice, count: int, address: tuple[str | int, ...]) -> tuple[Tensor, Tensor, int]:
        """Estimate, samples (sample, y, x) with streams of their own below an address, and network evaluations."""
        assert self.prior is not None
        mmse, steps = self._mmse(item), self.settings.steps
        posterior = self.prior.posterior(item.kspace, item.operator, item.noise_std)
        published = SAMPLERS.get(self.settings.method)
        denoiser = self._through_mask(item) if self.settings.method == "adps" else self.prior.denoiser
        problem = Problem(denoiser, item.kspace, item.operator, item.noise_std, posterior.solver)

        def draw(numbers: range) -> Tensor:
            streams = [stream(self.settings.seed, *address, k) for k in numbers]
            if published:
                return sample(published, problem, len(streams), steps, streams, mmse)
            return sample_posterior(posterior, samples=len(streams), steps=steps, start=mmse, generators=streams)

        samples = self._batches.run(draw, count)
        if published:
            return samples.mean(0), samples, self._cost(count)
        return refine(posterior, samples.mean(0), steps=REFINEMENT, high=0.05), samples, self._cost(count)

    def _through_mask(self, item: PreparedSlice) -> ImageDenoiser:
        """The denoiser that A-DPS uses: it sees images through a mask such as those of its training, one a scan."""
        assert self.prior is not None
        accel = self.prior.card.get("acceleration", 4.0)
        generator = stream(self.settings.seed, "further mask", self.scan.name)
        width = item.kspace.shape[-1]
        mask = further_mask(width, max(accel) if isinstance(accel, list) else accel, generator=generator)
        return through_mask(self.prior.denoiser, item.operator.with_mask(mask))

    def _finish(
        self, index: int, item: PreparedSlice, mean: Tensor, samples: Tensor | None, evaluations: int
    ) -> SliceResult:
        def final(x: Tensor) -> Tensor:
            return center_crop(operator.combine(x) * self.calibration.scale, self.scan.recon_size).cpu()

        operator = item.operator
        std, chi_square, maps = None, None, operator.sensitivity_maps
        if samples is not None:
            chi_square = acquired_chi_square(item.kspace, item.operator, item.noise_std, samples)
            samples = final(samples)
            if len(samples) > 1:
                std = samples.abs().std(0, correction=1) * self.check.std_factor
        return SliceResult(
            index,
            final(mean),
            std,
            samples if self.settings.keep_samples else None,
            maps.cpu() if self.settings.keep_maps else None,
            evaluations,
            chi_square,
        )

    def slices(self, indices: Sequence[int] | None = None) -> Iterator[SliceResult]:
        """Reconstruct slices (default: all) one after the other."""
        for index in range(self.scan.shape[0]) if indices is None else indices:
            yield self.slice(index)

    def attributes(self, results: Sequence[SliceResult], seconds: float) -> dict[str, Any]:
        """Provenance of the result, and how well it agrees with the data."""
        from mri_ambient import __version__

        evaluations = self.check.evaluations + sum(result.evaluations for result in results)
        fit: dict[str, Any] = {"empty_slices": [result.index for result in results if result.empty]}
        if self.settings.method == "posterior":
            fit["chi_square_acquired"] = [rounded(result.chi_square) for result in results]
            fit |= self.check.attributes()
        prior = self.prior if self.settings.method in LEARNED else None
        return {
            "method": self.settings.method,
            "prior": prior.name if prior else "none",
            "prior_hash": prior.hash if prior else "none",
            "samples_drawn": self.settings.samples if self.settings.method in SAMPLED else 0,
            "steps": self.settings.steps if self.settings.method in SAMPLED else 0,
            "network_evaluations": evaluations,
            "seed": self.settings.seed,
            "acceleration": round(self.scan.acceleration, 4),
            "noise_std": self.calibration.noise_std,
            "map_sets": self.map_sets,
            "scale": self.calibration.scale,
            "seconds": round(seconds, 3),
            "versions": {"mri-ambient": __version__, "torch": torch.__version__},
            **fit,
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
    calibrate: bool = True,
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
        Posterior samples (one has no standard deviation), and network evaluations of each.
    seed : int
        Sample k of slice i has its own stream: it does not depend on which other slices or samples are drawn.
    noise_std : float, optional
        Noise per real component in the unit of k-space; default: from the file, or estimated.
    slices : sequence of int, optional
        Default: all.
    keep_samples, keep_maps : bool
        Keep samples and sensitivity maps in the result.
    calibrate : bool
        Compare three slices with held-out k-space and scale the standard deviations of all by what that says; the
        result is in the attributes `chi_square_held_out`, `std_factor` and `verdict`. See `recon.consistency`.
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
    settings = Settings(method, samples, steps, seed, keep_samples, keep_maps, calibrate)
    place, number_type = choose_device(device, precision)
    loaded = open_prior(prior, place, number_type) if method in LEARNED else None
    began = time.monotonic()
    reconstructor = Reconstructor(scan, loaded, settings, noise_std, place)
    results = list(reconstructor.slices(slices))
    voxel, affine = image_geometry(scan)

    def stacked(name: str) -> Any:
        values = [getattr(r, name) for r in results]
        return None if values[0] is None else torch.stack(values)

    return Reconstruction(
        mean=stacked("mean"),
        std=stacked("std"),
        samples=stacked("samples"),
        sensitivity_maps=stacked("sensitivity_maps"),
        attributes=reconstructor.attributes(results, time.monotonic() - began),
        name=scan.name,
        voxel_size=voxel,
        affine=affine,
    )


def open_prior(prior: Prior | str, device: torch.device, precision: torch.dtype) -> Prior:
    """Load a prior if it is given by name, put it on the device and set the precision of its network."""
    loaded = prior if isinstance(prior, Prior) else load_prior(prior)
    set_precision(loaded.denoiser, precision)
    return loaded.to(device)
