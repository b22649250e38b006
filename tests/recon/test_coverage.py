"""Coverage against closed forms: Gaussian truth and samples of known spread."""

import numpy as np
import pytest
from scipy.stats import norm

from mri_ambient.recon.coverage import LEVELS, anatomy, coverage

PIXELS = (4, 100, 100)
SIGMA = 3.0
ERROR = 4 * (0.25 / np.prod(PIXELS)) ** 0.5  # four standard errors of a share


def world(count, factor=1.0, seed=0):
    """Truth and samples N(centre, SIGMA), the samples' spread multiplied by `factor`; far from zero, with phases."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform(200, 300, PIXELS)
    truth = centre + SIGMA * rng.standard_normal(PIXELS)
    noise = rng.standard_normal((PIXELS[0], count, *PIXELS[1:]))
    magnitudes = centre[:, None] + factor * SIGMA * noise
    phases = np.exp(2j * np.pi * rng.random(PIXELS))[:, None]
    return truth, magnitudes.mean(1), magnitudes.std(1, ddof=1), magnitudes * phases


@pytest.mark.parametrize("count", [8, 39])
def test_student_and_quantile_intervals_of_perfect_samples_are_exact(count):
    found = coverage(*world(count))
    assert found.student == pytest.approx(LEVELS, abs=ERROR)
    possible = [level for level in LEVELS if (1 - level) / 2 * (count + 1) >= 1 - 1e-9]
    shares = [share for share in found.quantile if share is not None]
    assert len(shares) == len(possible) == {8: 1, 39: 4}[count]
    assert shares == pytest.approx(possible, abs=ERROR + 0.01)  # interpolated between ranks
    assert found.error_over_std == pytest.approx((1 + 1 / count) ** 0.5, rel=0.02)


def test_quantiles_at_whole_ranks_are_exact():
    assert coverage(*world(19), levels=(0.9,)).quantile[0] == pytest.approx(0.9, abs=ERROR)


def test_normal_intervals_fall_short_by_what_few_samples_cost():
    many = coverage(*world(100))
    assert many.normal == pytest.approx(LEVELS, abs=ERROR + 0.008)
    assert coverage(*world(8)).normal[2] == pytest.approx(0.835, abs=ERROR + 0.002)  # P(|t_7| < 1.645 / sqrt(9 / 8))


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_wrong_error_bars_are_found(factor):
    found = coverage(*world(100, factor))
    expected = [2 * norm.cdf(factor * norm.ppf((1 + level) / 2)) - 1 for level in LEVELS]
    assert found.normal == pytest.approx(expected, abs=ERROR + 0.008)
    assert found.student == pytest.approx(expected, abs=ERROR + 0.008)
    assert found.quantile == pytest.approx(expected, abs=ERROR + 0.015)
    assert found.error_over_std == pytest.approx(1 / factor, rel=0.03)
    assert found.normal != pytest.approx(LEVELS, abs=0.03)


def test_the_reported_standard_deviation_is_judged_not_that_of_the_samples():
    truth, mean, std, samples = world(100)
    halved = coverage(truth, mean, std / 2, samples)
    assert halved.normal[2] == pytest.approx(2 * norm.cdf(norm.ppf(0.95) / 2) - 1, abs=ERROR + 0.008)
    assert halved.quantile[2] == pytest.approx(0.9, abs=ERROR + 0.01)
    assert halved.error_over_std == pytest.approx(2, rel=0.03)


def test_reliability_follows_the_local_spread():
    rng = np.random.default_rng(1)
    truth, scale = np.full(PIXELS, 100.0), np.repeat([1.0, 2.0, 3.0, 4.0], 10_000).reshape(PIXELS)
    estimate = truth + scale * rng.standard_normal(PIXELS)
    samples = estimate[:, None] + scale[:, None] * rng.standard_normal((4, 2, 100, 100))
    right = np.array(coverage(truth, estimate, scale, samples).reliability)
    assert right.shape == (10, 2)
    np.testing.assert_allclose(right[:, 0], right[:, 1], rtol=0.05)
    flat = np.array(coverage(truth, estimate, np.full(PIXELS, 2.74), samples).reliability)
    assert np.ptp(flat[:, 0]) == 0
    assert flat[-1, 1] > 3 * flat[0, 1]


def test_air_does_not_count():
    truth, mean, std, samples = world(20)
    air = np.s_[:, :50]
    truth[air] = mean[air] = 0.0
    std[air] = 100.0
    samples = samples.copy()
    samples[:, :, :50] = 0
    assert anatomy(truth).mean() == 0.5
    assert coverage(truth, mean, std, samples).student == pytest.approx(LEVELS, abs=2 * ERROR)


def test_what_cannot_be_judged():
    truth, mean, std, samples = world(2)
    with pytest.raises(ValueError, match="do not fit"):
        coverage(truth, mean[:1], std, samples)
    with pytest.raises(ValueError, match="two samples"):
        coverage(truth, mean, std, samples[:, :1])
    with pytest.raises(ValueError, match="levels"):
        coverage(truth, mean, std, samples, levels=(1.0,))
    with pytest.raises(ValueError, match="no anatomy"):
        coverage(0 * truth, mean, std, samples)
