r"""An unrolled reconstruction network: the baseline that self-supervised reconstruction is usually trained with.

A fixed number of times, a network improves the image and the data correct it,

.. math::
    x_{k+1} = \arg\min_u \|A u - y\|^2 / \sigma^2 + \|u - v_k\|^2 / \tau_k^2 , \quad v_k = x_k + a_k U(x_k / a_k) ,

with one U-Net *U* for all rounds (fastMRI's), :math:`a_k` the root mean square of :math:`x_k` and learned
:math:`\tau_k`. The start is the linear estimate, and *U* starts at zero. Conjugate gradients start at :math:`v_k`, so
that without noise the measured lines are replaced and the others kept.

The call is that of `Denoiser`, ``(z, sigma, operator)``, so that losses, recon and prior files can hold either. But it
is a reconstruction method, not a prior: with no operator it is a denoiser that nothing has trained. The U-Net's
normalisation looks across the image: on strips of rows it is not quite the network of whole images.

References
----------
H. K. Aggarwal et al., MoDL: model-based deep learning architecture for inverse problems, IEEE TMI 38 (2019) 394-405.
J. Zbontar et al., fastMRI: an open dataset and benchmarks for accelerated MRI, arXiv:1811.08839 (the U-Net).
"""

import contextlib
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mri_ambient.denoiser import _channels, _image, soft_data_consistency, wiener, zero
from mri_ambient.operators import Sense

FIRST_TAU = 0.3  # in units of sigma_data


@dataclass(frozen=True)
class UnrolledConfig:
    """Size of the network.

    Attributes
    ----------
    rounds : int
        How often network and data consistency alternate.
    channels : int
        Width of the U-Net's first level; it doubles from level to level.
    levels : int
        How often the U-Net halves the resolution.
    iterations : int
        Of conjugate gradients, a round.
    sigma_data : float
        Root mean square of real and imaginary parts of the scaled training images.
    """

    rounds: int = 6
    channels: int = 18
    levels: int = 4
    iterations: int = 6
    sigma_data: float = 0.25

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "UnrolledConfig":
        """Inverse of `to_dict`."""
        return cls(**values)


class Unrolled(nn.Module):
    """Rounds of a U-Net and data consistency.

    Parameters
    ----------
    config : UnrolledConfig
    """

    def __init__(self, config: UnrolledConfig) -> None:
        from fastmri.models import Unet

        super().__init__()
        self.config = config
        self.network = Unet(2, 2, config.channels, config.levels)
        zero(self.network.up_conv[-1][-1])
        self.log_tau = nn.Parameter(torch.full((config.rounds,), math.log(FIRST_TAU * config.sigma_data)))
        self.precision = torch.float32

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self.log_tau.device

    def forward(self, z: Tensor, sigma: float | Tensor, operator: Sense | None = None) -> Tensor:
        """Estimate the image.

        Parameters
        ----------
        z : Tensor (batch, y, x), complex64
            ``A^H y`` in prior units.
        sigma : float or Tensor (batch,)
            Noise standard deviation per real component of ``y``; may be 0.
        operator : Sense, optional
            Forward model with one mask for all or one an item. None means fully sampled.

        Returns
        -------
        Tensor (batch, y, x), complex64
        """
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=z.device).expand(len(z))
        image = wiener(z, sigma, operator, self.config.sigma_data)
        for tau in self.log_tau.exp():
            image = self._consistent(z, self._improved(image), sigma, tau, operator)
        return image

    def _consistent(self, z: Tensor, image: Tensor, sigma: Tensor, tau: Tensor, operator: Sense | None) -> Tensor:
        if operator is None:
            ratio = (sigma / tau)[:, None, None] ** 2
            return (z + ratio * image) / (1 + ratio)
        return soft_data_consistency(z, image, sigma, tau, operator, self.config.iterations)

    def _improved(self, image: Tensor) -> Tensor:
        """The image plus what the U-Net says, the only part under autocast."""
        height, width = image.shape[-2:]
        size = (image.abs() ** 2).mean((-2, -1), keepdim=True).clamp_min(1e-12).sqrt()
        stride = 2**self.config.levels
        padding = (0, max(-width % stride, 2 * stride - width), 0, -height % stride)  # never one pixel at the bottom
        inputs = nn.functional.pad(_channels(image / size), padding)
        enabled = self.precision != torch.float32
        context = torch.autocast(inputs.device.type, self.precision) if enabled else contextlib.nullcontext()
        with context:
            change = self.network(inputs).float()
        return image + size * _image(change[..., :height, :width])
