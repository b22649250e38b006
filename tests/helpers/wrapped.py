"""Scans with a field of view smaller than the object, along the phase encoding."""

import torch
from torch import Tensor

from mri_ambient.operators import fft2c, ifft2c
from mri_ambient.scan import Scan


def fold(images: Tensor, width: int) -> Tensor:
    """Images (..., y, x) in a field of view of `width` columns: what sticks out comes in on the other side."""
    size = images.shape[-1]
    place = (torch.arange(size) - size // 2 + width // 2) % width
    return torch.zeros(*images.shape[:-1], width, dtype=images.dtype).index_add(-1, place, images)


def wrap(full: Scan, width: int, mask: Tensor, noise_std: float, seed: int = 0) -> Scan:
    """A fully sampled scan without noise, acquired anew with every `size / width`-th step in k-space.

    The target is the root sum of squares of the coil images, noise apart.
    """
    generator = torch.Generator().manual_seed(seed)
    images = fold(ifft2c(full.kspace), width)
    noise = torch.view_as_complex(torch.randn(*images.shape, 2, generator=generator))
    kspace = (fft2c(images) + noise_std * noise) * mask
    target = torch.linalg.vector_norm(images, dim=1)
    return Scan.from_arrays(kspace, mask, noise_std=noise_std, target=target, name=f"wrapped {full.name}")
