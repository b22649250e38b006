"""Multi-coil k-space from magnitude volumes, with a known truth.

Per slice the measurement is::

    y_c = M (F S_c x + n_c),      x = |x| e^{i phi},      n ~ N(0, s^2) per real and per imaginary component,

with F the centred orthonormal Fourier transform, M the sampling mask and maps with ``sum_c |S_c|^2 = 1``. The magnitude
``|x|`` comes from a volume, the phase phi is a random smooth field, and the maps are those of a random receive array
(`mri_ambient.coil_array`).

*Resolution.* A volume is brought to another matrix as the scanner would: the field of view is extended by empty space
until the output pixels are square, and the outer part of k-space is cut off. Nothing is interpolated, and k-space is
never padded with zeros, which would make the simulated problem easier than it looks [1].

What is simulated from a magnitude volume inherits that volume's own noise and filtering, so numbers measured on it are
not numbers for raw data [1]; scans made here say so in their attributes.

References
----------
[1] E. Shimron et al., "Implicit data crimes: machine learning bias arising from misuse of public data", PNAS 119, 2022.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from mri_ambient.coil_array import MAX_COILS, CoilArray, positions
from mri_ambient.errors import InputError
from mri_ambient.operators import MaskPattern, as_complex, as_mask, center_crop, center_pad, fft2c, ifft2c
from mri_ambient.scan import Scan
from mri_ambient.streams import stream
from mri_ambient.volumes import Volume

_SMALLEST = 8  # a matrix below this is a typing error
_MODES = 3  # cycles per field of view in the random part of the phase


def smooth_phase(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Random smooth phase of a slice: quadratic shim error plus a low-pass random field.

    Returns
    -------
    Tensor
        (y, x), float32, radians (not wrapped).
    """
    y, x = positions(shape[0], 1.0)[:, None], positions(shape[1], 1.0)[None, :]
    draw = 2 * torch.rand(6, generator=generator) - 1
    phase = math.pi * (draw[0] + draw[1] * y + draw[1] * x + 2 * (draw[3] * y * y + draw[4] * x * x + draw[5] * x * y))
    modes = torch.arange(-_MODES, _MODES + 1, dtype=torch.float32)
    strength = torch.exp(-0.25 * (modes[:, None].square() + modes[None, :].square()))
    weights = strength * torch.complex(*torch.randn(2, len(modes), len(modes), generator=generator).unbind(0))
    waves_y = torch.polar(torch.ones(()), 2 * math.pi * y * modes)
    waves_x = torch.polar(torch.ones(()), 2 * math.pi * x.T * modes)
    field = (waves_y @ weights @ waves_x.T).real
    return phase + 0.15 * field


def resample_inplane(image: Tensor | np.ndarray, voxel: tuple[float, float], matrix: int | tuple[int, int]) -> Tensor:
    """Bring slices to another matrix with square pixels, without changing the shape of the anatomy.

    The field of view is extended by empty space where the matrix asks for it, then outer k-space is cut off. Pixel
    ``N // 2`` stays in place and intensities are kept.

    Parameters
    ----------
    image : Tensor or ndarray
        (..., y, x), real or complex.
    voxel : tuple of float
        Pixel size (y, x), in any unit.
    matrix : int or tuple of int
        Output size: (y, x), or one number for a square.

    Returns
    -------
    Tensor
        (..., y, x), complex64. A real image gets a small imaginary part where an even matrix keeps one of two Nyquist
        frequencies.

    Raises
    ------
    ValueError
        If the matrix has more pixels over the anatomy than the image.
    """
    image = as_complex(image)
    matrix = (matrix, matrix) if isinstance(matrix, int) else matrix
    padded = _padded(image.shape[-2:], voxel, matrix)
    if padded[0] < matrix[0] or padded[1] < matrix[1]:
        raise ValueError(
            f"a matrix of {matrix[0]} x {matrix[1]} is finer than an image of {image.shape[-2]} x {image.shape[-1]}, "
            "and k-space is not padded with zeros: choose a smaller matrix"
        )
    if padded == matrix:
        return center_pad(image, padded)
    kspace = center_crop(fft2c(center_pad(image, padded)), matrix)
    return ifft2c(kspace) * math.sqrt(math.prod(matrix) / math.prod(padded))


