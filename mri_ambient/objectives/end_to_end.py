r"""End-to-end supervised reconstruction: a network learns the image of each undersampled scan from its reference.

.. math:: L = \| D(A^H y, \sigma, A) - x \|^2 / v ,

with the scan's own mask and noise, and ``x`` the coil combination of the fully sampled scan. ``v`` is the error
variance one expects, so that every acceleration counts alike. It is the squared error in prior units, whose minimiser
is the posterior mean, as for every other method here; the published networks were trained with the 1-norm (U-Net) and
SSIM (VarNet) of magnitudes, which favour other measures of quality. Every slice keeps its one mask, as it does for the
methods that have no reference.

References
----------
J. Zbontar et al., fastMRI: an open dataset and benchmarks for accelerated MRI, arXiv:1811.08839.
A. Sriram et al., End-to-end variational networks for accelerated MRI reconstruction, MICCAI 2020.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mri_ambient.denoiser import Denoiser
from mri_ambient.objectives.base import Batch, expected_error
from mri_ambient.operators import Sense


@dataclass(frozen=True)
class EndToEnd:
    """Squared image error of the reconstruction of the scans as they are."""

    def loss(self, denoiser: Denoiser, batch: Batch, generator: torch.Generator) -> Tensor:
        """Mean over the batch; draws nothing."""
        operator = Sense(batch.sensitivity_maps, batch.mask)
        estimate = denoiser(operator.adjoint(batch.kspace), batch.noise_std, operator)
        missing = 1 - batch.mask.float().mean((-2, -1))
        expected = expected_error(batch.noise_std, missing, denoiser.config.sigma_data).clamp_min(1e-6)
        return ((estimate - batch.image).abs() ** 2 / expected[:, None, None]).mean()
