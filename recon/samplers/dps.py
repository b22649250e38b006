r"""DPS and A-DPS: reverse diffusion with a gradient step on the data residual, through the network.

With :math:`r = y - A D(x_\sigma, \sigma)` (all coils), J the Jacobian of D, and norms over complex numbers,

.. math:: \nabla_{x_\sigma} \|r\| = - J^T A^H r / \|r\| .

*DPS* adds :math:`-\zeta \nabla \|r\|` to a step of ancestral reverse diffusion.

*A-DPS* is the form for denoisers that were trained on undersampled scans. The network sees the diffused image through
a further mask, :math:`D(\tilde A^H \tilde A x_\sigma, \sigma, \tilde A)`, with :math:`\tilde A` as drawn in training
but with the coils of the test scan, and fixed along the run (`through_mask`). The diffusion is the deterministic flow,
integrated by Euler steps, and the guidance is :math:`-(\ell / \|r\|) \nabla \|r\|^2 = -2 \ell \nabla \|r\|`.

What is exact: the gradient. What is heuristic: everything that scales it. The likelihood of a noisy image is not a
function of the residual of its denoised image; the noise of the data does not enter at all; :math:`\zeta` depends on
the number of steps, matrix, coils and scale of the image; without noise the step does not vanish with the residual.
For A-DPS, moreover, the masked denoiser is not the expectation that Tweedie's formula asks for, and the noise of its
input, :math:`\sigma^2 (\tilde A^H \tilde A)^2`, is less than that of a scan with noise :math:`\sigma`, which the
denoiser is told; both belong to the published method. The defaults are the published numbers: 1000 steps for DPS, 500
for A-DPS.

Not reproduced from the official A-DPS code: it returns the image before the last update, and draws masks without a
seed.

References
----------
H. Chung et al., Diffusion posterior sampling for general noisy inverse problems, ICLR 2023. A. Aali et al., Ambient
diffusion posterior sampling: solving inverse problems with diffusion models trained on corrupted data, ICLR 2025.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mri_ambient.operators import Sense, random_mask
from mri_ambient.operators.masks import default_acs
from mri_ambient.posterior import ImageDenoiser

from .base import Generators, NoiseRange, Problem, ancestral


class MaskedDenoiser(Protocol):
    """A denoiser that is told the operator, such as `mri_ambient.denoiser.Denoiser`."""

    def __call__(self, z: Tensor, sigma: float | Tensor, operator: Sense | None) -> Tensor:
        """Estimate the image (batch, y, x) from ``z = A^H y``."""
        ...


def guidance(noisy: Tensor, sigma: float, problem: Problem) -> tuple[Tensor, Tensor]:
    """Denoised images and the gradients of ``-||y - A D(x_t)||`` with respect to x_t; both (samples, y, x)."""
    mean, pullback = problem.linearise(noisy, sigma)
    residual = problem.residual(mean)
    norm = residual.abs().square().sum((-3, -2, -1)).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
    return mean, pullback(problem.operator.adjoint(residual / norm[:, None, None, None]) * problem.support)


@dataclass(frozen=True)
class DPS(NoiseRange):
    """Diffusion posterior sampling.

    Attributes
    ----------
    zeta : float
        Weight of the gradient of the residual's norm, at every step.
    """

    zeta: float = 1.0

    @property
    def evaluations_per_step(self) -> int:
        """One, and a pass back."""
        return 3

    def step(self, x: Tensor, sigma: float, next_sigma: float, problem: Problem, generators: Generators) -> Tensor:
        """Ancestral step, then the gradient."""
        mean, gradient = guidance(x, sigma, problem)
        return ancestral(x, mean, sigma, next_sigma, problem.noise(generators)) + self.zeta * gradient


@dataclass(frozen=True)
class ADPS(NoiseRange):
    """Ambient diffusion posterior sampling; the denoiser of the problem comes from `through_mask`.

    Attributes
    ----------
    weight : float
        Called l_ss in the paper's code.
    """

    high: float = 10.0
    low: float = 0.004
    weight: float = 1.0

    @property
    def evaluations_per_step(self) -> int:
        """One, and a pass back."""
        return 3

    def step(self, x: Tensor, sigma: float, next_sigma: float, problem: Problem, generators: Generators) -> Tensor:
        """Euler step of the probability flow, then the gradient; no noise."""
        del generators
        mean, gradient = guidance(x, sigma, problem)
        flow = mean + (next_sigma / sigma) * (x - mean)
        return flow + 2 * self.weight * gradient


def through_mask(denoiser: MaskedDenoiser, further: Sense) -> ImageDenoiser:
    """The denoiser of A-DPS: it sees images through a further mask and is told so.

    Parameters
    ----------
    denoiser : callable
        ``(z, sigma, operator) -> image``.
    further : Sense
        The coils of the test scan with a mask from `further_mask`.
    """

    def denoise(noisy: Tensor, sigma: float | Tensor) -> Tensor:
        return denoiser(further.normal(noisy), sigma, further)

    return denoise


def further_mask(width: int, accel: float, acs: int | None = None, generator: torch.Generator | None = None) -> Tensor:
    """Lines (width,), bool, that the network saw in A-DPS training at an acceleration: a random mask at ``accel + 1``.

    Parameters
    ----------
    width : int
        Number of phase-encode lines.
    accel : float
        Of the training scans.
    acs : int, optional
        Fully sampled lines of the training scans, none of which is ever removed; default as in training.
    generator : torch.Generator, optional
    """
    return random_mask(width, accel + 1, default_acs(width, accel) if acs is None else acs, generator=generator)
