r"""SSDU: reconstruction learned from undersampled scans by predicting some of their lines from the others.

Of the measured lines :math:`\Omega` a part :math:`\Theta` is the network's input (the centre always), at the scan's
own noise level, ``z = A^H y`` with the mask :math:`\Theta`. The other measured lines
:math:`\Lambda = \Omega \setminus \Theta` score the output ``D``, whose lines are :math:`F S D`. No noise is added and
no image is needed. Any network with the call ``(z, sigma, operator)`` will do; the usual one is
`mri_ambient.unrolled.Unrolled`.

Published form. With *r* the difference on the held-out lines,

.. math:: \tfrac12 \|r\|_2 / \|y_\Lambda\|_2 + \tfrac12 \|r\|_1 / \|y_\Lambda\|_1 ,

which counts each *measured* line alike: where lines are sampled densely the network must be good, elsewhere less so. As
the norms are not squared and the divisors belong to the answer, its minimiser is not exactly the posterior mean.

Weighted form. :math:`\sum_\Lambda w_j |r_j|^2` with :math:`w_j = 1 / P(j \in \Omega \mid \Theta)` is in expectation the
error on *all* lines that the input lacks, plus the noise, which is a constant since it never enters the input. Its
minimiser is ``E[x | z]`` wherever those lines determine the image. Lines of the input are not scored: with noise, the
network would learn to return them. Data consistency answers there; a loss that scores them needs noise added to the
input (`Ambient`, which at a single noise level is Robust SSDU).

References
----------
B. Yaman et al., Self-supervised learning of physics-guided reconstruction neural networks without fully sampled
reference data, Magn. Reson. Med. 84 (2020) 3172-3191.
C. Millard, M. Chiew, A theoretical framework for self-supervised MR image reconstruction using sub-sampling via
variable density Noisier2Noise, IEEE Trans. Comput. Imaging 9 (2023) 707-720 (the weights).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mri_ambient.denoiser import Denoiser
from mri_ambient.objectives.ambient import Split, further_undersample
from mri_ambient.objectives.base import Batch, expected_error
from mri_ambient.operators import Sense


@dataclass(frozen=True)
class SSDU:
    """Prediction of held-out lines.

    Attributes
    ----------
    weighted : bool
        The weighted form, otherwise the published one.
    held_out : float
        Share of the lines outside the centre that are held out, on average.
    """

    weighted: bool = True
    held_out: float = 0.4

    def loss(self, denoiser: Denoiser, batch: Batch, generator: torch.Generator) -> Tensor:
        """Loss for a random split of every scan."""
        keep = torch.full((len(batch),), 1 - self.held_out)
        return self.on_split(denoiser, batch, further_undersample(batch, keep, generator))

    def on_split(self, denoiser: Denoiser, batch: Batch, split: Split) -> Tensor:
        """Loss for a given split."""
        operator = Sense(batch.sensitivity_maps, split.kept)
        estimate = denoiser(operator.adjoint(batch.kspace), batch.noise_std, operator)
        held_out = (batch.mask & ~split.kept)[:, None]
        residual = held_out * (operator.with_mask(batch.mask).forward(estimate) - batch.kspace)
        if not self.weighted:
            return published(residual, held_out * batch.kspace)
        mean_error = (split.weights[:, None] * residual.abs() ** 2).sum((-3, -2, -1)) / estimate[0].numel()
        missing = 1 - split.kept.float().mean((-2, -1))
        expected = expected_error(batch.noise_std, missing, denoiser.config.sigma_data)
        return (split.probability * mean_error / expected).sum() / split.probability.sum().clamp_min(1e-6)


def published(residual: Tensor, target: Tensor) -> Tensor:
    """Half the relative 2-norm and half the relative 1-norm of the residual (batch, coil, y, x); mean over scans."""
    parts = []
    for order in (2, 1):
        size = torch.linalg.vector_norm(target.flatten(1), order, dim=1).clamp_min(1e-12)
        parts.append(torch.linalg.vector_norm(residual.flatten(1), order, dim=1) / size)
    return 0.5 * torch.stack(parts).sum(0).mean()
