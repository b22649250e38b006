r"""Centred, orthonormal Fourier transforms, and crops and pads about the centre.

Index ``N // 2`` is the origin of both domains, for even and odd ``N``:

.. math:: X[k] = N^{-1/2} \sum_n x[n] \exp(-2\pi i (k - c)(n - c) / N), \qquad c = \lfloor N/2 \rfloor .

`center_crop` and `center_pad` keep that origin, so that cropping in one domain changes the resolution (or the field of
view) in the other without shifting the image.

Multiplying the square out shows that no data needs to be rolled: with :math:`m[n] = \exp(2\pi i c n / N)`,
``X = const * m * fft(m * x)``. `centring` returns these factors; `Sense` folds them into its sensitivity maps.
"""

import math
from typing import Any

import torch
from torch import Tensor

from .arrays import as_complex, as_tensor


def fft1c(x: Any, dim: int = -1) -> Tensor:
    """Centred orthonormal FFT along one axis; shape and complex dtype are kept."""
    return _centred(torch.fft.fftn, x, (dim,))


def ifft1c(x: Any, dim: int = -1) -> Tensor:
    """Inverse of `fft1c`."""
    return _centred(torch.fft.ifftn, x, (dim,))


def fft2c(image: Any) -> Tensor:
    """Centred orthonormal 2-D FFT over the last two axes.

    Parameters
    ----------
    image : array (..., y, x)
        Real or complex; anything but complex128 is computed in complex64.

    Returns
    -------
    Tensor (..., y, x)
        k-space with its origin at index ``(y // 2, x // 2)``.
    """
    return _centred(torch.fft.fftn, image, (-2, -1))


def ifft2c(kspace: Any) -> Tensor:
    """Inverse of `fft2c`."""
    return _centred(torch.fft.ifftn, kspace, (-2, -1))


def _centred(transform: Any, x: Any, dim: tuple[int, ...]) -> Tensor:
    x = torch.fft.ifftshift(as_complex(x), dim=dim)
    return torch.fft.fftshift(transform(x, dim=dim, norm="ortho"), dim=dim)


def centring(length: int, dtype: torch.dtype = torch.complex64, device: Any = None) -> tuple[Tensor, Tensor]:
    """Factors ``(a, b)`` with ``fft1c(x) == b * fft(a * x, norm="ortho")`` along an axis of the given length.

    Both have modulus one; they are computed in double precision, from integers, so that they stay exact for long axes.
    """
    c = length // 2
    n = torch.arange(length, dtype=torch.int64)
    angle = (c * n % length).double() * (2 * math.pi / length)
    constant = (c * c % length) * (2 * math.pi / length)
    a = torch.polar(torch.ones_like(angle), angle)
    b = torch.polar(torch.ones_like(angle), angle - constant)
    return a.to(device=device, dtype=dtype), b.to(device=device, dtype=dtype)


def center_crop(x: Any, shape: tuple[int, int]) -> Tensor:
    """Crop the last two axes of an array (..., y, x) to `shape` (y, x), keeping the centre at index ``N // 2``.

    Raises
    ------
    ValueError
        If `shape` is larger than the input.
    """
    x = as_tensor(x)
    (ny, nx), (cy, cx) = x.shape[-2:], shape
    if cy > ny or cx > nx:
        raise ValueError(f"cannot crop {ny} x {nx} to the larger {cy} x {cx}")
    top, left = ny // 2 - cy // 2, nx // 2 - cx // 2
    return x[..., top : top + cy, left : left + cx]


def center_pad(x: Any, shape: tuple[int, int]) -> Tensor:
    """Zero-pad the last two axes of an array (..., y, x) to `shape` (y, x); the inverse of `center_crop`.

    Raises
    ------
    ValueError
        If `shape` is smaller than the input.
    """
    x = as_tensor(x)
    (ny, nx), (py, px) = x.shape[-2:], shape
    if py < ny or px < nx:
        raise ValueError(f"cannot pad {ny} x {nx} to the smaller {py} x {px}")
    top, left = py // 2 - ny // 2, px // 2 - nx // 2
    return torch.nn.functional.pad(x, (left, px - nx - left, top, py - ny - top))
