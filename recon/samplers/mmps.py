r"""MMPS: reverse diffusion with the mean and the covariance of the denoiser.

Tweedie's formula gives the covariance of :math:`x \mid x_\sigma` too: :math:`\sigma^2 J`, with J the Jacobian of the
denoiser. With a Gaussian of that mean and covariance the conditional mean given the data is

.. math:: \hat x = D + \sigma^2 J A^H v, \qquad (\sigma_n^2 I + \sigma^2 A J A^H)\, v = y - A D ,

followed by an ancestral step. The system is solved by a few conjugate gradient iterations; each needs one product with
:math:`J^T = J`, a pass back through the network, and these products add up to :math:`J A^H v` on the way, so that none
is left for the end.

Preconditioning. With several coils most of the residual is noise that no image explains, on which plain iterations are
spent first. The inverse of the same system for a white denoiser error, :math:`J = (\rho / \sigma)^2 I`, is known
(Woodbury),

.. math:: (\sigma_n^2 I + \rho^2 A A^H)^{-1} = \sigma_n^{-2} (I - A (A^H A + \lambda I)^{-1} A^H),
          \qquad \lambda = \sigma_n^2 / \rho^2 ,

and makes one iteration at least as good as the white model with the best :math:`\rho` along its direction. It changes
the path of the iterations, not where they end. :math:`\rho` is the error of a linear denoiser of white images with the
standard deviation `sigma_data`.

What is exact: for a Gaussian prior the conditional mean, with enough iterations; samples up to the steps of the reverse
diffusion. What is approximate: other priors (the third moment of :math:`x \mid x_\sigma` on), networks whose Jacobian
is not symmetric and positive, few iterations and few steps. The published run has 64 steps with 1 to 3 iterations.

References
----------
F. Rozet, G. Andry, F. Lanusse, G. Louppe, Learning diffusion priors from observations by expectation maximization,
NeurIPS 2024.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Generators, NoiseRange, Problem, Pullback, ancestral


@dataclass(frozen=True)
class MMPS(NoiseRange):
    """Moment matching posterior sampling.

    Attributes
    ----------
    iterations : int
        Of conjugate gradients at every step; each costs a pass back through the network.
    sigma_data : float
        Standard deviation of images per component; for the preconditioner alone.
    """

    iterations: int = 1
    sigma_data: float = 0.25

    @property
    def evaluations_per_step(self) -> int:
        """One, and a pass back for every iteration."""
        return 1 + 2 * self.iterations

    def step(self, x: Tensor, sigma: float, next_sigma: float, problem: Problem, generators: Generators) -> Tensor:
        """Conditional mean, then an ancestral step."""
        mean = self.posterior_mean(x, sigma, problem)
        return ancestral(x, mean, sigma, next_sigma, problem.noise(generators))

    def posterior_mean(self, x: Tensor, sigma: float, problem: Problem) -> Tensor:
        """``E[x | x_t, y]`` (samples, y, x), up to the iterations."""
        mean, pullback = problem.linearise(x, sigma)
        spread = sigma * self.sigma_data / math.hypot(sigma, self.sigma_data)
        remaining = problem.residual(mean)
        direction = self._preconditioned(remaining, spread, problem)
        size = _inner(remaining, direction)
        tiny = torch.finfo(size.dtype).tiny
        for _ in range(self.iterations):
            image, data = self._covariance(direction, sigma, problem, pullback)
            curvature = _inner(direction, data)
            alpha = torch.where(curvature > tiny, size / curvature.clamp_min(tiny), 0.0)
            mean = mean + alpha[..., 0] * image
            remaining = remaining - alpha * data
            improved = self._preconditioned(remaining, spread, problem)
            before, size = size, _inner(remaining, improved)
            direction = improved + torch.where(before > tiny, size / before.clamp_min(tiny), 0.0) * direction
        return mean

    @staticmethod
    def _covariance(v: Tensor, sigma: float, problem: Problem, pullback: Pullback) -> tuple[Tensor, Tensor]:
        """``sigma^2 J A^H v`` (samples, y, x) and ``(sigma_n^2 + sigma^2 A J A^H) v`` (samples, coil, y, x)."""
        image = sigma**2 * pullback(problem.operator.adjoint(v))
        return image, problem.noise_std**2 * v + problem.operator.forward(image)

    @staticmethod
    def _preconditioned(v: Tensor, spread: float, problem: Problem) -> Tensor:
        """Solution of the system with a white denoiser error; both (samples, coil, y, x)."""
        image = problem.solver.solve(problem.operator.adjoint(v), (problem.noise_std / spread) ** 2)
        return (v - problem.operator.forward(image)) / problem.noise_std**2


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Re <a, b> of each sample, (samples, 1, 1, 1), for arrays (samples, coil, y, x)."""
    return (a.real * b.real + a.imag * b.imag).sum((-3, -2, -1), keepdim=True)
