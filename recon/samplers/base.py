r"""What posterior samplers share: the problem, the interface, the driver, and three building blocks.

A prior is a denoiser :math:`D(x_t, \sigma) = E[x \mid x_t]` for :math:`x_t = x + \sigma \epsilon`; the data are
:math:`y = A x + n`. A sampler takes images that are noisy at one level to images that are noisy at the next lower one;
the last level is zero. All its randomness comes from one generator a sample, so that a sample does not depend on how
many are drawn with it.

Building blocks
---------------
*Reverse diffusion.* With :math:`\tau = 1 - \sigma'^2 / \sigma^2`, `ancestral` draws

.. math:: x_{\sigma'} = x_\sigma - \tau (x_\sigma - \hat x) + \sigma' \sqrt\tau\, \epsilon .

It is exact when :math:`\hat x` is certain; dropping the covariance of :math:`x \mid x_\sigma` costs an error of first
order in the step.

*Exact data step.* If :math:`x \sim N(z, \rho^2 I)` before the data are seen, :math:`x \mid y` is Gaussian with
precision :math:`\Lambda = A^H A / \sigma_n^2 + I / \rho^2` and mean

.. math:: (A^H A + \lambda I)^{-1} (A^H y + \lambda z), \qquad \lambda = \sigma_n^2 / \rho^2 .

`Problem.consistent` is that mean, `Problem.draw` a sample: the same linear system with noise :math:`\sigma_n` added to
y and noise :math:`\rho` added to z, whose solution has covariance :math:`\Lambda^{-1}` (perturb and optimise).

*Gradient through the denoiser.* `Problem.linearise` returns :math:`g \mapsto J^T g` for the Jacobian of D. Complex
images count as pairs of real numbers (inner product :math:`\mathrm{Re}\, a^H b`), so that the gradient of
:math:`\frac12 \|A D(x) - y\|^2` is :math:`J^T A^H (A D - y)`, with no factor of two left over or missing.

References
----------
T. Karras et al., Elucidating the design space of diffusion-based generative models, NeurIPS 2022. G. Papandreou,
A. Yuille, Gaussian sampling by local perturbations, NIPS 2010.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from mri_ambient.denoiser import noise_schedule
from mri_ambient.operators import CgSolver, RowSolver, Sense
from mri_ambient.posterior import ImageDenoiser, MeasuredSlice, one_each

Generators = Sequence[torch.Generator]
Pullback = Callable[[Tensor], Tensor]


class Problem(MeasuredSlice):
    """A `MeasuredSlice` with what published samplers are made of; parameters and attributes are those of that class.

    `evaluations` counts a pass back through the network as two.
    """

    def __init__(
        self,
        denoiser: ImageDenoiser,
        kspace: Tensor,
        operator: Sense,
        noise_std: float,
        solver: RowSolver | CgSolver | None = None,
    ) -> None:
        super().__init__(denoiser, kspace, operator, noise_std, solver)
        self.kspace = kspace * operator.mask

    def denoise(self, noisy: Tensor, sigma: float) -> Tensor:
        """``E[x | x_t]`` (samples, y, x)."""
        self.evaluations += 1
        return self.denoiser(noisy, sigma) * self.support

    def linearise(self, noisy: Tensor, sigma: float) -> tuple[Tensor, Pullback]:
        """``E[x | x_t]`` and the map ``g -> J^T g`` of the Jacobian there; both on (samples, y, x)."""
        with torch.enable_grad():
            leaf = noisy.detach().requires_grad_()
            mean = self.denoiser(leaf, sigma) * self.support
        self.evaluations += 1

        def pullback(direction: Tensor) -> Tensor:
            self.evaluations += 2
            return torch.autograd.grad(mean, leaf, direction, retain_graph=True)[0]

        return mean.detach(), pullback

    def residual(self, image: Tensor) -> Tensor:
        """``y - A image`` (samples, coil, y, x)."""
        return self.kspace - self.operator.forward(image)

    def consistent(self, prior_mean: Tensor, spread: float) -> Tensor:
        """Mean (samples, y, x) of x given the data, if ``x ~ N(prior_mean, spread^2 I)`` before."""
        return self.conditional(prior_mean, spread) * self.support

    def draw(self, prior_mean: Tensor, spread: float, generators: Generators) -> Tensor:
        """Sample (samples, y, x) of x given the data, if ``x ~ N(prior_mean, spread^2 I)`` before."""
        fluctuation = spread * self.noise(generators)
        return self.conditional_draw(prior_mean, fluctuation, spread, generators) * self.support


class Sampler(Protocol):
    """A way to sample the posterior."""

    @property
    def evaluations_per_step(self) -> int:
        """Network evaluations of a sample at each level, at most; a pass back through the network counts as two."""
        ...

    def levels(self, steps: int) -> list[float]:
        """Noise levels from high to low, `steps` of them; the zero at the end is not listed."""
        ...

    def step(self, x: Tensor, sigma: float, next_sigma: float, problem: Problem, generators: Generators) -> Tensor:
        """From images (samples, y, x) that are noisy at one level to the next, which may be zero."""
        ...


@dataclass(frozen=True)
class NoiseRange:
    """Noise levels between two bounds, equally spaced in their seventh root.

    Attributes
    ----------
    high, low : float
        First and last level, in prior units. The shipped priors were trained between 0.005 and 2.
    """

    high: float = 2.0
    low: float = 0.01

    @property
    def evaluations_per_step(self) -> int:
        """One, unless a sampler says otherwise."""
        return 1

    def levels(self, steps: int) -> list[float]:
        """`steps` noise levels from high to low."""
        return noise_schedule(steps, self.high, self.low)


@torch.no_grad()
def sample(
    sampler: Sampler,
    problem: Problem,
    samples: int = 8,
    steps: int = 25,
    generators: Generators | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """Draw samples of the posterior.

    Parameters
    ----------
    sampler : Sampler
    problem : Problem
    samples, steps : int
        Number of samples, and of noise levels.
    generators : sequence of torch.Generator, optional
        One a sample. Default: seeds 0, 1, 2, ...
    start : Tensor (y, x), optional
        Image that the first noise is added to (default: a regularised least-squares image).

    Returns
    -------
    Tensor (samples, y, x), complex64

    Raises
    ------
    ValueError
        If the number of generators is not the number of samples.
    """
    generators = one_each(generators, samples)
    start = problem.start() if start is None else start
    levels = sampler.levels(steps)
    x = start * problem.support + levels[0] * problem.noise(generators)
    for sigma, next_sigma in pairwise([*levels, 0.0]):
        x = sampler.step(x, sigma, next_sigma, problem, generators)
    return x * problem.support


def ancestral(noisy: Tensor, mean: Tensor, sigma: float, next_sigma: float, noise: Tensor) -> Tensor:
    """Reverse diffusion from one noise level to a lower one, given the denoised image; all (samples, y, x)."""
    tau = 1 - (next_sigma / sigma) ** 2
    return noisy - tau * (noisy - mean) + next_sigma * tau**0.5 * noise


def predicted_noise(noisy: Tensor, mean: Tensor, sigma: float) -> Tensor:
    """The unit noise that a denoiser has found."""
    return (noisy - mean) / sigma
