"""Centred FFTs against the definition, and crops and pads."""

import math

import numpy as np
import pytest
import torch
from operator_checks import check_adjoint, check_gradient_is_adjoint, check_linear, normal

from mri_ambient.operators import center_crop, center_pad, fft1c, fft2c, ifft1c, ifft2c
from mri_ambient.operators.fourier import centring


def dft(n: int) -> torch.Tensor:
    """Dense centred orthonormal DFT, from the definition."""
    index = torch.arange(n, dtype=torch.float64) - n // 2
    return torch.exp(-2j * math.pi * index[:, None] * index / n) / math.sqrt(n)


@pytest.mark.parametrize("shape", [(6, 8), (5, 7), (1, 4), (9, 2)])
def test_fft2c_is_the_centred_dft(shape):
    x = normal(shape)
    torch.testing.assert_close(fft2c(x), dft(shape[0]) @ x @ dft(shape[1]).T)
    torch.testing.assert_close(ifft2c(fft2c(x)), x)


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_fft1c_on_any_axis(n):
    x = normal((n, 3))
    torch.testing.assert_close(fft1c(x, 0), dft(n) @ x)
    torch.testing.assert_close(ifft1c(fft1c(x, 0), 0), x)


@pytest.mark.parametrize("shape", [(4, 6), (3, 5)])
def test_transforms_are_unitary_operators(shape):
    check_linear(fft2c, shape)
    check_adjoint(fft2c, ifft2c, shape, shape)
    check_gradient_is_adjoint(fft2c, ifft2c, shape, shape)


@pytest.mark.parametrize("n", [1, 4, 7, 10])
def test_centring_factors_replace_the_shifts(n):
    x = normal((n,))
    a, b = centring(n, torch.complex128)
    torch.testing.assert_close(b * torch.fft.fft(a * x, norm="ortho"), fft1c(x))


def test_precision_and_inputs():
    assert fft2c(np.ones((4, 4))).dtype == torch.complex64
    assert fft2c(torch.ones(4, 4, dtype=torch.complex128)).dtype == torch.complex128


@pytest.mark.parametrize(("small", "large"), [((4, 5), (8, 9)), ((4, 5), (7, 8)), ((5, 4), (8, 7)), ((3, 3), (3, 3))])
def test_crop_undoes_pad_and_keeps_the_origin(small, large):
    x = normal(small)
    padded = center_pad(x, large)
    torch.testing.assert_close(center_crop(padded, small), x)
    torch.testing.assert_close(center_crop(center_pad(x.numpy(), large).numpy(), small), x)
    assert padded[large[0] // 2, large[1] // 2] == x[small[0] // 2, small[1] // 2]
    check_adjoint(lambda v: center_pad(v, large), lambda v: center_crop(v, small), small, large)


def test_crop_and_pad_refuse_the_wrong_direction():
    with pytest.raises(ValueError, match="larger"):
        center_crop(torch.zeros(3, 3), (4, 3))
    with pytest.raises(ValueError, match="smaller"):
        center_pad(torch.zeros(3, 3), (2, 3))
