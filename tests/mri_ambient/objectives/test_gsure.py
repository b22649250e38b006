"""GSURE against the supervised loss it estimates without a reference, and against the published single-coil form."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from gaussian_world import (
    KINDS,
    Linear,
    World,
    assert_minimiser,
    assert_same_parabola,
    dense_normal,
    make_batch,
    minimiser,
    white,
)

from mri_ambient.denoiser import Denoiser, DenoiserConfig
from mri_ambient.errors import InputError
from mri_ambient.objectives import gsure
from mri_ambient.objectives.base import expected_error
from mri_ambient.objectives.gsure import GSURE, line_weights, require_coverage, require_known_noise, white_input
from mri_ambient.operators import RowSolver, Sense, fft2c, ifft2c

WORLD = World()
FORMS = ("prior", "reconstruction")
PADDING = (2, 3)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def filtered(z, sigma, operator):
    return ifft2c(torch.linspace(0, 1, z.shape[-1]) * fft2c(z))


def shrunk(z, sigma, operator):
    return z / (1 + sigma[:, None, None] ** 2)


FEATURES = (WORLD.mmse, filtered, shrunk)  # the supervised optimum (of full sampling, for the prior) comes first


def weights_of(batch):
    """1 / p from the numbers of lines, item by item, without the code under test."""
    weights = torch.zeros(batch.mask.shape)
    for i in range(len(batch)):
        for j in range(batch.mask.shape[-1]):
            if batch.mask[i, 0, j]:
                p = float(batch.probability[i, 0, j])
                if p < 0:
                    centre = 6 <= j < 10
                    off_centre = int((batch.probability[i] != 0).sum()) - 4
                    p = 1.0 if centre else (int(batch.mask[i].sum()) - 4) / off_centre
                weights[i, 0, j] = 1 / p
    return weights


def losses(form, seeds=8, items=150, **options):
    """GSURE and supervised losses of a linear denoiser on the same inputs, as functions of its parameters."""
    unsupervised, supervised = [], []
    run = getattr(GSURE(), form)
    for seed in range(seeds):
        batch = make_batch(WORLD, items, generator(seed), **options)
        seen = Linear(FEATURES, torch.zeros(3))
        run(seen, batch, generator(100 + seed))
        sup = partial(supervised_loss, batch, weights_of(batch), *seen.calls[0])
        supervised.append(sup)
        unsupervised.append(partial(gsure_loss, run, batch, 100 + seed))
    return unsupervised, supervised


def gsure_loss(run, batch, seed, theta):
    return run(Linear(FEATURES, theta), batch, generator(seed))


def supervised_loss(batch, weight, z, sigma, told, theta):
    """Weighted error on the measured lines, with the reference."""
    error = Linear(FEATURES, theta)(z, sigma, told) - batch.image
    error = weight[:, None] * Sense(batch.sensitivity_maps, batch.mask).forward(error).abs() ** 2
    missing = 1 - batch.mask.float().mean((-2, -1))
    return (error.sum((1, 2, 3)) / batch.image[0].numel() / expected_error(sigma, missing, 1.0)).mean()


@pytest.mark.parametrize("padding", [(0, 0), PADDING])
@pytest.mark.parametrize("form", FORMS)
def test_it_differs_from_the_supervised_loss_by_a_constant(form, padding):
    assert_same_parabola(*losses(form, padding=padding), 3)


@pytest.mark.parametrize("factor", [-1.0, 0.5])
@pytest.mark.parametrize("form", FORMS)
def test_it_does_not_with_another_sign_or_coefficient(form, factor, monkeypatch):
    right = gsure.divergence
    monkeypatch.setattr(gsure, "divergence", lambda *args: factor * right(*args))
    with pytest.raises(AssertionError, match=r"\+-"):
        assert_same_parabola(*losses(form), 3)


def test_the_minimiser_is_the_supervised_one():
    assert_minimiser(losses("reconstruction")[0], (1, 0, 0), precision=0.06)


@pytest.mark.parametrize("factor", [-1.0, 0.0, 0.5])
def test_it_is_not_with_another_sign_or_coefficient(factor, monkeypatch):
    right = gsure.divergence
    monkeypatch.setattr(gsure, "divergence", lambda *args: factor * right(*args))
    with pytest.raises(AssertionError, match="not"):
        assert_minimiser(losses("reconstruction")[0], (1, 0, 0), precision=0.06)


def template_bias(form, kind, padding, seeds=10, items=150):
    """Distance from the best fit to the whole image, for an output that does not depend on the input.

    The best factor differs between the centre and the other lines, so that their relative weight matters.
    """
    gain = torch.full((16,), 3.0)
    gain[6:10] = 1.0
    distances = []
    for seed in range(seeds):
        rng = generator(seed)
        template = white((items, *WORLD.shape), rng)
        image = ifft2c(gain * fft2c(template))
        batch = make_batch(WORLD, items, rng, kind=kind, padding=padding, image=image)
        denoiser = partial(Linear, (lambda z, sigma, operator, template=template: template,))
        run = getattr(GSURE(noise_factor_range=(1.5, 1.5), sigma_max=0.3), form)

        def loss(theta, run=run, denoiser=denoiser, batch=batch, seed=seed):
            return run(denoiser(theta), batch, generator(seed + 100))

        possible = Sense(batch.sensitivity_maps, batch.probability != 0)
        a, b = possible.forward(template), possible.forward(image)
        best = (a.conj() * b).sum().real / a.abs().square().sum()
        distances.append(minimiser([loss, loss], 1)[0] - best)
    distance = torch.cat(distances)
    return float(distance.mean()), float(distance.std() / seeds**0.5)


@pytest.mark.parametrize("padding", [(0, 0), PADDING])
@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_make_it_the_error_of_the_whole_image(kind, padding):
    mean, error = template_bias("reconstruction", kind, padding)
    assert abs(mean) < 4 * error
    assert error < 0.03


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_not_without_weights(kind, monkeypatch):
    monkeypatch.setattr(gsure, "line_weights", lambda batch: batch.mask.float())
    mean, error = template_bias("reconstruction", kind, (0, 0))
    assert mean < -10 * error


def test_weights_agree_with_the_pattern():
    for kind in KINDS:
        batch = make_batch(WORLD, 6, generator(0), kind=kind, padding=PADDING)
        torch.testing.assert_close(line_weights(batch), weights_of(batch))


def test_masks_with_many_lines_weigh_as_much_as_those_with_few():
    batch = make_batch(WORLD, 6, generator(0), kind="bernoulli")
    expected = gsure.level_error(batch, torch.ones(6), 1.0)
    assert len(set(batch.mask.sum((1, 2)).tolist())) > 1
    torch.testing.assert_close(expected, expected[:1].expand(6))


def test_two_dimensional_masks():
    batch = make_batch(WORLD, 4, generator(0))
    mask = torch.rand(4, 2, 16, generator=generator(1)) < 0.5
    batch = replace(batch, kspace=batch.kspace * mask[:, None], mask=mask, probability=torch.full((4, 2, 16), 0.5))
    exact, iterated = (GSURE(exact=e).loss(Linear(FEATURES, torch.ones(3)), batch, generator(2)) for e in (True, False))
    torch.testing.assert_close(exact, iterated, rtol=1e-2, atol=1e-2)


def one_scan(count, coils=2, accel=2.0, noise_std=0.3, **options):
    """`count` scans of one object with one mask and different noise."""
    single = make_batch(WORLD, 1, generator(0), coils=coils, accel=accel, noise_std=noise_std, **options)
    operator = Sense(single.sensitivity_maps.expand(count, -1, -1, -1), single.mask.expand(count, -1, -1))
    clean = operator.forward(single.image.expand(count, -1, -1))
    noise = operator.with_mask(single.mask).mask.unsqueeze(1) * white(clean.shape, generator(1))
    return operator, clean, noise


def noise_covariance(sigma, told=0.3, count=2500, coils=2):
    """Sample covariance of the prior's input noise, over that of white noise of level sigma."""
    operator, _, noise = one_scan(count, coils)
    level = torch.full((count,), sigma)
    u, _ = white_input(operator, 0.3 * noise, noise, torch.full((count,), told), level, generator(2))
    u = u.flatten(1)
    return u.T @ u.conj() / count / (2 * sigma**2)