def _padded(size: Sequence[int], voxel: tuple[float, float], matrix: tuple[int, int]) -> tuple[int, int]:
    """Image size (y, x) that covers the field of view of the matrix; whole pixels, so square to half a pixel."""
    pixel = max(n * v / m for n, v, m in zip(size, voxel, matrix, strict=True))
    y, x = (max(n, round(m * pixel / v)) for n, v, m in zip(size, voxel, matrix, strict=True))
    return y, x


def simulate_slice(
    image: Tensor | np.ndarray,
    maps: Tensor | np.ndarray,
    noise_std: float,
    mask: Tensor | np.ndarray,
    generator: torch.Generator,
) -> Tensor:
    """Measure one slice: ``mask * (F S x + n)``.

    Parameters
    ----------
    image : Tensor or ndarray
        (y, x), complex.
    maps : Tensor or ndarray
        (coil, y, x), complex.
    noise_std : float
        Standard deviation of the noise per real and per imaginary component, in the unit of the image.
    mask : Tensor or ndarray
        (x,) or (y, x), bool, True = acquired.
    generator : torch.Generator
        CPU generator of the noise. The noise of a sample does not depend on the mask.

    Returns
    -------
    Tensor
        (coil, y, x), complex64.
    """
    kspace = fft2c(as_complex(maps) * as_complex(image))
    noise = torch.view_as_complex(torch.randn(*kspace.shape, 2, generator=generator)).to(kspace.device)
    return (kspace + noise_std * noise) * as_mask(mask).to(kspace.device)


def simulate_scan(
    volume: Volume,
    *,
    coils: int = 8,
    pattern: MaskPattern | None = None,
    noise_std: float = 0.02,
    seed: int = 0,
    matrix: int | tuple[int, int] | None = None,
    slices: Sequence[int] | None = None,
    name: str | None = None,
) -> Scan:
    """Simulate a multi-coil scan of a volume, with the truth as its target.

    The 99th percentile of the magnitude over the whole volume is scaled to 1. The array and the mask are drawn once a
    volume, phase and noise once a slice, each from its own stream of (seed, volume, slice): a subset of slices is the
    same as in the full scan, and two volumes never share their noise.

    Parameters
    ----------
    volume : Volume
        What is in the scanner.
    coils : int
        1 to 64.
    pattern : MaskPattern, optional
        Sampling pattern; by default everything is acquired.
    noise_std : float
        Noise per real and per imaginary component, in the unit in which the 99th percentile is 1.
    seed : int
        Seed of everything random.
    matrix : int or tuple of int, optional
        Matrix (y, x) with square pixels, see `resample_inplane`; by default the volume's own.
    slices : sequence of int, optional
        Which slices, counted from the volume's first; by default all.
    name : str, optional
        Name of the scan; by default the volume's.

    Returns
    -------
    Scan
        K-space (slice, coil, y, x) in memory, with mask, noise_std and target (slice, y, x) in the same unit.

    Raises
    ------
    InputError
        If a parameter is out of range, or the matrix is finer than the volume.
    """
    chosen = _check(volume, coils, noise_std, matrix, slices)
    images, spacing = _images(volume, matrix)
    shape = images.shape[-2], images.shape[-1]
    longer = max(shape[0] * spacing[0], shape[1] * spacing[1])
    extent = shape[0] * spacing[0] / longer, shape[1] * spacing[1] / longer
    label = f"{volume.patient or ''}/{volume.name}"
    array = CoilArray.random(coils, stream(seed, "coils", label))
    mask = sample_mask(pattern, shape, stream(seed, "mask", label))
    kspace = torch.empty(len(chosen), coils, *shape, dtype=torch.complex64)
    for row, index in enumerate(chosen):
        z = (index - (len(images) - 1) / 2) * volume.voxel_size[0] / longer
        phase = smooth_phase(shape, stream(seed, "phase", label, index))
        image = images[index] * torch.polar(torch.ones(()), phase)
        maps = array.maps(shape, z=z, extent=extent)
        kspace[row] = simulate_slice(image, maps, noise_std, mask, stream(seed, "noise", label, index))
    scan = Scan.from_arrays(
        kspace,
        mask,
        noise_std=noise_std,
        recon_size=shape,
        name=name or volume.name,
        target=images[chosen].abs(),
        patient=volume.patient,
    )
    return replace(scan, attributes={**scan.attributes, **_provenance(volume, shape, spacing, chosen, seed)})


