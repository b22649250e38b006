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
    espirit,
    estimate_noise,
    ifft2c,
    noise_covariance,
    rss,
)
from mri_ambient.operators.noise import whitening_matrix
from mri_ambient.scan import Scan, require_acs

MAX_ACS = 24  # a larger calibration region costs time and brings nothing
MIN_ACS = 8
CROP = 0.9  # ESPIRiT's eigenvalue threshold: with few lines and noise, 0.95 cuts away anatomy
CALIBRATION_SLICES = 32  # at most so many slices, evenly spread, decide noise and scale of a volume


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
        Maps and mask of this slice.
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
    scan: Scan, index: int, calibration: Calibration, device: str | torch.device = "cpu"
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
    """
    kspace = scan.read(index).to(device)
    mask = scan.slice_mask(index)
    if calibration.whitening is not None:
        kspace = whiten(kspace, calibration.whitening.to(device))
    kspace = kspace / calibration.scale
    maps = espirit(kspace, acs=MAX_ACS, crop=CROP)
    return PreparedSlice(kspace, Sense(maps, mask), calibration.noise_std / calibration.scale, calibration.scale)
