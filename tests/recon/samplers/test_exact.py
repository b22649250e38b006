"""Samplers that are exact in a limit, in that limit: closed-form posteriors of a Gaussian and of a mixture."""

import pytest
import torch
from gaussian_posterior import (
    MASKS,
    SHAPE,
    SIZE,
    Prior,
    distance,
    gaussian,
    miss,
    mixture,
    propagate,
    run,
    simulate,
)
from operator_checks import normal

from mri_ambient.operators import Sense
from mri_ambient.recon.samplers import MMPS, PnPDM

CASES = [("lines R=2", 0.1), ("lines R=4", 0.02), ("points", 0.1), ("lines R=2", 0.5)]
WHOLE = Sense(torch.ones(1, *SHAPE, dtype=torch.complex64), torch.ones(SHAPE[1]))


def check_posterior_mean(scan, sigma):
    """MMPS against the posterior given both the data and the noisy image."""
    x = (normal((1, *SHAPE), 1) * 0.5).to(torch.complex64)
    both = scan.prior.posterior(WHOLE, WHOLE.forward(x[0]), sigma)
    expected = both.posterior(scan.operator, scan.kspace, scan.noise_std).means[0]
    found = MMPS(iterations=25).posterior_mean(x, sigma, scan.problem()).flatten()
    assert (found - expected).norm() < 2e-3 * (expected - both.means[0]).norm()


@pytest.mark.parametrize("sigma", [0.05, 0.4, 2.0])
@pytest.mark.parametrize(("mask", "noise_std"), CASES)
def test_mmps_has_the_conditional_mean_of_a_gaussian(mask, noise_std, sigma):
    check_posterior_mean(simulate(gaussian(), mask, noise_std), sigma)


@pytest.mark.parametrize("wrong", [2.0, 0.5])
def test_a_wrong_factor_in_mmps_is_noticed(monkeypatch, wrong):
    right = MMPS._covariance

    def covariance(v, sigma, problem, pullback):
        return right(v, sigma, problem, lambda g: wrong * pullback(g))

    monkeypatch.setattr(MMPS, "_covariance", staticmethod(covariance))
    with pytest.raises(AssertionError):
        check_posterior_mean(simulate(gaussian()), 0.4)


def test_few_iterations_of_mmps_already_help():
    scan = simulate(gaussian())
    x = (normal((1, *SHAPE), 1) * 0.5).to(torch.complex64)
    exact = MMPS(iterations=25).posterior_mean(x, 0.4, scan.problem())
    errors = [
        float((MMPS(iterations=n).posterior_mean(x, 0.4, scan.problem()) - exact).norm() / exact.norm())
        for n in (1, 3, 6)
    ]
    assert errors[0] < 0.3
    assert errors[1] < 0.3 * errors[0]
    assert errors[2] < 0.2 * errors[1]


def assert_first_order(sampler_of, scan, steps, truth):
    """The covariance misses by one over the number of steps, and what is extrapolated from two numbers is right."""
    (mean, coarse), (_, fine) = (propagate(*sampler_of(n)[:1], scan, sampler_of(n)[1]) for n in steps)
    errors = [distance(mean, c, truth) for c in (coarse, fine)]
    ratio = steps[0] / steps[1]
    assert ratio - 0.1 < errors[1].shape / errors[0].shape < ratio + 0.15
    limit = distance(mean, (fine - ratio * coarse) / (1 - ratio), truth)
    assert limit.shape < 0.15 * errors[0].shape
    assert abs(limit.spread - 1) < 0.03
    return mean, limit


@pytest.mark.parametrize(("mask", "noise_std"), CASES)
def test_mmps_samples_a_gaussian_posterior(mask, noise_std):
    scan = simulate(gaussian(), mask, noise_std)
    mmps = MMPS(high=20.0, iterations=6)
    _, limit = assert_first_order(lambda n: (mmps, n), scan, (25, 50), scan.posterior())
    assert limit.bias < 0.05


@pytest.mark.parametrize(("mask", "noise_std"), CASES)
def test_pnpdm_at_a_fixed_coupling_samples_the_posterior_of_noisier_data(mask, noise_std):
    scan, coupling = simulate(gaussian(), mask, noise_std), 0.2
    inflated = scan.posterior(coupling)

    def sampler_of(reverse_steps):
        return PnPDM(high=coupling, low=coupling, prior_steps=reverse_steps), 100

    _, limit = assert_first_order(sampler_of, scan, (20, 40), inflated)
    assert limit.bias < 0.01
    assert distance(*inflated.moments(), scan.posterior()).shape > 5 * limit.shape  # the two posteriors differ


