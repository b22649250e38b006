r"""The supervised networks a reader expects in a comparison: fastMRI's U-Net and variational network.

*U-Net.* The zero-filled image :math:`A^H y`, complex as two channels, goes through fastMRI's U-Net with its
normalisation (`NormUnet`: mean and standard deviation of each image). It knows neither mask nor noise, and nothing
makes its output agree with the data.

*VarNet.* Cascades that act on multi-coil k-space, with a U-Net *G* and a learned :math:`\eta` each, from
:math:`k_0 = y`,

.. math:: k_{t+1} = k_t - \eta_t M (k_t - y) - F S\,G_t(S^H F^H k_t) .

fastMRI estimates the maps *S* by one more network. Here they are those of the scan's own ESPIRiT calibration, which
every other method gets too: it is the reconstruction that is compared, not the calibration, and that network is not
needed. Both networks return the complex coil-combined image, where fastMRI's return its magnitude.

*VarNet in images.* The networks of this package are called with ``z = A^H y``. Coil data are not needed: as the start
is *y* itself, every :math:`k_t` has the form :math:`y + F S u_t + M F S w_t`, with :math:`u_0 = w_0 = 0` and

.. math:: x_t = S^H F^H k_t = z + S^H S\,u_t + A^H A\,w_t, \qquad
          u_{t+1} = u_t - G_t(x_t), \qquad w_{t+1} = w_t - \eta_t (u_t + w_t) .

That is the same network, with one normal operator a cascade instead of four multi-coil transforms.

Both are called like `Denoiser`, ``(z, sigma, operator)``, but are reconstruction methods for the masks they were
trained on, not priors. As their normalisation looks across the image, they are trained on whole slices. The last
layers start at zero.

References
----------
J. Zbontar et al., fastMRI: an open dataset and benchmarks for accelerated MRI, arXiv:1811.08839 (the U-Net).
A. Sriram et al., End-to-end variational networks for accelerated MRI reconstruction, MICCAI 2020.
"""

import contextlib
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from mri_ambient.denoiser import zero
from mri_ambient.operators import Sense


@dataclass(frozen=True)
class UnetConfig:
    """Size of the U-Net.

    Attributes
    ----------
    channels : int
        Width of the first level; it doubles from level to level.
    levels : int
        How often the resolution is halved, at most 4.
    sigma_data : float
        Root mean square of real and imaginary parts of the scaled training images; scales the loss only.
    """

    channels: int = 32
    levels: int = 4
    sigma_data: float = 0.25

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of `to_dict`."""
        return cls(**values)


@dataclass(frozen=True)
class VarNetConfig(UnetConfig):
    """Size of the variational network: `cascades` U-Nets, each with its own weights."""

    channels: int = 18
    cascades: int = 12


UNET_PRESETS = {"tiny": UnetConfig(8, 3), "small": UnetConfig(32), "base": UnetConfig(64)}
VARNET_PRESETS = {"tiny": VarNetConfig(8, 3, cascades=2), "small": VarNetConfig(cascades=6), "base": VarNetConfig()}


class _Baseline(nn.Module):
    """What both share: device, precision, and fastMRI's U-Net on complex images."""

    network: nn.Module

    def __init__(self, config: UnetConfig) -> None:
        super().__init__()
        self.config = config
        self.precision = torch.float32

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return next(self.parameters()).device

    def _run(self, network: nn.Module, image: Tensor) -> Tensor:
        """fastMRI's network on complex images (batch, y, x), the only part under autocast."""
        enabled = self.precision != torch.float32
        context = torch.autocast(image.device.type, self.precision) if enabled else contextlib.nullcontext()
        with context:
            output = network(torch.view_as_real(image)[:, None]).float()
        return torch.view_as_complex(output[:, 0].contiguous())


class Unet(_Baseline):
    """fastMRI's U-Net on the zero-filled image.

    Parameters
    ----------
    config : UnetConfig
    """

    def __init__(self, config: UnetConfig) -> None:
        super().__init__(config)
        self.network = _norm_unet(config)

    def forward(self, z: Tensor, sigma: float | Tensor, operator: Sense | None = None) -> Tensor:
        """Estimate the image (batch, y, x) from ``z = A^H y`` alone; noise level and operator are not used."""
        return self._run(self.network, z)


class VarNet(_Baseline):
    """fastMRI's variational network with given sensitivity maps.

    Parameters
    ----------
    config : VarNetConfig
    """

    config: VarNetConfig

    def __init__(self, config: VarNetConfig) -> None:
        from fastmri.models.varnet import VarNetBlock

        super().__init__(config)
        self.network = nn.ModuleList(VarNetBlock(_norm_unet(config)) for _ in range(config.cascades))

    def forward(self, z: Tensor, sigma: float | Tensor, operator: Sense | None = None) -> Tensor:
        """Estimate the image.

        Parameters
        ----------
        z : Tensor (batch, y, x), complex64
            ``A^H y``.
        sigma : float or Tensor (batch,)
            Not used: the network does not know the noise level.
        operator : Sense, optional
            Forward model with one mask for all or one an item. None means fully sampled.

        Returns
        -------
        Tensor (batch, y, x), complex64
        """
        u, w, image = torch.zeros_like(z), torch.zeros_like(z), z
        energy = 1.0 if operator is None else operator.sensitivity_maps.abs().square().sum(-3)
        cascade: Any
        for cascade in self.network.children():
            u, w = u - self._run(cascade.model, image), w - cascade.dc_weight * (u + w)
            image = z + energy * u + (w if operator is None else operator.normal(w))
        return image


def _norm_unet(config: UnetConfig) -> nn.Module:
    from fastmri.models.varnet import NormUnet

    network: nn.Module = NormUnet(config.channels, config.levels)
    zero(network.unet.up_conv[-1][-1])  # type: ignore[union-attr, index, arg-type]
    return network
