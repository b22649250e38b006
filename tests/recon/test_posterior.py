"""The sampler against the closed-form posterior of a Gaussian prior."""

import pytest
import torch
from operator_checks import dense, normal

from mri_ambient.denoiser import noise_schedule
from mri_ambient.operators import CgSolver, RowSolver, Sense, fft2c
from mri_ambient.operators.sense import SoftSense
from mri_ambient.posterior import each_set
from mri_ambient.recon import PosteriorDenoiser, anneal, refine, sample_posterior

SPREAD, NOISE, SHAPE = 0.5, 0.1, (3, 6)


def denoiser(noisy, sigma):
    """Exact for white Gaussian images of standard deviation SPREAD per component."""
    return noisy * SPREAD**2 / (SPREAD**2 + sigma**2)


def error(sigma):
    return sigma * SPREAD / (sigma**2 + SPREAD**2) ** 0.5


def problem(line=True, sets=1):
    maps = normal((sets, 2, *SHAPE), 1)
    maps = (maps / maps.abs().square().sum((0, 1)).sqrt()).to(torch.complex64)
    mask = (
        torch.tensor([1, 0, 1, 1, 0, 0])
        if line
        else torch.rand(SHAPE, generator=torch.Generator().manual_seed(1)) > 0.5
    )
    op = Sense(maps[0], mask) if sets == 1 else SoftSense(maps, mask)
    generator = torch.Generator().manual_seed(5)
    image = SPREAD * torch.view_as_complex(torch.randn(*op.image_shape, 2, generator=generator))
    noise = torch.view_as_complex(torch.randn(*op.kspace_shape, 2, generator=generator))
    return op, op.forward(image) + NOISE * noise * op.mask


def closed_form(op, kspace):
    """Mean and (complex) covariance; a covariance per real component c makes the complex one 2 c."""
    matrix = dense(lambda v: op.normal(v.to(torch.complex64)).to(torch.complex128), op.image_shape)
    precision = matrix / NOISE**2 + torch.eye(len(matrix)) / SPREAD**2
    mean = torch.linalg.solve(precision, (op.adjoint(kspace) / NOISE**2).flatten().to(torch.complex128))
    return mean, 2 * torch.linalg.inv(precision)


def draw(op, kspace, count, steps=4, damage=1.0):
    solver = RowSolver(op) if op.is_line_mask else CgSolver(op, iterations=60, tolerance=1e-6)
    posterior = PosteriorDenoiser(denoiser, kspace, op, NOISE, lambda s: damage * error(s), solver)
    generators = [torch.Generator().manual_seed(i) for i in range(count)]
    start = torch.zeros(op.image_shape, dtype=torch.complex64)
    return anneal(posterior, start, noise_schedule(steps, 50.0, 0.2), generators).flatten(1).to(torch.complex128)


def deviations(samples, mean, covariance):
    """Largest z-scores of the sample mean and of the sample covariance."""
    count = len(samples)
    centred = samples - mean
    diagonal = covariance.diagonal().real
    z_mean = centred.mean(0).abs() / (diagonal / count).sqrt()
    estimate = centred.T @ centred.conj() / count
    scale = (diagonal[:, None] * diagonal).sqrt() / count**0.5
    return float(z_mean.max()), float(((estimate - covariance).abs() / scale).max())


@pytest.mark.parametrize(("line", "sets"), [(True, 1), (False, 1), (True, 2), (False, 2)])
def test_samples_have_the_posterior_mean_and_covariance(line, sets):
    op, kspace = problem(line, sets)
    z_mean, z_covariance = deviations(draw(op, kspace, 4000), *closed_form(op, kspace))
    assert z_mean < 4.5
    assert z_covariance < 5.5


def test_little_noise_leaves_draws_the_spread_of_what_no_sample_measures():
    """Conjugate gradients stop early there: they must start where the draw does."""
    op, _ = problem(line=False)
    op = Sense(torch.ones(1, *SHAPE, dtype=torch.complex64), op.mask)
    kspace = op.forward(SPREAD * normal(SHAPE, 3).to(torch.complex64))
    posterior = PosteriorDenoiser(denoiser, kspace, op, 0.002, error)
    generators = [torch.Generator().manual_seed(i) for i in range(400)]
    image, fluctuation = torch.zeros(op.image_shape, dtype=torch.complex64), SPREAD * posterior.noise(generators)
    found = posterior.conditional_draw(image, fluctuation, SPREAD, generators)
    matrix = dense(lambda v: op.normal(v.to(torch.complex64)).to(torch.complex128), op.image_shape)
    covariance = torch.linalg.inv(matrix / 0.002**2 + torch.eye(len(matrix)) / SPREAD**2)
    variance = found.var(0, correction=0).sum() / 2
    assert variance == pytest.approx(float(covariance.diagonal().real.sum()), rel=0.1)


