"""Double Tweedie has the supervised minimiser; consistency carries an exact denoiser below the noise of the data."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from gaussian_world import KINDS, Linear, World, assert_minimiser, make_batch, minimiser, white

from mri_ambient.objectives import tweedie
from mri_ambient.objectives.gsure import subset
from mri_ambient.objectives.tweedie import Consistency, Tweedie, UsableLevels, noisy_image, reverse_step, violation
from mri_ambient.operators import Sense, fft2c, ifft2c

WORLD = World()
NOISE = 0.3
FAULTS = {
    "ignored": lambda low, high: 0 * low,
    "sign": lambda low, high: -((low / high) ** 2),
    "order": lambda low, high: (high / low) ** 2,
    "half": lambda low, high: (low / high) ** 2 / 2,
}


def generator(seed):
    return torch.Generator().manual_seed(seed)


def filtered(z, sigma, operator):
    return ifft2c(torch.linspace(0, 1, z.shape[-1]) * fft2c(z))


def shrunk(z, sigma, operator):
    return z / (1 + sigma[:, None, None] ** 2)


FEATURES = (WORLD.mmse, filtered, shrunk)


def denoising_losses(seeds=8, items=150):
    losses = []
    for seed in range(seeds):
        batch = make_batch(WORLD, items, generator(seed), accel=1)
        noisy = noisy_image(batch, generator(seed + 50))

        def loss(theta, noisy=noisy, batch=batch, seed=seed):
            return Tweedie().denoising(Linear(FEATURES, theta), noisy, batch.noise_std, generator(seed + 100))

        losses.append(loss)
    return losses


def reconstruction_losses(seeds=8, items=150, **options):
    losses = []
    for seed in range(seeds):
        batch = make_batch(WORLD, items, generator(seed), **options)

        def loss(theta, batch=batch, seed=seed):
            return Tweedie().reconstruction(Linear(FEATURES, theta), batch, generator(seed + 100))

        losses.append(loss)
    return losses


def test_the_minimiser_above_the_noise_is_the_supervised_one():
    assert_minimiser(denoising_losses(), (1, 0, 0), precision=0.06)


@pytest.mark.parametrize("fault", FAULTS)
def test_it_is_not_with_a_wrong_share(fault, monkeypatch):
    monkeypatch.setattr(tweedie, "tweedie_share", FAULTS[fault])
    with pytest.raises(AssertionError, match="not"):
        assert_minimiser(denoising_losses(), (1, 0, 0), precision=0.06)


@pytest.mark.parametrize("kind", KINDS)
def test_the_minimiser_on_measured_lines_is_the_supervised_one(kind):
    assert_minimiser(reconstruction_losses(kind=kind, padding=(2, 3)), (1, 0, 0), precision=0.06)


@pytest.mark.parametrize("fault", FAULTS)
def test_on_measured_lines_neither(fault, monkeypatch):
    monkeypatch.setattr(tweedie, "tweedie_share", FAULTS[fault])
    with pytest.raises(AssertionError, match="not"):
        assert_minimiser(reconstruction_losses(), (1, 0, 0), precision=0.06)


def template_bias(kind, seeds=10, items=150):
    """Distance from the best fit to the whole image of an output that does not depend on the input."""
    gain = torch.full((16,), 3.0)
    gain[6:10] = 1.0
    distances = []
    for seed in range(seeds):
        rng = generator(seed)
        template = white((items, *WORLD.shape), rng)
        image = ifft2c(gain * fft2c(template))
        batch = make_batch(WORLD, items, rng, kind=kind, image=image)
        denoiser = partial(Linear, (lambda z, sigma, operator, template=template: template,))

        def loss(theta, denoiser=denoiser, batch=batch, seed=seed):
            return Tweedie(noise_factor_range=(2.0, 2.0)).reconstruction(denoiser(theta), batch, generator(seed + 100))

        best = (template.conj() * image).sum().real / template.abs().square().sum()
        distances.append(minimiser([loss, loss], 1)[0] - best)
    distance = torch.cat(distances)
    return float(distance.mean()), float(distance.std() / seeds**0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_make_it_the_error_of_the_whole_image(kind):
    mean, error = template_bias(kind)
    assert abs(mean) < 4 * error
    assert error < 0.03


def test_it_is_not_without_weights(monkeypatch):
    monkeypatch.setattr(tweedie, "line_weights", lambda batch: batch.mask.float())
    mean, error = template_bias("random")
    assert mean < -10 * error


def test_noisy_images_have_white_noise_everywhere():
    batch = make_batch(WORLD, 3000, generator(0), accel=1, image=torch.zeros(3000, *WORLD.shape, dtype=torch.complex64))
    batch.mask[..., :3] = batch.probability[..., :3] = False
    batch.sensitivity_maps[..., 5] = 0
    batch.kspace.mul_(batch.mask[:, None])
    noise = noisy_image(batch, generator(1)).flatten(1)
    covariance = noise.T @ noise.conj() / len(noise) / (2 * NOISE**2)
    assert float((covariance - torch.eye(len(covariance))).abs().max()) < 0.11


class OneBelow:
    """Exact at and above a level, a linear combination of maps below it."""

    config = SimpleNamespace(sigma_data=1.0)

    def __init__(self, theta, cut):
        self.below = Linear((WORLD.mmse, shrunk), theta)
        self.cut = cut

    def __call__(self, z, sigma, operator=None):
        return WORLD.mmse(z, sigma, operator) if float(sigma[0]) >= self.cut else self.below(z, sigma)


def consistency_losses(upper=0.6, lower=0.3, seeds=8, items=150):
    losses = []
    for seed in range(seeds):
        rng = generator(seed)
        noisy = WORLD.images(items, rng) + upper * white((items, *WORLD.shape), rng)
        levels = [torch.full((items,), s) for s in (upper, lower)]

        def loss(theta, noisy=noisy, levels=levels, seed=seed):
            return violation(OneBelow(theta, upper), noisy, *levels, generator(seed + 100))

        losses.append(loss)
    return losses


def swapped(noisy, clean, upper, lower, rng):
    """Arguments in the wrong order."""
    share = ((upper / lower) ** 2)[:, None, None]
    return clean + share * (noisy - clean) + lower[:, None, None] * white(noisy.shape, rng)


def flipped(noisy, clean, upper, lower, rng):
    """The remaining noise with the wrong sign."""
    return reverse_step(2 * clean - noisy, clean, upper, lower, rng)


def repeated(noisy, clean, upper, lower, rng):
    """The same draw twice: the square of one difference."""
    return reverse_step(noisy, clean, upper, lower, generator(7))


def test_consistency_makes_the_denoiser_exact_below():
    assert_minimiser(consistency_losses(), (1, 0))


@pytest.mark.parametrize("fault", [swapped, flipped, repeated])
def test_it_does_not_with_a_wrong_reverse_step(fault, monkeypatch):
    monkeypatch.setattr(tweedie, "reverse_step", fault)
    with pytest.raises(AssertionError, match="not"):
        assert_minimiser(consistency_losses(), (1, 0), precision=1.0)


def test_a_reverse_step_has_the_law_of_the_diffusion():
    """Given the clean image: variance lower^2, covariance lower^2 with the noisier image."""
    clean, upper, lower = torch.ones(20000, 1, 1) * (1 + 2j), torch.full((20000,), 0.8), torch.full((20000,), 0.5)
    noise = 0.8 * white(clean.shape, generator(0))
    left = reverse_step(clean + noise, clean, upper, lower, generator(1)) - clean
    assert float(left.abs().square().mean()) == pytest.approx(2 * 0.25, rel=0.04)
    assert float((left * noise.conj()).real.mean()) == pytest.approx(2 * 0.25, rel=0.04)


class Gains:
    """``x / (1 + exp(theta(log sigma)))`` with theta linear between knots; on white data theta is 2 log sigma."""

    config = SimpleNamespace(sigma_data=1.0)

    def __init__(self):
        self.knots = torch.linspace(math.log(0.02), math.log(2.5), 7)
        self.theta = torch.zeros(7, requires_grad=True)

    def gain(self, sigma):
        place = ((sigma.log() - self.knots[0]) / (self.knots[1] - self.knots[0])).clamp(0, 5.999)
        i = place.long()
        theta = self.theta[i] + (place - i) * (self.theta[i + 1] - self.theta[i])
        return 1 / (1 + theta.exp())

    def __call__(self, z, sigma, operator=None):
        return self.gain(sigma)[:, None, None] * z


def assert_learns_all_levels(method, steps=250):
    """Train on noisy, fully sampled white images, and compare the gains with ``1 / (1 + sigma^2)``."""
    world = World((1, 8))
    data = make_batch(world, 2000, generator(0), accel=1, image=white((2000, 1, 8), generator(1)))
    denoiser = Gains()
    optimiser = torch.optim.Adam([denoiser.theta], lr=0.2, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    for step in range(steps):
        batch = subset(data, slice(100 * (step % 20), 100 * (step % 20) + 100))
        optimiser.zero_grad()
        method.loss(denoiser, batch, generator(step + 100)).backward()
        optimiser.step()
        schedule.step()
    sigma = torch.tensor([0.05, 0.1, 0.2, 0.4, 1.0])
    with torch.no_grad():
        error = denoiser.gain(sigma) - 1 / (1 + sigma**2)
    assert float(error.abs().max()) < 0.02, f"gains are off by {error}"


CONSISTENCY = Consistency(min_sigma=0.03)


def test_noisy_data_teach_every_level():
    assert_learns_all_levels(Tweedie(consistency=CONSISTENCY))


def test_without_consistency_they_do_not():
    with pytest.raises(AssertionError, match="off by"):
        assert_learns_all_levels(Tweedie(consistency_weight=0, consistency=CONSISTENCY))


def test_undersampled_data_use_images_above_their_level_and_consistency_below():
    batch = make_batch(WORLD, 6, generator(0), noise_std=0.02)
    seen = Linear(FEATURES, torch.ones(3))
    method = Tweedie(consistency_weight=0, usable=UsableLevels(0.2, 0.7))
    above = method.loss(seen, batch, generator(1))
    for z, sigma, told in seen.calls:
        assert len(z) == 3
        low, high = (0.2, 0.7) if told is None else (0.02 * 1.05, 0.02 * 4)
        assert low * 0.999 <= float(sigma.min()) <= float(sigma.max()) <= high * 1.001
    assert {told is None for _, _, told in seen.calls} == {True, False}

    seen = Linear(FEATURES, torch.ones(3))
    both = Tweedie(usable=UsableLevels(0.2, 0.7)).loss(seen, batch, generator(1))
    assert both != above
    assert min(float(sigma.min()) for _, sigma, told in seen.calls if told is None) < 0.2
    assert both == Tweedie(usable=UsableLevels(0.2, 0.7)).loss(Linear(FEATURES, torch.ones(3)), batch, generator(1))


def test_fully_sampled_data_are_recognised_with_padding():
    batch = make_batch(WORLD, 3, generator(0), accel=1)
    batch.mask[..., :2] = batch.probability[..., :2] = False
    seen = Linear(FEATURES, torch.ones(3))
    Tweedie().loss(seen, batch, generator(1))
    assert all(told is None for _, _, told in seen.calls)


@pytest.mark.parametrize(("levels", "expected"), [((0.5, 2.0), (0.5, 2.0)), ((0.01, 0.1), (0.01, 0.1))])
def test_flawed_images_are_used_at_their_levels_only(levels, expected):
    batch = make_batch(WORLD, 200, generator(0))
    seen = Linear(FEATURES, torch.ones(3))
    UsableLevels(*levels).loss(seen, batch, generator(1))
    ((_, sigma, told),) = seen.calls
    assert told is None
    assert expected[0] <= float(sigma.min()) < 1.2 * expected[0]
    assert expected[1] / 1.2 < float(sigma.max()) <= expected[1]


def flaw(method):
    """Distance of the learned gain from the true one, for weak images that carry an error of standard deviation 0.3."""
    batch = make_batch(WORLD, 400, generator(0), image=0.05 * white((400, *WORLD.shape), generator(1)))
    batch.image.add_(0.3 * white(batch.image.shape, generator(2)))

    def loss(theta):
        return method.loss(Linear((lambda z, sigma, operator: z,), theta), batch, generator(3))

    middle = (method.min_sigma + method.max_sigma) / 2
    return abs(float(minimiser([loss, loss], 1)[0]) - 0.05**2 / (0.05**2 + middle**2))


def test_at_high_levels_an_error_of_the_images_is_not_learned():
    assert flaw(UsableLevels(0.2, 0.21)) > 0.5
    assert flaw(UsableLevels(2.0, 2.1)) < 0.03


def test_the_operator_is_told_the_mask_of_the_scan():
    batch = make_batch(WORLD, 3, generator(0))
    seen = Linear(FEATURES, torch.ones(3))
    Tweedie().reconstruction(seen, batch, generator(1))
    ((_, _, told),) = seen.calls
    assert isinstance(told, Sense)
    assert torch.equal(told.mask, batch.mask)
