r"""Noise covariance between coils, prewhitening, and the noise level of a scan.

Thermal noise n in k-space is complex Gaussian, independent from sample to sample but correlated between coils,
:math:`E[n n^H] = \Psi`. White noise of standard deviation s per real and per imaginary part has :math:`\Psi = 2 s^2 I`.
Multiplying the coils by W with :math:`W \Psi W^H = 2 I` (W = sqrt(2) times the inverse Cholesky factor) makes the
noise white with s = 1, which every likelihood and training target of this package assumes [1]_.

Without a noise scan, :math:`\Psi` is read off the acquired samples farthest from the k-space centre, where the image
has least energy. These are few and not quite free of signal, hence two robust steps:

- the variance of each coil comes from the median, :math:`E|n|^2 = \mathrm{median}(|n|^2) / \ln 2` for Gaussian noise,
  which a few spikes cannot move;
- the correlations come from the samples left after dropping the tenth of largest Mahalanobis length
  :math:`n^H \Psi^{-1} n`. This is the same cut in every direction of the whitened coil space, so that it scales
  the covariance as a whole and leaves the correlations alone.

Bias: image energy left in the outer samples counts as noise, so :math:`\Psi` errs on the high side. That energy is
common to the coils: it fills few directions of the coil space, while white noise fills all of them alike. The scalar
noise level is therefore taken from the median eigenvalue of :math:`\Psi` instead of the mean. This errs on the low side
if the noise is correlated and was not whitened (18 % below the mean over coils on one 8-channel head scan: prewhiten
first), and does not help with a single coil.

References
----------
.. [1] Pruessmann et al., Advances in sensitivity encoding with arbitrary k-space trajectories, Magn. Reson. Med. 2001.
"""

from __future__ import annotations

import math

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from .arrays import as_complex, as_mask

OUTER_FRACTION = 0.05
TRIMMED_FRACTION = 0.10


def noise_covariance(kspace: ArrayLike | Tensor, mask: ArrayLike | Tensor) -> Tensor:
    """Estimate the coil covariance of the noise from the outermost acquired samples.

    Parameters
    ----------
    kspace : array_like
        Complex k-space, shape (coil, y, x) or (slice, coil, y, x), in any unit. Slices are pooled.
    mask : array_like
        Acquired samples: boolean, shape (x,), (y, x), or (slice, 1 or y, x) with 4-D k-space. Samples that are
        exactly zero in all coils (zero-padding) are left out in any case.

    Returns
    -------
    Tensor
        E[n n^H], complex64, shape (coil, coil), in squared k-space units: 2 s^2 on the diagonal for a standard
        deviation s per real and per imaginary component.

    Raises
    ------
    ValueError
        If shapes do not fit, values are not finite, there are too few acquired samples for the number of coils, or a
        coil is silent.

    Notes
    -----
    Uses the 5 % of samples with the largest elliptical radius, more (up to 25 %) if that is less than 40 a coil.
    """
    samples = _outer_samples(as_complex(kspace), as_mask(mask)).to(torch.complex128)
    variance = (samples.abs() ** 2).median(dim=1).values / math.log(2)
    if not bool(torch.isfinite(variance).all()):
        raise ValueError("The k-space holds values that are not finite.")
    if not bool((variance > 0).all()):
        silent = (variance <= 0).nonzero()[:, 0].tolist()
        raise ValueError(f"Coils {silent} have no noise in the outer k-space samples: drop them.")
    scale = variance.sqrt()[:, None]
    whitened = samples / scale
    correlation = torch.eye(len(samples), dtype=samples.dtype, device=samples.device)
    for _ in range(3):
        correlation = _trimmed_correlation(whitened, correlation)
    return (scale * correlation * scale.T).to(torch.complex64)


def estimate_noise(kspace: ArrayLike | Tensor, mask: ArrayLike | Tensor) -> float:
    """Estimate the noise standard deviation per real and per imaginary component, one number for all coils.

    Parameters and errors as in `noise_covariance`.

    Returns
    -------
    float
        Noise standard deviation, from the median eigenvalue of the noise covariance (see the module docstring for its
        bias).
    """
    eigenvalues = torch.linalg.eigvalsh(noise_covariance(kspace, mask).to(torch.complex128))
    return math.sqrt(float(eigenvalues.median()) / 2)  # of an even number, median() takes the lower of the middle two