def test_the_posterior_of_noisier_data_tends_to_the_posterior():
    scan = simulate(gaussian())
    misses = [distance(*scan.posterior(c).moments(), scan.posterior()) for c in (0.2, 0.1, 0.05)]
    assert misses[2].shape < 0.3 * misses[1].shape < 0.5 * misses[0].shape


@pytest.mark.parametrize(("mask", "noise_std"), CASES[:3])
def test_pnpdm_with_falling_coupling_comes_close(mask, noise_std):
    scan = simulate(gaussian(), mask, noise_std)
    found = distance(*propagate(PnPDM(low=0.05), scan, 30), scan.posterior())
    assert found.bias < 0.3  # most where the noise, 0.02, is less than the last coupling
    assert 0.92 < found.spread < 1.08
    assert found.shape < 0.36


@pytest.mark.parametrize(("mask", "noise_std"), CASES[:3])
def test_pnpdm_finds_mixture_weights(mask, noise_std):
    scan, coupling, count = simulate(mixture(), mask, noise_std), 0.2, 400
    posterior = scan.posterior(coupling)
    samples = run(PnPDM(high=coupling, low=coupling, prior_steps=20), scan.problem(), count, 30)
    found = miss(samples, *posterior.moments())
    assert found.z_mean < 5
    assert 0.86 < found.spread < 0.95  # one over the number of reverse steps is missing
    assert_weights(posterior, samples)


@pytest.mark.parametrize(("mask", "noise_std"), CASES[:3])
def test_mmps_comes_close_to_a_mixture(mask, noise_std):
    scan = simulate(mixture(), mask, noise_std)
    posterior = scan.posterior()
    samples = run(MMPS(high=20.0, iterations=6), scan.problem(), 400, 40)
    found = miss(samples, *posterior.moments())
    assert found.z_mean < 4.5
    assert 0.85 < found.spread < 0.95
    assert_weights(posterior, samples)


def assert_weights(posterior: Prior, samples, precision=4.0):
    """The weights are neither zero nor one, and found within the Monte-Carlo error."""
    expected, found = float(posterior.weights[0]), float(posterior.shares(samples.flatten(1))[0])
    assert 0.1 < expected < 0.9
    assert abs(found - expected) < precision * (expected * (1 - expected) / len(samples)) ** 0.5 + 0.01


def draws(posterior, count=2000, shares=None):
    """Independent samples of a mixture, optionally with other weights."""
    weights = posterior.weights if shares is None else torch.tensor(shares, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.multinomial(weights, count, replacement=True, generator=generator)
    white = torch.randn(count, SIZE, dtype=torch.complex128, generator=generator)
    roots = torch.linalg.cholesky(2 * posterior.covariances)
    return (posterior.means[chosen] + (roots[chosen] @ white[..., None])[..., 0]).reshape(count, *SHAPE)


def test_the_oracle_recognises_its_own_samples_and_no_others():
    posterior = simulate(mixture()).posterior()
    mean, covariance = posterior.moments()
    own = miss(draws(posterior), mean, covariance)
    assert own.z_mean < 4.5
    assert own.z_covariance < 5
    assert own.spread == pytest.approx(1, abs=0.02)
    assert_weights(posterior, draws(posterior))
    with pytest.raises(AssertionError):
        assert_weights(posterior, draws(posterior, shares=[0.5, 0.5]))


@pytest.mark.parametrize("sigma", [0.1, 1.0])
def test_the_denoiser_of_a_mixture_is_its_posterior_mean_given_a_whole_noisy_image(sigma):
    prior, x = mixture(), normal((1, *SHAPE), 1).to(torch.complex64)
    mean, _ = prior.posterior(WHOLE, WHOLE.forward(x[0]), sigma).moments()
    torch.testing.assert_close(prior(x, sigma).flatten().to(torch.complex128), mean, rtol=1e-3, atol=1e-4)


def test_every_mask_is_used():
    assert {mask for mask, _ in CASES} == set(MASKS)
