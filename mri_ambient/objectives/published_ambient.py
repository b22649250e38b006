r"""Ambient training as published (A-DPS), for comparison with the noise-aware, weighted form of `Ambient`.

A few of the measured off-centre lines are removed from a scan (:math:`\tilde A`, from ``A``), noise is added to the
image and the noisy image is sent through the operator twice,

.. math:: z = \tilde A^H \tilde A (x + s \epsilon) = \tilde A^H y + s \tilde A^H \tilde A \epsilon , \qquad
          L = \| A^H A\, D(z, s, \tilde A) - A^H y \|^2 .

The right-hand side of ``z`` needs no image when the data are free of noise. On such data the minimiser is
:math:`E[x \mid \tilde A (x + s \epsilon)]`: a reconstruction from undersampled, noisy data, not the denoiser
:math:`E[x \mid x + s \epsilon]` of a diffusion model.

Conditions. No noise in the data: what there is counts as signal and is reproduced. Every line has some chance to be
among the measured ones that were removed: :math:`E[A^H A \mid \tilde A]` must have full rank. So few lines are removed
that the part of k-space they stand for is learned from very few examples, and lines carry no weights: the centre,
always measured, counts most. As noise is added to the image, its covariance is :math:`s^2 (\tilde A^H \tilde A)^2`,
not the :math:`s^2 \tilde A^H \tilde A` of measured data, to which the network is applied afterwards. `Ambient` differs
in each of these points.

Not taken over from the official code: masks drawn once per slice (the removed lines are drawn anew each time), and its
loss weight per noise level, which belongs to its preconditioning (here, as everywhere, the loss is divided by the error
one expects). Noise levels have its distribution, relative to the standard deviation of the images.

References
----------
G. Daras et al., Ambient diffusion: learning clean distributions from corrupted data, NeurIPS 2023. A. Aali et al.,
Ambient diffusion posterior sampling: solving inverse problems with diffusion models trained on corrupted data, ICLR
2025.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mri_ambient.denoiser import Denoiser
from mri_ambient.objectives.base import Batch, complex_normal, expected_error
from mri_ambient.operators import Sense, acs_mask

REMOVED = {2: 54, 4: 16, 6: 8, 8: 5}  # lines by acceleration, of 320 columns
WIDTH = 320
OTHERWISE = 0.1  # share of the off-centre lines removed at other accelerations


@dataclass(frozen=True)
class PublishedAmbient:
    """Further undersampling, noise added to the image, error in the image domain, no weights.

    Attributes
    ----------
    log_mean, log_std : float
        Of the noise level over the standard deviation of the images.
    """

    log_mean: float = -1.2 + math.log(2)  # published for images of standard deviation 1/2
    log_std: float = 1.2

    def loss(self, denoiser: Denoiser, batch: Batch, generator: torch.Generator) -> Tensor:
        """Image-domain error behind the scan's own operator."""
        level = self.log_mean + self.log_std * torch.randn(len(batch), generator=generator)
        sigma = (denoiser.config.sigma_data * level.exp()).to(batch.kspace.device)
        kept = remove_lines(batch, generator)
        operator = Sense(batch.sensitivity_maps, batch.mask)
        fewer = operator.with_mask(kept)
        noise = complex_normal(batch.image.shape, generator, batch.kspace.device)
        z = fewer.adjoint(batch.kspace) + sigma[:, None, None] * fewer.normal(noise)
        residual = operator.normal(denoiser(z, sigma, fewer)) - operator.adjoint(batch.kspace)
        missing = 1 - kept.float().mean((-2, -1))
        expected = expected_error(sigma, missing, denoiser.config.sigma_data)
        return (residual.abs() ** 2 / expected[:, None, None]).mean()


def remove_lines(batch: Batch, generator: torch.Generator) -> Tensor:
    """Masks like the batch's with the published number of off-centre lines (samples, for 2-D masks) removed."""
    kept = batch.mask.cpu().clone()
    for mask, probability, acs in zip(kept, batch.probability.cpu(), batch.acs.tolist(), strict=True):
        line = mask[0] if len(mask) == 1 else mask
        removable = torch.nonzero((line & ~acs_mask(line, acs)).flatten())[:, 0]
        count = removed_count(int((probability != 0).sum()), int(line.sum()), len(removable), lines=len(mask) == 1)
        order = torch.randperm(len(removable), generator=generator)[:count]
        line.view(-1)[removable[order]] = False
    return kept.to(batch.mask.device)


def removed_count(places: int, measured: int, removable: int, lines: bool = True) -> int:
    """How many of `removable` off-centre lines to remove, for `measured` lines on `places` columns."""
    acceleration = places / measured
    nominal = round(acceleration)
    if lines and nominal in REMOVED and abs(acceleration - nominal) < 0.25:
        count = round(REMOVED[nominal] * places / WIDTH)
    else:
        count = round(OTHERWISE * removable)
    return min(max(count, 1), removable)
