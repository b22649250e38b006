r"""From raw k-space to what a prior works on: whitened coils, one scale a volume, sensitivity maps.

Noise. If the scan states its noise level, coils count as white with that standard deviation. Otherwise the coil noise
covariance is estimated from the outermost acquired samples of the whole volume, and every slice is whitened with it.

Scale. A prior expects images whose brightest tissue is about 1. The scale is taken from the low-resolution images of
the fully sampled centre alone, so that it is the same for every acceleration, over the whole volume: with ``I`` the
root sum of squares,

.. math:: \text{scale} = 2 \sqrt{\sum I^4 / \sum I^2} ,

twice the energy-weighted root mean square intensity, which does not depend on how much air surrounds the head. What is
reconstructed is multiplied by it again, so that outputs are in the units of the input.

Maps come from the lines acquired in this very scan (ESPIRiT on the fully sampled centre).

Two sets of maps. Where a field of view smaller than the object, or motion, puts two parts of the object on one pixel,
one map cannot explain the coil images. That ESPIRiT's second eigenvalue is near one does not show this alone: with few
lines it rises in air and, with much noise, everywhere, while a narrow overlap hardly raises it. What counts is signal:
let :math:`I` be the coil images of the fully sampled centre under a Hann window (without which coil images of few lines
are not their object times the maps) and :math:`S_2` the second map where its eigenvalue exceeds `SECOND_CROP`. A volume
gets two sets if in most of a few slices

.. math:: \sum |S_2^H I|^2 > 3 \cdot 10^{-4} \sum |I|^2 \quad\text{and}\quad \sum |S_2^H I|^2 > 20\,E_{noise} ,

with the noise expected on the left side (and ten times that share where there are fewer than `SECOND_LINES` centre
lines), and the support of the second set is clearly smaller than that of the first: where it is not, noise fills the
space that ESPIRiT calibrates with. In 2-D masks with a centre of less than
`SECOND_SIDE` points an overlap cannot be told, and there is one set. Training uses one set always.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mri_ambient.errors import InputError
from mri_ambient.operators import (
    Sense,
    acs_width,
    center_crop,
    center_pad,
    espirit,
    estimate_noise,
    ifft2c,
    noise_covariance,
    rss,
)
from mri_ambient.operators.noise import whitening_matrix
from mri_ambient.operators.sense import SoftSense
from mri_ambient.scan import Scan, require_acs

MAX_ACS = 24  # a larger calibration region costs time and brings nothing
MIN_ACS = 8
CROP = 0.9  # ESPIRiT's eigenvalue threshold: with few lines and noise, 0.95 cuts away anatomy
CALIBRATION_SLICES = 32  # at most so many slices, evenly spread, decide noise and scale of a volume
# Simulated scans with a field of view too small by a sixth: in PSNR 0.1 dB less to 1.5 dB more than with 0.8.
SECOND_CROP = 0.6  # ESPIRiT's eigenvalue threshold with two sets
SECOND_SHARE = 3e-4  # of the signal that one set leaves to a second, at least; ordinary scans have up to 4e-5
SECOND_LINES, FEW_LINES_SHARE = 10, 3e-3  # the same with fewer centre lines: ordinary phantoms have up to 5e-4
SECOND_POWER = 20.0  # of that signal over the noise in it, at least; ordinary noisy scans have up to 14
SECOND_AREA = 0.75  # of the support of the second set over that of the first, at most; noise has 0.95 and more
SECOND_SIDE = 16  # points of a fully sampled centre along the readout, at least
SECOND_SLICES = 3  # of a volume, evenly spread, that decide


@dataclass(frozen=True)
class Calibration:
    """What all slices of a volume share.

    Attributes
    ----------
    noise_std : float
        Per real component, in the units of the input (for whitened data: averaged over coils).
    scale : float
        Prior units are input units divided by this.
    whitening : Tensor (coil, coil) or None
        Takes k-space to coils with noise `noise_std` each; None where the data count as white.
    """

    noise_std: float
    scale: float
    whitening: Tensor | None


@dataclass(frozen=True)
class PreparedSlice:
    """One slice in prior units.

    Attributes
    ----------
    kspace : Tensor (coil, y, x), complex64
    operator : Sense
        Maps and mask of this slice; with several sets of maps a `SoftSense`.
    noise_std : float
        Per real component.
    scale : float
        Multiply images by this to return to input units.
    """

    kspace: Tensor
    operator: Sense
    noise_std: float
    scale: float


def calibrate(scan: Scan, noise_std: float | None = None) -> Calibration:
    """Noise, whitening and scale of a volume, read slice by slice.

    Parameters
    ----------
    scan : Scan
    noise_std : float, optional
        Noise per real component in input units, where the caller knows better than the file.

    Raises
    ------
    InputError
        If the scan has fewer than 8 fully sampled centre lines or no signal, or its noise is neither known nor can be
        estimated.
    """
    require_acs(scan, MIN_ACS)
    given = scan.noise_std if noise_std is None else noise_std
    slices = np.unique(np.linspace(0, scan.shape[0] - 1, CALIBRATION_SLICES).round().astype(int)).tolist()
    whitening = None
    if given is None:
        some = slices[:: max(1, len(slices) // 8)]
        stack = torch.stack([scan.read(i) for i in some])
        mask = scan.mask[some] if scan.mask.ndim == 3 else scan.mask
        try:
            given = estimate_noise(stack, mask)
            # The whitened coils keep the units of the input: noise `given` in each.
            whitening = whitening_matrix(noise_covariance(stack, mask)) * given
        except ValueError as error:
            raise InputError(
                f"The noise of {scan.name} cannot be estimated ({str(error).rstrip('.')}): give it with --noise."
            ) from error
    second = fourth = 0.0
    for i in slices:
        kspace = scan.read(i)
        if whitening is not None:
            kspace = whiten(kspace, whitening)
        intensity = rss(low_resolution(kspace, scan.slice_mask(i)), dim=-3).double() ** 2
        second += float(intensity.sum())
        fourth += float((intensity**2).sum())
    if not second > 0:
        raise InputError(
            f"The centre of k-space of {scan.name} is zero in every slice; there is nothing to reconstruct."
        )
    return Calibration(float(given), 2 * (fourth / second) ** 0.5, whitening)


def whiten(kspace: Tensor, matrix: Tensor) -> Tensor:
    """Mix the coils of k-space (coil, y, x) by a matrix (coil, coil)."""
    return torch.einsum("dc,cyx->dyx", matrix.to(kspace.dtype), kspace)


def low_resolution(kspace: Tensor, mask: Tensor) -> Tensor:
    """Coil images (coil, side, side) of the fully sampled centre, in the intensity of the full image."""
    ny, nx = kspace.shape[-2:]
    side = min(acs_width(mask), MAX_ACS, ny, nx)
    centre = center_crop(kspace, (side, side))
    return ifft2c(centre) * (side / (ny * nx) ** 0.5)


def prepare_slice(
    scan: Scan, index: int, calibration: Calibration, device: str | torch.device = "cpu", sets: int = 1
) -> PreparedSlice:
    """Read, whiten and scale one slice, and estimate its sensitivity maps.

    Parameters
    ----------
    scan : Scan
    index : int
        Slice.
    calibration : Calibration
        Of this scan.
    device : str or torch.device
        Where the result lives.
    sets : int
        Of sensitivity maps, see `map_sets`.
    """
    kspace, mask = _read(scan, index, calibration, device), scan.slice_mask(index)
    operator = Sense(espirit(kspace, MAX_ACS, crop=CROP), mask) if sets == 1 else SoftSense(_soft(kspace, sets), mask)
    return PreparedSlice(kspace, operator, calibration.noise_std / calibration.scale, calibration.scale)


def map_sets(scan: Scan, calibration: Calibration, device: str | torch.device = "cpu") -> int:
    """How many sets of sensitivity maps the slices of a volume need, 1 or 2 (module docstring).

    Parameters
    ----------
    scan : Scan
    calibration : Calibration
        Of this scan.
    device : str or torch.device
        Where to compute.
    """
    count, coils = scan.shape[:2]
    spread = {int((i + 0.5) * count / SECOND_SLICES) for i in range(SECOND_SLICES)}
    votes = [_leaves_signal(scan, i, calibration, device) for i in sorted(spread)] if coils > 1 else [False]
    return 2 if 2 * sum(votes) > len(votes) else 1


def _leaves_signal(scan: Scan, index: int, calibration: Calibration, device: str | torch.device) -> bool:
    """Whether one set of maps leaves a part of the signal of a slice to a second one."""
    kspace = _read(scan, index, calibration, device)
    mask = scan.slice_mask(index)
    lines = min(acs_width(mask), MAX_ACS)
    readout = lines if mask.ndim == 2 else MAX_ACS
    if max(lines, readout) < SECOND_SIDE:
        return False
    ny, nx = kspace.shape[-2:]
    down, across = (torch.hann_window(n + 2, periodic=False)[1:-1] for n in (min(readout, ny), lines))
    window = center_pad(torch.outer(down, across), (ny, nx)).to(kspace.device)
    images = ifft2c(kspace * window)
    maps = _soft(kspace, 2)
    first_area, second_area = (maps.abs().amax(1) > 0).sum((-2, -1))
    signal = (maps[1].conj() * images).sum(0).abs().square().sum()
    variance = 2 * (calibration.noise_std / calibration.scale) ** 2 * window.square().mean()
    share = SECOND_SHARE if lines >= SECOND_LINES else FEW_LINES_SHARE
    enough = max(share * float(images.abs().square().sum()), SECOND_POWER * float(variance * second_area))
    return float(signal) > enough and bool(second_area < SECOND_AREA * first_area)


def _read(scan: Scan, index: int, calibration: Calibration, device: str | torch.device) -> Tensor:
    """k-space of a slice (coil, y, x), whitened and scaled."""
    kspace = scan.read(index).to(device)
    if calibration.whitening is not None:
        kspace = whiten(kspace, calibration.whitening.to(device))
    return kspace / calibration.scale


def _soft(kspace: Tensor, sets: int) -> Tensor:
    """Several sets of maps (set, coil, y, x)."""
    return espirit(kspace, MAX_ACS, crop=SECOND_CROP, sets=sets)
