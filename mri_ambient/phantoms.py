"""Procedural axial heads: an endless population of brain-like anatomies that needs no data.

A `Head` is a random function of space. Every structure is a signed distance ``d`` in units of the field of view,
painted with the coverage ``clip(d / pixel + 1/2, 0, 1)``, so that edges carry partial volume instead of stair steps;
slices are drawn at twice the matrix and averaged. Distances depend on height z too: slices of one head belong together.

*Layers.* The outline is an egg-shaped superellipse that shrinks towards the vertex. Skin, fat, muscle, the two tables
of the skull with marrow in between, and the subarachnoid space follow it inwards with varying thickness.

*Cortex.* Sulci are sheets of fluid that enter the brain from its surface: the zero level set of a smooth random
function of angle and depth, which makes them run inwards, cut off below a varying depth. With ``q`` the distance to
the nearest fluid (surface, sulci, interhemispheric and Sylvian fissures), ``q < 0`` is fluid, ``0 < q < t`` is the
grey ribbon of thickness t on both banks, and the rest is white matter. The distance to a level set is
``|f| / |grad f|``.

*Depth.* Ventricles are chains of round cones, nuclei are ellipsoids, and both are mirrored at the midline and then bent
by the same random warp as everything else, which breaks the symmetry.

*Contrast.* Tissue intensities are those of T1, T2, FLAIR or proton density weighting in rough proportion, each one
perturbed at random. The values are not a model of relaxation; the pictures teach a network edges, ribbons, thin
fluid, smooth shading and their statistics, not diagnosis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from mri_ambient.streams import stream
from mri_ambient.volumes import Volume

FIELD_OF_VIEW = 230.0  # mm, the longer side of a slice
_BOTTOM, _TOP = -0.07, 0.25  # heights of the lowest and the highest slice, from the midbrain to near the vertex
_TISSUES = ("skin", "fat", "muscle", "bone", "marrow", "csf", "grey", "white", "pallidum", "lesion", "vessel")
_CONTRASTS = {  # rough relative signal of the tissues above
    "t1": (0.50, 1.20, 0.42, 0.05, 0.70, 0.17, 0.58, 0.88, 0.78, 0.50, 0.30),
    "t2": (0.45, 0.75, 0.25, 0.05, 0.35, 1.25, 0.62, 0.42, 0.36, 0.95, 0.10),
    "flair": (0.40, 0.45, 0.30, 0.05, 0.25, 0.12, 0.76, 0.60, 0.62, 1.15, 0.15),
    "pd": (0.55, 0.80, 0.60, 0.06, 0.45, 1.00, 0.86, 0.68, 0.66, 0.98, 0.20),
}
# Centre line of a lateral ventricle as (x, y, z, radius), and nuclei as (centre, semi-axes, in-plane turn): right half.
_VENTRICLE = (
    (0.050, -0.150, 0.030, 0.005),
    (0.032, -0.110, 0.042, 0.013),
    (0.018, -0.030, 0.056, 0.012),
    (0.034, 0.045, 0.060, 0.013),
    (0.074, 0.105, 0.040, 0.018),
    (0.070, 0.190, 0.015, 0.006),
)
_TEMPORAL_HORN = ((0.074, 0.105, 0.040, 0.014), (0.125, 0.050, -0.040, 0.009), (0.115, -0.030, -0.085, 0.007))
_NUCLEI = {
    "caudate": ((0.057, -0.098, 0.030), (0.017, 0.038, 0.055), 0.35),
    "putamen": ((0.122, -0.035, 0.010), (0.019, 0.068, 0.050), -0.22),
    "pallidum": ((0.092, -0.018, 0.000), (0.016, 0.036, 0.030), -0.35),
    "thalamus": ((0.046, 0.045, 0.018), (0.034, 0.058, 0.046), 0.35),
}


_NUCLEUS_TISSUE = {"pallidum": "pallidum", "thalamus": "thalamus"}  # the others are grey
_Point = tuple[float, float, float, float]


class _Noise:
    """Smooth random function of (z, v, u), of unit variance: cubic B-splines on a lattice of normal numbers.

    The lattice spans ``low .. low + span`` on each axis; the last axis may be periodic.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        cells: tuple[int, int, int],
        low: tuple[float, float, float] = (-0.2, -0.75, -0.75),
        span: tuple[float, float, float] = (0.6, 1.5, 1.5),
        periodic: bool = False,
    ) -> None:
        counts = [cell + 3 for cell in cells]
        if periodic:
            counts[2] = cells[2]
        self._lattice = (rng.standard_normal(counts) / 0.479**1.5).astype(np.float32)  # 0.479: energy of the B-spline
        self._axes = list(zip(low, span, cells, (False, False, periodic), strict=True))

    def __call__(self, z: float, v: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Values on the grid of heights z and axes v, u: (v, u), float32."""
        plane = np.tensordot(self._basis(0, np.array([z]))[0], self._lattice, axes=1)
        return self._basis(1, v) @ plane @ self._basis(2, u).T

    def _basis(self, axis: int, position: np.ndarray) -> np.ndarray:
        low, span, cells, periodic = self._axes[axis]
        place = (position - low) / span * cells
        cell = np.floor(place).astype(int) if periodic else np.clip(np.floor(place).astype(int), 0, cells - 1)
        t = place - cell
        weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
        basis = np.zeros((len(position), self._lattice.shape[axis]), dtype=np.float32)
        for offset, weight in enumerate(weights):
            column = (cell + offset) % basis.shape[1]
            basis[np.arange(len(position)), column] += (weight / 6).astype(np.float32)
        return basis


@dataclass(frozen=True)
class _Grid:
    """Where a slice is drawn: its height, axes (y,) and (x,), pixel size, and anatomical coordinates (y, x)."""

    z: float
    y: np.ndarray
    x: np.ndarray
    pixel: float
    across: np.ndarray  # from the midline to the left
    back: np.ndarray  # from the centre to posterior

    def __call__(self, noise: _Noise) -> np.ndarray:
        return noise(self.z, self.y, self.x)


class Head:
    """One random head; `draw` renders a slice of it at any height and matrix."""

    def __init__(self, rng: np.random.Generator) -> None:
        def uniform(low: float, high: float) -> float:
            return float(rng.uniform(low, high))

        self.semi_axes = uniform(0.32, 0.375), uniform(0.42, 0.46)
        self.egg, self.power = uniform(0.0, 0.14), uniform(2.0, 2.4)
        self.turn, self.shift = uniform(-0.12, 0.12), (uniform(-0.02, 0.02), uniform(-0.02, 0.02))
        self.vertex = uniform(0.30, 0.36)
        self.layers = {
            "skin": uniform(0.005, 0.008),
            "fat": uniform(0.008, 0.022),
            "bone": uniform(0.005, 0.008),
            "marrow": uniform(0.004, 0.011),
            "csf": uniform(0.004, 0.012),
        }
        self.cortex, self.sulcus = uniform(0.0115, 0.0155), uniform(0.0005, 0.003)
        self.fissure, self.sylvius = uniform(0.001, 0.005), uniform(0.002, 0.006)
        self.ventricle = uniform(0.6, 1.6)
        self.callosum = uniform(-0.185, -0.16), uniform(0.15, 0.185)
        self.warp = [_Noise(rng, (3, 5, 5)) for _ in range(2)], uniform(0.002, 0.006)
        self.fine_warp = [_Noise(rng, (10, 24, 24)) for _ in range(2)], uniform(0.002, 0.0045)
        around = int(rng.integers(52, 76))
        self.folds = _Noise(rng, (11, 7, around), (-0.2, -0.2, -np.pi), (0.6, 0.8, 2 * np.pi), True)
        self.small_folds = _Noise(rng, (16, 42, 42)), uniform(0.3, 0.9)
        self.fold_depth = _Noise(rng, (8, 18, 18)), uniform(0.06, 0.10)
        self.opening = _Noise(rng, (8, 20, 20))
        self.thickness = _Noise(rng, (4, 10, 10))
        self.texture = _Noise(rng, (24, 70, 70)), uniform(0.01, 0.035)
        self.shading = _Noise(rng, (2, 2, 2)), uniform(0.05, 0.3)
        self.mottle = _Noise(rng, (8, 14, 14)), uniform(0.01, 0.05)
        self.nuclei_shift = {name: rng.normal(0, 0.003, 3) for name in _NUCLEI}
        self.lesions = self._lesions(rng)
        self.halo = uniform(0, 0.012) if rng.random() < 0.5 else 0.0
        self.signal = _signal(rng)

    @staticmethod
    def _lesions(rng: np.random.Generator) -> np.ndarray:
        """(lesion, 7): centre, semi-axes and strength; most heads with lesions have them around the ventricles."""
        count = int(rng.poisson(14)) if rng.random() < 0.5 else 0
        centre = rng.normal((0, 0.0, 0.07), (0.11, 0.11, 0.05), (count, 3))
        size = np.exp(rng.normal(np.log(0.010), 0.4, (count, 1))) * rng.uniform(0.6, 1.4, (count, 3))
        return np.concatenate([centre, size, rng.uniform(0.4, 1.0, (count, 1))], axis=1)

    def draw(self, shape: tuple[int, int], z: float) -> np.ndarray:
        """Magnitude (y, x), float32, not negative, of the slice at height z (in fields of view above the midbrain)."""
        grid = self._grid(shape, z)
        depth, brain, fluid = self._distances(grid)
        image = self._shell(grid, depth, brain)
        grain = grid(self.texture[0])
        vessels = ((grain - 1.3) * 2).clip(0, 1) * _cover(brain + 0.004, grid.pixel)  # what brain covers is not fluid
        _paint(image, self.signal["vessel"], vessels)
        mottle = self.mottle[1] * grid(self.mottle[0])
        _paint(image, self.signal["grey"] * (1 + mottle), _cover(fluid, grid.pixel))
        _paint(image, self.signal["white"] * (1 - mottle), _cover(fluid - self.cortex, 2 * grid.pixel))
        self._deep(image, grid, fluid)
        image *= 1 + self.texture[1] * grain
        image *= np.exp(self.shading[1] * grid(self.shading[0]))
        return image.clip(min=0).reshape(shape[0], 2, shape[1], 2).mean(axis=(1, 3))

    def _grid(self, shape: tuple[int, int], z: float) -> _Grid:
        """Two points a pixel and side; anatomical coordinates are turned, shifted and gently bent."""
        pixel = 0.5 / max(shape)
        y, x = (((np.arange(2 * n) - 2 * (n // 2) - 0.5) * pixel).astype(np.float32) for n in shape)
        cos, sin = np.float32(np.cos(self.turn)), np.float32(np.sin(self.turn))
        u, v = x[None, :] - np.float32(self.shift[0]), y[:, None] - np.float32(self.shift[1])
        noise, size = self.warp
        across, back = cos * u + sin * v + size * noise[0](z, y, x), cos * v - sin * u + size * noise[1](z, y, x)
        return _Grid(z, y, x, pixel, across, back)

    def _vault(self, z: float) -> float:
        """Size of the head at height z, relative to its largest."""
        return float(max(1 - (max(z, 0.0) / self.vertex) ** 2.4, 0.02) ** (1 / 2.4))

    def _distances(self, grid: _Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Distances (y, x), positive inwards: from the skin, from the brain's hull, and from the nearest fluid."""
        scale = self._vault(grid.z)
        ax, ay = self.semi_axes[0] * scale, self.semi_axes[1] * scale
        width = ax * (1 + self.egg * grid.back / ay).clip(0.5)
        radius = np.abs(grid.across / width) ** self.power + np.abs(grid.back / ay) ** self.power
        radius = radius ** (1 / self.power) + 1e-6
        depth = (1 - radius) * (np.hypot(grid.across, grid.back) / radius + 1e-3)
        shell = sum(self.layers.values()) + self.layers["bone"]  # two tables of bone
        brain = depth - shell * (1 + 0.15 * grid(self.thickness)) * self._stretch(grid.z)
        noise, size = self.fine_warp
        across, back = grid.across + size * grid(noise[0]), grid.back + size * grid(noise[1])
        middle, lateral = self._fissures(grid.z, across, back, ax)
        surface = np.minimum(brain * scale, middle + 0.03)  # in space, the vault leans over the upper slices
        sulci = self._sulci(grid, across, back, surface)
        return depth, brain, np.minimum(np.minimum(brain, middle), np.minimum(lateral, sulci))

    def _stretch(self, z: float) -> float:
        """Layers are cut at a slant near the vertex."""
        return 1 / max(self._vault(z), 0.65)

    def _sulci(self, grid: _Grid, across: np.ndarray, back: np.ndarray, surface: np.ndarray) -> np.ndarray:
        """Distance to the banks of the sulci."""
        from scipy.ndimage import map_coordinates

        depths, angles = np.linspace(-0.1, 0.5, 48), np.linspace(-np.pi, np.pi, 721)
        table = self.folds(grid.z, depths, angles)
        place = np.stack([(surface + 0.1) * (47 / 0.6), (np.arctan2(across, back) + np.pi) * (720 / (2 * np.pi))])
        radial = (np.hypot(across, back) * 5).clip(0, 1)  # angles mean nothing near the centre
        folds = radial * map_coordinates(table, place, order=1, mode="nearest")
        noise, share = self.small_folds
        folds += (share + 1 - radial) * grid(noise)
        slope_y, slope_x = np.gradient(folds, grid.pixel)
        distance = np.abs(folds) / np.sqrt(slope_y**2 + slope_x**2 + 12.0**2)
        reach = self.fold_depth[1] * (1 + 0.35 * grid(self.fold_depth[0]))
        width = self.sulcus * (1 + 1.1 * grid(self.opening)).clip(-0.5)  # negative: the banks touch
        return distance - width + (0.6 * (surface - reach)).clip(0)

    def _fissures(self, z: float, across: np.ndarray, back: np.ndarray, ax: float) -> tuple[np.ndarray, np.ndarray]:
        """Distances to the interhemispheric fissure, and to the Sylvian fissures with the insular cisterns."""
        front, rear = self.callosum
        between = np.minimum(back - front, rear - back)  # how far inside the part that the callosum bridges
        bridged = between + min(0.0, 0.095 - z) * 5
        side, inner = np.abs(across), 0.52 * ax
        middle = side - self.fissure + bridged.clip(0)
        stem = _segment(side, back, (ax, -0.10 + 0.4 * z), (inner + 0.03, -0.07))
        cistern = _segment(side, back, (inner, -0.10), (inner + 0.035, -0.03))
        cistern = np.minimum(cistern, _segment(side, back, (inner + 0.035, -0.03), (inner + 0.025, 0.06)))
        closing = max(0.0, abs(z - 0.01) - 0.05)
        return middle, np.minimum(stem, cistern) - self.sylvius + closing

    def _shell(self, grid: _Grid, depth: np.ndarray, brain: np.ndarray) -> np.ndarray:
        """Scalp, skull and subarachnoid fluid; zero outside."""
        stretch, pixel = self._stretch(grid.z), grid.pixel
        below_skin = depth - self.layers["skin"] * stretch
        inner_wall = brain + self.layers["csf"] * stretch
        table = self.layers["bone"] * stretch
        outer_wall = inner_wall + 2 * table + self.layers["marrow"] * stretch
        temporal = 0.022 * float(np.clip((0.10 - grid.z) / 0.1, 0, 1))
        muscle = temporal * np.exp(-(((grid.back + 0.10) / 0.11) ** 2)) * (np.abs(grid.across) > 0.14) - 0.004
        image = self.signal["skin"] * _cover(depth, pixel)
        _paint(image, self.signal["fat"], _cover(below_skin, pixel))
        _paint(image, self.signal["muscle"], _cover(np.minimum(below_skin, outer_wall + muscle), pixel))
        _paint(image, self.signal["bone"], _cover(outer_wall, pixel))
        _paint(image, self.signal["marrow"], _cover(outer_wall - table, pixel))
        _paint(image, self.signal["bone"], _cover(inner_wall + table, pixel))
        _paint(image, self.signal["csf"], _cover(inner_wall, pixel))
        return image

    def _deep(self, whole: np.ndarray, grid: _Grid, fluid: np.ndarray) -> None:
        """Paint nuclei, lesions, midbrain and ventricles, in the part of the slice where they can be."""
        rows = np.flatnonzero((np.abs(grid.back) < 0.26).any(1))
        columns = np.flatnonzero((np.abs(grid.across) < 0.24).any(0))
        window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        image, z, across, back = whole[window], grid.z, grid.across[window], grid.back[window]
        side, white = np.abs(across), _cover(fluid[window] - self.cortex, grid.pixel)
        ventricle = self._ventricles(z, across, back)
        if self.halo:
            _paint(image, self.signal["lesion"], 0.6 * white * np.exp(-((ventricle / self.halo).clip(0) ** 2)))
        for name, (centre, axes, turn) in _NUCLEI.items():
            distance = _ellipsoid(side, back, z, np.add(centre, self.nuclei_shift[name]).tolist(), axes, turn)
            _paint(image, self.signal[_NUCLEUS_TISSUE.get(name, "grey")], _cover(distance, 3 * grid.pixel))
        for *place, strength in self.lesions:
            distance = _ellipsoid(across, back, z, place[:3], place[3:], 0.0)
            _paint(image, self.signal["lesion"], strength * white * _cover(distance, 0.006))
        self._midbrain(image, z, side, back, grid.pixel)
        _paint(image, self.signal["csf"], _cover(-ventricle, grid.pixel))

    def _midbrain(self, image: np.ndarray, z: float, side: np.ndarray, back: np.ndarray, pixel: float) -> None:
        """Below the thalami: the midbrain in its cisterns."""
        present = min(1.0, (-0.03 - z) / 0.03)
        if present <= 0:
            return
        stem = _ellipsoid(side, back, 0.0, (0.030, 0.035, 0.0), (0.050, 0.075, 1.0), 0.5)
        star = 0.034 - np.hypot(side, back + 0.07) * (1 + 0.14 * np.cos(5 * np.arctan2(side, back + 0.07)))
        _paint(image, self.signal["csf"], _cover(np.maximum(stem + 0.010 * present, star), pixel) * present)
        _paint(image, self.signal["thalamus"], _cover(stem, pixel) * present)

    def _ventricles(self, z: float, across: np.ndarray, back: np.ndarray) -> np.ndarray:
        """Signed distance, negative inside."""
        third = _segment(across, back, (0.0, -0.050), (0.0, 0.055)) - 0.0065 * self.ventricle
        distance = third + 4 * max(0.0, abs(z + 0.01) - 0.035)
        side = np.abs(across)
        for chain in (_VENTRICLE, _TEMPORAL_HORN):
            for start, end in pairwise(chain):
                distance = np.minimum(distance, self._cone(side, back, z, start, end))
        return distance

    def _cone(self, x: np.ndarray, y: np.ndarray, z: float, start: _Point, end: _Point) -> np.ndarray:
        a, along = start, [end[axis] - start[axis] for axis in range(4)]
        t = (x - a[0]) * along[0] + (y - a[1]) * along[1] + (z - a[2]) * along[2]
        t = (t / (along[0] ** 2 + along[1] ** 2 + along[2] ** 2)).clip(0, 1)
        flat = (x - a[0] - t * along[0]) ** 2 + (y - a[1] - t * along[1]) ** 2
        above = z - a[2] - t * along[2]
        return np.sqrt(flat + 0.25 * above**2) - (a[3] + t * along[3]) * self.ventricle  # higher than wide


def _signal(rng: np.random.Generator) -> dict[str, float]:
    contrast = np.array(list(_CONTRASTS.values())[rng.integers(len(_CONTRASTS))])
    contrast = contrast * np.exp(rng.normal(0, 0.09, len(contrast)))
    signal = dict(zip(_TISSUES, contrast.tolist(), strict=True))
    signal["thalamus"] = (2 * signal["grey"] + signal["white"]) / 3
    if rng.random() < 0.4:  # fat suppression
        signal["fat"] *= rng.uniform(0.1, 0.6)
        signal["marrow"] *= rng.uniform(0.2, 0.7)
    return signal


def _cover(distance: np.ndarray, pixel: float) -> np.ndarray:
    """Fraction of a pixel that lies inside, from its signed distance (positive inside)."""
    return (distance * (1 / pixel) + 0.5).clip(0, 1)


def _paint(image: np.ndarray, value: float | np.ndarray, coverage: np.ndarray) -> None:
    image += coverage * (value - image)


def _segment(x: np.ndarray, y: np.ndarray, start: tuple[float, float], end: tuple[float, float]) -> np.ndarray:
    along = end[0] - start[0], end[1] - start[1]
    t = ((x - start[0]) * along[0] + (y - start[1]) * along[1]) / (along[0] ** 2 + along[1] ** 2)
    t = t.clip(0, 1)
    return np.sqrt((x - start[0] - t * along[0]) ** 2 + (y - start[1] - t * along[1]) ** 2)


def _ellipsoid(
    x: np.ndarray, y: np.ndarray, z: float, centre: Sequence[float], axes: Sequence[float], turn: float
) -> np.ndarray:
    """Approximate signed distance to an ellipsoid turned in the plane, positive inside."""
    cos, sin = np.cos(turn), np.sin(turn)
    dx, dy = x - centre[0], y - centre[1]
    radius = ((cos * dx + sin * dy) / axes[0]) ** 2 + ((cos * dy - sin * dx) / axes[1]) ** 2
    return (1 - np.sqrt(radius + ((z - centre[2]) / axes[2]) ** 2)) * min(axes[0], axes[1])


def _rng(generator: torch.Generator) -> np.random.Generator:
    return np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))


