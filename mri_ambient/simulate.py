"""Multi-coil k-space from magnitude volumes, with a known truth.

Per slice the measurement is

    y_c = M (F S_c x + n_c),      x = |x| e^{i phi},      n ~ N(0, s^2) per real and per imaginary component,

with F the centred orthonormal Fourier transform, M the sampling mask and maps with sum_c |S_c|^2 = 1. The magnitude |x|
comes from a volume, the phase phi is a random smooth field, and the maps are those of a random receive array.

*Array.* By reciprocity a receive coil is as sensitive to a spin as its transverse field per unit current,
S ~ B_x - i B_y with B0 along z. Loops of radius b sit in rings on an elliptical former around the head and their field
is the law of Biot and Savart, summed over short wire segments,

    B(r) ~ sum_k dl_k x (r - r_k) / (|r - r_k|^2 + a^2)^{3/2},

where a > 0 is the thickness of the wire. The field falls off as 1 / distance^3 beyond a loop's radius, and the maps of
one array at neighbouring slices differ smoothly. Lengths are in units of the field of view: the longer side of a slice
is 1. The maps are meant for axial slices, which B0 is normal to.

*Resolution.* A volume is brought to another matrix as the scanner would: the field of view is extended by empty space
until the output pixels are square, and the outer part of k-space is cut off. Nothing is interpolated, and k-space is
never padded with zeros, which would make the simulated problem easier than it looks [2].

What is simulated from a magnitude volume inherits that volume's own noise and filtering, so numbers measured on it are
not numbers for raw data [2]; scans made here say so in their attributes.

References
----------
[1] P. B. Roemer et al., "The NMR phased array", Magn. Reson. Med. 16, 1990.
[2] E. Shimron et al., "Implicit data crimes: machine learning bias arising from misuse of public data", PNAS 119, 2022.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from mri_ambient.errors import InputError
from mri_ambient.operators import MaskPattern, as_complex, as_mask, center_crop, center_pad, fft2c, ifft2c
from mri_ambient.scan import Scan
from mri_ambient.streams import stream
from mri_ambient.volumes import Volume

MAX_COILS = 64
_SMALLEST = 8  # a matrix below this is a typing error
_SEGMENTS = 12  # straight pieces a loop is made of
_WIRE = 0.06  # softening length a in the field of a piece
_NODES = 40  # fields are this smooth: computed at no more than so many points a side
_MODES = 3  # cycles per field of view in the random part of the phase


@dataclass(frozen=True)
class CoilArray:
    """A receive array: wire segments and complex gains, in units of the field of view.

    Attributes
    ----------
    wire : Tensor
        (coil, segment, 3): midpoints of the segments, as (x, y, z) from the centre of the field of view.
    current : Tensor
        (coil, segment, 3): direction times length of the segments.
    gain : Tensor
        (coil,), complex64.
    """

    wire: Tensor
    current: Tensor
    gain: Tensor

    @classmethod
    def random(cls, coils: int, generator: torch.Generator) -> CoilArray:
        """Draw an array of 1 to 64 loops with random former, ring, loop, gain and phase.

        Raises
        ------
        ValueError
            If the number of coils is not between 1 and 64.
        """
        if not 1 <= coils <= MAX_COILS:
            raise ValueError(f"the number of coils must be between 1 and {MAX_COILS}, not {coils}")

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * torch.rand(shape, generator=generator)

        rings = math.ceil(coils / 14) if coils > 10 else 1
        ring = torch.arange(coils) % rings
        per_ring = coils / rings
        angle = 2 * math.pi * (torch.arange(coils) // rings / per_ring + ring / (2 * per_ring) + uniform(0, 1))
        angle = angle + uniform(-0.15, 0.15, coils) * 2 * math.pi / per_ring
        height = (ring - (rings - 1) / 2) * uniform(0.2, 0.28) + uniform(-0.1, 0.1) + uniform(-0.05, 0.05, coils)
        axes = torch.stack([uniform(0.5, 0.66), uniform(0.56, 0.74)])
        taper = 1 - 0.5 * height.clamp(min=0)  # a head array closes towards the vertex
        around = torch.stack([angle.cos(), angle.sin()], dim=-1)
        centre = torch.cat([around * axes * taper[:, None], height[:, None]], dim=-1)
        centre[:, :2] += uniform(-0.04, 0.04, 2)
        normal = torch.cat([around / axes, torch.zeros(coils, 1)], dim=-1)
        normal = normal / normal.norm(dim=-1, keepdim=True) + uniform(-0.25, 0.25, coils, 3)
        radius = (math.pi * 0.6 / per_ring * uniform(0.95, 1.3)).clamp(0.1, 0.3) * uniform(0.85, 1.15, coils)
        wire, current = _loops(centre, normal, radius)
        gain = torch.polar(torch.exp(0.2 * torch.randn(coils, generator=generator)), uniform(0, 2 * math.pi, coils))
        return cls(wire, current, gain)

    def maps(self, shape: tuple[int, int], *, z: float = 0.0, extent: tuple[float, float] | None = None) -> Tensor:
        """Sensitivity maps of one slice.

        Parameters
        ----------
        shape : tuple of int
            Matrix (y, x).
        z : float
            Height of the slice above the centre of the array, in units of the field of view.
        extent : tuple of float, optional
            Sides (y, x) of the slice in units of the field of view; by default pixels are square and the longer side
            is 1.

        Returns
        -------
        Tensor
            (coil, y, x), complex64, sum over coils of the squared magnitude 1 in every pixel.
        """
        if len(self.gain) == 1:  # a volume coil: the phase of a single loop may wind around a null of its field
            return (self.gain / self.gain.abs()).reshape(1, 1, 1).expand(1, *shape).clone()
        if extent is None:
            extent = shape[0] / max(shape), shape[1] / max(shape)
        (y, to_y), (x, to_x) = (_nodes(size, side) for size, side in zip(shape, extent, strict=True))
        maps = to_y @ self._field(y, x, z) @ to_x.T
        return maps / maps.abs().square().sum(0).sqrt().clamp(min=1e-12)

    def _field(self, y: Tensor, x: Tensor, z: float) -> Tensor:
        """B_x - i B_y of every loop on the grid: (coil, y, x)."""
        wire_x, wire_y, wire_z = self.wire.unbind(-1)
        flow_x, flow_y, flow_z = self.current.unbind(-1)
        above = z - wire_z
        rows = (y - wire_y[..., None]).square() + (above.square() + _WIRE**2)[..., None]
        columns = (x - wire_x[..., None]).square()
        weight = (rows[..., :, None] + columns[..., None, :]).rsqrt() ** 3
        # The cross product, sorted by powers of x and y: one matrix product sums over the segments.
        terms = torch.stack([flow_y * above + flow_z * wire_y, flow_z, flow_x * above + flow_z * wire_x], dim=1)
        sums = (terms @ weight.flatten(2)).reshape(len(terms), 3, len(y), len(x))
        field_x, field_y = sums[:, 0] - y[:, None] * sums[:, 1], x * sums[:, 1] - sums[:, 2]
        return self.gain[:, None, None] * torch.complex(field_x, -field_y)


def _loops(centre: Tensor, normal: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Midpoints and vectors (coil, segment, 3) of round loops with the given axes."""
    normal = normal / normal.norm(dim=-1, keepdim=True)
    first = torch.linalg.cross(normal, torch.tensor([0.0, 0.0, 1.0]).expand_as(normal))
    first = first / first.norm(dim=-1, keepdim=True)
    second = torch.linalg.cross(normal, first)
    turn = 2 * math.pi * (torch.arange(_SEGMENTS) + 0.5) / _SEGMENTS
    out = turn.cos()[:, None] * first[:, None] + turn.sin()[:, None] * second[:, None]
    along = turn.cos()[:, None] * second[:, None] - turn.sin()[:, None] * first[:, None]
    scale = radius[:, None, None]
    return centre[:, None] + scale * out, scale * along * (2 * math.pi / _SEGMENTS)


