r"""Posterior sampling: an annealing that knows neither the denoiser nor the data.

`anneal` draws :math:`x_0 \sim x \mid x_t, y` (`mri_ambient.posterior`) at a high noise level, adds noise of the next
lower level, and so on down (decoupled annealing). If the conditional were exact, every :math:`x_0` would be an exact
posterior sample, whatever the schedule, because noise added to a posterior sample gives a sample of
:math:`x_{t'} \mid y`; errors of one level are not carried to the next, as they are when a reverse diffusion is
integrated with an imperfect denoiser.

References
----------
B. Zhang et al., Improving diffusion inverse problem solving with decoupled noise annealing, CVPR 2025 (the annealing;
its inner Langevin loop is replaced by the exact draw).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mri_ambient.denoiser import noise_schedule
from mri_ambient.posterior import PosteriorDenoiser, one_each


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
        image = posterior.draw(image + sigma * posterior.noise(generators), sigma, generators)
        image = image * posterior.support  # elsewhere no coil sees anything: there is no object
    return image


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
    generators = one_each(generators, samples)
    start = posterior.start() if start is None else start
    return anneal(posterior, start, noise_schedule(steps, high, low), generators)
