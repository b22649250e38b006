"""The sampler against the closed-form flow of a Gaussian prior."""

import json
from itertools import pairwise
from types import SimpleNamespace

import h5py
import pytest
import torch
from matplotlib.image import imread
from operator_checks import normal
from torch import nn

from mri_ambient.denoiser import noise_schedule
from mri_ambient.errors import InputError
from mri_ambient.operators import fft2c
from mri_ambient.prior import Prior
from mri_ambient.recon import generation
from mri_ambient.recon.generation import generate, generate_files, integrate, starting_image, trained_range

SHAPE, LOW, HIGH = (8, 9), 0.01, 200.0
PIXELS = SHAPE[0] * SHAPE[1]


class Gaussian(nn.Module):
    """Exact denoiser of images with a mean and a complex covariance; noise sigma a component adds 2 sigma^2."""

    def __init__(self, damage=1.0):
        super().__init__()
        self.config = SimpleNamespace(sigma_data=0.25)
        self.device = torch.device("cpu")
        self.damage = damage
        root = normal((PIXELS, PIXELS), 1) / PIXELS**0.5
        self.values, self.vectors = torch.linalg.eigh(root @ root.mH)
        self.mean = normal((PIXELS,), 2)

    @property
    def covariance(self):
        return (self.vectors * self.values) @ self.vectors.mH

    def function(self, z, factor):
        """V factor V^H (z - mean) + mean."""
        flat = z.flatten(1).to(torch.complex128) - self.mean
        result = ((flat @ self.vectors.conj()) * factor) @ self.vectors.T + self.mean
        return result.reshape(z.shape).to(z.dtype)

    def forward(self, z, sigma, operator=None):
        assert operator is None
        return self.function(z, self.values / (self.values + self.damage * 2 * sigma**2))

    def flow(self, z, high, low):
        """Where the probability flow takes images from one level to another, then the denoiser."""
        shrink = ((self.values + 2 * low**2) / (self.values + 2 * high**2)).sqrt()
        return self.function(z, shrink * self.values / (self.values + 2 * low**2))


def prior(denoiser=None):
    return Prior(denoiser or Gaussian(), {"denoiser_error": [[LOW, 0.1], [HIGH, 0.1]]}, "gauss", "0" * 16)


def order(integrator):
    """Order of convergence to the exact flow, from twice as many steps."""
    denoiser, start = Gaussian(), 3 * normal((5, *SHAPE), 3)
    exact = denoiser.flow(start, 3.0, 0.05)
    errors = [(integrator(denoiser, start, noise_schedule(n, 3.0, 0.05)) - exact).norm() for n in (33, 65)]
    return float(torch.log2(errors[0] / errors[1]))


def euler(denoiser, image, schedule):
    for sigma, lower in pairwise(schedule):
        image = image + (lower - sigma) * (image - denoiser(image, sigma)) / sigma
    return denoiser(image, schedule[-1])


def test_the_flow_is_exact_to_second_order():
    assert 1.8 < order(integrate) < 2.3
    assert order(euler) < 1.2


def deviations(images, denoiser):
    """Largest z-scores of mean and covariance."""
    centred = images.flatten(1).to(torch.complex128) - denoiser.mean
    diagonal, count = denoiser.covariance.diagonal().real, len(images)
    z_mean = centred.mean(0).abs() / (diagonal / count).sqrt()
    estimate = centred.T @ centred.conj() / count
    scale = (diagonal[:, None] * diagonal).sqrt() / count**0.5
    return float(z_mean.max()), float(((estimate - denoiser.covariance).abs() / scale).max())


@pytest.mark.parametrize(("damage", "good"), [(1.0, True), (2.0, False), (0.5, False)])
def test_samples_have_the_mean_and_covariance_of_the_prior(damage, good):
    denoiser = Gaussian(damage)  # damaged: as if noise were given as complex instead of per component, or the reverse
    images = generate(prior(denoiser), 3000, SHAPE, steps=50)
    z_mean, z_covariance = deviations(images, denoiser)
    assert z_mean < 4.5
    assert (z_covariance < 5.5) is good
    assert good or z_covariance > 8


