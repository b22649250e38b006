r"""Simulation-based calibration of error bars: how often the truth lies in the interval that should hold it.

A pixel's posterior samples :math:`|x_1|, \dots, |x_K|` give intervals of a nominal level *p* in three ways.

*quantile*
    From the samples alone. If truth and samples come from one distribution, the truth is equally likely to have any
    rank among them, so that the interval between the quantiles at ranks :math:`(1 \mp p)(K + 1)/2` holds it with
    probability *p*, whatever the distribution. That needs :math:`K \ge 2/(1 - p) - 1` samples: 19 for 90 %; with fewer
    the level is left out.
*normal*
    Estimate :math:`\pm z_p` standard deviations: what a reader takes an error bar to mean. As the standard deviation is
    estimated from *K* samples, the share is below *p* even for perfect samples: 83 % at 90 % for 8 samples.
*student*
    Estimate :math:`\pm t_{p, K-1} \sqrt{1 + 1/K}` standard deviations, which accounts for the small number, exactly for
    Gaussian samples and their mean: says whether the *sampler* is calibrated.

Shares are taken over the pixels of the anatomy (truth above `FLOOR` of its 99th percentile): in air, where nothing is
to be known, intervals hold the truth too easily. Pixels of a slice are correlated, so that a share from few slices is
less certain than their number suggests.

*Reliability.* Where the standard deviation is large the error should be, too. Pixels are sorted by their standard
deviation into `BINS` groups of equal size; the root mean square error of each should equal its root mean square
standard deviation (times :math:`\sqrt{1 + 1/K}`). Their ratio over all pixels is one number for it.

References
----------
A. Gelman et al., Bayesian data analysis, 3rd ed. (2013), section 3.2 (the t interval).
S. Talts et al., Validating Bayesian inference algorithms with simulation-based calibration, arXiv:1804.06788 (ranks).
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import norm, t

LEVELS = (0.5, 0.8, 0.9, 0.95)
FLOOR = 0.1
BINS = 10


@dataclass(frozen=True)
class Coverage:
    """Shares of pixels whose truth lies in their interval, in the order of `levels`.

    Attributes
    ----------
    levels : tuple of float
        Nominal.
    quantile : tuple of float or None
        None where there are too few samples for the level.
    normal, student : tuple of float
    error_over_std : float
        Root mean square error over root mean square standard deviation; 1 is calibrated, 2 means error bars are half as
        long as they should be.
    reliability : tuple of (float, float)
        Root mean square standard deviation and error of groups of pixels, by rising standard deviation.
    samples : int
    """

    levels: tuple[float, ...]
    quantile: tuple[float | None, ...]
    normal: tuple[float, ...]
    student: tuple[float, ...]
    error_over_std: float
    reliability: tuple[tuple[float, float], ...]
    samples: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def anatomy(truth: np.ndarray) -> np.ndarray:
    """Where there is something to see in a magnitude volume (slice, y, x); bool."""
    result: np.ndarray = truth > FLOOR * np.percentile(truth, 99)
    return result


def coverage(
    truth: np.ndarray,
    estimate: np.ndarray,
    std: np.ndarray,
    samples: np.ndarray,
    *,
    levels: tuple[float, ...] = LEVELS,
) -> Coverage:
    """Compare error bars with errors, within the anatomy.

    Parameters
    ----------
    truth, estimate : array (slice, y, x)
        Magnitudes in one unit.
    std : array (slice, y, x)
        Standard deviation as it is reported.
    samples : array (slice, sample, y, x)
        Posterior samples, complex or their magnitudes.
    levels : tuple of float
        Nominal, in (0, 1).

    Raises
    ------
    ValueError
        If shapes do not fit, there are fewer than two samples, a level is out of range, or there is no anatomy.
    """
    fits = truth.ndim == 3 and truth.shape == estimate.shape == std.shape
    if not fits or samples.ndim != 4 or samples.shape[:1] + samples.shape[2:] != truth.shape:
        shapes = [a.shape for a in (truth, estimate, std, samples)]
        raise ValueError(f"truth, estimate, std and samples of the shapes {shapes} do not fit each other")
    if samples.shape[1] < 2 or not all(0 < level < 1 for level in levels):
        raise ValueError(f"coverage needs two samples and levels between 0 and 1, not {samples.shape[1]} and {levels}")
    where = anatomy(truth)
    if not where.any():
        raise ValueError("the truth shows no anatomy")
    count = samples.shape[1]
    draws = np.abs(np.moveaxis(samples, 1, 0)[:, where]).astype(np.float64)
    values, spread = truth[where].astype(np.float64), std[where].astype(np.float64)
    error = np.abs(estimate[where] - values)

    def within(factor: float) -> float:
        return float(np.mean(error <= factor * spread))

    widen = (1 + 1 / count) ** 0.5
    tails = [(1 + level) / 2 for level in levels]
    return Coverage(
        levels=tuple(levels),
        quantile=tuple(_ranked(values, draws, level) for level in levels),
        normal=tuple(within(float(norm.ppf(p))) for p in tails),
        student=tuple(within(widen * float(t.ppf(p, count - 1))) for p in tails),
        error_over_std=float(_rms(error) / max(_rms(spread), 1e-30)),
        reliability=_reliability(error, spread),
        samples=count,
    )


def _ranked(values: np.ndarray, draws: np.ndarray, level: float) -> float | None:
    """Share of values (pixel,) between two quantiles of their draws (sample, pixel)."""
    tail = (1 - level) / 2
    if tail * (len(draws) + 1) < 1 - 1e-9:
        return None
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0, method="weibull")
    return float(np.mean((values >= low) & (values <= high)))


def _reliability(error: np.ndarray, spread: np.ndarray) -> tuple[tuple[float, float], ...]:
    groups = np.array_split(np.argsort(spread, kind="stable"), BINS)
    return tuple((_rms(spread[group]), _rms(error[group])) for group in groups if len(group))


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))