def brain_phantom(shape: tuple[int, int], generator: torch.Generator) -> np.ndarray:
    """Draw one axial slice of a new random head, at a random height, in a random contrast.

    Parameters
    ----------
    shape : tuple of int
        Matrix (y, x), any size; pixels are square and the longer side is the field of view.
    generator : torch.Generator
        CPU generator; equal states give equal slices.

    Returns
    -------
    numpy.ndarray
        (y, x), float32, not negative, of the order of 1; exactly 0 outside the head.
    """
    rng = _rng(generator)
    return Head(rng).draw(shape, float(rng.uniform(_BOTTOM, _TOP)))


def phantom_volume(slices: int, shape: tuple[int, int], seed: int) -> Volume:
    """Draw a volume of axial slices of one random head.

    Parameters
    ----------
    slices : int
        Number of slices, spread over the height of the brain.
    shape : tuple of int
        Matrix (y, x) of a slice.
    seed : int
        Which head.

    Returns
    -------
    Volume
        Named and attributed to the patient "phantom<seed>", with a field of view of 230 mm.
    """
    head = Head(_rng(stream(seed, "phantom")))
    step = (_TOP - _BOTTOM) / slices
    heights = _BOTTOM + (np.arange(slices) + 0.5) * step
    pixel = FIELD_OF_VIEW / max(shape)
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = step * FIELD_OF_VIEW, -pixel, -pixel
    affine[:, 3] = (shape[1] // 2) * pixel, (shape[0] // 2) * pixel, heights[0] * FIELD_OF_VIEW, 1
    magnitude = np.stack([head.draw(shape, z) for z in heights])
    return Volume(magnitude, affine, patient=f"phantom{seed}", name=f"phantom{seed}")