def test_an_image_does_not_depend_on_the_others(monkeypatch):
    together = generate(prior(), 5, SHAPE, steps=6, seed=1)
    monkeypatch.setattr(generation, "PIXELS", 2 * PIXELS)  # two in one call of the network
    torch.testing.assert_close(generate(prior(), 3, SHAPE, steps=6, seed=1), together[:3])
    monkeypatch.setattr(generation, "PIXELS", 1)
    torch.testing.assert_close(generate(prior(), 5, SHAPE, steps=6, seed=1), together)
    assert (together[0] - together[1]).abs().max() > 0.1
    assert (generate(prior(), 1, SHAPE, steps=6, seed=2) - together[:1]).abs().max() > 0.1


def test_start_has_the_variance_of_the_images_at_the_low_frequencies_of_heads():
    shape, spread = (32, 33), 0.25
    generators = (torch.Generator().manual_seed(k) for k in range(800))
    images = torch.stack([starting_image(shape, spread, 0.0, g) for g in generators])
    assert float(images.abs().square().mean()) == pytest.approx(2 * spread**2, rel=0.1)
    power = fft2c(images).abs().square().mean(0)
    assert float(power[16, 16] / power[16, 16 + 7]) == pytest.approx(50**1.5, rel=0.2)
    assert float(power[16 + 7, 16] / power[16, 16 - 7]) == pytest.approx(1, rel=0.2)
    noisy = starting_image((64, 64), spread, 3.0, torch.Generator().manual_seed(0))
    assert float(noisy.real.std()) == pytest.approx(3.0, rel=0.1)


def test_noise_levels_are_those_of_training():
    assert trained_range(prior()) == (LOW, HIGH)
    assert trained_range(Prior(Gaussian(), {}, "x", "")) == (0.005, 2.0)


class Flat(nn.Module):
    """Shrinks, for images of any size; or spoils them."""

    def __init__(self, factor=0.5):
        super().__init__()
        self.config = SimpleNamespace(sigma_data=0.25)
        self.device = torch.device("cpu")
        self.factor = factor
        self.calls = 0

    def forward(self, z, sigma, operator=None):
        self.calls += 1
        return self.factor * z


class Steps:
    """Remembers what is reported."""

    def __init__(self):
        self.stages = []

    def stage(self, text, done, total):
        self.stages.append((text, done, total))

    def say(self, text):
        raise AssertionError(text)


def test_files_and_their_provenance(tmp_path):
    denoiser, steps = Flat(), Steps()
    done = generate_files(prior(denoiser), tmp_path, count=3, matrix=12, steps=4, seed=5, reporter=steps)
    assert denoiser.calls == 7
    assert steps.stages[-1] == ("sampling", 4, 4)
    assert done["files"] == [str(tmp_path / "samples.h5"), str(tmp_path / "samples.png")]
    with h5py.File(tmp_path / "samples.h5") as file:
        stored, attributes = torch.from_numpy(file["samples"][()]), dict(file.attrs)
    torch.testing.assert_close(stored, generate(prior(Flat()), 3, 12, steps=4, seed=5))
    expected = {"prior": "gauss", "prior_hash": "0" * 16, "seed": 5, "steps": 4, "sigma_max": HIGH}
    assert {name: attributes[name] for name in expected} == expected
    assert json.loads(attributes["versions"]) == done["versions"]
    assert imread(tmp_path / "samples.png").shape[:2] == (24, 24)  # three images in a grid of two by two


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"count": 0}, "images"), ({"steps": 0}, "steps"), ({"matrix": 4}, "4 x 4"), ({"device": "abacus"}, "abacus")],
)
def test_bad_numbers_leave_nothing(tmp_path, settings, expected):
    with pytest.raises(InputError, match=expected):
        generate_files(prior(Flat()), tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_a_prior_that_draws_nonsense_says_so(tmp_path):
    with pytest.raises(InputError, match="not finite"):
        generate_files(prior(Flat(float("nan"))), tmp_path / "out", count=1, matrix=12, steps=2)
    assert not (tmp_path / "out").exists()
