"""Losses against what they claim: equal to the supervised loss in expectation, and not when a weight or sign is broken.

A one-parameter linear denoiser ``theta * z`` makes every loss a parabola in theta, known from three values. Its
minimiser is compared with the supervised one on the same random numbers.
"""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from mri_ambient.dataset import reverse
from mri_ambient.objectives import Ambient, Batch, Supervised
from mri_ambient.objectives.ambient import Split, further_undersample, heldout_loss
from mri_ambient.operators import MaskPattern, fft2c, ifft2c

NOISE = 0.3


class Linear:
    """theta z, with the interface of the denoiser."""

    config = SimpleNamespace(sigma_data=1.0)

    def __init__(self, theta):
        self.theta = theta
        self.inputs = []

    def __call__(self, z, sigma, op=None):
        self.inputs.append(z)
        return self.theta * z


def make_batch(generator, items=64, shape=(4, 24), accel=3.0, kind="random", image=None):
    coils = 2
    angle = 4 * torch.arange(shape[1]) / shape[1] + 6 * torch.rand(items, 1, 1, generator=generator)
    angle = angle.expand(items, *shape)
    maps = torch.stack((angle.cos(), angle.sin()), dim=1).to(torch.complex64)
    if image is None:
        image = torch.randn(items, *shape, dtype=torch.complex64, generator=generator)
    pattern = MaskPattern(kind, accel, acs=4)
    mask = torch.stack([pattern.sample(shape, generator)[None] for _ in range(items)])
    noise = torch.view_as_complex(torch.randn(items, coils, *shape, 2, generator=generator))
    kspace = (fft2c(maps * image[:, None]) + NOISE * noise) * mask[:, None]
    probability = (
        -torch.ones(items, 1, shape[1]) if kind == "random" else pattern.probability(shape).expand(items, 1, -1)
    )
    acs = torch.full((items,), pattern.acs_size(shape))
    return Batch(kspace, maps, mask, probability, acs, torch.full((items,), NOISE), image)


def minimiser(loss):
    """Of a parabola in theta, from three values."""
    low, middle, high = (float(loss(theta)) for theta in (-1.0, 0.0, 1.0))
    curvature = (low + high) / 2 - middle
    return (low - high) / (4 * curvature)


class Template(Linear):
    """theta times a fixed image, whatever the input."""

    def __init__(self, theta, image):
        super().__init__(theta)
        self.image = image

    def __call__(self, z, sigma, op=None):
        return self.theta * self.image


def bias(differences):
    """Mean and its standard error."""
    values = torch.tensor(differences)
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


def template_bias(kind, damage=False, draws=12):
    """Ambient minus supervised minimiser for a template whose best theta differs between centre and periphery."""
    differences = []
    for seed in range(draws):
        generator = torch.Generator().manual_seed(seed)
        template = torch.randn(64, 4, 24, dtype=torch.complex64, generator=generator)
        gain = torch.full((24,), 3.0)
        gain[10:14] = 1.0
        image = ifft2c(gain * fft2c(template))
        batch = make_batch(generator, kind=kind, image=image)
        split = further_undersample(batch, torch.full((len(batch),), 0.3), generator)
        if damage:
            split = replace(split, weights=(split.weights > 0).float())
        sigma = batch.noise_std * 30  # input lines then count fully

        def loss(theta, template=template, batch=batch, split=split, sigma=sigma):
            return heldout_loss(Template(theta, template), batch, split, sigma, torch.Generator().manual_seed(1))

        best = float((template.conj() * image).sum().real / template.abs().square().sum())
        differences.append(minimiser(loss) - best)
    return bias(differences)


@pytest.mark.parametrize("kind", ["random", "bernoulli", "equispaced"])
def test_weighted_loss_on_measured_lines_is_the_image_error(kind):
    mean, error = template_bias(kind)
    assert abs(mean) < 4 * error
    assert error < 0.05


def test_it_is_not_when_the_weights_are_left_out():
    mean, error = template_bias("random", damage=True)
    assert mean < -10 * error


def test_zero_padded_columns_do_not_count_as_missing():
    generator = torch.Generator().manual_seed(0)
    batch = make_batch(generator, items=1, accel=1.5)
    batch.probability[..., :3] = batch.probability[..., -2:] = 0
    batch.mask[..., :3] = batch.mask[..., -2:] = False
    split = further_undersample(batch, torch.tensor([0.3]), generator)
    held_out = int((batch.mask & ~split.kept).sum())
    places = 24 - 5 - int(split.kept.sum())
    torch.testing.assert_close(split.weights.max(), torch.tensor(places / held_out))
    torch.testing.assert_close(split.probability, torch.tensor([held_out / places]))


