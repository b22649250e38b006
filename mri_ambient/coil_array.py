"""Sensitivity maps of random receive arrays.

By reciprocity a receive coil is as sensitive to a spin as its transverse field per unit current,
S ~ B_x - i B_y with B0 along z. Loops of radius b sit in rings on an elliptical former around the head and their field
is the law of Biot and Savart, summed over short wire segments::

    B(r) ~ sum_k dl_k x (r - r_k) / (|r - r_k|^2 + a^2)^{3/2},

where a > 0 is the thickness of the wire. The field falls off as 1 / distance^3 beyond a loop's radius, and the maps of
one array at neighbouring slices differ smoothly. Lengths are in units of the field of view: the longer side of a slice
is 1. The maps are meant for axial slices, which B0 is normal to.

References
----------
P. B. Roemer et al., "The NMR phased array", Magn. Reson. Med. 16, 1990.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_COILS = 64
_SEGMENTS = 12  # straight pieces a loop is made of
_WIRE = 0.06  # softening length a in the field of a piece
_NODES = 40  # fields are this smooth: computed at no more than so many points a side


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


def positions(size: int, extent: float) -> Tensor:
    """Positions of the pixels along a side; pixel ``size // 2`` is the origin."""
    return (torch.arange(size) - size // 2) * (extent / size)


def _nodes(size: int, extent: float) -> tuple[Tensor, Tensor]:
    """Where to compute a field along a side, and the matrix (pixel, node) that interpolates it there.

    A polynomial through Chebyshev points follows an analytic function all along the side (barycentric formula).
    """
    pixels = positions(size, extent).double()
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
