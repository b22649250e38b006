"""What a training method is: an object with ``loss(denoiser, batch, generator)``, and the batch it gets.

A batch holds strips of slices: whole lines along the phase-encode axis, a run of rows along the fully sampled readout.
With the readout transformed back, rows are independent, so a strip is an exact smaller scan: same operator, same noise.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from mri_ambient.denoiser import MISSING_VARIANCE, Denoiser


@dataclass(frozen=True)
class Batch:
    """Training examples of one size, prewhitened and in prior units.

    Attributes
    ----------
    kspace : Tensor (batch, coil, y, x), complex64
        Measured k-space, zero where `mask` is False.
    sensitivity_maps : Tensor (batch, coil, y, x), complex64
    mask : Tensor (batch, 1 or y, x), bool
    probability : Tensor (batch, 1 or y, x)
        Probability with which the archive's pattern acquires each sample; 0 where it cannot. -1 stands for a fixed
        number of lines drawn uniformly, for which exact conditional probabilities are used.
    acs : Tensor (batch,), integer
        Lines of the fully sampled centre, which are never held out.
    noise_std : Tensor (batch,)
        Per real component.
    image : Tensor (batch, y, x), complex64
        Supervised training: the reference. Otherwise the current reconstruction of the same data.
    patches : Tensor (patch, y, x), complex64, optional
        Crops of such images, of any slices and in any orientation, for losses that need no k-space.
    """

    kspace: Tensor
    sensitivity_maps: Tensor
    mask: Tensor
    probability: Tensor
    acs: Tensor
    noise_std: Tensor
    image: Tensor
    patches: Tensor | None = None

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        moved: dict[str, Any] = {k: None if v is None else v.to(device) for k, v in vars(self).items()}
        return Batch(**moved)

    def __len__(self) -> int:
        return len(self.kspace)


class Objective(Protocol):
    """A training method."""

    def loss(self, denoiser: Denoiser, batch: Batch, generator: torch.Generator) -> Tensor:
        """Scalar loss of one batch; every random number comes from `generator`."""
        ...


def complex_normal(shape: tuple[int, ...] | torch.Size, generator: torch.Generator, device: torch.device) -> Tensor:
    """Complex white noise, standard deviation 1 per real and per imaginary component; drawn on the CPU.

    Drawing on the CPU makes results independent of the device.
    """
    return torch.view_as_complex(torch.randn(*shape, 2, generator=generator)).to(device)


def expected_error(sigma: Tensor, missing: Tensor, sigma_data: float) -> Tensor:
    """Rough error variance of a good denoiser: what its loss is divided by, so that all levels count alike."""
    variance = sigma_data**2
    return sigma**2 * variance / (sigma**2 + variance) + MISSING_VARIANCE * variance * missing