def _positions(size: int, extent: float) -> Tensor:
    """Positions of the pixels along a side; pixel ``size // 2`` is the origin."""
    return (torch.arange(size) - size // 2) * (extent / size)


def _nodes(size: int, extent: float) -> tuple[Tensor, Tensor]:
    """Where to compute a field along a side, and the matrix (pixel, node) that interpolates it there.

    A polynomial through Chebyshev points follows an analytic function all along the side (barycentric formula).
    """
    pixels = _positions(size, extent).double()
    if size <= _NODES:
        return pixels.float(), torch.eye(size, dtype=torch.complex64)
    middle, half = (pixels[0] + pixels[-1]) / 2, (pixels[-1] - pixels[0]) / 2
    index = torch.arange(_NODES, dtype=torch.float64)
    nodes = middle + half * 1.0001 * torch.cos(math.pi * index / (_NODES - 1))  # no node on the outermost pixels
    weights = (-1.0) ** index
    weights[[0, -1]] *= 0.5
    apart = pixels[:, None] - nodes
    terms = weights / torch.where(apart.abs() < 1e-12, 1e-12, apart)
    return nodes.float(), (terms / terms.sum(1, keepdim=True)).to(torch.complex64)


def coil_maps(
    coils: int,
    shape: tuple[int, int],
    generator: torch.Generator,
    *,
    z: float = 0.0,
    extent: tuple[float, float] | None = None,
) -> Tensor:
    """Maps (coil, y, x) of one slice of a newly drawn array: ``CoilArray.random(...).maps(...)``.

    Parameters
    ----------
    coils : int
        1 to 64.
    shape : tuple of int
        Matrix (y, x).
    generator : torch.Generator
        Decides the array; generators in equal states give the same array, also at another `z` or `shape`.
    z, extent
        As in `CoilArray.maps`.

    Returns
    -------
    Tensor
        (coil, y, x), complex64, with sum over coils of the squared magnitude 1.
    """
    return CoilArray.random(coils, generator).maps(shape, z=z, extent=extent)


def smooth_phase(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Random smooth phase of a slice: quadratic shim error plus a low-pass random field.

    Returns
    -------
    Tensor
        (y, x), float32, radians (not wrapped).
    """
    y, x = _positions(shape[0], 1.0)[:, None], _positions(shape[1], 1.0)[None, :]
    draw = 2 * torch.rand(6, generator=generator) - 1
    phase = math.pi * (draw[0] + draw[1] * y + draw[2] * x + 2 * (draw[3] * y * y + draw[4] * x * x + draw[5] * x * y))
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
    mask = _sample(pattern, shape, stream(seed, "mask", label))
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


def _sample(pattern: MaskPattern | None, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
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