def assert_white(covariance):
    assert float((covariance - torch.eye(len(covariance))).abs().max()) < 0.12


@pytest.mark.parametrize("coils", [1, 2, 4])
@pytest.mark.parametrize("sigma", [0.3, 0.45, 3.0])
def test_the_input_of_the_prior_has_white_noise_of_the_announced_level(sigma, coils):
    assert_white(noise_covariance(sigma, coils=coils))


def test_its_noise_is_not_white_when_that_of_the_data_is_misjudged():
    with pytest.raises(AssertionError):
        assert_white(noise_covariance(0.45, told=0.15))


def test_the_prior_sees_the_announced_signal_and_the_probe_as_the_data():
    operator, clean, noise = one_scan(3)
    noise_std, sigma = torch.full((3,), 0.3), torch.tensor([0.3, 0.5, 0.8])
    quiet, direction = white_input(operator, 0 * clean, noise, noise_std, sigma, generator(3), exact=True)
    loud, _ = white_input(operator, clean, noise, noise_std, sigma, generator(3), exact=True)
    moved, _ = white_input(operator, noise, noise, noise_std, sigma, generator(3), exact=True)
    torch.testing.assert_close(moved - quiet, direction, rtol=1e-4, atol=1e-4)
    share = (noise_std / sigma) ** 2
    mu = ((1 - (1 - share).sqrt()) ** 2 / share)[:, None, None]
    normal = dense_normal(operator, 3)
    z = operator.adjoint(clean).reshape(3, -1, 1)
    expected = torch.linalg.solve(normal + mu * torch.eye(normal.shape[-1]), (1 + mu) * z)
    torch.testing.assert_close(loud - quiet, expected.reshape(loud.shape), rtol=1e-3, atol=1e-3)