def _check(
    volume: Volume, coils: int, noise_std: float, matrix: int | tuple[int, int] | None, slices: Sequence[int] | None
) -> list[int]:
    if not 1 <= coils <= MAX_COILS:
        raise InputError(f"The number of coils must be between 1 and {MAX_COILS}, not {coils}.")
    if not (math.isfinite(noise_std) and noise_std >= 0):
        raise InputError(f"The noise must be a number that is not negative, not {noise_std}.")
    if matrix is not None and min((matrix,) if isinstance(matrix, int) else matrix) < _SMALLEST:
        raise InputError(f"The matrix must be at least {_SMALLEST}, not {matrix}.")
    count = volume.shape[0]
    chosen = list(range(count)) if slices is None else [int(index) for index in slices]
    if not chosen or min(chosen) < 0 or max(chosen) >= count:
        raise InputError(f"Slices must be chosen from 0 to {count - 1} of {volume.name}, not {slices}.")
    return chosen


def sample_mask(pattern: MaskPattern | None, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Draw a mask for the matrix (y, x), everything without a pattern.

    Raises
    ------
    InputError
        If the pattern leaves too few lines of that matrix.
    """
    if pattern is None:
        return torch.ones(shape[1], dtype=torch.bool)
    try:
        return pattern.sample(shape, generator)
    except ValueError as e:
        raise InputError(f"The sampling pattern does not fit a matrix of {shape[0]} x {shape[1]}: {e}") from e


def _images(volume: Volume, matrix: int | tuple[int, int] | None) -> tuple[Tensor, tuple[float, float]]:
    """Scaled complex images (slice, y, x) of the whole volume, and their pixel size in mm."""
    voxel = volume.voxel_size[1:]
    images = as_complex(volume.magnitude)
    if matrix is not None:
        size = (matrix, matrix) if isinstance(matrix, int) else matrix
        try:
            images = torch.stack([resample_inplane(image, voxel, size) for image in images])
        except ValueError as e:
            raise InputError(f"{volume.name}: {e}.") from e
        padded = _padded(volume.shape[1:], voxel, size)
        voxel = padded[0] * voxel[0] / size[0], padded[1] * voxel[1] / size[1]
    scale = float(np.percentile(images.abs().numpy(), 99))
    if scale <= 0:
        raise InputError(f"{volume.name} is zero in more than 99 % of its voxels, which leaves nothing to scale by.")
    return images / scale, voxel


def _provenance(
    volume: Volume, shape: tuple[int, int], spacing: tuple[float, float], slices: list[int], seed: int
) -> dict[str, str | float]:
    """What the scan is, and where its voxels lie: the affine takes (slice, y, x) of this scan to RAS millimetres."""
    affine = volume.affine.copy()
    old, new = volume.affine[:3], affine[:3]  # views of the rows that matter
    for axis, (before, after, size) in enumerate(zip(volume.shape[1:], shape, spacing, strict=True), start=1):
        new[:, axis] *= size / volume.voxel_size[axis]
        new[:, 3] += old[:, axis] * (before // 2) - new[:, axis] * (after // 2)
    step = slices[1] - slices[0] if len(slices) > 1 else 1
    new[:, 3] += old[:, 0] * slices[0]
    new[:, 0] *= step
    placed: dict[str, str | float] = {}
    if step and all(after - before == step for before, after in pairwise(slices)):
        placed["affine"] = json.dumps(np.round(affine, 6).tolist())
        placed |= dict(zip(("voxel_mm_y", "voxel_mm_x"), spacing, strict=True))
        placed["voxel_mm_slice"] = volume.voxel_size[0] * abs(step)
    return {"simulated_from": volume.name, "seed": seed, **placed}
