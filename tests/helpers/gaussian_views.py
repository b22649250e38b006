"""Gaussian images whose rows are independent, with a known covariance along x: every denoiser of them is a matrix.

Covariances are of k-space columns and per real component: ``E[k k^H] = 2 K``.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mri_ambient.objectives.base import complex_normal
from mri_ambient.operators import fft1c, ifft1c


def covariance(width: int, correlated: bool = True, seed: int = 0) -> Tensor:
    """A Hermitian matrix (width, width) with more energy in the centre."""
    generator = torch.Generator().manual_seed(seed)
    spread = 0.7 / (1 + (torch.arange(width) - width // 2).abs())
    if not correlated:
        return torch.diag(spread**2).to(torch.complex64)
    factor = torch.randn(width, width, dtype=torch.complex64, generator=generator) + torch.eye(width)
    factor = spread[:, None] * factor
    return factor @ factor.mH


def images(count: int, rows: int, covariance: Tensor, generator: torch.Generator) -> Tensor:
    """Draws (count, rows, width)."""
    white = complex_normal((count, rows, len(covariance)), generator, torch.device("cpu"))
    values, vectors = torch.linalg.eigh(covariance)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.mH
    return on_columns(root, white, transform=ifft1c)


def on_columns(matrix: Tensor, x: Tensor, transform: Callable[[Tensor], Tensor] = lambda k: k) -> Tensor:
    """The matrix times every row of x (..., width), then a transform."""
    return transform(torch.einsum("ij,...j->...i", matrix.to(x.dtype), x))


def shrinkage(covariance: Tensor, sigma: float) -> Tensor:
    """``K (K + sigma^2)^-1``: the denoiser of k-space rows."""
    return covariance @ torch.linalg.inv(covariance + sigma**2 * torch.eye(len(covariance)))


def part(matrix: Tensor, columns: Tensor) -> Tensor:
    """The matrix with zeros outside the given rows and columns."""
    return matrix * columns[:, None] * columns


class GaussianDenoiser(nn.Module):
    """The exact denoiser of a Gaussian, with the interface of the network's."""

    def __init__(self, covariance: Tensor) -> None:
        super().__init__()
        self.covariance = covariance

    def forward(self, z: Tensor, sigma: Tensor) -> Tensor:
        """Estimate the image."""
        assert bool((sigma == sigma[0]).all())
        return on_columns(shrinkage(self.covariance, float(sigma[0])), fft1c(z), ifft1c)


class MatrixNetwork(nn.Module):
    """In the place of the residual network: any linear map of the rows of its first complex input channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.real = nn.Parameter(torch.zeros(width, width))
        self.imag = nn.Parameter(torch.zeros(width, width))

    @property
    def matrix(self) -> Tensor:
        """The map (width, width) of image rows."""
        return torch.complex(self.real, self.imag)

    def forward(self, inputs: Tensor, condition: Tensor) -> Tensor:
        """Real channels (batch, 2, y, x)."""
        del condition
        out = on_columns(self.matrix, torch.complex(inputs[:, 0], inputs[:, 1]))
        return torch.stack((out.real, out.imag), dim=1)


def minimise(module: nn.Module, loss: Callable[[], Tensor], steps: int = 40) -> None:
    """Least squares: the loss is quadratic in the module's parameters and always of the same random numbers."""
    optimiser = torch.optim.LBFGS(
        module.parameters(), max_iter=steps, history_size=steps, line_search_fn="strong_wolfe", tolerance_change=1e-12
    )

    def closure() -> float:
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return float(value.detach())

    optimiser.step(closure)
