"""What all samplers share: exact data step, gradients through the denoiser, streams, arguments."""

import pytest
import torch
from gaussian_posterior import (
    MASKS,
    SHAPE,
    SIZE,
    Impulses,
    Scan,
    coils,
    gaussian,
    masked_denoiser,
    mixture,
    normal_matrix,
    simulate,
)
from operator_checks import normal

from mri_ambient.operators import Sense
from mri_ambient.operators.sense import SoftSense, side_by_side
from mri_ambient.recon.samplers import ADPS, SAMPLERS, PnPDM, Problem, sample, through_mask
from mri_ambient.recon.samplers.base import NoiseRange, ancestral, predicted_noise

EVERY = [*SAMPLERS, "adps"]


def check_draw(scan: Scan, spread: float, kind: type[Impulses] = Impulses) -> None:
    """Mean and covariance of a draw against the inverse of the dense precision."""
    prior_mean = normal((1, *SHAPE), 3).to(torch.complex64)
    counting = scan.problem(kind)
    counting.draw(prior_mean, spread, [torch.Generator()])
    problem = scan.problem(kind)
    problem.quiet, problem.sizes = 1, counting.sizes
    count = 1 + sum(problem.sizes)
    outcome = problem.draw(prior_mean.expand(count, *SHAPE), spread, [torch.Generator()] * count)
    outcome = outcome.flatten(1).to(torch.complex128)
    noise = (outcome[1:] - outcome[0]).T
    precision = normal_matrix(scan.operator) / scan.noise_std**2 + torch.eye(SIZE) / spread**2
    data = scan.operator.adjoint(scan.kspace).flatten() / scan.noise_std**2 + prior_mean.flatten() / spread**2
    torch.testing.assert_close(outcome[0], torch.linalg.solve(precision, data.to(torch.complex128)), atol=1e-4, rtol=0)
    covariance = torch.linalg.inv(precision)
    error = torch.linalg.norm(noise @ noise.mH - covariance) / torch.linalg.norm(covariance)
    assert error < 1e-3


class WrongCoupling(Impulses):
    """Noise with unit variance a complex number instead of a component."""

    def noise(self, generators, coils=False):
        return super().noise(generators, coils) / 2**0.5


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("noise_std", "spread"), [(0.1, 0.3), (0.02, 0.3), (0.3, 0.02)])
def test_draws_have_the_exact_mean_and_covariance(mask, noise_std, spread):
    check_draw(simulate(gaussian(), mask, noise_std), spread)


@pytest.mark.parametrize("mask", MASKS)
def test_wrong_coupling_noise_is_noticed(mask):
    with pytest.raises(AssertionError):
        check_draw(simulate(gaussian(), mask), 0.3, WrongCoupling)


def test_the_pullback_is_the_transposed_jacobian():
    scan = simulate(mixture())
    problem, x = scan.problem(), 0.5 * normal((1, *SHAPE), 5)
    direction, g = normal((1, *SHAPE), 6), normal((1, *SHAPE), 7)
    mean, pullback = problem.linearise(x, 0.4)
    step = 1e-5
    change = (scan.prior(x + step * direction, 0.4) - scan.prior(x - step * direction, 0.4)) / (2 * step)
    torch.testing.assert_close((g.conj() * change).sum().real, (pullback(g).conj() * direction).sum().real)
    torch.testing.assert_close(mean, scan.prior(x, 0.4))
    assert problem.evaluations == 3


def two_sets(scan: Scan) -> SoftSense:
    """The scan's coils in the first set, others in the second."""
    other = normal((2, *SHAPE), 12).to(torch.complex64)
    return SoftSense(torch.stack((scan.operator.sensitivity_maps, other)), scan.operator.mask)


def test_the_pullback_with_two_sets_of_coil_maps():
    """Block diagonal: the Jacobian of each image."""
    scan = simulate(mixture())
    operator = two_sets(scan)
    images, directions = 0.5 * normal((1, 2, *SHAPE), 5).to(torch.complex64), normal((1, 2, *SHAPE), 7)
    problem = Problem(scan.prior, scan.kspace, operator, 0.1)
    mean, pullback = problem.linearise(side_by_side(images), 0.4)
    found = operator.apart(pullback(side_by_side(directions).to(torch.complex64)))
    for s in range(2):
        one, alone = scan.problem().linearise(images[:, s], 0.4)
        torch.testing.assert_close(operator.apart(mean)[:, s], one)
        torch.testing.assert_close(found[:, s], alone(directions[:, s].to(torch.complex64)))


