r"""Solving :math:`(A^H A + \lambda I)\,u = b`, the data-consistency step of every method here.

Two solvers share one interface, ``solve(rhs, regularisation)``; `normal_solver` picks one.

`CgSolver` runs conjugate gradients and takes any mask.

`RowSolver` is exact and serves line masks. When the mask :math:`M` depends on the phase-encode index alone, the
transform along the readout cancels and :math:`A^H A` falls into one :math:`N \times N` Hermitian block per image row
*r*,

.. math:: H_r[i, j] = G[i - j] \sum_c \overline{S_c[r, i]}\, S_c[r, j], \qquad G = F^H M F ,

with *G* the circulant matrix of the mask. One decomposition :math:`H_r = V_r \,\mathrm{diag}(e_r)\, V_r^H` of a slice
then gives every function of the normal operator (every noise level, every posterior sample, the pseudo-inverse, the
projection on the measured subspace) for two matrix products. With several sets of maps (`SoftSense`) *i* and *j* run
over the pixels of all sets in the row, and *G* takes their difference as columns of k-space.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .arrays import as_complex, eigh
from .fourier import centring
from .sense import Sense


@dataclass(frozen=True)
class Solution:
    """What a linear solver found.

    Attributes
    ----------
    solution : Tensor (..., y, x)
    residual : Tensor (...)
        Norm of the residual over the norm of the right-hand side, one value an item.
    iterations : int
    converged : Tensor (...), bool
        Whether each item's residual is below the tolerance.
    """

    solution: Tensor
    residual: Tensor
    iterations: int
    converged: Tensor


def conjugate_gradient(
    normal: Callable[[Tensor], Tensor],
    rhs: Any,
    *,
    regularisation: float | Tensor = 0.0,
    initial: Tensor | None = None,
    iterations: int = 50,
    tolerance: float = 1e-5,
) -> Solution:
    """Conjugate gradients on ``(normal + regularisation) u = rhs``, with a step size of its own for every item.

    Parameters
    ----------
    normal : callable
        A Hermitian positive semi-definite map of (..., y, x) images.
    rhs : array (..., y, x)
        Leading axes are independent items.
    regularisation : float or Tensor (...)
        Non-negative; a tensor holds one value an item.
    initial : Tensor (..., y, x), optional
        Where to start (default: zero).
    iterations : int
        Upper bound.
    tolerance : float
        An item stops changing once its relative residual is below this; 0 runs all iterations without a check.

    Raises
    ------
    ValueError
        If `regularisation` is negative.
    """
    b = as_complex(rhs)
    lam = _per_item(regularisation, b)
    if bool((lam < 0).any()):
        raise ValueError("the regularisation must not be negative")

    def apply(v: Tensor) -> Tensor:
        return normal(v) + lam * v

    u = torch.zeros_like(b) if initial is None else initial.to(b.dtype)
    r = b if initial is None else b - apply(u)
    p, rho = r, _inner(r, r)
    scale = _inner(b, b)
    done = 0
    for done in range(1, iterations + 1):
        active = rho > tolerance**2 * scale
        if tolerance > 0 and not bool(active.any()):
            done -= 1
            break
        q = apply(p)
        curvature = _inner(p, q)
        alpha = torch.where(active & (curvature > 0), rho / curvature.clamp_min(_tiny(rho)), 0.0)
        u = u + alpha * p
        r = r - alpha * q
        rho_next = _inner(r, r)
        p = r + torch.where(active, rho_next / rho.clamp_min(_tiny(rho)), 0.0) * p
        rho = torch.where(active, rho_next, rho)
    relative = (rho / scale.clamp_min(_tiny(rho))).sqrt()[..., 0, 0]
    return Solution(u, relative, done, relative <= max(tolerance, torch.finfo(rho.dtype).eps))


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Re <a, b> of every item, with the image axes kept as ones: the inner product of a *real* vector space."""
    return (a.real * b.real + a.imag * b.imag).sum((-2, -1), keepdim=True)


def _tiny(x: Tensor) -> float:
    return torch.finfo(x.dtype).tiny


def _per_item(value: float | Tensor, like: Tensor) -> Tensor:
    real = like.real.dtype
    value = torch.as_tensor(value, dtype=real, device=like.device)
    return value[..., None, None] if value.ndim else value


class CgSolver:
    """``(A^H A + regularisation) u = rhs`` by conjugate gradients, for any mask."""

    def __init__(self, operator: Sense, iterations: int = 15, tolerance: float = 1e-3) -> None:
        self.operator = operator
        self.iterations = iterations
        self.tolerance = tolerance

    def solve(self, rhs: Tensor, regularisation: float | Tensor, initial: Tensor | None = None) -> Tensor:
        """Solution (..., y, x) for right-hand sides (..., y, x) and one regularisation, or one an item (...)."""
        return conjugate_gradient(
            self.operator.normal,
            rhs,
            regularisation=regularisation,
            initial=initial,
            iterations=self.iterations,
            tolerance=self.tolerance,
        ).solution


