r"""Supervised training: the oracle with fully sampled references, and the warm start on reconstructions.

Images ``x`` are given. Patches of them train the full-mask denoiser,

.. math:: z = x + \sigma \epsilon, \qquad L = \|D(z, \sigma) - x\|^2 / v(\sigma) ,

the denoising loss of diffusion models, which is what posterior sampling needs. A part of the batches, drawn at random,
trains one-step reconstruction as well: a mask of random acceleration and family is drawn, ``y = M (F S x + n)``, and
``D(A^H y, sigma, A)`` is compared with ``x``. Such a step costs more than twice as much. ``v`` is the error
variance one expects, so that every noise level and acceleration counts alike.

References
----------
P. Vincent, A connection between score matching and denoising autoencoders, Neural Computation 23 (2011) 1661-1674.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mri_ambient.denoiser import Denoiser, log_uniform
from mri_ambient.objectives.base import Batch, complex_normal, expected_error
from mri_ambient.operators import MaskPattern, Sense


@dataclass(frozen=True)
class Supervised:
    """Denoising and one-step reconstruction of given images.

    Attributes
    ----------
    sigma_range : tuple
        Noise levels of the full-mask denoiser, log-uniform, in prior units.
    noise_range : tuple
        Noise levels of simulated scans, log-uniform.
    acceleration_range : tuple
        Accelerations of simulated scans, uniform in the sampled fraction.
    reconstruction_share : float
        Share of the batches with one-step reconstruction.
    """

    sigma_range: tuple[float, float] = (0.005, 2.0)
    noise_range: tuple[float, float] = (0.004, 0.1)
    acceleration_range: tuple[float, float] = (1.25, 12.0)
    reconstruction_share: float = 0.3

    def loss(self, denoiser: Denoiser, batch: Batch, generator: torch.Generator) -> Tensor:
        """Denoising, and in a share of the batches reconstruction."""
        loss = self.denoising(denoiser, batch.image if batch.patches is None else batch.patches, generator)
        if float(torch.rand((), generator=generator)) < self.reconstruction_share:
            loss = loss + self.reconstruction(denoiser, batch.image, batch.sensitivity_maps, generator)
        return loss

    def denoising(self, denoiser: Denoiser, image: Tensor, generator: torch.Generator) -> Tensor:
        """Loss of the full-mask denoiser on images (batch, y, x)."""
        sigma = log_uniform(*self.sigma_range, len(image), generator).to(image.device)
        noise = complex_normal(image.shape, generator, image.device)
        estimate = denoiser(image + sigma[:, None, None] * noise, sigma)
        expected = expected_error(sigma, torch.zeros_like(sigma), denoiser.config.sigma_data)
        return ((estimate - image).abs() ** 2 / expected[:, None, None]).mean()

    def reconstruction(self, denoiser: Denoiser, image: Tensor, maps: Tensor, generator: torch.Generator) -> Tensor:
        """Loss of one-step reconstruction of simulated scans of images (batch, y, x) with maps (batch, coil, y, x)."""
        mask = self.draw_masks(len(image), (image.shape[-2], image.shape[-1]), generator).to(image.device)
        sigma = log_uniform(*self.noise_range, len(image), generator).to(image.device)
        operator = Sense(maps, mask)
        noise = complex_normal(operator.kspace_shape, generator, image.device)
        kspace = operator.forward(image) + sigma[:, None, None, None] * noise  # the adjoint masks the noise
        estimate = denoiser(operator.adjoint(kspace), sigma, operator)
        missing = 1 - mask.float().mean((-2, -1))
        expected = expected_error(sigma, missing, denoiser.config.sigma_data)
        return ((estimate - image).abs() ** 2 / expected[:, None, None]).mean()

    def draw_masks(self, count: int, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Line masks (count, 1, x) of random acceleration, random or equispaced."""
        low, high = self.acceleration_range
        high = max(low, min(high, shape[1] / 12))  # leaves the 8 centre lines and a few more
        masks = []
        for _ in range(count):
            u, family = torch.rand(2, generator=generator).tolist()
            accel = 1 / (1 / high + u * (1 / low - 1 / high))
            kind = "random" if family < 0.7 else "equispaced"
            masks.append(MaskPattern(kind, accel).sample(shape, generator=generator))
        return torch.stack(masks)[:, None]
