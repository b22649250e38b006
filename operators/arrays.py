"""Turning what users hand in into the tensors that operators work on, and eigenvectors of these."""

from typing import Any

import torch
from torch import Tensor


def as_complex(x: Any) -> Tensor:
    """Return `x` as a complex tensor: complex128 stays, everything else becomes complex64."""
    x = torch.as_tensor(x)
    return x if x.dtype == torch.complex128 else x.to(torch.complex64)


def as_mask(x: Any) -> Tensor:
    """Return `x` as a bool tensor, True where it is not zero."""
    x = torch.as_tensor(x)
    return x if x.dtype == torch.bool else x != 0


def eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of Hermitian matrices, in double precision where single does not converge.

    That happens with matrices of which nearly all eigenvalues are equal, such as those of image rows with few pixels
    inside the coil support. LAPACK then reports an error, or returns values that are not finite.
    """
    try:
        values, vectors = torch.linalg.eigh(matrices)
        converged = bool(torch.isfinite(values).all()) and bool(torch.isfinite(vectors).all())
    except torch.linalg.LinAlgError:
        converged = False
    if not converged:
        values, vectors = torch.linalg.eigh(matrices.to(torch.complex128))
    return values.to(matrices.real.dtype), vectors.to(matrices.dtype)