def test_a_wrong_error_level_is_noticed():
    op, kspace = problem()
    mean, covariance = closed_form(op, kspace)
    assert max(deviations(draw(op, kspace, 4000, damage=0.7), mean, covariance)) > 8


@pytest.mark.parametrize("line", [True, False])
def test_draws_carry_the_spectrum_of_the_denoisers_error(line):
    """For any gain K the covariance is (I - KA) C (I - KA)^H + 2 noise^2 K K^H, C the denoiser's error."""
    op, kspace = problem(line)
    spectrum = 0.05 + 0.4 * torch.rand(SHAPE, generator=torch.Generator().manual_seed(9))
    solver = RowSolver(op) if line else CgSolver(op, iterations=60, tolerance=1e-6)
    posterior = PosteriorDenoiser(denoiser, kspace, op, NOISE, error, solver, lambda sigma: spectrum)
    noisy = normal(SHAPE, 3).to(torch.complex64).expand(4000, *SHAPE)
    samples = posterior.draw(noisy, 0.3, [torch.Generator().manual_seed(i) for i in range(4000)])
    size = spectrum.numel()
    fourier = dense(lambda v: fft2c(v.to(torch.complex64)).to(torch.complex128), SHAPE)
    colour = 2 * fourier.mH @ torch.diag(spectrum.flatten().square()).to(torch.complex128) @ fourier
    gram = dense(lambda v: op.normal(v.to(torch.complex64)).to(torch.complex128), SHAPE)
    ratio = (NOISE / error(0.3)) ** 2
    inverse = torch.linalg.inv(gram + ratio * torch.eye(size))
    left = torch.eye(size) - inverse @ gram
    covariance = left @ colour @ left.mH + 2 * NOISE**2 * inverse @ gram @ inverse
    mean = posterior(noisy[:1], 0.3).flatten().to(torch.complex128)
    z_mean, z_covariance = deviations(samples.flatten(1).to(torch.complex128), mean, covariance)
    assert z_mean < 4.5
    assert z_covariance < 5.5
    white = left @ (2 * error(0.3) ** 2 * left.mH) + 2 * NOISE**2 * inverse @ gram @ inverse
    assert max(deviations(samples.flatten(1).to(torch.complex128), mean, white)) > 8


def test_the_denoiser_takes_each_set_of_coil_maps_as_an_image_of_its_own():
    op, kspace = problem(sets=2)
    weights = torch.rand(SHAPE, generator=torch.Generator().manual_seed(3))

    def local(noisy, sigma):
        assert noisy.shape == (6, *SHAPE)
        return weights * noisy + sigma * noisy.mean((-2, -1), keepdim=True)

    noisy = normal((3, *op.image_shape)).to(torch.complex64)
    expected = local(op.apart(noisy).flatten(0, 1), 0.3).reshape(3, 2, *SHAPE)
    assert torch.equal(op.apart(each_set(local, op)(noisy, 0.3)), expected)
    posterior = PosteriorDenoiser(local, kspace, op, 1e4, lambda sigma: 1.0)  # data that say nothing
    torch.testing.assert_close(op.apart(posterior(noisy, 0.3)), expected)


def test_rows_and_cg_agree_on_the_mean():
    op, kspace = problem()
    noisy = normal((2, *SHAPE)).to(torch.complex64)
    means = [
        PosteriorDenoiser(denoiser, kspace, op, NOISE, error, solver)(noisy, 0.3)
        for solver in (RowSolver(op), CgSolver(op, 60, 1e-6))
    ]
    torch.testing.assert_close(*means, rtol=1e-4, atol=1e-5)


def test_refinement_reaches_the_posterior_mean():
    op, kspace = problem()
    mean, _ = closed_form(op, kspace)
    posterior = PosteriorDenoiser(denoiser, kspace, op, NOISE, error, RowSolver(op))
    start = normal(SHAPE, 8).to(torch.complex64)
    found = refine(posterior, start, steps=40, high=5.0, low=2.0)
    torch.testing.assert_close(found.flatten().to(torch.complex128), mean, rtol=0.05, atol=0.02)


def test_a_sample_does_not_depend_on_the_others():
    op, kspace = problem()
    five, two = draw(op, kspace, 5), draw(op, kspace, 2)
    torch.testing.assert_close(five[:2], two)
    assert (five[0] - five[1]).abs().max() > 0.01


def test_arguments():
    op, kspace = problem()
    with pytest.raises(ValueError, match="positive noise"):
        PosteriorDenoiser(denoiser, kspace, op, 0.0, error)
    posterior = PosteriorDenoiser(denoiser, kspace, op, NOISE, error)
    with pytest.raises(ValueError, match="generators"):
        sample_posterior(posterior, samples=2, generators=[torch.Generator()])
    assert sample_posterior(posterior, samples=3, steps=2).shape == (3, *SHAPE)
    assert posterior.evaluations == 2
