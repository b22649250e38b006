r"""DDS and DiffPIR: denoise, make consistent with the data, add noise of the next level. No gradient of the network.

Both replace the denoised image :math:`D` by

.. math:: u = (A^H A + \lambda I)^{-1} (A^H y + \lambda D)

and go on from u with a mixture of fresh noise and the noise :math:`\hat\epsilon` found in the current image.

*DDS*: :math:`\lambda = 1 / \gamma`, five conjugate gradient iterations started at D, :math:`\hat\epsilon = (x_\sigma -
D) / \sigma`, and :math:`x_{\sigma'} = u + \sigma' (\eta\, \epsilon + \sqrt{1 - \eta^2}\, \hat\epsilon)`. Inner
products of conjugate gradients are real parts of :math:`a^H b`; products without the conjugate, as in the official
code, do not minimise anything for complex images.

*DiffPIR*: :math:`\lambda = \lambda_0 \sigma_n^2 / \sigma^2`, the minimiser itself where the official MRI code takes a
gradient step, :math:`\hat\epsilon = (x_\sigma - u) / \sigma`, and :math:`x_{\sigma'} = u + \sigma' (\sqrt\xi\,
\epsilon + \sqrt{1 - \xi}\, \hat\epsilon)`.

What is exact: the least-squares problem (in DDS up to five iterations, which is part of the method). What is heuristic:
u is a conditional mean if the denoiser's error is white with variance :math:`\sigma_n^2 / \lambda` (DDS: the same at
all noise levels and for all scans; DiffPIR: :math:`\sigma^2 / \lambda_0`), and even then samples are drawn around means
only, so that they spread too little. Published numbers of steps: 50 for DDS, 1000 for DiffPIR on MRI.

References
----------
H. Chung, S. Lee, J. C. Ye, Decomposed diffusion sampler for accelerating large-scale inverse problems, ICLR 2024.
Y. Zhu et al., Denoising diffusion models for plug-and-play image restoration, CVPR workshops 2023.
"""

from dataclasses import dataclass

from torch import Tensor

from mri_ambient.operators import conjugate_gradient

from .base import Generators, NoiseRange, Problem, predicted_noise

CONVERGED = 1e-6


@dataclass(frozen=True)
class DDS(NoiseRange):
    """Decomposed diffusion sampling.

    Attributes
    ----------
    gamma : float
        Weight of the data against the denoised image.
    eta : float
        Share of fresh noise, 0 to 1.
    iterations : int
        Of conjugate gradients.
    """

    gamma: float = 1.0
    eta: float = 0.85
    iterations: int = 5

    def step(self, x: Tensor, sigma: float, next_sigma: float, problem: Problem, generators: Generators) -> Tensor:
        """Denoise, conjugate gradients, noise."""
        mean = problem.denoise(x, sigma)
        found = predicted_noise(x, mean, sigma)
        fresh = problem.noise(generators)
        noise = self.eta * fresh + (1 - self.eta**2) ** 0.5 * found
        return self.consistent(mean, problem) + next_sigma * noise

    def consistent(self, mean: Tensor, problem: Problem) -> Tensor:
        """A few conjugate gradient iterations from the denoised images (samples, y, x) towards the data."""
        return conjugate_gradient(
            problem.operator.normal,
            problem.adjoint + mean / self.gamma,
            regularisation=1 / self.gamma,
            initial=mean,
            iterations=self.iterations,
            tolerance=CONVERGED,
        ).solution


@dataclass(frozen=True)
class DiffPIR(NoiseRange):
    """Plug-and-play restoration with a diffusion denoiser.

    Attributes
    ----------
    weight : float
        Called lambda in the paper: noise variance of the diffusion over the error variance ascribed to the denoiser.
    xi : float
        Share (of the variance) of fresh noise, 0 to 1; called zeta in the paper.
    """

    weight: float = 8.0
    xi: float = 1.0

    def step(self, x: Tensor, sigma: float, next_sigma: float, problem: Problem, generators: Generators) -> Tensor:
        """Denoise, exact data step, noise."""
        mean = problem.consistent(problem.denoise(x, sigma), sigma / self.weight**0.5)
        found = predicted_noise(x, mean, sigma)
        fresh = problem.noise(generators)
        return mean + next_sigma * (self.xi**0.5 * fresh + (1 - self.xi) ** 0.5 * found)