class RowSolver:
    """Exact functions of ``A^H A`` for line masks, by one eigendecomposition per image row.

    Memory is ``y * x**2`` complex numbers a slice (0.26 GB at 320 x 320); rows without coil sensitivity are left out.

    Parameters
    ----------
    operator : Sense
        With a line mask; maps and mask may be batched.

    Attributes
    ----------
    eigenvalues : Tensor (rows, x)
        In [0, 1] for normalised maps; only rows inside the support.

    Raises
    ------
    ValueError
        If the mask is not a line mask.
    """

    def __init__(self, operator: Sense) -> None:
        if not operator.is_line_mask:
            raise ValueError("the row-wise solver needs a mask that depends on the phase-encode index alone")
        maps = operator.sensitivity_maps
        mask = operator.mask
        self.image_shape = operator.image_shape
        batch = self.image_shape[:-2] or (1,)
        width, n = maps.shape[-1], mask.shape[-1]  # differ where sets of maps lie side by side
        maps = maps.expand(*batch, *maps.shape[-3:])
        self._support = (maps.abs().amax(-3) > 0).any(-1)  # (batch, y): rows with any signal
        rows = maps.transpose(-3, -2)[self._support]  # (rows, coil, x)
        column = torch.arange(width) % n
        centre = centring(n, maps.dtype, maps.device)[0][column]
        kernel = torch.fft.ifft(mask.expand(*batch, 1, n)[..., 0, :].to(maps.dtype))  # (batch, x): first column of G
        circulant = kernel[:, (column[:, None] - column) % n] * (centre.conj()[:, None] * centre)
        owner = torch.nonzero(self._support)[:, 0]
        blocks = rows.conj().transpose(-1, -2) @ rows  # (rows, x, x)
        blocks *= circulant if len(circulant) == 1 else circulant[owner]
        values, vectors = eigh(blocks)
        self.eigenvalues = values.clamp_min(0)
        self._basis = torch.view_as_real(vectors.mT.contiguous()).flatten(-2)  # (rows, vector, 2 x), real

    def apply(self, *terms: tuple[Callable[[Tensor], Tensor], Tensor]) -> Tensor:
        """Sum of ``f(A^H A) image`` over pairs of a function and an image.

        A function maps eigenvalues (rows, 1, x) to factors that broadcast with (rows, items, x). Rows outside the coil
        support have eigenvalue zero. Images are (..., y, x), all of one shape, with leading axes beyond the operator's
        own taken as items that share it.
        """
        functions, images = zip(*terms, strict=True)
        columns = torch.stack([self._columns(as_complex(image)) for image in images], 2)  # (batch, y, term, items, x)
        factors = [function(self.eigenvalues[:, None]) for function in functions]
        values = self._analyse(columns[self._support].flatten(1, 2)).chunk(len(terms), 1)
        rows = self._synthesise(sum(f * v for f, v in zip(factors, values, strict=True)))
        zero = torch.zeros(1, 1, 1, device=columns.device)
        outside = sum(function(zero) * column for function, column in zip(functions, columns.unbind(2), strict=True))
        outside = outside.contiguous()
        outside[self._support] = rows
        return outside.permute(2, 0, 1, 3).reshape(images[0].shape)

    def _columns(self, image: Tensor) -> Tensor:
        """Items beside one another: (batch, y, items, x)."""
        batch = len(self.image_shape) - 2
        items = image.shape[: image.ndim - 2 - batch]
        core = image.reshape(math.prod(items), *(self.image_shape[:-2] or (1,)), *self.image_shape[-2:])
        return core.permute(1, 2, 0, 3)

    def _analyse(self, rows: Tensor) -> Tensor:
        """``V^H`` times rows (rows, items, x), as a real product: with few items complex ones are slow."""
        real = torch.cat([torch.view_as_real(part.contiguous()).flatten(-2) for part in (rows, -1j * rows)], -2)
        both = real @ self._basis.mT
        return torch.complex(*both.chunk(2, -2))

    def _synthesise(self, values: Tensor) -> Tensor:
        """``V`` times values (rows, items, x)."""
        both = (torch.cat([values.real, values.imag], -2) @ self._basis).unflatten(-1, (-1, 2))
        real, imaginary = torch.view_as_complex(both).chunk(2, -2)
        return real + 1j * imaginary

    def solve(self, rhs: Tensor, regularisation: float | Tensor, initial: Tensor | None = None) -> Tensor:
        """Exact solution of ``(A^H A + regularisation) u = rhs``; the regularisation is one positive number an item."""
        del initial  # an exact solver needs no starting point
        lam = self._per_item(regularisation)
        return self.apply((lambda e: 1.0 / (e + lam), rhs))

    def solve_noisy(self, rhs: Tensor, noise: Tensor, regularisation: float | Tensor) -> Tensor:
        """`solve` of ``rhs + (A^H A)^{1/2} noise``; white noise then has the covariance of ``A^H n`` with white *n*."""
        lam = self._per_item(regularisation)
        return self.apply((lambda e: 1.0 / (e + lam), rhs), (lambda e: e.sqrt() / (e + lam), noise))

    def _per_item(self, regularisation: float | Tensor) -> Tensor:
        lam = torch.as_tensor(regularisation, dtype=self.eigenvalues.dtype, device=self.eigenvalues.device)
        return lam[..., None] if lam.ndim else lam

    def pseudo_inverse(self, image: Tensor, tolerance: float = 1e-3) -> Tensor:
        """``(A^H A)^+ image``: eigenvalues below `tolerance` count as zero."""
        return self.apply((lambda e: torch.where(e > tolerance, 1.0 / e.clamp_min(tolerance), 0.0), image))

    def project(self, image: Tensor, tolerance: float = 1e-3) -> Tensor:
        """Projection on the measured subspace, the range of ``A^H``."""
        return self.apply((lambda e: (e > tolerance).to(e.dtype), image))


def normal_solver(operator: Sense) -> RowSolver | CgSolver:
    """The exact row-wise solver where the mask allows it, conjugate gradients otherwise."""
    return RowSolver(operator) if operator.is_line_mask else CgSolver(operator)
