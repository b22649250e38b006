"""Cartesian sampling masks and their acquisition probabilities.

A mask is boolean, True where k-space was acquired: shape ``(x,)`` for phase-encode lines, ``(y, x)`` for 2-D
patterns. The centre of N lines is index N // 2; the auto-calibration signal (ACS) is the fully acquired block of n
lines that starts at N // 2 - n // 2.

Every function draws from the `torch.Generator` it is given (torch's global one if none) and returns a mask on the
CPU, unless it was given one that lives elsewhere.

References
----------
.. [1] Zbontar et al., fastMRI: an open dataset and benchmarks for accelerated MRI, arXiv:1811.08839.
.. [2] Madow, On the theory of systematic sampling II, Ann. Math. Stat. 1949.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .splitting import device_of, shells, uniform

_RINGS = 12  # of the Poisson-disc density estimate
_GROUPS = 3 * _RINGS
KINDS = ("random", "bernoulli", "equispaced", "gaussian", "poisson")


def default_acs(width: int, accel: float) -> int:
    """Return the usual number of ACS lines: 8 % of the width up to 4-fold, 32 % of the lines above, at least 8."""
    return min(width, max(8, round(width * min(0.08, 0.32 / accel))))


def random_mask(
    width: int,
    accel: float,
    acs: int | None = None,
    *,
    generator: torch.Generator | None = None,
    bernoulli: bool = False,
) -> Tensor:
    """Draw uniformly random lines around the ACS.

    Parameters
    ----------
    width : int
        Number of phase-encode lines.
    accel : float
        Acceleration, width / acquired lines, ACS included. The mask holds round(width / accel) lines, or one more
        than the ACS where that is not above it, so that every line has a chance.
    acs : int, optional
        Number of ACS lines; `default_acs` if not given.
    generator : torch.Generator, optional
        Source of randomness.
    bernoulli : bool
        Draw each line independently: the count then varies around the same mean.

    Returns
    -------
    Tensor
        Boolean mask, shape (width,).

    Raises
    ------
    ValueError
        If accel < 1, the ACS does not fit into the width, or accel leaves fewer lines than the ACS has.
    """
    lines, acs = _line_budget(width, accel, acs)
    score = uniform((width,), generator)
    centre = shells((width,)) <= acs
    if bernoulli:
        return centre | (score < _share(lines, acs, width))
    chosen = score.masked_fill(centre, -1.0).argsort()[:lines]  # the ACS sorts first
    return torch.zeros(width, dtype=torch.bool).index_fill_(0, chosen, True)


def equispaced_mask(
    width: int, accel: float, acs: int | None = None, *, generator: torch.Generator | None = None
) -> Tensor:
    """Draw equally spaced lines with a uniformly random offset, plus the ACS.

    The spacing is widened to (width - acs) / (lines - acs), so that the *expected* number of lines is round(width /
    accel) with the ACS counted; one mask deviates by about a line. A spacing that is not an integer is rounded line
    by line, the offset being drawn before rounding: every off-centre line then has exactly the same probability.

    Parameters, returns and errors as in `random_mask`.
    """
    lines, acs = _line_budget(width, accel, acs)
    centre = shells((width,)) <= acs
    if lines == width:
        return torch.ones(width, dtype=torch.bool)
    spacing = 1 / _share(lines, acs, width)
    position = (uniform((1,), generator) * spacing + spacing * torch.arange(width, dtype=torch.float64)).floor().long()
    return centre.index_fill_(0, position[position < width], True)


def gaussian_mask(
    width: int, accel: float, acs: int | None = None, *, generator: torch.Generator | None = None
) -> Tensor:
    """Draw a fixed number of lines whose density falls off as a Gaussian (standard deviation width / 4), plus the ACS.

    Lines are put in random order and every unit of their summed probabilities selects one (systematic sampling [2]_):
    the count is exactly round(width / accel), and each line's probability is exactly what `MaskPattern.probability`
    says.

    Parameters, returns and errors as in `random_mask`.
    """
    lines, acs = _line_budget(width, accel, acs)
    probability = _gaussian_probability(width, lines, acs)
    order = uniform((width,), generator).argsort()
    total = probability[order].cumsum(0)
    total[-1] = lines  # exact, or rounding could lose the last line
    start = uniform((1,), generator)
    selected = torch.diff(torch.floor(total - start), prepend=torch.floor(-start)) > 0
    return torch.zeros(width, dtype=torch.bool).index_fill_(0, order[selected], True)


def poisson_mask(
    shape: Sequence[int], accel: float, acs: int | None = None, *, generator: torch.Generator | None = None
) -> Tensor:
    """Draw a variable-density Poisson-disc pattern with SigPy, plus a fully acquired centred square.

    SigPy's generator meets the acceleration only to a few per cent; it is asked for slightly too many samples, and
    random off-centre ones are dropped until round(y * x / accel) are left. Corners are not cropped: they would have
    probability 0.

    Parameters
    ----------
    shape : sequence of int
        Matrix (y, x).
    accel : float
        Acceleration, y * x / acquired samples. Poisson discs do not pack densely: below about 2 it may be out of reach.
    acs : int, optional
        Side of the square; by default 24, or what makes it 32 % of the samples if that is less.
    generator : torch.Generator, optional
        Source of randomness; SigPy's seed is drawn from it.

    Returns
    -------
    Tensor
        Boolean mask, shape (y, x).

    Raises
    ------
    ValueError
        If accel < 1, the square does not fit or holds more than the samples, or SigPy cannot pack the samples.
    """
    from sigpy.mri import poisson

    shape, samples, acs = _sample_budget(shape, accel, acs)
    size = math.prod(shape)
    if samples == size:
        return torch.ones(shape, dtype=torch.bool)
    centre = shells(shape) <= acs
    goal = 0.92 * size / samples  # wide tolerance: its search is slow, and a surplus is cheap to drop
    for seed in torch.randint(2**31 - 1, (4,), generator=generator, device=device_of(generator)).tolist():
        try:
            drawn = poisson(shape, goal, (acs, acs), dtype=bool, crop_corner=False, seed=seed, tol=0.08 * goal)
        except ValueError:  # its search ran out: another seed may do
            continue
        mask = centre | torch.from_numpy(drawn)
        surplus = int(mask.sum()) - samples
        if surplus >= 0:
            removable = (mask & ~centre).flatten().nonzero()[:, 0]
            drop = removable[uniform(removable.shape, generator).argsort()[:surplus]]
            return mask.flatten().index_fill_(0, drop, False).reshape(shape)
    raise ValueError(
        f"No Poisson-disc mask of acceleration {accel:g} fits a {shape[0]} x {shape[1]} matrix: change it."
    )


def fastmri_mask(name: str, width: int, accel: int, center_fraction: float, seed: int | tuple[int, ...]) -> Tensor:
    """Return a mask of the fastMRI package itself, for comparison with published work.

    Parameters
    ----------
    name : str
        fastMRI's name: random, equispaced, equispaced_fraction, magic or magic_fraction.
    width : int
        Number of phase-encode lines.
    accel : int
        Nominal acceleration; except for the `_fraction` kinds and random (on average) the ACS comes on top.
    center_fraction : float
        ACS lines as a fraction of the width.
    seed : int or tuple of int
        fastMRI seeds with ``tuple(map(ord, file_name))``.

    Returns
    -------
    Tensor
        Boolean mask, shape (width,).

    Raises
    ------
    ValueError
        If the name is unknown or fastMRI cannot build such a mask.
    """
    from fastmri.data.subsample import create_mask_for_mask_type

    try:
        mask_func = create_mask_for_mask_type(name, [center_fraction], [accel])
        mask, _ = mask_func((1, width, 1), seed=seed)
    except (ValueError, TypeError, IndexError, ZeroDivisionError, AssertionError) as error:
        raise ValueError(f"fastMRI has no {name!r} mask of {width} lines at acceleration {accel}: {error}.") from error
    return mask.reshape(width) > 0


@dataclass(frozen=True)
class MaskPattern:
    """A random family of masks: what `sample` draws and how probable each line or sample is.

    Parameters
    ----------
    kind : str
        random, bernoulli, equispaced, gaussian (lines) or poisson (2-D samples).
    accel : float
        Acceleration, at least 1.
    acs : int, optional
        ACS lines, or side of the ACS square of poisson; None takes the default for the matrix.

    Raises
    ------
    ValueError
        If the kind is unknown or accel < 1.
    """

    kind: str
    accel: float
    acs: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"Unknown mask kind {self.kind!r}: choose one of {', '.join(KINDS)}.")
        _check_accel(self.accel)

    def acs_size(self, shape: Sequence[int]) -> int:
        """Return the number of ACS lines (side of the square if 2-D) for the matrix (y, x)."""
        if self.kind == "poisson":
            return _sample_budget(shape, self.accel, self.acs)[2]
        return _line_budget(shape[-1], self.accel, self.acs)[1]

    def sample(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """Draw one mask for the matrix (y, x): boolean, shape (x,), or (y, x) for poisson."""
        if self.kind == "poisson":
            return poisson_mask(shape, self.accel, self.acs, generator=generator)
        if self.kind == "equispaced":
            return equispaced_mask(shape[-1], self.accel, self.acs, generator=generator)
        if self.kind == "gaussian":
            return gaussian_mask(shape[-1], self.accel, self.acs, generator=generator)
        bernoulli = self.kind == "bernoulli"
        return random_mask(shape[-1], self.accel, self.acs, generator=generator, bernoulli=bernoulli)

    def probability(self, shape: Sequence[int]) -> Tensor:
        """Return the probability that `sample` acquires each line or sample: float32, 1 on the ACS, never 0.

        Exact for the line patterns. For poisson an estimate from a few masks of a fixed seed, averaged over rings on
        which the density is constant: right to about 10 %, on the outermost rows and columns to about 30 %. It takes
        seconds and is remembered.
        """
        if self.kind == "poisson":
            shape, samples, acs = _sample_budget(shape, self.accel, self.acs)
            return _poisson_probability(shape, samples, acs).clone()
        width = shape[-1]
        lines, acs = _line_budget(width, self.accel, self.acs)
        if self.kind == "gaussian":
            return _gaussian_probability(width, lines, acs).float()
        off_centre = torch.full((width,), _share(lines, acs, width))
        return off_centre.masked_fill(shells((width,)) <= acs, 1.0)


def _check_accel(accel: float) -> None:
    if not (accel >= 1 and math.isfinite(accel)):
        raise ValueError(f"The acceleration must be at least 1, not {accel:g}.")


def _line_budget(width: int, accel: float, acs: int | None) -> tuple[int, int]:
    """Return (acquired lines, ACS lines), checked; at least one line lies outside the ACS."""
    _check_accel(accel)
    acs = default_acs(width, accel) if acs is None else acs
    if not 0 <= acs <= width:
        raise ValueError(f"{acs} ACS lines do not fit into {width} phase-encode lines.")
    lines = round(width / accel)
    if lines < acs:
        raise ValueError(
            f"Acceleration {accel:g} leaves {lines} of {width} lines, but the ACS alone has {acs}: lower one of them."
        )
    return min(max(lines, acs + 1), width), acs


def _sample_budget(shape: Sequence[int], accel: float, acs: int | None) -> tuple[tuple[int, int], int, int]:
    """Return ((y, x), acquired samples, side of the ACS square), checked."""
    _check_accel(accel)
    if len(shape) != 2:
        raise ValueError(f"A 2-D mask needs a matrix (y, x), not {tuple(shape)}.")
    y, x = shape
    acs = min(24, y, x, math.isqrt(int(0.32 * y * x / accel))) if acs is None else acs
    if not 0 <= acs <= min(y, x):
        raise ValueError(f"An ACS square of {acs} does not fit into a {y} x {x} matrix.")
    samples = round(y * x / accel)
    if samples < acs**2:
        raise ValueError(
            f"Acceleration {accel:g} leaves {samples} samples, but the ACS alone has {acs} x {acs}: lower one of them."
        )
    return (y, x), min(max(samples, acs**2 + 1), y * x), acs


def _share(lines: int, acs: int, width: int) -> float:
    """Probability of an off-centre line."""
    return (lines - acs) / (width - acs) if width > acs else 1.0


def _gaussian_probability(width: int, lines: int, acs: int) -> Tensor:
    """Line probabilities in float64: 1 on the ACS, min(1, c * Gaussian) outside, c such that they sum to `lines`."""
    offset = torch.arange(width, dtype=torch.float64) - width // 2
    density = torch.exp(-0.5 * (offset / (width / 4)) ** 2)
    certain = shells((width,)) <= acs
    while True:
        free = density.masked_fill(certain, 0.0)
        free *= (lines - int(certain.sum())) / free.sum().clamp_min(1e-30)
        if not bool((free > 1).any()):
            return free.masked_fill(certain, 1.0)
        certain = certain | (free > 1)


@lru_cache(maxsize=16)
def _poisson_probability(shape: tuple[int, int], samples: int, acs: int) -> Tensor:
    """Estimate sample probabilities by averaging masks over groups of places that SigPy's density treats alike.

    The density depends on the scaled radius alone, whatever the matrix, except for a pile-up on the outermost rows and
    columns: so it is measured on a matrix of at most 64, as drawing masks is slow, and read out on the real one.
    """
    zoom = min(1.0, 64 / max(shape))
    small, small_acs = (max(round(shape[0] * zoom), 1), max(round(shape[1] * zoom), 1)), round(acs * zoom)
    generator = torch.Generator().manual_seed(0)
    accel = math.prod(small) / max(samples * zoom**2, small_acs**2 + 1)
    masks = torch.stack([poisson_mask(small, accel, small_acs, generator=generator) for _ in range(32)])
    outside = shells(small) > small_acs
    group = _density_group(small, small_acs)[outside]
    acquired = masks[:, outside].double().mean(0)
    prior = 1 / len(masks)  # one draw's worth of the mean density: no group gets 0
    density = torch.bincount(group, acquired, _GROUPS) + prior * acquired.mean()
    density /= torch.bincount(group, minlength=_GROUPS) + prior
    centre = shells(shape) <= acs
    off_centre = density[_density_group(shape, acs)].float().masked_fill(centre, 0.0)
    off_centre *= (samples - int(centre.sum())) / off_centre.sum()
    return off_centre.clamp(max=1.0).masked_fill(centre, 1.0)


def _density_group(shape: tuple[int, int], acs: int) -> Tensor:
    """Number the rings of equal Poisson-disc density around the ACS, with the first and last rows and columns apart."""
    distance = []
    for length in shape:
        outside = ((torch.arange(length) - length / 2).abs() - acs / 2).clamp(min=0)
        distance.append(outside / outside.max().clamp_min(1e-6))
    radius = (distance[0][:, None] ** 2 + distance[1] ** 2).sqrt()
    ring = (radius * _RINGS / 1.2).long().clamp(max=_RINGS - 1)  # the far corners are one ring
    border = torch.zeros(shape, dtype=torch.long)
    border[0], border[:, 0] = 1, 1
    border[-1], border[:, -1] = 2, 2
    return ring + _RINGS * border
