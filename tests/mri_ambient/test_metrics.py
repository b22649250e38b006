"""Metrics against fastMRI's own functions and closed forms; the bootstrap against a known standard error."""

import math

import numpy as np
import pytest

from mri_ambient.metrics import bootstrap_interval, nmse, psnr, ssim


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    """A volume whose slices differ much in brightness, so that slice-wise and volume-wise definitions disagree."""
    rng = np.random.default_rng(3)
    target = rng.random((3, 19, 24)).astype(np.float32) * np.array([1.0, 0.2, 3.0], np.float32)[:, None, None]
    return target, np.abs(target + 0.1 * rng.standard_normal(target.shape).astype(np.float32))


@pytest.mark.parametrize("scale", [1e-7, 1.0, 1e4])
@pytest.mark.parametrize("metric", [nmse, psnr, ssim])
def test_agrees_with_fastmri(metric, scale, pair):
    evaluate = pytest.importorskip("fastmri.evaluate")
    target, reconstruction = (scale * volume for volume in pair)
    expected = np.asarray(getattr(evaluate, metric.__name__)(target, reconstruction)).item()
    assert metric(target, reconstruction) == pytest.approx(expected, rel=1e-5)


def test_closed_forms():
    target = np.ones((2, 8, 8))
    target[1] = 4.0
    reconstruction = target + 0.5
    assert nmse(target, reconstruction) == pytest.approx(0.25 / 8.5)
    assert psnr(target, reconstruction) == pytest.approx(10 * math.log10(16 / 0.25))
    constants = (0.01 * 4) ** 2
    expected = [(2 * t * (t + 0.5) + constants) / (t**2 + (t + 0.5) ** 2 + constants) for t in (1.0, 4.0)]
    assert ssim(target, reconstruction) == pytest.approx(np.mean(expected))


def test_perfect_reconstruction(pair):
    target, _ = pair
    assert nmse(target, target) == 0
    assert psnr(target, target) == math.inf
    assert ssim(target, target) == pytest.approx(1)


@pytest.mark.parametrize("metric", [nmse, psnr, ssim])
@pytest.mark.parametrize(
    ("target", "reconstruction", "message"),
    [
        (np.ones((2, 9, 9)), np.ones((2, 9, 8)), "differ in shape"),
        (np.ones((9, 9)), np.ones((9, 9)), "volume"),
        (np.ones((2, 9, 9)), np.ones((2, 9, 9), complex), "complex"),
        (np.ones((2, 9, 9)), np.full((2, 9, 9), np.nan), "finite"),
        (np.zeros((2, 9, 9)), np.ones((2, 9, 9)), "positive"),
    ],
)
def test_refuses(metric, target, reconstruction, message):
    with pytest.raises(ValueError, match=message):
        metric(target, reconstruction)


def test_ssim_needs_room_for_its_window():
    with pytest.raises(ValueError, match="7 x 7"):
        ssim(np.ones((1, 6, 9)), np.ones((1, 6, 9)))


def test_bootstrap_resamples_groups_not_values():
    """Copies of a value inside a group add nothing: the width is that of the group means, not sqrt(copies) narrower."""
    rng = np.random.default_rng(0)
    means = rng.standard_normal(200)
    low, high = bootstrap_interval(np.repeat(means, 25), np.repeat(np.arange(200), 25))
    standard_error = means.std() / math.sqrt(200)
    assert low < means.mean() < high
    assert (high - low) == pytest.approx(2 * 1.96 * standard_error, rel=0.1)


def test_bootstrap_weighs_values_equally():
    """Groups of unequal size: the interval is about the mean over values, which a summary table shows."""
    values, groups = [0.0] * 90 + [1.0] * 10, [0] * 90 + [1] * 10
    assert bootstrap_interval(values, groups) == (0.0, 1.0)
    middle = bootstrap_interval(values, groups, level=0.01)  # half of the draws hold one of each
    assert middle == pytest.approx((0.1, 0.1))


def test_bootstrap_is_reproducible_and_nested():
    values, groups = np.random.default_rng(1).random(30), [f"patient{i // 3}" for i in range(30)]
    assert bootstrap_interval(values, groups, seed=5) == bootstrap_interval(values, groups, seed=5)
    assert bootstrap_interval(values, groups, seed=5) != bootstrap_interval(values, groups, seed=6)
    narrow, wide = (bootstrap_interval(values, groups, level=level) for level in (0.5, 0.99))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_bootstrap_of_one_group_knows_nothing():
    assert all(math.isnan(end) for end in bootstrap_interval([1.0, 2.0], ["a", "a"]))


def test_bootstrap_with_infinite_values():
    assert bootstrap_interval([math.inf, math.inf], [0, 1]) == (math.inf, math.inf)


@pytest.mark.parametrize(
    ("values", "groups", "level"),
    [([], [], 0.9), ([1.0], [0, 1], 0.9), ([1.0, math.nan], [0, 1], 0.9), ([1.0], [0], 1)],
)
def test_bootstrap_refuses(values, groups, level):
    with pytest.raises(ValueError, match=r"resampled|level"):
        bootstrap_interval(values, groups, level=level)
