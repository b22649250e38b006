r"""PnP-DM: Gibbs sampling between the prior and the data.

A copy z of the image is coupled to it, :math:`z \mid x \sim N(x, \rho^2 I)`; the prior acts on x, the data act on z:

.. math:: z \mid x, y \sim p(y \mid z)\, N(z; x, \rho^2 I), \qquad x \mid z \sim p(x)\, N(z; x, \rho^2 I) .

The first draw is Gaussian and exact (`Problem.draw`). The second is denoising with random outcome: reverse diffusion
that starts at z with noise level :math:`\rho`, in several steps. :math:`\rho` falls geometrically, then stays.

What is exact: at a fixed :math:`\rho`, with enough reverse steps and iterations, x has the posterior of data with noise
covariance :math:`\sigma_n^2 I + \rho^2 A A^H`, and so the posterior itself as :math:`\rho \to 0`. What is approximate:
few iterations (one moves the unmeasured part by about :math:`\rho`), few reverse steps, and the last :math:`\rho`. The
published run has 100 iterations from 10 to 0.02, each of up to 100 reverse steps; here it starts at 2, the end of the
range in which the shipped priors were trained.

References
----------
Z. Wu et al., Principled probabilistic imaging using diffusion models as plug-and-play priors, NeurIPS 2024.
"""

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from mri_ambient.denoiser import noise_schedule

from .base import Generators, Problem, ancestral

PUBLISHED_ITERATIONS = 100


@dataclass(frozen=True)
class PnPDM:
    """Plug-and-play diffusion models.

    Attributes
    ----------
    high, low : float
        First and last coupling.
    decay : float
        Factor between couplings in a run of 100 iterations; a shorter run decays faster, to the same end.
    prior_steps : int
        Reverse diffusion steps of each draw from the prior.
    floor : float
        Last noise level of the reverse diffusion before zero.
    """

    high: float = 2.0
    low: float = 0.02
    decay: float = 0.93
    prior_steps: int = 10
    floor: float = 0.005

    @property
    def evaluations_per_step(self) -> int:
        """Of a draw from the prior."""
        return self.prior_steps

    def levels(self, steps: int) -> list[float]:
        """`steps` couplings, from high to low."""
        decay = self.decay ** (PUBLISHED_ITERATIONS / steps)
        return [max(self.high * decay**i, self.low) for i in range(steps)]

    def step(self, x: Tensor, sigma: float, next_sigma: float, problem: Problem, generators: Generators) -> Tensor:
        """Draw the image, then its copy at the next coupling; `x` is a copy, at coupling `sigma`."""
        image = self.prior_draw(x, sigma, problem, generators)
        return problem.draw(image, next_sigma, generators) if next_sigma > 0 else image

    def prior_draw(self, copy: Tensor, rho: float, problem: Problem, generators: Generators) -> Tensor:
        """Draw images (samples, y, x) of the prior, given what they are with noise `rho`."""
        x = copy
        for upper, lower in pairwise([*noise_schedule(self.prior_steps, rho, min(rho, self.floor)), 0.0]):
            x = ancestral(x, problem.denoise(x, upper), upper, lower, problem.noise(generators))
        return x
