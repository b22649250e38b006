"""The denoiser: its linear part and data consistency in closed form, any size, no crosstalk between distant pixels."""

import pytest
import torch
from operator_checks import dense, normal

from mri_ambient.denoiser import (
    MASK_BANDS,
    PRESETS,
    Denoiser,
    DenoiserConfig,
    band_density,
    count_parameters,
    noise_schedule,
    soft_data_consistency,
    wiener,
)
from mri_ambient.operators import Sense

SMALL = DenoiserConfig(channels=(8, 16), embedding=16)


def operator(shape=(4, 6), coils=2, batch=None):
    lead = () if batch is None else (batch,)
    maps = normal((*lead, coils, *shape), 1)
    maps = maps / maps.abs().square().sum(-3, keepdim=True).sqrt()
    mask = torch.tensor([1, 0, 1, 1, 0, 1, 0])[: shape[1]]
    return Sense(maps, mask)


def trained_like(seed=0):
    torch.manual_seed(seed)
    model = Denoiser(SMALL)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def test_preset_sizes():
    sizes = {name: count_parameters(Denoiser(config)) for name, config in PRESETS.items()}
    assert 0.2e6 < sizes["tiny"] < 0.5e6
    assert 2e6 < sizes["small"] < 4e6
    assert 10e6 < sizes["base"] < 20e6


@pytest.mark.parametrize("shape", [(16, 16), (17, 23), (5, 9), (8, 31)])
def test_any_size_with_and_without_operator(shape):
    model, z = trained_like(), normal((2, *shape)).to(torch.complex64)
    assert model(z, 0.1).shape == (2, *shape)
    mask = torch.rand(shape[1], generator=torch.Generator().manual_seed(0)) > 0.5
    op = Sense(torch.ones(1, *shape), mask)
    assert model(op.normal(z), torch.tensor([0.1, 0.2]), op).shape == (2, *shape)


def test_untrained_full_mask_denoiser_is_the_wiener_filter():
    z, sigma = normal((3, 8, 8)).to(torch.complex64), torch.tensor([0.01, 0.25, 2.0])
    shrink = SMALL.sigma_data**2 / (SMALL.sigma_data**2 + sigma**2)
    torch.testing.assert_close(Denoiser(SMALL)(z, sigma), shrink[:, None, None] * z)


def test_wiener_and_data_consistency_solve_their_dense_systems():
    op, z, v = operator(), normal((1, 4, 6), 2), normal((1, 4, 6), 3)
    matrix = dense(op.normal, op.image_shape)
    eye = torch.eye(len(matrix), dtype=matrix.dtype)
    sigma, tau = torch.tensor([0.2]), torch.tensor([0.1])
    exact = torch.linalg.solve(matrix + 0.64 * eye, z.flatten()).reshape(z.shape)
    torch.testing.assert_close(wiener(z, sigma, op, 0.25, iterations=60), exact, rtol=1e-5, atol=1e-6)
    ratio = 4.0
    exact = torch.linalg.solve(matrix + ratio * eye, (z + ratio * v).flatten()).reshape(z.shape)
    found = soft_data_consistency(z, v, sigma, tau, op, iterations=60)
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-6)


def test_items_do_not_influence_each_other():
    model = trained_like()
    op = operator((8, 7), batch=3)
    op = Sense(op.sensitivity_maps.to(torch.complex64), op.mask)
    z, sigma = normal((3, 8, 7)).to(torch.complex64), torch.tensor([0.02, 0.1, 0.5])
    together = model(z, sigma, op)
    for i in range(3):
        alone = model(z[i : i + 1], sigma[i : i + 1], Sense(op.sensitivity_maps[i], op.mask))
        torch.testing.assert_close(together[i], alone[0], rtol=1e-4, atol=1e-5)


def test_a_strip_is_denoised_like_the_whole_image():
    model, z = trained_like(), normal((1, 96, 8)).to(torch.complex64)
    changed = z.clone()
    changed[:, 64:] += 5
    difference = (model(z, 0.1) - model(changed, 0.1)).abs().amax((0, 2))
    assert difference[:32].max() == 0
    assert difference[64:].max() > 0


def test_the_mask_matters_and_every_parameter_is_trained():
    model = Denoiser(SMALL).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    op = operator((8, 7))
    op = Sense(op.sensitivity_maps.to(torch.complex64), op.mask)
    z = normal((2, 8, 7)).to(torch.complex64)
    model(z, 0.1, op).abs().square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().max() > 0) for p in model.parameters())


def test_bfloat16_is_close_and_returns_complex64():
    model, z = trained_like(), 0.3 * normal((1, 32, 32)).to(torch.complex64)
    exact = model(z, 0.1)
    model.precision = torch.bfloat16
    rough = model(z, 0.1)
    assert rough.dtype == torch.complex64
    assert 0 < (rough - exact).norm() / exact.norm() < 0.02


def test_band_density_counts_samples():
    mask = torch.zeros(1, 16, dtype=torch.bool)
    mask[0, 8] = mask[0, 7] = (
        True  # the two lines nearest the centre: band 0 holds |k| = 0, 1/8 -> lines 8, and 7 and 9 are band 1
    )
    density = band_density(mask, (4, 16))[0]
    assert density.shape == (MASK_BANDS,)
    assert density[0] == 1
    assert density[1] == 0.5
    assert density[2:].sum() == 0
    everything = band_density(torch.ones(5, 16, dtype=torch.bool), (5, 16))
    torch.testing.assert_close(everything, torch.ones(1, MASK_BANDS))


def test_noise_schedule():
    levels = noise_schedule(5, 2.0, 0.01)
    assert levels[0] == pytest.approx(2.0)
    assert levels[-1] == pytest.approx(0.01)
    assert levels == sorted(set(levels), reverse=True)
    assert noise_schedule(1, 2.0, 0.01) == [2.0]


def test_config_round_trip():
    assert DenoiserConfig.from_dict(PRESETS["base"].to_dict()) == PRESETS["base"]


def slopes(function, z, step):
    """A directional derivative by the vector-Jacobian product and by finite differences."""
    direction, g = (normal(z.shape, seed).to(z.dtype) for seed in (2, 3))
    leaf = z.clone().requires_grad_()
    (pulled,) = torch.autograd.grad(function(leaf), leaf, g)
    change = (function(z + step * direction) - function(z - step * direction)) / (2 * step)
    return (pulled.conj() * direction).sum().real, (g.conj() * change).sum().real


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_by_the_input_are_those_of_finite_differences(masked):
    op = operator((8, 7)) if masked else None
    sigma = torch.tensor([0.3], dtype=torch.float64)
    torch.testing.assert_close(*slopes(lambda z: wiener(z, sigma, op, 0.25), normal((1, 8, 7), 1), 1e-5))
    model = trained_like()
    op = None if op is None else Sense(op.sensitivity_maps.to(torch.complex64), op.mask)
    found = slopes(lambda z: model(z, 0.3, op), normal((1, 8, 7), 1).to(torch.complex64), 1e-3)
    torch.testing.assert_close(*found, rtol=2e-3, atol=1e-3)


def test_the_linear_part_stores_no_graph_where_the_input_needs_no_gradient():
    z, sigma = normal((1, 4, 6), 1), torch.tensor([0.3])
    assert not wiener(z, sigma, operator(), 0.25).requires_grad
    assert not wiener(z, sigma, None, 0.25).requires_grad
