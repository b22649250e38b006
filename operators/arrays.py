"""Turning what users hand in into the tensors that operators work on, and eigenvectors of these."""

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

MOST_ON_GPU = 2**14  # matrices that are decomposed at once
ORTHONORMAL = 1e-3  # largest error of the products of eigenvectors


def as_tensor(x: Any) -> Tensor:
    """`torch.as_tensor`, also for NumPy arrays that run backwards in memory or have another byte order."""
    if isinstance(x, np.ndarray):
        x = np.asarray(x, x.dtype.newbyteorder("="), order="C")
    return torch.as_tensor(x)


def as_complex(x: Any) -> Tensor:
    """Return `x` as a complex tensor: complex128 stays, everything else becomes complex64."""
    x = as_tensor(x)
    return x if x.dtype == torch.complex128 else x.to(torch.complex64)


def as_mask(x: Any) -> Tensor:
    """Return `x` as a bool tensor, True where it is not zero."""
    x = as_tensor(x)
    return x if x.dtype == torch.bool else x != 0


def eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of Hermitian matrices (..., n, n), in double precision where single fails.

    That happens with matrices of which nearly all eigenvalues are equal, such as those of image rows with few pixels
    inside the coil support. LAPACK then reports an error, or returns values that are not finite. Batched solvers on a
    GPU fail with many matrices, and are known to have returned vectors that are not orthonormal (PyTorch issue 192483):
    there they are given parts, and what they return is checked.
    """
    if not matrices.is_cuda or matrices.ndim < 3:
        return _eigh(matrices)
    values, vectors = zip(*(_eigh(part) for part in matrices.split(MOST_ON_GPU)), strict=True)
    return torch.cat(values), torch.cat(vectors)


def _eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    try:
        values, vectors = _decompose(matrices)
        good = bool(torch.isfinite(values).all()) and bool(torch.isfinite(vectors).all())
        if good and matrices.is_cuda:
            unit = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
            good = bool((vectors.mH @ vectors - unit).abs().amax() < ORTHONORMAL)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # of LAPACK or its like on a GPU
        good = False
    if not good:
        values, vectors = _decompose(matrices.cpu().to(torch.complex128))
    return values.to(matrices.real), vectors.to(matrices)


def _decompose(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """`torch.linalg.eigh`, with a part of a batch to each thread of the CPU.

    PyTorch does one matrix after the other with all threads. Where threads that wait sleep (OMP_WAIT_POLICY=PASSIVE, as
    the program sets it), two of them took 6 to 10 times as long for rows of 128 to 384 pixels. The number of threads
    is set for each worker alone: `torch.set_num_threads` would set it for all, and after it `torch.linalg.solve` failed
    in PyTorch 2.15 with MKL 2024.2.
    """
    threads = torch.get_num_threads()
    if matrices.is_cuda or matrices.ndim < 3 or threads == 1 or matrices.requires_grad:
        return torch.linalg.eigh(matrices)
    with ThreadPoolExecutor(threads) as pool:
        values, vectors = zip(*pool.map(_with_one_thread, matrices.chunk(threads)), strict=True)
    return torch.cat(values), torch.cat(vectors)


def _with_one_thread(matrices: Tensor) -> tuple[Tensor, Tensor]:
    torch.get_num_threads()  # the first call in a thread would otherwise undo the limit
    with _thread_pools().limit(limits=1, user_api="openmp"):
        values, vectors = torch.linalg.eigh(matrices)
    return values, vectors


@cache
def _thread_pools() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