def test_at_high_levels_it_is_the_pseudo_inverse(monkeypatch):
    monkeypatch.setattr(gsure, "SMALLEST_MU", 0.0)
    operator, clean, noise = one_scan(1, coils=4, accel=1.6)
    solver = RowSolver(operator)
    assert float(solver.eigenvalues.min()) > 0.01  # every direction is measured
    args = (torch.full((1,), 0.01), torch.full((1,), 30.0))
    _, direction = white_input(operator, clean, noise, *args, generator(3), exact=True)
    torch.testing.assert_close(direction, solver.pseudo_inverse(operator.adjoint(noise)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_conjugate_gradients_and_the_exact_solver_agree(kind):
    batch = make_batch(WORLD, 4, generator(0), kind=kind, coils=4, padding=PADDING)
    operator = Sense(batch.sensitivity_maps, batch.mask)
    sigma = torch.tensor([0.3, 0.5, 1.0, 5.0])
    inputs = [
        white_input(operator, batch.kspace, batch.kspace, batch.noise_std, sigma, generator(1), exact=exact)[0]
        for exact in (False, True)
    ]
    scale = sigma[:, None, None]
    torch.testing.assert_close(inputs[0] / scale, inputs[1] / scale, rtol=0, atol=1e-2)


def test_one_coil_gives_the_published_input_and_loss():
    batch = make_batch(WORLD, 400, generator(0), coils=1)
    seen = Linear(FEATURES, torch.tensor([0.3, 0.2, 0.1]))
    loss = GSURE(sigma_max=0.5).prior(seen, batch, generator(1))
    (u, sigma, told), (moved, _, _) = seen.calls
    assert told is None
    mask, level = batch.mask.expand(-1, *WORLD.shape), sigma[:, None, None].expand(-1, *WORLD.shape)
    added = fft2c(u) - batch.kspace[:, 0]
    assert float((added.abs() ** 2 / (2 * (level**2 - 0.09)))[mask].mean()) == pytest.approx(1, abs=0.05)
    assert float((added.abs() ** 2 / (2 * level**2))[~mask].mean()) == pytest.approx(1, abs=0.05)

    weight = mask * weights_of(batch)
    probe = fft2c(moved - u) / (gsure.PROBE_STEP * level) * mask
    first, second = (fft2c(Linear(FEATURES, seen.theta)(v, sigma)) for v in (u, moved))
    fit = (weight * (first - batch.kspace[:, 0]).abs() ** 2).mean((1, 2))
    trace = (weight * (probe.conj() * (second - first)).real / (gsure.PROBE_STEP * level)).mean((1, 2))
    published = fit + 2 * 0.09 * trace - 2 * 0.09 * weight.mean((1, 2))
    expected = (published / expected_error(sigma, torch.full((400,), 0.5), 1.0)).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)


def test_the_finite_difference_finds_the_divergence_of_the_network():
    torch.manual_seed(0)
    denoiser = Denoiser(DenoiserConfig(channels=(8, 16), embedding=16, sigma_data=1.0))
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    batch = make_batch(WORLD, 1, generator(0))
    operator, sigma = Sense(batch.sensitivity_maps, batch.mask), torch.tensor([0.5])
    z = operator.adjoint(batch.kspace)

    def many(k):
        return Sense(batch.sensitivity_maps.expand(len(k), -1, -1, -1), batch.mask.expand(len(k), -1, -1))

    def output(k):
        with torch.no_grad():
            return denoiser(z + many(k).adjoint(k), sigma.expand(len(k)), many(k))

    count = batch.kspace.numel()
    units = torch.cat([f * torch.eye(count) for f in (1, 1j)]).reshape(-1, *batch.kspace.shape[1:])
    units = units * batch.mask[:, None]
    slope = many(units).forward(output(1e-2 * units) - output(-1e-2 * units)) / 2e-2
    trace = float((units.conj() * slope).real.sum())

    probe = white((4000, *batch.kspace.shape[1:]), generator(1))
    step = gsure.PROBE_STEP * sigma
    change = output(step * probe) - output(0 * probe)
    estimates = gsure.divergence(many(probe).adjoint(probe), change, step)
    assert float(estimates.mean()) == pytest.approx(trace, abs=4 * float(estimates.std()) / 4000**0.5)
    assert float(estimates.std()) / 4000**0.5 < 0.02 * trace


def test_a_step_is_reproducible_and_takes_two_evaluations_of_every_example():
    batch = make_batch(WORLD, 5, generator(0))
    denoisers = [Linear(FEATURES, torch.ones(3)) for _ in range(2)]
    first, second = (GSURE().loss(d, batch, generator(1)) for d in denoisers)
    assert first == second
    assert sum(len(z) for z, _, _ in denoisers[0].calls) == 2 * len(batch)


def test_no_noise_level_below_that_of_the_data():
    batch = make_batch(WORLD, 50, generator(0))
    seen = Linear(FEATURES, torch.ones(3))
    GSURE().loss(seen, batch, generator(1))
    assert min(float(sigma.min()) for _, sigma, _ in seen.calls) >= 0.3 * (1 - 1e-6)


def test_lines_that_are_never_acquired_are_named():
    require_coverage(torch.tensor([[0.0, 0.0, 0.5, 1.0, 1.0, 0.5, 0.0]]))
    require_coverage(torch.tensor([[0.0, -1.0, -1.0]]))
    with pytest.raises(InputError, match=r"1 of 4 lines .* bootstrap"):
        require_coverage(torch.tensor([[0.0, 0.5, 0.0, 1.0, 0.5]]))
    with pytest.raises(InputError, match="No line"):
        require_coverage(torch.zeros(1, 4))


@pytest.mark.parametrize("noise_std", [0.0, float("nan"), -1.0])
def test_unknown_noise_is_refused(noise_std):
    require_known_noise(torch.tensor([0.1, 0.2]))
    with pytest.raises(InputError, match="--noise"):
        require_known_noise(torch.tensor([0.1, noise_std]))
