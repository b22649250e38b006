r"""Combining coils: root sum of squares and compression to fewer virtual coils.

Compression keeps the combinations of coils that hold the most signal. With the covariance over all samples
:math:`K K^H = U \Lambda U^H` (coil x coil, decreasing eigenvalues), the compressed data are :math:`U_m^H K`. The rows
of the matrix :math:`U_m^H` are orthonormal: white noise of some standard deviation stays white with the same one. So
prewhiten first, then compress, and keep the noise level.

References
----------
Buehrer, Pruessmann, Boesiger, Kozerke: Array compression for MRI with large coil arrays. Magn. Reson. Med. 57 (2007)
1131-1139.
"""

from typing import Any

import torch
from torch import Tensor

from .arrays import as_complex, as_tensor
from .espirit import espirit

__all__ = ["compress_coils", "espirit", "rss"]


def rss(x: Any, dim: int = -3) -> Tensor:
    """Root sum of squares over the coil axis.

    Parameters
    ----------
    x : array
        Coil images, real or complex.
    dim : int
        The coil axis, which is removed.

    Returns
    -------
    Tensor
        Real magnitude, of the precision of `x`.
    """
    return torch.linalg.vector_norm(as_tensor(x), dim=dim)


@torch.no_grad()
def compress_coils(kspace: Any, coils: int) -> tuple[Tensor, Tensor]:
    """Compress multi-coil k-space to the virtual coils that hold the most energy.

    One matrix serves all leading axes, so that the slices of a volume keep common virtual coils.

    Parameters
    ----------
    kspace : array (..., coil, y, x)
        k-space (undersampled or not) or coil images, prewhitened if noise matters.
    coils : int
        Number of virtual coils, 1 to the number of coils.

    Returns
    -------
    compressed : Tensor (..., coils, y, x)
        Virtual coils in order of decreasing energy.
    matrix : Tensor (coils, coil)
        Orthonormal rows; ``compressed = matrix @ kspace`` over the coil axis. The largest entry of each row is real and
        positive, which makes the result reproducible.

    Raises
    ------
    ValueError
        If `kspace` has fewer than three axes or `coils` is not between 1 and the number of coils.
    """
    kspace = as_complex(kspace)
    if kspace.ndim < 3:
        raise ValueError(f"k-space must be (..., coil, y, x), got shape {tuple(kspace.shape)}.")
    available = kspace.shape[-3]
    if not 1 <= coils <= available:
        raise ValueError(f"cannot compress {available} coils to {coils}.")
    samples = kspace.movedim(-3, 0).flatten(1)
    # Double precision where it is free (the small matrix); the scale keeps tiny units from underflowing in the product.
    samples = samples / samples.abs().amax().clamp_min(torch.finfo(samples.real.dtype).tiny)
    covariance = (samples @ samples.mH).to(torch.complex128)
    matrix = torch.linalg.eigh(covariance).eigenvectors.flip(-1)[:, :coils].mH
    largest = matrix.take_along_dim(matrix.abs().argmax(1, keepdim=True), 1)
    matrix = (matrix * torch.exp(-1j * largest.angle())).to(kspace.dtype)
    return torch.tensordot(matrix, kspace, ([1], [-3])).movedim(0, -3), matrix
