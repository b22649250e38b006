r"""How wrong a denoiser is, by noise level and spatial frequency.

The error of a denoiser is far from white: at a noise level well below the contrast of an image, low frequencies are
hardly denoised at all (error close to the noise) while high frequencies are (error close to the signal there). What is
measured, at the end of training and on the images it used, is the root mean square error in rings of k-space. A sampler
that adds what the denoiser left out has to add it with this spectrum.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mri_ambient.operators import fft2c

RINGS = (0.04, 0.08, 0.13, 0.2, 0.3, 0.45, 0.65, 0.85)  # upper ends, 1 is the Nyquist frequency; the last ring is open
CENTRES = tuple((a + b) / 2 for a, b in zip((0.0, *RINGS), (*RINGS, 1.0), strict=True))


@dataclass(frozen=True)
class DenoiserError:
    """Error of a full-mask denoiser, per real component, interpolated from a table.

    Attributes
    ----------
    table : sequence
        Rows ``(noise level, root mean square error, errors in the rings)``; without the last entry, as in priors
        of version 0.1, the error counts as white.
    sigma_data : float
        Standard deviation of the images: beyond the table's ends, and without one, the error is that of a linear
        denoiser of white images, ``sigma s / sqrt(sigma^2 + s^2)``.
    """

    table: Sequence[Sequence[Any]]
    sigma_data: float

    def rms(self, sigma: float) -> float:
        """Root mean square error at a noise level."""
        rows = self._between(sigma)
        if not self.table or not self._levels()[0] <= sigma <= self._levels()[-1]:
            return sigma * self.sigma_data / math.hypot(sigma, self.sigma_data)
        return math.exp(sum(part * math.log(row[1]) for row, part in rows))

    def spectrum(self, sigma: float, shape: Sequence[int]) -> Tensor:
        """Standard deviation (y, x) of the error in centred, orthonormal k-space."""
        flat = torch.full(tuple(shape), self.rms(sigma))
        rows = self._between(sigma)
        if not rows or len(rows[0][0]) < 3:
            return flat
        relative = sum(part * torch.tensor([math.log(e / row[1]) for e in row[2]]) for row, part in rows)
        assert isinstance(relative, Tensor)
        centres, distance = torch.tensor(CENTRES), radius(shape)
        above = torch.bucketize(distance, centres).clamp(1, len(centres) - 1)
        part = ((distance - centres[above - 1]) / (centres[above] - centres[above - 1])).clamp(0, 1)
        return flat * torch.exp((1 - part) * relative[above - 1] + part * relative[above])

    def _levels(self) -> list[float]:
        return sorted(float(row[0]) for row in self.table)

    def _between(self, sigma: float) -> list[tuple[Sequence[Any], float]]:
        """The rows around a noise level with their shares, equal to those of the nearest row beyond the ends."""
        rows = sorted(self.table, key=lambda row: float(row[0]))
        above = bisect_right(self._levels(), sigma)
        if above in (0, len(rows)):
            return [(rows[min(above, len(rows) - 1)], 1.0)] if rows else []
        low, high = rows[above - 1], rows[above]
        part = math.log(sigma / low[0]) / math.log(high[0] / low[0])
        return [(low, 1 - part), (high, part)]


def radius(shape: Sequence[int]) -> Tensor:
    """Distance (y, x) from the centre of k-space, in Nyquist frequencies; the corners count as 1."""
    y, x = ((torch.arange(n) - n // 2) / max(n / 2, 1) for n in shape)
    return torch.hypot(y[:, None], x).clamp_max(1.0)


def ring_power(error: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of squares per real component in every ring, and the number of samples, of images (..., y, x)."""
    ring = torch.bucketize(radius(error.shape[-2:]), torch.tensor(RINGS), right=True).flatten().to(error.device)
    power = fft2c(error).abs().square().flatten(0, -3).sum(0).flatten() / 2
    count = torch.full_like(power, error.numel() / power.numel())
    empty = power.new_zeros(len(RINGS) + 1)
    return empty.index_add(0, ring, power), empty.index_add(0, ring, count)
