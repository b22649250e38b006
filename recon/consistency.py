r"""Does a reconstruction agree with k-space that was measured but not shown to it, and how large is its error really?

Both questions are answered without clean data. A share of the acquired samples (whole lines, where the mask is made of
lines; never the centre that the sensitivity maps come from) is held out, posterior samples :math:`x_1 \dots x_K` are
drawn from the rest, and their predictions :math:`p_k = F S x_k` are compared with what was measured, y.

Held-out chi-square. If prior, noise and sampler are right, the true image is one more posterior sample, so that the
residual of the mean prediction, :math:`r = y - \bar p`, has zero mean and, at sample i,

.. math:: E|r_i|^2 = 2 \big(\sigma_n^2 + (1 + 1/K)\, v_i\big),

with :math:`v_i` the variance of the predictions per real component. With weights :math:`u_i` that make all distances
from the k-space centre count alike,

.. math:: \chi^2 = \sum_i u_i |r_i|^2 \Big/ \sum_i 2 u_i \big(\sigma_n^2 + (1 + 1/K)\, \hat v_i\big) .

It is a ratio of sums: a mean of ratios would be biased, as :math:`1/\hat v_i` is with few samples.

Its sampling error. Residuals of one slice are correlated (between coils and along a line), so that their number says
little. Let T be the covariance of the weighted residuals. The numerator is close to a scaled chi-square with
:math:`2 (\operatorname{tr} T)^2 / \operatorname{tr} T^2` degrees of freedom; the denominator, from the spread of K
samples, has finitely many too; so :math:`\chi^2` is close to an F ratio, which `HeldOut.deviate` turns into a standard
normal deviate. The traces are estimated from the samples themselves: with B the covariance of the predictions, S its
estimate with :math:`\nu = K - 1`, and complex Gaussian deviations,

.. math:: \operatorname{tr} B^2 = E\big[\operatorname{tr} S^2 - (\operatorname{tr} S)^2 / \nu\big] / (1 - 1/\nu^2).

Error of the spread. The error of the estimate :math:`\hat x` is :math:`s` times what the samples say, where, over all
held-out samples of a volume,

.. math:: s^2 = \sum_i w_i \big(|(y - F S \hat x)_i|^2 - 2 \sigma_n^2\big) \Big/ \sum_i 2 w_i \hat v_i .

:math:`F S` is an isometry, hence these are image errors if held-out samples stand for the missing ones: the weights are
the missing samples per acquired one at that distance from the centre. If lines were acquired at random, held-out and
missing lines are equally distributed given those that were kept. As few lines are held out, :math:`s^2` is drawn
towards 1 by as much as its sampling error asks for under a prior of 1 with standard deviation 1.

What this cannot know. The image without the held-out lines is a little worse than the final one, and the factor is
taken to be the same for both. In an equispaced mask a held-out line lies in the middle of a double gap, farther from
measured lines than any that is really missing: there the samples spread widely, and may do so enough, while they spread
too little where lines are dense. Factors below 1 were found where errors with the truth known asked for more than 1
(R = 2 and 4, simulated scans). They are therefore not applied: the check widens error bars, it never narrows them. And
one factor cannot mend a spread that is wrong in its distribution over the image.

Acquired chi-square. Given y, the true image and a posterior sample have the same distribution, hence the same expected
residual on the very data that were used: :math:`E|y - A x_k|^2 = 2 m \sigma_n^2` for m complex samples. No degrees of
freedom need to be subtracted, as they must be for a point estimate, which takes up part of the noise. The centre is
left out: there, errors of the sensitivity maps show more than anything else.

References
----------
C. Millard, M. Chiew, IEEE Trans. Comput. Imaging 9 (2023) 707-720 (held-out lines, weighted, estimate the image error).
A. Gelman, X.-L. Meng, H. Stern, Statistica Sinica 6 (1996) 733-807 (predictive checks).
E. Paulson, Ann. Math. Statist. 13 (1942) 233-235 (normal deviate of an F ratio).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from mri_ambient.calibration import MAX_ACS
from mri_ambient.operators import Sense
from mri_ambient.operators.splitting import acs_mask, acs_width

HELD_OUT = 0.2  # share of the acquired samples outside the centre
BANDS, BAND_SIZE = 16, 64  # at most so many bands of distance from the k-space centre, with at least so many samples
STRATA = 8  # at most so many, with equally many acquired samples, for the density of a mask
DEVIATE = 2.58  # exceeded to either side once in a hundred times
# A significant chi-square need not matter: with many samples a deviation of 3 % is significant.
PRIOR_FITS = (0.5, 1.5)
NOISE_FITS = (0.7, 1.3)
LEAST_FACTOR = 0.1  # an error bar of zero would claim certainty


@dataclass(frozen=True)
class HeldOut:
    """What held-out k-space says, as sums that add up over slices.

    Attributes
    ----------
    power, expected : float
        Weighted squared residual of the mean prediction, and its expectation.
    power_variance, expected_variance : float
        Of these two, if all is right.
    error, spread : float
        Squared error of the estimate (noise subtracted) and twice the variance of the samples, both weighted as missing
        samples.
    error_variance : float
        Of `error`, if all is right.
    """

    power: float
    expected: float
    power_variance: float
    expected_variance: float
    error: float
    spread: float
    error_variance: float

    @property
    def chi_square(self) -> float:
        """About 1 if prior, noise and spread fit."""
        return self.power / self.expected

    @property
    def deviate(self) -> float:
        """The chi-square as a standard normal deviate."""
        # 2 / (9 d) of Wilson and Hilferty, for the d = 2 expected^2 / variance degrees of freedom of either sum
        above, below = (v / (9 * self.expected**2) for v in (self.power_variance, self.expected_variance))
        root = self.chi_square ** (1 / 3)
        return (root * (1 - below) - (1 - above)) / math.sqrt(above + root**2 * below)

    @property
    def factor(self) -> float:
        """What the spread is to be multiplied by to match the error; not below `LEAST_FACTOR`."""
        scale = self.spread**2 + self.error_variance
        if scale == 0:  # nothing is missing where lines were held out
            return 1.0
        square = (self.error * self.spread + self.error_variance) / scale
        return math.sqrt(max(square, LEAST_FACTOR**2))


@dataclass(frozen=True)
class Check:
    """The held-out runs of a volume.

    Attributes
    ----------
    slices : tuple of int
    parts : tuple of HeldOut
        One a slice.
    acquired : tuple of float or None
        Acquired chi-square of each slice.
    evaluations : int
        Network evaluations spent.
    coils : int
        Of the scan.
    bound : bool
        There is less noise than was assumed (`mri_ambient.posterior.MIN_NOISE`): chi-squares may be small.
    """

    slices: tuple[int, ...] = ()
    parts: tuple[HeldOut, ...] = ()
    acquired: tuple[float | None, ...] = ()
    evaluations: int = 0
    coils: int = 8
    bound: bool = False

    @property
    def noise_fits(self) -> bool:
        """Whether the acquired chi-square is what the noise level lets expect."""
        low, high = noise_fits(self.coils)
        return not self.parts or (0 if self.bound else low) < _mean(self.acquired) < high

    @property
    def prior_fits(self) -> bool:
        """Whether the held-out chi-square is near 1; if all is right, false in at most one of a hundred volumes."""
        if not self.parts:
            return True
        total = pooled(self.parts)
        low, high = PRIOR_FITS
        return abs(total.deviate) < DEVIATE or (0 if self.bound else low) < total.chi_square < high

    @property
    def std_factor(self) -> float:
        """What the standard deviations of the volume are multiplied by, never less than 1.

        It is 1 where nothing could be held out, or where the noise level, on which it depends, is wrong.
        """
        return max(1.0, pooled(self.parts).factor) if self.parts and self.noise_fits else 1.0

    @property
    def verdict(self) -> str:
        """One sentence for the reader of the result."""
        if not self.parts:
            return "Not checked against held-out k-space."
        total, acquired = pooled(self.parts).chi_square, _mean(self.acquired)
        if not self.noise_fits:
            found = "too small" if acquired > 1 else "too large"
            return (
                f"DOES NOT FIT: the noise level is {found} (chi-square of acquired k-space {acquired:.2f} instead of "
                "1): neither image nor error bars can be trusted."
            )
        if not self.prior_fits:
            found = "worse" if total > 1 else "better"
            return (
                f"DOES NOT FIT: held-out k-space is predicted much {found} than the prior says (chi-square {total:.2f} "
                "instead of 1): another anatomy, contrast or motion; do not rely on details."
            )
        note = "; the noise is below what is resolved, error bars are upper bounds" if self.bound else ""
        return f"Held-out k-space agrees with the reconstruction (chi-square {total:.2f}{note})."

    def attributes(self) -> dict[str, Any]:
        """For the file and the JSON summary."""
        if not self.parts:
            return {"std_factor": 1.0, "verdict": self.verdict}
        return {
            "std_factor": round(self.std_factor, 4),
            "chi_square_held_out": round(pooled(self.parts).chi_square, 4),
            "chi_square_held_out_slices": {
                str(i): round(part.chi_square, 4) for i, part in zip(self.slices, self.parts, strict=True)
            },
            "verdict": self.verdict,
        }


def noise_fits(coils: int) -> tuple[float, float]:
    """Between which acquired chi-squares the noise level fits.

    Where the denoiser is surer than its error says, as in air, samples take up to half of the noise that an image can
    explain, which is one part in the number of coils.
    """
    low, high = NOISE_FITS
    return low * (1 - 0.5 / coils), high


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else 1.0


def rounded(value: float | None) -> float | None:
    """Four digits after the point."""
    return None if value is None else round(value, 4)


def pooled(parts: Sequence[HeldOut]) -> HeldOut:
    """The slices of a volume together."""
    return HeldOut(*(sum(getattr(part, field.name) for part in parts) for field in fields(HeldOut)))


def hold_out(mask: Tensor, generator: torch.Generator) -> Tensor | None:
    """Keep a random part of a mask and hold out `HELD_OUT` of its samples outside the centre, at least one.

    Parameters
    ----------
    mask : Tensor (1 or y, x), bool
        Of `Sense`: with one row, columns are whole lines.
    generator : torch.Generator

    Returns
    -------
    Tensor or None
        The kept mask; None where fewer than two lines (samples) outside the centre leave nothing to hold out.
    """
    places = torch.nonzero(outside_centre(mask).flatten().cpu())[:, 0]
    if len(places) < 2:
        return None
    count = max(1, round(HELD_OUT * len(places)))
    kept = mask.clone(memory_format=torch.contiguous_format)
    kept.view(-1)[places[torch.randperm(len(places), generator=generator)[:count]].to(mask.device)] = False
    return kept


def outside_centre(mask: Tensor) -> Tensor:
    """The acquired samples that the sensitivity maps do not depend on; shape of the mask (1 or y, x)."""
    flat = mask[0] if len(mask) == 1 else mask
    return mask & ~acs_mask(flat, min(acs_width(flat), MAX_ACS)).expand_as(mask)


def compare(
    kspace: Tensor, operator: Sense, kept: Tensor, noise_std: float, estimate: Tensor, samples: Tensor
) -> HeldOut:
    """Compare held-out k-space with what was predicted without it.

    Parameters
    ----------
    kspace : Tensor (coil, y, x)
        All that was measured.
    operator : Sense
        With the mask of all that was measured.
    kept : Tensor (1 or y, x), bool
        From `hold_out`; what estimate and samples were made from.
    noise_std : float
        Per real component.
    estimate : Tensor (y, x)
    samples : Tensor (sample, y, x)
        At least three, independent.

    Raises
    ------
    ValueError
        If there are fewer than three samples.
    """
    count = len(samples)
    if count < 3:
        raise ValueError(f"held-out k-space needs at least 3 samples, not {count}")
    shape = kspace.shape[-2:]
    held = (operator.mask & ~kept).expand(shape)
    hidden = operator.with_mask(held)
    measured = kspace[:, held]
    predicted = torch.stack([hidden.forward(x)[:, held] for x in samples])  # (sample, coil, held-out samples)
    deviation = predicted - predicted.mean(0)
    variance = deviation.abs().square().sum(0) / (2 * (count - 1))
    noise = noise_std**2
    inflation = 1 + 1 / count
    local = _local_mean(variance.mean(0), radius(shape, kspace.device)[held])
    weight = 1 / (2 * (noise + inflation * local))  # (held-out samples,)

    acquired = outside_centre(operator.mask).expand(shape)
    missing = _missing_per_acquired(operator.mask.expand(shape), acquired, operator.is_line_mask)[held]
    spread = float((2 * weight * variance).sum())
    expected = inflation * spread + float(2 * noise * weight.sum() * len(measured))
    squares, power_variance = _power_variance(deviation, variance, weight, noise, inflation)
    _, error_variance = _power_variance(deviation, variance, missing, noise, 1.0)
    residual = (measured - predicted.mean(0)).abs().square()
    error = (measured - hidden.forward(estimate)[:, held]).abs().square() - 2 * noise
    return HeldOut(
        power=float((weight * residual).sum()),
        expected=expected,
        power_variance=power_variance,
        expected_variance=inflation**2 * squares / (count - 1),
        error=float((missing * error).sum()),
        spread=float((2 * missing * variance).sum()),
        error_variance=error_variance,
    )


def acquired_chi_square(kspace: Tensor, operator: Sense, noise_std: float, samples: Tensor) -> float | None:
    """Mean squared residual of samples (sample, y, x) on the data they were made from, over that of the noise.

    1 if the noise level is right, up to a standard deviation of one over the square root of the number of samples
    outside the centre (coils included); None without any.
    """
    where = operator.with_mask(outside_centre(operator.mask))
    measured = kspace * where.mask
    power = sum(float((measured - where.forward(x)).abs().square().sum()) for x in samples) / len(samples)
    count = len(kspace) * int(where.mask.expand(kspace.shape[-2:]).sum())
    return power / (2 * count * noise_std**2) if count else None


def radius(shape: Sequence[int], device: torch.device) -> Tensor:
    """Distance from the k-space centre (y, x), 1 at the corners."""
    ny, nx = shape
    ky = ((torch.arange(ny, device=device) - ny // 2) / (ny / 2))[:, None]
    kx = (torch.arange(nx, device=device) - nx // 2) / (nx / 2)
    return ((ky**2 + kx**2) / 2).sqrt().clamp_max(1 - 1e-6)


def _local_mean(values: Tensor, distance: Tensor) -> Tensor:
    """Every value replaced by the mean over those at a similar distance."""
    mean = torch.empty_like(values)
    for band in distance.argsort().tensor_split(max(1, min(BANDS, len(values) // BAND_SIZE))):
        mean[band] = values[band].mean()
    return mean


def _power_variance(
    deviation: Tensor, variance: Tensor, weight: Tensor, noise: float, inflation: float
) -> tuple[float, float]:
    """``tr B^2`` of the weighted predictions, and the variance of the weighted power of `inflation` times that plus
    noise."""
    squares = _square_trace((deviation * weight.sqrt()).flatten(1))
    cross = float((2 * weight.square() * variance).sum())
    white = float(weight.square().sum()) * len(variance)
    return squares, inflation**2 * squares + 4 * inflation * noise * cross + 4 * noise**2 * white


def _square_trace(deviation: Tensor) -> float:
    """Trace of the squared covariance, from deviations (sample, values) from their mean."""
    freedom = len(deviation) - 1
    gram = (deviation @ deviation.mH) / freedom
    square, trace = float(gram.abs().square().sum()), float(gram.diagonal().real.sum())
    return max((square - trace**2 / freedom) / (1 - 1 / freedom**2), trace**2 / deviation.shape[1])


def _missing_per_acquired(mask: Tensor, acquired: Tensor, lines: bool) -> Tensor:
    """Missing samples per acquired one outside the centre (y, x), in strata of distance from the k-space centre."""
    ny, nx = mask.shape
    column = (torch.arange(nx, device=mask.device) - nx // 2).abs().float().expand(ny, nx).contiguous()
    distance = column if lines else radius((ny, nx), mask.device)
    found = distance[acquired].sort().values
    strata = max(1, min(STRATA, len(found) // (8 * (ny if lines else 1))))
    edges = found[[len(found) * i // strata for i in range(1, strata)]]
    stratum = torch.bucketize(distance, edges)
    counts = torch.zeros(2, strata, device=mask.device)
    for row, where in enumerate((acquired, ~mask & (distance <= found[-1]))):
        counts[row] = torch.bincount(stratum[where], minlength=strata)
    ratio = counts[1] / counts[0].clamp_min(1)
    return ratio[stratum] if bool(ratio.any()) else torch.ones_like(distance)