@pytest.mark.parametrize("mask", ["lines R=2", "points"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_with_two_sets_of_coil_maps(name, mask):
    scan = simulate(gaussian(), mask)
    problem = Problem(scan.prior, scan.kspace, two_sets(scan), scan.noise_std)
    three, two = (sample(SAMPLERS[name], problem, n, 3) for n in (3, 2))
    assert three.shape == (3, *problem.operator.image_shape)
    torch.testing.assert_close(three[:2], two, rtol=1e-3, atol=1e-4)


def test_ancestral_steps_keep_the_noise_level():
    certain, x = normal((1, *SHAPE), 1), normal((1, *SHAPE), 2)
    noise = normal((1, *SHAPE), 3)
    after = ancestral(certain + 0.5 * x, certain, 0.5, 0.3, noise)
    kept = 0.3**2 / 0.5**2
    torch.testing.assert_close(after, certain + kept * 0.5 * x + 0.3 * (1 - kept) ** 0.5 * noise)
    assert (kept * 0.5) ** 2 + 0.3**2 * (1 - kept) == pytest.approx(0.3**2)
    torch.testing.assert_close(predicted_noise(certain + 0.5 * x, certain, 0.5), x)


def draw(name, count):
    scan = simulate(gaussian())
    if name == "adps":
        further = coils("lines R=4")
        problem = scan.problem(Problem, through_mask(masked_denoiser(scan.prior, further), further))
        sampler = ADPS(high=2.0)
    else:
        problem, sampler = scan.problem(Problem), SAMPLERS[name]
    return sample(sampler, problem, count, 3), problem


@pytest.mark.parametrize("name", EVERY)
def test_a_sample_does_not_depend_on_the_others(name):
    (five, _), (two, _) = draw(name, 5), draw(name, 2)
    torch.testing.assert_close(five[:2], two, rtol=1e-3, atol=1e-3 if name == "adps" else 1e-5)
    assert (five[0] - five[1]).abs().max() > 0.01
    assert five.shape == (5, *SHAPE)
    assert five.dtype == torch.complex64


@pytest.mark.parametrize("mask", ["points"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_masks_without_a_decomposition(name, mask):
    scan = simulate(gaussian(), mask)
    problem = Problem(scan.prior, scan.kspace, scan.operator, scan.noise_std)  # conjugate gradients
    five, two = (sample(SAMPLERS[name], problem, n, 3) for n in (5, 2))
    torch.testing.assert_close(five[:2], two, rtol=1e-4, atol=1e-4)


def test_evaluations_count_passes_back_twice():
    expected = {"dps": 3 * 3, "adps": 3 * 3, "dds": 3, "diffpir": 3, "mmps": 3 * 3, "daps": 5 + 5 + 1, "pnpdm": 30}
    assert {name: draw(name, 2)[1].evaluations for name in EVERY} == expected


def test_levels():
    for sampler in (*SAMPLERS.values(), ADPS()):
        levels = sampler.levels(30)
        assert len(levels) == 30
        assert levels[0] == pytest.approx(sampler.high)
        assert levels[-1] == pytest.approx(sampler.low)
        assert levels == sorted(levels, reverse=True)
    published = PnPDM(high=10.0).levels(100)
    assert published[1] == pytest.approx(9.3)
    assert published.count(0.02) == 14
    assert NoiseRange(1.0, 0.1).levels(1) == [1.0]


def test_nothing_where_no_coil_sees():
    scan = simulate(gaussian())
    maps = scan.operator.sensitivity_maps.clone()
    maps[:, 2:4] = 0
    problem = Problem(scan.prior, scan.kspace, Sense(maps, scan.operator.mask), 0.1)
    for sampler in SAMPLERS.values():
        found = sample(sampler, problem, 2, 3)
        assert found[:, 2:4].abs().max() == 0
        assert found.abs().amin((0, 2))[0] > 0


def test_samples_outside_the_mask_are_ignored():
    scan = simulate(gaussian())
    spoilt = scan.kspace + ~scan.operator.mask * 5.0
    results = [sample(SAMPLERS["dps"], Problem(scan.prior, k, scan.operator, 0.1), 2, 3) for k in (scan.kspace, spoilt)]
    torch.testing.assert_close(*results)


def test_arguments():
    scan = simulate(gaussian())
    with pytest.raises(ValueError, match="positive noise"):
        Problem(scan.prior, scan.kspace, scan.operator, 0.0)
    with pytest.raises(ValueError, match="generators"):
        sample(SAMPLERS["dds"], scan.problem(), 2, 3, [torch.Generator()])
