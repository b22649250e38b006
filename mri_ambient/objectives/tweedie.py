r"""Tweedie and consistency: noisy data, exact above their noise, extended below it to noise level zero.

Above the noise :math:`\sigma_n` of the data. Let :math:`x_n = x + \sigma_n \epsilon_n` be a noisy image and
:math:`x_s = x_n + \sqrt{s^2 - \sigma_n^2}\, \epsilon` a noisier one. Tweedie's formula, applied to both steps, gives

.. math:: E[x_n \mid x_s] = (1 - a)\, E[x \mid x_s] + a\, x_s , \qquad a = \sigma_n^2 / s^2 ,

so that ``||(1 - a) D(x_s, s) + a x_s - x_n||^2`` has the minimiser ``D = E[x | x_s]``. It is the error against the
noise-corrected target ``x_n - a / (1 - a) sqrt(s^2 - sigma_n^2) eps`` times ``(1 - a)^2``, which stays bounded as s
approaches the noise. Each line of k-space obeys the same formula: with undersampling, measured lines of
``y`` and ``y~ = y + sqrt(s^2 - sigma_n^2) e`` take the place of the images, weighted by ``1 / p`` (see `gsure`).

Below the noise no target exists, but the denoiser is tied to itself: an exact one is a martingale along the reverse
diffusion, :math:`D(x_s, s) = E[D(x_{s'}, s') \mid x_s]` for :math:`s' < s`. With

.. math:: x_{s'} = D + \frac{s'^2}{s^2} (x_s - D) + s' \sqrt{1 - s'^2 / s^2}\, \epsilon , \qquad D = D(x_s, s) ,

and two independent draws, the product of the two differences ``Re <D(x1) - D(x_s), D(x2) - D(x_s)>`` is an unbiased
estimate of the squared violation; the square of a single difference would punish the spread of ``D(x_{s'})`` as well.
A denoiser that is exact at and above some level and consistent below is exact everywhere. The lower level learns from
the upper one and not the other way round (no gradient goes to ``D(x_s, s)``): otherwise the levels below the noise
agree most easily on returning nothing at all. In this step ``D`` stands for
a draw of ``x | x_s``; the mean of :math:`x_{s'}` is then right for every step and its spread too small by a term
that vanishes with the step, so that steps are short (and for Gaussian data, where D is linear, any step is exact).

What data give. Fully sampled scans give noisy images of white noise (unmeasured, zero-padded columns and places
outside the coils are filled with noise of the same level): everything above is exact for the unconditional denoiser and
consistency starts from the noisy images themselves. Undersampled scans give the formula on measured lines only, exact
for the denoiser that is told the mask, on the range of ``A^H``. The unconditional one then learns from the current
reconstructions, above the level at which their errors drown in noise (`UsableLevels`), and consistency starts at that
level; this is an approximation as good as the reconstructions.

References
----------
G. Daras, A. G. Dimakis, C. Daskalakis, Consistent diffusion meets Tweedie: training exact ambient diffusion models with
noisy data, ICML 2024. G. Daras et al., Consistent diffusion models: mitigating sampling drift by learning to be
consistent, NeurIPS 2023. G. Daras et al., Ambient diffusion omni: training good models with bad data, 2025 (data of
low quality used at high noise only).
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mri_ambient.denoiser import Denoiser
from mri_ambient.objectives.base import Batch, complex_normal, expected_error
from mri_ambient.objectives.gsure import level_error, line_weights, log_between, subset
from mri_ambient.objectives.supervised import Supervised
from mri_ambient.operators import Sense


@dataclass(frozen=True)
class UsableLevels:
    """Images of limited quality, used for the unconditional denoiser at certain noise levels only.

    Images with errors (reconstructions, other contrasts blurred by motion) serve above a level that hides the errors;
    images of something else (another anatomy) serve below one, where denoising is local and what they show is alike.

    Attributes
    ----------
    min_sigma, max_sigma : float
        In prior units.
    """

    min_sigma: float = 0.2
    max_sigma: float = 2.0

    def loss(self, denoiser: Denoiser, batch: Batch, generator: torch.Generator) -> Tensor:
        """Denoising loss on the images of a batch, at these levels."""
        return Supervised(sigma_range=(self.min_sigma, self.max_sigma)).denoising(denoiser, batch.image, generator)


@dataclass(frozen=True)
class Consistency:
    """The martingale property of the unconditional denoiser below a noise level.

    Attributes
    ----------
    min_sigma : float
        Lowest level that a step starts from, in prior units.
    step_range : tuple
        Bounds of the ratio of a step's lower level to its upper one, uniform.
    """

    min_sigma: float = 0.005
    step_range: tuple[float, float] = (0.6, 0.95)

    def loss(self, denoiser: Denoiser, noisy: Tensor, level: Tensor, generator: torch.Generator) -> Tensor:
        """Squared violation, over the error one expects.

        Parameters
        ----------
        denoiser : Denoiser
        noisy : Tensor (batch, y, x)
            Images with white noise.
        level : Tensor (batch,)
            Their noise level. One reverse step takes each to a random level below it, where the violation is measured.
        generator : torch.Generator
        """
        upper = log_between(level.clamp_max(self.min_sigma), level, generator)
        low, high = self.step_range
        lower = upper * (low + (high - low) * torch.rand(len(upper), generator=generator).to(upper.device))
        with torch.no_grad():
            start = reverse_step(noisy, denoiser(noisy, level), level, upper, generator)
        return violation(denoiser, start, upper, lower, generator)


def violation(denoiser: Denoiser, noisy: Tensor, upper: Tensor, lower: Tensor, generator: torch.Generator) -> Tensor:
    """Unbiased estimate of ``||E[D(x', lower) | x] - D(x, upper)||^2`` a pixel, over the error one expects.

    The upper level is the teacher and gets no gradient.
    """
    with torch.no_grad():
        here = denoiser(noisy, upper)
    draws = [reverse_step(noisy, here, upper, lower, generator) for _ in range(2)]
    first, second = (denoiser(draw, lower) - here for draw in draws)
    expected = expected_error(upper, torch.zeros_like(upper), denoiser.config.sigma_data)
    return ((first.conj() * second).real / expected[:, None, None]).mean()


def reverse_step(noisy: Tensor, clean: Tensor, upper: Tensor, lower: Tensor, generator: torch.Generator) -> Tensor:
    """Draw of the image at level `lower` (batch,) given the one at level `upper` and the clean image."""
    share = (lower / upper)[:, None, None] ** 2
    noise = complex_normal(noisy.shape, generator, noisy.device)
    return clean + share * (noisy - clean) + lower[:, None, None] * (1 - share).clamp_min(0).sqrt() * noise


@dataclass(frozen=True)
class Tweedie:
    """Double Tweedie above the noise of the data, consistency below.

    Attributes
    ----------
    sigma_max : float
        Highest noise level of the unconditional denoiser, in prior units.
    noise_factor_range : tuple
        Input noise in units of the data's, log-uniform: lower bound for fully sampled data, both for undersampled data.
    consistency_weight : float
        Weight of the consistency loss; 0 leaves it out.
    usable : UsableLevels
        Where the unconditional denoiser learns from current reconstructions, if the data are undersampled.
    """

    sigma_max: float = 2.0
    noise_factor_range: tuple[float, float] = (1.05, 4.0)
    consistency_weight: float = 1.0
    usable: UsableLevels = field(default_factory=UsableLevels)
    consistency: Consistency = field(default_factory=Consistency)

    def loss(self, denoiser: Denoiser, batch: Batch, generator: torch.Generator) -> Tensor:
        """Loss above a level, plus the weighted consistency loss below it on half of the examples."""
        half = (len(batch) + 1) // 2
        first, second = subset(batch, slice(half)), subset(batch, slice(len(batch) // 2, None))
        if bool((batch.mask | (batch.probability == 0)).all()):
            noisy, level = noisy_image(batch, generator), batch.noise_std
            above = self.denoising(denoiser, noisy, level, generator)
            noisy, level = noisy[:half], level[:half]
        else:
            level = first.noise_std.clamp_min(self.usable.min_sigma)
            noise = complex_normal(first.image.shape, generator, first.image.device)
            noisy = first.image + level[:, None, None] * noise
            reconstruction = self.reconstruction(denoiser, second, generator)
            above = (reconstruction + self.usable.loss(denoiser, first, generator)) / 2
        if self.consistency_weight == 0:
            return above
        return above + self.consistency_weight * self.consistency.loss(denoiser, noisy, level, generator)

    def denoising(self, denoiser: Denoiser, noisy: Tensor, noise_std: Tensor, generator: torch.Generator) -> Tensor:
        """Loss of the unconditional denoiser on images (batch, y, x) with white noise."""
        low = self.noise_factor_range[0] * noise_std
        sigma = log_between(low, low.clamp_min(self.sigma_max), generator)
        share = tweedie_share(noise_std, sigma)[:, None, None]
        extra = (sigma**2 - noise_std**2).clamp_min(0).sqrt()[:, None, None]
        noisier = noisy + extra * complex_normal(noisy.shape, generator, noisy.device)
        residual = (1 - share) * denoiser(noisier, sigma) + share * noisier - noisy
        expected = expected_error(sigma, torch.zeros_like(sigma), denoiser.config.sigma_data)
        return (residual.abs() ** 2 / expected[:, None, None]).mean()

    def reconstruction(self, denoiser: Denoiser, batch: Batch, generator: torch.Generator) -> Tensor:
        """Loss of one-step reconstruction on measured lines."""
        low, high = self.noise_factor_range
        sigma = log_between(low * batch.noise_std, high * batch.noise_std, generator)
        share = tweedie_share(batch.noise_std, sigma)[:, None, None, None]
        extra = (sigma**2 - batch.noise_std**2).clamp_min(0).sqrt()[:, None, None, None]
        noisier = batch.kspace + extra * complex_normal(batch.kspace.shape, generator, batch.kspace.device)
        operator = Sense(batch.sensitivity_maps, batch.mask)
        estimate = operator.forward(denoiser(operator.adjoint(noisier), sigma, operator))
        residual = (1 - share) * estimate + share * noisier - batch.kspace
        error = (line_weights(batch)[:, None] * residual.abs() ** 2).sum((-3, -2, -1))
        expected = level_error(batch, sigma, denoiser.config.sigma_data)
        return (error / (residual.shape[-2] * residual.shape[-1]) / expected).mean()


def tweedie_share(noise_std: Tensor, sigma: Tensor) -> Tensor:
    """Share a of the noisier image in the expectation of the less noisy one."""
    return (noise_std / sigma) ** 2


def noisy_image(batch: Batch, generator: torch.Generator) -> Tensor:
    """Images with white noise of the data's level everywhere, from fully sampled scans.

    Zero-padded columns and places that no coil sees hold no noise; they are filled with it.
    """
    operator = Sense(batch.sensitivity_maps, torch.ones_like(batch.mask))
    level = batch.noise_std[:, None, None]
    filling = level[:, None] * complex_normal(batch.kspace.shape, generator, batch.kspace.device)
    image = operator.adjoint(torch.where(batch.mask[:, None], batch.kspace, filling))
    unseen = batch.sensitivity_maps.abs().amax(1) == 0
    return torch.where(unseen, level * complex_normal(image.shape, generator, image.device), image)