def shrinkage_bias(ignore_noise, draws=12):
    """The same for fully sampled noisy data and ``theta z``: what is tested is the target on input lines."""
    differences = []
    for seed in range(draws):
        generator = torch.Generator().manual_seed(seed)
        batch = make_batch(generator, accel=1.0)
        sigma = batch.noise_std * 1.4
        if ignore_noise:  # told there is none, the loss takes the noisy measurement for its target
            batch = replace(batch, noise_std=torch.full((len(batch),), 1e-6))
            sigma = (sigma**2 - NOISE**2).sqrt()
        split = Split(batch.mask, batch.mask.float(), torch.ones(len(batch)))
        seen = Linear(0.0)

        def loss(theta, batch=batch, split=split, sigma=sigma, seed=seed):
            return heldout_loss(Linear(theta), batch, split, sigma, torch.Generator().manual_seed(seed + 99))

        heldout_loss(seen, batch, split, sigma, torch.Generator().manual_seed(seed + 99))
        z = seen.inputs[0]
        best = float((z.conj() * batch.image).sum().real / z.abs().square().sum())
        differences.append(minimiser(loss) - best)
    return bias(differences)


def test_known_noise_is_corrected_on_input_lines():
    mean, error = shrinkage_bias(ignore_noise=False)
    assert abs(mean) < 4 * error
    assert error < 0.01


def test_it_is_not_when_the_noise_is_ignored():
    mean, error = shrinkage_bias(ignore_noise=True)
    assert mean > 10 * error


def test_input_holds_kept_lines_at_the_announced_noise():
    generator = torch.Generator().manual_seed(0)
    batch = make_batch(generator)
    batch = replace(batch, kspace=torch.zeros_like(batch.kspace))
    split = further_undersample(batch, torch.full((len(batch),), 0.5), generator)
    assert not bool((split.kept & ~batch.mask).any())
    seen = Linear(0.0)
    heldout_loss(seen, batch, split, torch.full((len(batch),), 1.0), generator)
    energy = seen.inputs[0].abs().square().mean() / (2 * (1 - NOISE**2))
    torch.testing.assert_close(energy, split.kept.float().mean(), rtol=0.05, atol=0)  # the trace of A~^H A~ per pixel


def test_supervised_is_zero_for_a_perfect_denoiser_and_positive_otherwise():
    batch = make_batch(torch.Generator().manual_seed(0), items=4)
    batch = replace(batch, patches=batch.image[:3, :, :4])

    class Perfect(Linear):
        def __call__(self, z, sigma, op=None):
            return batch.patches if op is None else batch.image

    always = Supervised(reconstruction_share=1)
    assert always.loss(Perfect(0), batch, torch.Generator().manual_seed(0)) == 0
    assert always.loss(Linear(0.5), batch, torch.Generator().manual_seed(0)) > 0


@pytest.mark.parametrize(
    ("objective", "share"),
    [
        (Supervised(reconstruction_share=0.25), 0.25),
        (Ambient(measured_share=0.4, on_reconstructions=Supervised()), 0.4),
    ],
)
def test_the_costly_part_is_taken_in_a_share_of_the_batches(objective, share, monkeypatch):
    batch, count = make_batch(torch.Generator().manual_seed(0), items=2), 0

    def counted(*arguments):
        nonlocal count
        count += 1
        return torch.tensor(0.0)

    monkeypatch.setattr(type(objective), "measured" if isinstance(objective, Ambient) else "reconstruction", counted)
    for seed in range(200):
        objective.loss(Linear(0.4), batch, torch.Generator().manual_seed(seed))
    assert count == pytest.approx(200 * share, abs=4 * (200 * share * (1 - share)) ** 0.5)


def test_ambient_is_reproducible_and_uses_reconstructions():
    batch = make_batch(torch.Generator().manual_seed(0), items=4)
    first, second = (Ambient().loss(Linear(0.4), batch, torch.Generator().manual_seed(3)) for _ in range(2))
    assert first == second
    alone = Ambient(on_reconstructions=None).loss(Linear(0.4), batch, torch.Generator().manual_seed(3))
    measured = Ambient().measured(Linear(0.4), batch, torch.Generator().manual_seed(3))
    assert alone == measured != first


def test_ambient_learns_from_noise_free_lines_too():
    batch = make_batch(torch.Generator().manual_seed(0), items=4)
    theta = torch.tensor(0.4, requires_grad=True)
    silent = replace(batch, noise_std=torch.zeros(4))
    Ambient(on_reconstructions=None).loss(Linear(theta), silent, torch.Generator().manual_seed(3)).backward()
    assert bool(torch.isfinite(theta.grad))
    assert float(theta.grad) != 0


@pytest.mark.parametrize("shape", [(6, 8), (5, 7)])
@pytest.mark.parametrize("dim", [-1, -2])
def test_reversal_commutes_with_the_fourier_transform(shape, dim):
    x = torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(fft2c(reverse(x, dim)), reverse(fft2c(x), dim))
    torch.testing.assert_close(reverse(reverse(x, dim), dim), x)
