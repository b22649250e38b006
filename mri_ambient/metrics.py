r"""Image quality by the definitions of the fastMRI challenge, and intervals that respect how the data cluster.

For a target volume *t* and a reconstruction *r*, both magnitudes of shape (slice, y, x):

.. math::
    \mathrm{NMSE} = \frac{\|t - r\|^2}{\|t\|^2}, \qquad
    \mathrm{PSNR} = 10 \log_{10} \frac{\max(t)^2}{\operatorname{mean}\,(t - r)^2},

and SSIM is the mean over slices of the structural similarity with a uniform 7 x 7 window, ``k1 = 0.01``, ``k2 = 0.03``
and the maximum of the *volume* as data range. Norm, mean and maximum run over the volume. Values computed slice by
slice, or with the range of each slice, differ by several points and cannot be compared with these.

Slices of a volume and volumes of a patient are not independent. `bootstrap_interval` therefore resamples whole groups.

References
----------
J. Zbontar et al., fastMRI: an open dataset and benchmarks for accelerated MRI, arXiv:1811.08839 (2018), section 5.
Z. Wang et al., Image quality assessment: from error visibility to structural similarity, IEEE Trans. Image Process. 13
(2004) 600-612.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

WINDOW = 7
"""Side of the SSIM window in pixels."""


def nmse(target: Any, reconstruction: Any) -> float:
    """Squared error of a volume over the energy of the target; 0 is perfect.

    Parameters
    ----------
    target, reconstruction : array (slice, y, x)
        Real magnitudes of the same shape.

    Raises
    ------
    ValueError
        If the shapes differ (nothing is cropped silently), a volume is not three-dimensional, real and finite, or the
        target has no positive value.
    """
    target, reconstruction = _volumes(target, reconstruction)
    return float(np.sum((target - reconstruction) ** 2) / np.sum(target**2))


def psnr(target: Any, reconstruction: Any) -> float:
    """Peak signal-to-noise ratio in dB, relative to the maximum of the target volume; infinite where both are equal.

    Parameters and exceptions are those of `nmse`.
    """
    target, reconstruction = _volumes(target, reconstruction)
    error = np.mean((target - reconstruction) ** 2)
    return float(10 * np.log10(target.max() ** 2 / error)) if error > 0 else float("inf")


def ssim(target: Any, reconstruction: Any) -> float:
    """Structural similarity averaged over slices, with the maximum of the target volume as data range; 1 is perfect.

    Parameters and exceptions are those of `nmse`; slices must also hold the 7 x 7 window.
    """
    from skimage.metrics import structural_similarity

    target, reconstruction = _volumes(target, reconstruction)
    if min(target.shape[1:]) < WINDOW:
        raise ValueError(f"SSIM needs slices of at least {WINDOW} x {WINDOW} pixels, not of shape {target.shape[1:]}")
    settings = {"win_size": WINDOW, "K1": 0.01, "K2": 0.03, "gaussian_weights": False, "data_range": target.max()}
    pairs = zip(target, reconstruction, strict=True)
    return float(np.mean([structural_similarity(t, r, **settings) for t, r in pairs]))


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    groups: Sequence[Hashable] | np.ndarray,
    *,
    level: float = 0.95,
    repeats: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values`, drawing whole groups with replacement.

    Parameters
    ----------
    values : array (n,)
        One number a slice or volume.
    groups : sequence (n,)
        What each value belongs to, usually the patient.
    level : float
        Coverage, in (0, 1).
    repeats : int
        Bootstrap draws.
    seed : int
        The same seed gives the same interval.

    Returns
    -------
    tuple of float
        Lower and upper end; ``(nan, nan)`` for a single group, from which no spread can be learned.

    Raises
    ------
    ValueError
        If the lengths differ, there are no values, a value is NaN, or `level` is not in (0, 1).

    Notes
    -----
    Percentile intervals of few groups (less than about ten) are too narrow; report the number of groups beside them.

    References
    ----------
    A. C. Davison and D. V. Hinkley, Bootstrap methods and their application, Cambridge (1997), section 3.8.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) != len(groups) or len(values) == 0:
        raise ValueError(f"{values.size} values cannot be resampled with {len(groups)} group labels")
    if np.isnan(values).any():
        raise ValueError("values that are not numbers cannot be resampled")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not {level}")
    numbers = {label: number for number, label in enumerate(dict.fromkeys(groups))}
    if len(numbers) == 1:
        return float("nan"), float("nan")
    member = np.array([numbers[label] for label in groups])
    sums = np.zeros(len(numbers))
    np.add.at(sums, member, values)
    counts = np.bincount(member)
    draws = np.random.default_rng(seed).integers(len(numbers), size=(repeats, len(numbers)))
    means = sums[draws].sum(1) / counts[draws].sum(1)
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(means, tails, method="inverted_cdf")  # no interpolation: PSNR may be infinite
    return float(low), float(high)


def _volumes(target: Any, reconstruction: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both volumes in double precision, checked."""
    pair = np.asarray(target), np.asarray(reconstruction)
    if pair[0].shape != pair[1].shape:
        raise ValueError(f"target {pair[0].shape} and reconstruction {pair[1].shape} differ in shape")
    for name, volume in zip(("target", "reconstruction"), pair, strict=True):
        if volume.ndim != 3 or volume.size == 0:
            raise ValueError(f"the {name} must be a volume (slice, y, x), not an array of shape {volume.shape}")
        if np.iscomplexobj(volume):
            raise ValueError(f"the {name} is complex; metrics compare magnitudes")
        if not np.isfinite(volume).all():
            raise ValueError(f"the {name} has values that are not finite")
    target, reconstruction = (volume.astype(np.float64) for volume in pair)
    if target.max() <= 0:
        raise ValueError("the target has no positive value")
    return target, reconstruction
