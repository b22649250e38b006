"""The denoiser's error by noise level and frequency."""

import math

import pytest
import torch

from mri_ambient.denoiser_error import CENTRES, RINGS, DenoiserError, radius, ring_power
from mri_ambient.objectives.base import complex_normal
from mri_ambient.operators import ifft2c

ROWS = [(0.01, 0.004, [0.008] * 4 + [0.002] * 5), (1.0, 0.1, [0.9] * 4 + [0.05] * 5)]


def test_it_is_interpolated_in_the_logarithm_and_linear_beyond_the_ends():
    error = DenoiserError(ROWS, 0.25)
    assert error.rms(0.1) == pytest.approx(0.02)
    assert error.rms(1.0) == pytest.approx(0.1)
    assert error.rms(5.0) == pytest.approx(5 * 0.25 / math.hypot(5, 0.25))
    middle = error.spectrum(0.1, (64, 64))
    assert float(middle[32, 32]) == pytest.approx(0.02 * math.sqrt(2 * 9))  # shares of the error are interpolated too
    assert float(middle[0, 32]) == pytest.approx(0.02 * math.sqrt(0.5 * 0.5))
    beyond = error.spectrum(5.0, (64, 64))
    assert float(beyond[32, 32] / beyond[0, 0]) == pytest.approx(18)  # the shape of the last row


def test_rows_in_any_order_and_rows_without_rings():
    assert DenoiserError(ROWS[::-1], 0.25).rms(0.05) == DenoiserError(ROWS, 0.25).rms(0.05)
    flat = DenoiserError([row[:2] for row in ROWS], 0.25).spectrum(0.1, (5, 7))
    torch.testing.assert_close(flat, torch.full((5, 7), 0.02))
    nothing = DenoiserError([], 0.25).spectrum(0.25, (5, 7))
    torch.testing.assert_close(nothing, torch.full((5, 7), 0.25 / math.sqrt(2)))


def test_measured_rings_give_back_the_spectrum_that_was_put_in():
    shape, true = (96, 81), torch.linspace(2.0, 0.1, len(CENTRES))
    ring = torch.bucketize(radius(shape), torch.tensor(RINGS), right=True)
    white = complex_normal((40, *shape), torch.Generator().manual_seed(0), torch.device("cpu"))
    power, count = ring_power(ifft2c(true[ring] * white))
    assert float(count.sum()) == 40 * 96 * 81
    torch.testing.assert_close((power / count).sqrt(), true, rtol=0.05, atol=0)
    error = DenoiserError([(0.1, 1.0, (power / count).sqrt().tolist())], 0.25)
    spectrum = error.spectrum(0.1, shape) / error.rms(0.1)
    centre = [n // 2 for n in shape]
    assert float(spectrum[*centre]) == pytest.approx(2.0, rel=0.05)
    assert float(spectrum[0, 0]) == pytest.approx(0.1, rel=0.05)


def test_odd_sizes_have_their_centre_at_frequency_zero():
    assert float(radius((5, 7))[2, 3]) == 0
    assert float(radius((6, 8))[3, 4]) == 0
    assert float(radius((6, 8))[0, 0]) == 1