def whitening_matrix(covariance: ArrayLike | Tensor) -> Tensor:
    """Return W with W covariance W^H = 2 I: afterwards the noise has standard deviation 1 per component.

    Parameters
    ----------
    covariance : array_like
        E[n n^H], Hermitian positive definite, shape (coil, coil).

    Returns
    -------
    Tensor
        Lower triangular, complex64, shape (coil, coil).

    Raises
    ------
    ValueError
        If the covariance is not square or not positive definite.
    """
    covariance = as_complex(covariance).to(torch.complex128)
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1]:
        raise ValueError(f"A noise covariance has the shape (coil, coil), not {tuple(covariance.shape)}.")
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if int(failed) or not bool(torch.isfinite(torch.view_as_real(factor)).all()):
        raise ValueError("The noise covariance is not positive definite: coils are silent or copies of each other.")
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    return (math.sqrt(2) * torch.linalg.solve_triangular(factor, identity, upper=False)).to(torch.complex64)


def prewhiten(kspace: ArrayLike | Tensor, covariance: ArrayLike | Tensor) -> Tensor:
    """Mix the coils so that noise of the given covariance becomes white with standard deviation 1 per component.

    Parameters
    ----------
    kspace : array_like
        Complex, shape (..., coil, y, x).
    covariance : array_like
        E[n n^H], shape (coil, coil), from `noise_covariance` or a noise scan.

    Returns
    -------
    Tensor
        Same shape and precision as the k-space. Calibrate coil sensitivities after this, not before.

    Raises
    ------
    ValueError
        If the numbers of coils differ or the covariance is not positive definite.
    """
    kspace = as_complex(kspace)
    matrix = whitening_matrix(covariance).to(kspace)
    if kspace.ndim < 3 or kspace.shape[-3] != len(matrix):
        raise ValueError(f"K-space of shape {tuple(kspace.shape)} does not have {len(matrix)} coils.")
    return torch.einsum("dc,...cyx->...dyx", matrix, kspace)


def _outer_samples(kspace: Tensor, mask: Tensor) -> Tensor:
    """Return the acquired samples farthest from the centre, shape (coil, samples), slices pooled."""
    if kspace.ndim not in (3, 4):
        raise ValueError(f"K-space has the shape (coil, y, x) or (slice, coil, y, x), not {tuple(kspace.shape)}.")
    slices, coils, y, x = kspace.reshape(-1, *kspace.shape[-3:]).shape
    kspace = kspace.reshape(slices, coils, y, x)
    try:
        acquired = mask.to(kspace.device).expand(slices, y, x) & (kspace != 0).any(1)
    except RuntimeError as error:
        raise ValueError(f"A mask of shape {tuple(mask.shape)} does not fit k-space of {y} x {x}.") from error
    total = int(acquired.sum())
    count = min(max(round(OUTER_FRACTION * total), 40 * coils), total // 4)
    if count < max(4 * coils, 16):
        raise ValueError(f"{total} acquired samples are too few to estimate the noise of {coils} coils.")
    radius = _elliptical_radius(y, x).to(kspace.device).expand(slices, y, x)[acquired]
    chosen = radius.topk(count).indices
    return kspace.movedim(1, 0)[:, acquired][:, chosen]


def _elliptical_radius(y: int, x: int) -> Tensor:
    """Squared distance from the k-space centre, 1 at the edge of either axis."""
    rows = ((torch.arange(y) - y // 2) / max(y // 2, 1)) ** 2
    columns = ((torch.arange(x) - x // 2) / max(x // 2, 1)) ** 2
    return rows[:, None] + columns


def _trimmed_correlation(samples: Tensor, correlation: Tensor) -> Tensor:
    """Correlation of (coil, samples) without the samples that are longest in the metric of a first estimate."""
    length = (samples.conj() * (torch.linalg.pinv(correlation, hermitian=True) @ samples)).sum(0).real
    kept = length.argsort()[: math.ceil((1 - TRIMMED_FRACTION) * samples.shape[1])]
    covariance = samples[:, kept] @ samples[:, kept].mH
    scale = covariance.diagonal().real.sqrt()
    return covariance / (scale[:, None] * scale)
