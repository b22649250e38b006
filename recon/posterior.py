r"""Posterior sampling: a denoiser wrapped by the data, and an annealing that does not know about either.

Given ``y = A x + n`` and a noisy image :math:`x_t = x + \sigma \epsilon`, let the unconditional denoiser say
:math:`x \mid x_t \sim N(D(x_t, \sigma), r^2 I)`. Then :math:`x \mid x_t, y` is Gaussian, exactly, with precision
:math:`\Lambda = A^H A / \sigma_n^2 + I / r^2` and mean

.. math::  m = \arg\min_u \|A u - y\|^2 / \sigma_n^2 + \|u - D(x_t, \sigma)\|^2 / r^2
           = (A^H A + \lambda I)^{-1} (A^H y + \lambda D), \qquad \lambda = \sigma_n^2 / r^2 .

Line masks are solved exactly (`RowSolver`: one eigendecomposition per slice for all levels and samples), others by
conjugate gradients. There is no step size to choose and no gradient through the network. :math:`r(\sigma)` is the
error of the denoiser at that level, measured when the prior was made.

`anneal` draws :math:`x_0 \sim x \mid x_t, y` at a high noise level, adds noise of the next lower level, and so on down
(decoupled annealing). If the conditional were exact, every :math:`x_0` would be an exact posterior sample, whatever the
schedule, because noise added to a posterior sample gives a sample of :math:`x_{t'} \mid y`; errors of one level are not
carried to the next, as they are when a reverse diffusion is integrated with an imperfect denoiser.

References
----------
B. Zhang et al., Improving diffusion inverse problem solving with decoupled noise annealing, CVPR 2025 (the annealing;
its inner Langevin loop is replaced by the exact draw). J. Song, A. Vahdat, M. Mardani, J. Kautz, Pseudoinverse-guided
diffusion models for inverse problems, ICLR 2023 (the isotropic approximation). G. Papandreou, A. Yuille, Gaussian
sampling by local perturbations, NIPS 2010 (draws by solving a perturbed system, for masks without an
eigendecomposition).
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from mri_ambient.denoiser import noise_schedule
from mri_ambient.operators import CgSolver, RowSolver, Sense, normal_solver


class ImageDenoiser(Protocol):
    """Anything that maps noisy images (batch, y, x) at a noise level to their expected clean image."""

    def __call__(self, noisy: Tensor, sigma: float | Tensor) -> Tensor:
        """Estimate the image."""
        ...


class PosteriorDenoiser:
    """``x | x_t, y`` from a denoiser, measured k-space and its operator.

    Parameters
    ----------
    denoiser : callable
        ``(x_t (samples, y, x), sigma) -> image``; for instance `mri_ambient.denoiser.Denoiser`.
    kspace : Tensor (coil, y, x)
        Measured, in prior units.
    operator : Sense
        Of one slice.
    noise_std : float
        Of `kspace`, per real component; positive.
    error : callable
        ``sigma -> r``, the root mean square error of the denoiser per real component.
    solver : RowSolver or CgSolver, optional
        For ``(A^H A + lambda) u = b``. Default: whichever fits the mask.

    Attributes
    ----------
    support : Tensor (y, x), bool
        Where some coil is sensitive.
    evaluations : int
        How often the denoiser was called (once for a batch of samples).

    Raises
    ------
    ValueError
        If the noise level is not positive.
    """

    def __init__(
        self,
        denoiser: ImageDenoiser,
        kspace: Tensor,
        operator: Sense,
        noise_std: float,
        error: Callable[[float], float],
        solver: RowSolver | CgSolver | None = None,
    ) -> None:
        if not noise_std > 0:
            raise ValueError("posterior sampling needs a positive noise level")
        self.denoiser = denoiser
        self.operator = operator
        self.noise_std = noise_std
        self.error = error
        self.solver = solver or normal_solver(operator)
        self.adjoint = operator.adjoint(kspace)
        self.support = operator.sensitivity_maps.abs().amax(-3) > 0
        self.evaluations = 0

    def __call__(self, noisy: Tensor, sigma: float) -> Tensor:
        """Posterior mean (samples, y, x) given noisy images at one level."""
        prior_mean = self.denoiser(noisy, sigma)
        self.evaluations += 1
        ratio = (self.noise_std / self.error(sigma)) ** 2
        return self.solver.solve(self.adjoint + ratio * prior_mean, ratio, initial=prior_mean)

    def draw(self, noisy: Tensor, sigma: float, generators: Sequence[torch.Generator]) -> Tensor:
        """One draw (samples, y, x) of ``x | x_t, y`` for each noisy image, one generator a sample."""
        if isinstance(self.solver, RowSolver):
            return self(noisy, sigma) + self._fluctuation(self.solver, sigma, generators)
        prior_mean = self.denoiser(noisy, sigma)
        self.evaluations += 1
        r, noise_std = self.error(sigma), self.noise_std
        white = torch.stack([_white(self.operator.image_shape, g) for g in generators]).to(noisy.device)
        coils = torch.stack([_white(self.operator.kspace_shape, g) for g in generators]).to(noisy.device)
        data = self.adjoint + noise_std * self.operator.adjoint(coils)
        ratio = (noise_std / r) ** 2
        return self.solver.solve(data + ratio * (prior_mean + r * white), ratio, initial=prior_mean)

    def _fluctuation(self, rows: RowSolver, sigma: float, generators: Sequence[torch.Generator]) -> Tensor:
        """Gaussian (samples, y, x) with the covariance of ``x | x_t, y``."""
        white = torch.stack([_white(self.operator.image_shape, g) for g in generators]).to(self.adjoint.device)
        precision = 1 / self.error(sigma) ** 2
        return rows.apply(lambda e: (e / self.noise_std**2 + precision) ** -0.5, white)


def _white(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.view_as_complex(torch.randn(*shape, 2, generator=generator))


@torch.no_grad()
def anneal(
    posterior: PosteriorDenoiser, start: Tensor, schedule: Sequence[float], generators: Sequence[torch.Generator]
) -> Tensor:
    """Decoupled annealing along a noise schedule.

    Parameters
    ----------
    posterior : PosteriorDenoiser
    start : Tensor (y, x)
        What the first noise is added to; at a high first level it hardly matters.
    schedule : sequence of float
        Noise levels, falling; one network evaluation a sample each.
    generators : sequence of torch.Generator
        One a sample, so that a sample does not depend on how many are drawn with it.

    Returns
    -------
    Tensor (samples, y, x)
    """
    image = start.expand(len(generators), *start.shape[-2:])
    for sigma in schedule:
        noise = torch.stack([_white(image.shape[-2:], g) for g in generators]).to(image.device)
        image = posterior.draw(image + sigma * noise, sigma, generators)
        image = image * posterior.support  # elsewhere no coil sees anything: there is no object
    return image


@torch.no_grad()
def refine(
    posterior: PosteriorDenoiser, image: Tensor, *, steps: int = 10, high: float = 0.1, low: float = 0.01
) -> Tensor:
    """Annealing without noise from an image (y, x): a point estimate close to the mean of many samples.

    The average of a few samples still carries a share of their spread. Falling conditional means, started at that
    average, remove it.
    """
    image = image[None]
    for sigma in noise_schedule(steps, high, low):
        image = posterior(image, sigma) * posterior.support
    return image[0]


def sample_posterior(
    posterior: PosteriorDenoiser,
    *,
    samples: int = 8,
    steps: int = 25,
    start: Tensor | None = None,
    high: float = 0.5,
    low: float = 0.01,
    generators: Sequence[torch.Generator] | None = None,
) -> Tensor:
    """Draw samples of the posterior.

    Parameters
    ----------
    posterior : PosteriorDenoiser
    samples, steps : int
        Number of samples, and of noise levels (network evaluations a sample).
    start : Tensor (y, x), optional
        Image that the first noise is added to (default: a regularised least-squares image).
    high, low : float
        First and last noise level, in prior units.
    generators : sequence of torch.Generator, optional
        One a sample. Default: seeds 0, 1, 2, ...

    Returns
    -------
    Tensor (samples, y, x), complex64

    Raises
    ------
    ValueError
        If the number of generators is not the number of samples.
    """
    if generators is None:
        generators = [torch.Generator().manual_seed(i) for i in range(samples)]
    if len(generators) != samples:
        raise ValueError(f"{samples} samples need as many generators, not {len(generators)}")
    if start is None:
        start = posterior.solver.solve(posterior.adjoint, 0.05)
    return anneal(posterior, start, noise_schedule(steps, high, low), generators)
