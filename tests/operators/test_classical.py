"""Baselines against closed forms, dense solves and optimality conditions of the problems they claim to solve."""

import math

import numpy as np
import pytest
import torch

from mri_ambient.operators import Sense, fft2c
from mri_ambient.operators import classical as baselines
from mri_ambient.operators.classical import cg_sense, l1_wavelet, tv, zero_filled
from mri_ambient.operators.sense import SoftSense, side_by_side

SPARSE = [l1_wavelet, tv]


def problem(height: int = 10, width: int = 12, coils: int = 3, noise: float = 0.05) -> tuple[torch.Tensor, Sense]:
    """Random normalised maps, every second line, a smooth complex image and white noise."""
    generator = torch.Generator().manual_seed(height * 100 + width)
    maps = torch.randn(coils, height, width, dtype=torch.complex64, generator=generator)
    maps = maps / maps.abs().square().sum(0).sqrt()
    mask = torch.zeros(width, dtype=torch.bool)
    mask[::2], mask[width // 2 - 2 : width // 2 + 2] = True, True
    operator = Sense(maps, mask)
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    image = torch.polar(torch.exp(-3 * (y**2 + x**2)), x + y * y)
    kspace = operator.forward(image)
    return kspace + noise * mask * torch.randn(kspace.shape, dtype=kspace.dtype, generator=generator), operator


def identity(height: int, width: int) -> Sense:
    """One coil, everything acquired: the forward model is the FFT, and the problems become denoising."""
    return Sense(torch.ones(1, height, width, dtype=torch.complex64), torch.ones(width, dtype=torch.bool))


def dense(operator: Sense) -> np.ndarray:
    """The matrix of ``A`` for flattened arrays."""
    basis = torch.eye(math.prod(operator.image_shape), dtype=torch.complex64)
    return operator.forward(basis.reshape(-1, *operator.image_shape)).flatten(1).T.numpy().astype(np.complex128)


def soft(x: np.ndarray, threshold: float) -> np.ndarray:
    return x * np.maximum(1 - threshold / np.maximum(np.abs(x), 1e-30), 0)


def test_zero_filled_is_the_conjugate_transpose():
    kspace, operator = problem()
    expected = dense(operator).conj().T @ kspace.flatten().numpy()
    np.testing.assert_allclose(zero_filled(kspace, operator).flatten(), expected, atol=1e-5)


@pytest.mark.parametrize("weight", [0.03, 0.5])
def test_cg_sense_is_the_tikhonov_solution(weight):
    kspace, operator = problem()
    matrix = dense(operator)
    normal = matrix.conj().T @ matrix + weight * np.eye(matrix.shape[1])
    expected = np.linalg.solve(normal, matrix.conj().T @ kspace.flatten().numpy())
    np.testing.assert_allclose(
        cg_sense(kspace, operator, regularisation=weight).flatten(), expected, atol=1e-4 * np.abs(expected).max()
    )


def test_cg_sense_default_weight_is_the_documented_one():
    kspace, operator = problem()
    magnitude = np.sort(zero_filled(kspace, operator).abs().flatten().numpy())
    weight = (0.05 / (0.25 * magnitude[round(0.99 * magnitude.size) - 1])) ** 2
    torch.testing.assert_close(
        cg_sense(kspace, operator, 0.05), cg_sense(kspace, operator, regularisation=weight), rtol=1e-4, atol=1e-5
    )


def test_cg_sense_of_a_batch_is_the_single_slices():
    kspace, operator = problem()
    batch = torch.stack([kspace, 100 * kspace.flip(-2), 0 * kspace])
    together = cg_sense(batch, operator, 0.05)
    for one, result in zip(batch, together, strict=True):
        torch.testing.assert_close(cg_sense(one, operator, 0.05), result, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [(16, 16), (9, 13)])
def test_wavelet_denoising_has_a_closed_form(shape):
    """Everything acquired by one coil: the solution is one soft threshold of the wavelet coefficients."""
    pywt = pytest.importorskip("pywt")
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(shape, dtype=torch.complex64, generator=generator)
    even = [n + n % 2 for n in shape]  # SigPy pads odd sizes by one zero, on the far side
    padded = np.zeros(even, np.complex64)
    padded[tuple(slice((e - n) // 2, (e - n) // 2 + n) for e, n in zip(even, shape, strict=True))] = image.numpy()
    levels = pywt.wavedecn(padded, "db4", mode="zero")
    kept = [soft(levels[0], 0.3)] + [{key: soft(c, 0.3) for key, c in level.items()} for level in levels[1:]]
    expected = pywt.waverecn(kept, "db4", mode="zero")[: shape[0], : shape[1]]
    result = l1_wavelet(fft2c(image)[None], identity(*shape), regularisation=0.3, iterations=5)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_wavelet_minimises_the_balanced_objective():
    """The fixed point of plain proximal gradients on dense matrices, in coefficients: no SigPy, no acceleration."""
    pywt = pytest.importorskip("pywt")
    kspace, operator = problem(8, 8)
    columns = [pywt.wavedecn(e.reshape(8, 8), "db4", mode="zero") for e in np.eye(64)]
    analysis = np.stack([pywt.coeffs_to_array(column)[0].ravel() for column in columns], axis=1)
    np.testing.assert_allclose(analysis.T @ analysis, np.eye(64), atol=1e-9)
    matrix, data, weight = dense(operator), kspace.flatten().numpy(), 0.05
    synthesis = matrix @ analysis.T
    outside = np.eye(len(analysis)) - analysis @ analysis.T
    coefficients = np.zeros(len(analysis), complex)
    for _ in range(3000):
        gradient = synthesis.conj().T @ (synthesis @ coefficients - data) + outside @ coefficients
        coefficients = soft(coefficients - gradient, weight)
    expected = analysis.T @ coefficients
    result = l1_wavelet(kspace, operator, regularisation=weight, iterations=1000).flatten()
    np.testing.assert_allclose(result, expected, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize("phase", [0.0, 2.0])
def test_tv_denoising_of_a_step_has_a_closed_form(phase):
    """A periodic pulse over m of n columns: the top falls by 2 lam / m and the base rises by 2 lam / (n - m)."""
    height, width, top, weight = 5, 12, 4, 0.2
    pulse = torch.zeros(height, width)
    pulse[:, :top] = 3.0
    expected = pulse + 2 * weight / (width - top)
    expected[:, :top] = 3.0 - 2 * weight / top
    turn = torch.polar(torch.ones(()), torch.tensor(phase))
    result = tv(fft2c(turn * pulse)[None], identity(height, width), regularisation=weight, iterations=1000)
    torch.testing.assert_close(result, turn * expected, rtol=0, atol=1e-3)


def test_tv_solves_its_problem():
    """Against projected gradients on the dual, with dense matrices: max over |p| <= lam of a quadratic in p."""
    kspace, operator = problem(6, 8)
    matrix, data, weight = dense(operator), kspace.flatten().numpy().astype(complex), 0.08
    eye = np.eye(48).reshape(48, 6, 8)
    gradient = np.concatenate([(eye - np.roll(eye, 1, axis)).reshape(48, 48) for axis in (1, 2)], axis=1).T
    inverse = np.linalg.inv(matrix.conj().T @ matrix)
    curvature, linear = gradient @ inverse @ gradient.T, gradient @ inverse @ matrix.conj().T @ data
    step = 1 / np.linalg.norm(curvature, 2)
    dual = np.zeros(len(gradient), complex)
    for _ in range(10000):
        dual = dual + step * (linear - curvature @ dual)
        dual = dual / np.maximum(1, np.abs(dual) / weight)
    expected = inverse @ (matrix.conj().T @ data - gradient.T @ dual)
    result = tv(kspace, operator, regularisation=weight, iterations=1500).flatten().numpy()
    np.testing.assert_allclose(result, expected, atol=2e-3 * np.abs(expected).max())


@pytest.mark.parametrize("method", SPARSE)
def test_default_iterations_are_enough(method):
    kspace, operator = problem(16, 20)
    converged = method(kspace, operator, 0.05, iterations=1000)
    error = (method(kspace, operator, 0.05) - converged).norm() / converged.norm()
    assert error < 5e-3


@pytest.mark.parametrize("method", SPARSE)
def test_runs_are_identical_and_leave_the_random_state_alone(method):
    kspace, operator = problem()
    np.random.seed(0)  # noqa: NPY002 (SigPy draws from the global state)
    first, state = method(kspace, operator, 0.05), np.random.get_state()[2]  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    assert torch.equal(first, method(kspace, operator, 0.05))
    assert state == np.random.RandomState(0).get_state()[2]


@pytest.mark.parametrize("scale", [1e-7, 1e4])
@pytest.mark.parametrize("method", [cg_sense, *SPARSE])
def test_any_unit_of_kspace(method, scale):
    kspace, operator = problem()
    torch.testing.assert_close(
        method(scale * kspace, operator, scale * 0.05) / scale, method(kspace, operator, 0.05), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("method", SPARSE)
def test_maps_of_any_norm(method):
    """Steps that assume normalised maps would diverge."""
    kspace, operator = problem()
    loud = Sense(5 * operator.sensitivity_maps, operator.mask)
    torch.testing.assert_close(
        5 * method(kspace, loud, regularisation=0.5),
        method(kspace, operator, regularisation=0.1),
        rtol=1e-3,
        atol=1e-4,
    )


@pytest.mark.parametrize("method", SPARSE)
def test_nothing_spills_out_of_the_support(method):
    kspace, operator = problem()
    inside = torch.zeros(10, 12, dtype=torch.bool)
    inside[2:8, 3:10] = True
    image = method(kspace, Sense(operator.sensitivity_maps * inside, operator.mask), 0.05)
    assert not image[~inside].any()
    assert image[inside].abs().min() > 0


@pytest.mark.parametrize("method", SPARSE)
def test_samples_outside_the_mask_do_not_matter(method):
    kspace, operator = problem()
    assert torch.equal(method(kspace + 10 * ~operator.mask, operator, 0.05), method(kspace, operator, 0.05))


@pytest.mark.parametrize("method", SPARSE)
def test_default_regularisation_is_proportional_to_noise_with_a_floor(method):
    kspace, operator = problem()
    factor = baselines.WAVELET_PER_NOISE if method is l1_wavelet else baselines.TV_PER_NOISE
    expected = method(kspace, operator, regularisation=factor * 0.3)
    torch.testing.assert_close(method(kspace, operator, 0.3), expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(method(kspace, operator, 0.0), method(kspace, operator, regularisation=0.0))


@pytest.mark.parametrize("method", [zero_filled, *[lambda k, a, m=m: m(k, a, 0.05) for m in (cg_sense, *SPARSE)]])
def test_numpy_two_dimensional_masks_and_one_coil(method):
    kspace, operator = problem(9, 11, coils=1)
    pattern = operator.mask & torch.ones(9, 1, dtype=torch.bool)
    result = method(kspace.numpy(), Sense(operator.sensitivity_maps.numpy(), pattern.numpy()))
    assert result.dtype == torch.complex64
    assert result.shape == (9, 11)
    torch.testing.assert_close(result, method(kspace, operator), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [cg_sense, *SPARSE])
def test_an_empty_slice_stays_empty(method):
    kspace, operator = problem()
    silent = Sense(0 * operator.sensitivity_maps, operator.mask)
    assert not method(0 * kspace, silent, 0.05).any()


class TestSeveralSets:
    """Two sets of maps; each coil belongs to one set, so that the problem falls into two problems of one set."""

    @staticmethod
    def halves():
        kspace, operator = problem(10, 12, coils=4)
        maps = torch.stack([operator.sensitivity_maps, operator.sensitivity_maps])
        maps[0, 2:], maps[1, :2] = 0, 0
        return kspace, SoftSense(maps, operator.mask), [Sense(one, operator.mask) for one in maps]

    @pytest.mark.parametrize(("method", "iterations"), [(cg_sense, 100), (l1_wavelet, 300), (tv, 400)])
    def test_each_set_is_solved(self, method, iterations):
        kspace, operator, singles = self.halves()
        found = method(kspace, operator, regularisation=0.05, iterations=iterations)
        expected = [method(kspace, one, regularisation=0.05, iterations=iterations) for one in singles]
        torch.testing.assert_close(operator.apart(found), torch.stack(expected), rtol=1e-3, atol=3e-3)
        assert min(one.abs().max() for one in expected) > 0.2

    def test_zero_filled(self):
        kspace, operator, singles = self.halves()
        expected = side_by_side(torch.stack([zero_filled(kspace, one) for one in singles]))
        torch.testing.assert_close(zero_filled(kspace, operator), expected)

    @pytest.mark.parametrize("method", [cg_sense, *SPARSE])
    def test_a_second_set_of_zeros_changes_nothing(self, method):
        kspace, operator = problem()
        maps = torch.stack([operator.sensitivity_maps, torch.zeros_like(operator.sensitivity_maps)])
        soft_sense = SoftSense(maps, operator.mask)
        found = soft_sense.apart(method(kspace, soft_sense, 0.05))
        torch.testing.assert_close(found[0], method(kspace, operator, 0.05), rtol=1e-4, atol=1e-5)
        assert not found[1].any()


@pytest.mark.parametrize("method", SPARSE)
def test_refuses(method):
    kspace, operator = problem()
    with pytest.raises(ValueError, match="noise level or an explicit"):
        method(kspace, operator)
    with pytest.raises(ValueError, match="negative"):
        method(kspace, operator, regularisation=-1.0)
    with pytest.raises(ValueError, match="negative"):
        method(kspace, operator, -1.0)
    with pytest.raises(ValueError, match="one slice"):
        method(kspace[None], operator, 0.05)
