"""The identities that the training methods stand on (I1 to I7), by Monte Carlo, for line patterns with zero padding.

Each check takes what a careless implementation gets wrong as an argument; with it the check must fail.
"""

import pytest
import torch
from gaussian_world import KINDS, World, coil_maps, dense_normal, draw_masks, make_batch, white

from mri_ambient.objectives.base import complex_normal
from mri_ambient.operators import RowSolver, Sense, fft2c, heldout_weights, normal_solver, split_mask

WORLD = World()
PADDING = (2, 3)
NOISE = 0.3
kinds = pytest.mark.parametrize("kind", KINDS)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def assert_zero(differences, scale, precision=0.05):
    """Mean zero within 4 standard errors, which are small against a scale."""
    error = float(differences.std()) / len(differences) ** 0.5
    assert error < precision * scale, f"too few draws: {error} of {scale}"
    assert abs(float(differences.mean())) < 4 * error + 1e-6 * scale, f"{differences.mean()} +- {error}, scale {scale}"


def scans(kind, count, coils=2, seed=0):
    """`count` noise realisations of one object and one mask: operator, image, k-space, noise of unit level."""
    batch = make_batch(WORLD, 1, generator(seed), kind=kind, coils=coils, padding=PADDING)
    maps = batch.sensitivity_maps.expand(count, -1, -1, -1)
    operator = Sense(maps, batch.mask.expand(count, -1, -1))
    noise = white((count, coils, *WORLD.shape), generator(seed + 1)) * batch.mask[:, None]
    return operator, batch.image, operator.forward(batch.image.expand(count, -1, -1)) + NOISE * noise, noise


def line_energy(seed=0):
    """Energy of an image error on each line, more of it outside the centre."""
    error = WORLD.images(1, generator(seed))
    maps = coil_maps(1, WORLD.shape, 2, generator(seed + 1))
    return fft2c(maps * error[:, None]).abs().square().sum((0, 1, 2)) * (1 + (torch.arange(16) - 8).abs())


def check_isometry(kind, weighted):
    masks, p = draw_masks(kind, 2000, generator(0), padding=PADDING)
    weight = 1 / p.clamp_min(1e-6) if weighted else torch.ones(16)
    total = (line_energy() * (p > 0)).sum()
    assert_zero((masks[:, 0] * weight * line_energy()).sum(1) - total, total)


@kinds
def test_i1_weighted_lines_give_the_error_of_all_lines(kind):
    check_isometry(kind, weighted=True)
    with pytest.raises(AssertionError, match=r"\+-"):
        check_isometry(kind, weighted=False)


def check_heldout(kind, weighted):
    """For an error that depends on the kept lines (equispaced: that does not, their weights being right on average)."""
    masks, p = draw_masks(kind, 1200, generator(0), padding=PADDING, accel=1.6)
    rng, differences, keep = generator(1), [], 0.5
    for mask in masks[:, 0]:
        kept = split_mask(mask, keep, generator=rng, acs=4)
        known = {} if kind == "random" else {"probability": p, "keep": keep}
        weight = heldout_weights(mask, kept, acs=4, padding=PADDING, **known) if weighted else mask.float()
        energy = line_energy() * (1 if kind == "equispaced" else 1 + kept.sum() - kept.roll(1).float())
        differences.append((weight * energy).sum() - (energy * (p > 0)).sum())
    assert_zero(torch.stack(differences), line_energy().sum())


@kinds
def test_i2_held_out_lines_give_the_error_of_all_lines(kind):
    check_heldout(kind, weighted=True)
    with pytest.raises(AssertionError, match=r"\+-"):
        check_heldout(kind, weighted=False)


def check_target(kind, factor):
    """Noise of the corrected target is independent of the input's, and has the variance of the formula."""
    operator, _, _, noise = scans(kind, 3000)
    extra = 0.4
    added = white(noise.shape, generator(9)) * operator.mask[:, None]
    target = NOISE * noise - factor * NOISE**2 / extra * added
    given = NOISE * noise + extra * added
    samples = operator.mask[:, None].expand(noise.shape)
    assert_zero((target * given.conj()).real[samples], NOISE**2)
    variance = NOISE**2 + NOISE**4 / extra**2
    assert_zero(target.abs().square()[samples] / 2 - variance, variance)


@kinds
def test_i3_the_corrected_target_is_independent_of_the_input(kind):
    check_target(kind, 1.0)
    for factor in (0.0, -1.0, 0.5):
        with pytest.raises(AssertionError, match=r"\+-"):
            check_target(kind, factor)


def shrink(image):
    """A denoiser that is not linear."""
    return image * image.abs() / (0.5 + image.abs())


def check_sure(kind, factor):
    operator, image, kspace, _ = scans(kind, 4000)
    probe = white(kspace.shape, generator(5)) * operator.mask[:, None]
    step = 1e-2

    def output(k):
        return operator.forward(shrink(operator.adjoint(k)))

    estimate = output(kspace)
    trace = (probe.conj() * (output(kspace + step * probe) - estimate)).real.sum((1, 2, 3)) / step
    samples = int(operator.mask[0].sum()) * 2 * WORLD.shape[0]
    guess = (estimate - kspace).abs().square().sum((1, 2, 3)) - 2 * samples * NOISE**2 + factor * 2 * NOISE**2 * trace
    truth = (estimate - operator.forward(image.expand(len(kspace), -1, -1))).abs().square().sum((1, 2, 3))
    assert_zero(guess - truth, float(truth.mean()))


@kinds
def test_i4_sure_is_the_error_on_measured_lines(kind):
    check_sure(kind, 1.0)
    for factor in (0.0, -1.0, 0.5):
        with pytest.raises(AssertionError, match=r"\+-"):
            check_sure(kind, factor)


def check_gsure(kind, factor):
    operator, image, kspace, _ = scans(kind, 4000, coils=4)
    single = Sense(operator.sensitivity_maps[:1], operator.mask[:1])
    solver = RowSolver(single)

    def least_squares(k):
        return solver.pseudo_inverse(operator.adjoint(k)[:, None], tolerance=0.02)[:, 0]

    def project(u):
        return solver.project(u[:, None], tolerance=0.02)[:, 0]

    x = least_squares(kspace)
    direction = least_squares(white(kspace.shape, generator(5)))
    step = 1e-2
    trace = (direction.conj() * (shrink(x + step * direction) - shrink(x))).real.sum((1, 2)) / step
    eigenvalues = solver.eigenvalues[solver.eigenvalues > 0.02]
    noise = 2 * NOISE**2 * float((1 / eigenvalues).sum())
    guess = project(shrink(x) - x).abs().square().sum((1, 2)) - noise + factor * 2 * NOISE**2 * trace
    truth = project(shrink(x) - image).abs().square().sum((1, 2))
    assert_zero(guess - truth, float(truth.mean()))


@kinds
def test_i5_gsure_is_the_error_in_the_range_of_the_adjoint(kind):
    check_gsure(kind, 1.0)
    for factor in (0.0, -1.0, 0.5):
        with pytest.raises(AssertionError, match=r"\+-"):
            check_gsure(kind, factor)


def check_covariance(samples, expected, tolerance=0.12):
    covariance = samples.flatten(1).T @ samples.flatten(1).conj() / len(samples) / 2
    assert float((covariance - expected).abs().max()) < tolerance
    trace = float(expected.diagonal().real.sum())
    assert_zero(samples.abs().square().sum((1, 2)) / 2 - trace, trace)


@kinds
def test_i6_noise_of_coil_combined_images(kind):
    operator, _, _, noise = scans(kind, 4000)
    normal = dense_normal(operator, len(noise))[0]
    check_covariance(operator.adjoint(noise), normal)
    twice = operator.normal(white((4000, *WORLD.shape), generator(7)))
    check_covariance(twice, normal @ normal)
    with pytest.raises(AssertionError, match=r"\+-"):
        check_covariance(twice, normal)


def check_draws(kind, spread):
    """Perturb-and-MAP draws of ``x | y`` for ``x ~ N(z, r^2)``: mean and covariance."""
    operator, image, kspace, _ = scans(kind, 1)
    r, count = 0.5, 4000
    z = image + r * white(image.shape, generator(3))
    rng = generator(4)
    coils, images = (complex_normal((count, *shape), rng, z.device) for shape in (kspace.shape, z.shape))
    rhs = operator.adjoint(kspace) + NOISE**2 / r**2 * (z + spread * r * images)
    rhs = rhs + spread * NOISE * torch.stack([operator.adjoint(k) for k in coils])
    draws = normal_solver(operator).solve(rhs, NOISE**2 / r**2)[:, 0]

    normal = dense_normal(operator, 1)[0]
    covariance = torch.linalg.inv(normal / NOISE**2 + torch.eye(len(normal)) / r**2)
    mean = covariance @ (operator.adjoint(kspace) / NOISE**2 + z / r**2).flatten()
    assert float((draws.mean(0).flatten() - mean).abs().max()) < 0.05
    check_covariance((draws - mean.reshape(image.shape)) / r, covariance / r**2, 0.1)


@kinds
def test_i7_perturbed_solves_are_posterior_draws(kind):
    check_draws(kind, 1.0)
    with pytest.raises(AssertionError):
        check_draws(kind, 0.7)
