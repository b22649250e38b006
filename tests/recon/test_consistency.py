"""Held-out k-space against the closed form: Gaussian images, whose posterior is known exactly."""

import functools
from dataclasses import replace

import pytest
import torch
from gaussian_world import World, coil_maps, white
from operator_checks import dense

from mri_ambient.operators import MaskPattern, Sense, fft2c
from mri_ambient.recon.consistency import (
    DEVIATE,
    HELD_OUT,
    LEAST_FACTOR,
    Check,
    HeldOut,
    _missing_per_acquired,
    acquired_chi_square,
    compare,
    hold_out,
    outside_centre,
    pooled,
)
from mri_ambient.streams import stream

SHAPE, COILS, NOISE, SAMPLES = (12, 60), 2, 0.3, 4


class Problem:
    """Scans of the world with one mask, and their exact posterior given the kept lines."""

    def __init__(self):
        self.world = World(SHAPE)
        (maps,) = coil_maps(1, SHAPE, COILS, stream(0, "maps"))
        mask = torch.zeros(1, SHAPE[1], dtype=torch.bool)
        mask[0, ::2] = mask[0, 24:36] = True
        self.operator = Sense(maps, mask)
        self.kept = hold_out(mask, stream(1, "held out"))

    def scans(self, count, generator):
        images = self.world.images(count, generator)
        noise = NOISE * white((count, COILS, *SHAPE), generator)
        return torch.stack([fft2c(self.operator.sensitivity_maps * x) for x in images]) + noise

    @functools.cache  # noqa: B019 (one problem for all tests)
    def posterior(self, mask, noise, prior):
        """Gain and root of the covariance, for a noise level and a prior covariance in units of the true ones."""
        operator = self.operator.with_mask(self.kept if mask == "kept" else self.operator.mask)
        covariance = prior * self.world.covariance.to(torch.complex128)
        normal = dense(lambda v: operator.normal(v.to(torch.complex64)).to(torch.complex128), SHAPE)
        inverse = torch.linalg.inv(torch.eye(len(normal)) + covariance @ normal / (noise * NOISE) ** 2) @ covariance
        values, vectors = torch.linalg.eigh((inverse + inverse.mH) / 2)
        root = vectors * values.clamp_min(0).sqrt()
        return operator, inverse.to(torch.complex64), root.to(torch.complex64)

    def draw(self, kspace, generator, mask="kept", noise=1.0, prior=1.0, samples=SAMPLES):
        """Posterior mean and samples."""
        operator, covariance, root = self.posterior(mask, noise, prior)
        mean = covariance @ operator.adjoint(kspace).flatten() / (noise * NOISE) ** 2
        deviations = white((samples, len(mean)), generator) @ root.T
        return mean.reshape(SHAPE), (mean + deviations).reshape(samples, *SHAPE)


@pytest.fixture(scope="module")
def problem():
    return Problem()


def repeat(problem, count, shrink=1.0, noise=1.0, prior=1.0):
    """Comparisons of independent scans; samples may be too close to their mean, noise and prior wrong."""
    generator = torch.Generator().manual_seed(7)
    found = []
    for kspace in problem.scans(count, generator):
        mean, samples = problem.draw(kspace, generator, noise=noise, prior=prior)
        samples = mean + shrink * (samples - mean)
        found.append(compare(kspace, problem.operator, problem.kept, noise * NOISE, mean, samples))
    return found


def alarms(found, slices=1):
    volumes = [pooled(found[i : i + slices]) for i in range(0, len(found), slices)]
    return sum(abs(volume.deviate) > DEVIATE for volume in volumes) / len(volumes)


def test_chi_square_is_one_and_its_spread_is_predicted(problem):
    found = repeat(problem, 400)
    values = torch.tensor([part.chi_square for part in found])
    predicted = torch.tensor([(p.power_variance + p.expected_variance) / p.expected**2 for p in found]).mean().sqrt()
    assert abs(values.mean() - 1) < 4 * predicted / len(found) ** 0.5
    assert float(values.std()) == pytest.approx(float(predicted), rel=0.2)
    assert alarms(found) < 0.03  # 0.01 is meant
    share = sum(abs(part.deviate) > 1.645 for part in found) / len(found)
    assert share == pytest.approx(0.1, abs=0.05)


@pytest.mark.parametrize(
    ("wrong", "above"),
    [({"noise": 2.0}, False), ({"noise": 0.5}, True), ({"prior": 0.1}, True), ({"prior": 10.0}, False)],
)
def test_a_wrong_noise_level_and_a_wrong_prior_raise_the_alarm(problem, wrong, above):
    found = repeat(problem, 60, **wrong)
    assert (pooled(found).chi_square > 1) == above
    assert alarms(found, 10) == 1


@pytest.mark.parametrize("shrink", [1.0, 0.5, 2.0])
def test_factor_recovers_a_known_dispersion(problem, shrink):
    assert pooled(repeat(problem, 150, shrink=shrink)).factor == pytest.approx(1 / shrink, rel=0.08)


def test_a_factor_from_little_data_stays_near_one():
    """s^2 is drawn to a prior of 1 +- 1 by its own sampling error."""

    def part(error, uncertainty):
        return HeldOut(1.0, 1.0, 0.1, 0.1, error, 1.0, uncertainty**2)

    assert part(4.0, 1e-3).factor == pytest.approx(2, rel=1e-4)
    assert part(4.0, 1.0).factor == pytest.approx(2.5**0.5)
    assert part(4.0, 100.0).factor == pytest.approx(1, rel=1e-3)
    assert part(-0.5, 0.5).factor == LEAST_FACTOR
    assert part(-0.5, 1.0).factor == pytest.approx(0.5)


def test_a_factor_without_missing_samples_is_one():
    nothing = HeldOut(10.0, 10.0, 1.0, 1.0, error=0.0, spread=0.0, error_variance=0.0)
    assert nothing.factor == 1.0


def test_acquired_chi_square(problem):
    """A sample fits its own data like the truth does, where the posterior mean fits them better."""
    generator = torch.Generator().manual_seed(3)
    exact, over_fitted, half = [], [], []
    for kspace in problem.scans(100, generator):
        mean, samples = problem.draw(kspace, generator, mask="all")
        exact.append(acquired_chi_square(kspace, problem.operator, NOISE, samples))
        over_fitted.append(acquired_chi_square(kspace, problem.operator, NOISE, mean[None]))
        _, samples = problem.draw(kspace, generator, mask="all", noise=0.5)
        half.append(acquired_chi_square(kspace, problem.operator, 0.5 * NOISE, samples))
    count = int(outside_centre(problem.operator.mask).sum()) * COILS * SHAPE[0]
    values = torch.tensor(exact)
    assert abs(values.mean() - 1) < 4 / (count * len(exact)) ** 0.5
    assert float(values.std()) < 1.2 / count**0.5
    assert sum(over_fitted) / len(exact) < 0.5
    assert sum(half) / len(half) > 1.2  # not 4: with so few coils, an image explains most of the noise


def test_what_is_held_out():
    mask = MaskPattern("random", 3, acs=8).sample((1, 90), stream(0, "mask")).reshape(1, 90)
    kept = hold_out(mask, stream(0, "a"))
    held = mask & ~kept
    assert not (kept & ~mask).any()
    assert not held[0, 41:49].any()
    assert int(held.sum()) == round(HELD_OUT * int(outside_centre(mask).sum()))
    assert torch.equal(hold_out(mask, stream(0, "a")), kept)
    assert not torch.equal(hold_out(mask, stream(0, "b")), kept)
    full = torch.ones(1, 90, dtype=torch.bool)
    assert int((full & ~hold_out(full, stream(0, "a"))).sum()) == round(HELD_OUT * (90 - 24))
    centre = torch.zeros(1, 90, dtype=torch.bool)
    centre[0, 40:50] = centre[0, 60] = True
    assert hold_out(centre, stream(0, "a")) is None
    centre[0, 70] = True
    assert int((centre & ~hold_out(centre, stream(0, "a"))).sum()) == 1


def test_masks_may_lie_in_memory_in_any_order():
    mask = torch.rand(20, 24, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[6:14, 8:16] = True
    kept = hold_out(mask.T.contiguous().T, stream(0, "a"))
    assert torch.equal(kept, hold_out(mask, stream(0, "a")))


@pytest.mark.parametrize("kind", ["random", "gaussian", "poisson", "equispaced"])
def test_weighted_acquired_samples_stand_for_the_missing_ones(kind):
    shape, count = (40, 200), 6 if kind == "poisson" else 40
    pattern = MaskPattern(kind, 3, acs=12)
    power = torch.linspace(-1, 1, shape[1]).abs().expand(shape) ** 2  # an error that grows with the distance
    found, expected, plain = 0.0, 0.0, 0.0
    for i in range(count):
        mask = torch.atleast_2d(pattern.sample(shape, stream(i, "mask")))
        whole, acquired = mask.expand(shape), outside_centre(mask).expand(shape)
        weight = _missing_per_acquired(whole, acquired, len(mask) == 1)
        assert float(weight[acquired].sum()) < int((~whole).sum()) + 1
        found += float((weight * power)[acquired].sum())
        expected += float(power[~whole].sum())
        plain += float(power[acquired].mean()) * int((~whole).sum())
    assert found / expected == pytest.approx(1, abs=0.2)  # missing samples beyond the last acquired one have no proxy
    if kind == "gaussian":
        assert plain / expected < 0.6  # without weights the dense centre would speak for the sparse periphery


def test_too_few_samples(problem):
    kspace = torch.zeros(COILS, *SHAPE, dtype=torch.complex64)
    with pytest.raises(ValueError, match="at least 3"):
        compare(kspace, problem.operator, problem.kept, NOISE, kspace[0], kspace[:2])


class TestVerdict:
    @staticmethod
    def check(held_out=1.0, acquired=1.0, uncertainty=0.02):
        part = HeldOut(held_out, 1.0, uncertainty**2 / 2, uncertainty**2 / 2, 4.0, 1.0, 1e-6)
        return Check((3, 5), (part, part), (acquired, acquired), 10)

    def test_all_is_well(self):
        check = self.check()
        assert check.verdict == "Held-out k-space agrees with the reconstruction (chi-square 1.00)."
        assert check.std_factor == pytest.approx(2, rel=1e-3)
        assert check.attributes()["chi_square_held_out_slices"] == {"3": 1.0, "5": 1.0}

    @pytest.mark.parametrize(("acquired", "word"), [(3.0, "too small"), (0.4, "too large")])
    def test_wrong_noise_leaves_the_error_bars_alone(self, acquired, word):
        check = self.check(acquired=acquired)
        assert f"noise level is {word}" in check.verdict
        assert check.std_factor == 1

    @pytest.mark.parametrize(("coils", "fits"), [(1, True), (2, True), (8, False)])
    def test_few_coils_leave_samples_room_to_take_up_noise(self, coils, fits):
        assert replace(self.check(acquired=0.55), coils=coils).noise_fits == fits

    def test_less_noise_than_is_assumed_is_no_fault(self):
        assert replace(self.check(held_out=0.3, acquired=0.2), bound=True).verdict == (
            "Held-out k-space agrees with the reconstruction (chi-square 0.30; the noise is below what is resolved, "
            "error bars are upper bounds)."
        )
        assert "too small" in replace(self.check(acquired=3.0), bound=True).verdict
        assert "worse" in replace(self.check(held_out=3.0), bound=True).verdict

    def test_error_bars_are_never_narrowed(self):
        wide = HeldOut(100.0, 100.0, 1.0, 1.0, 0.25, 1.0, 1e-3)
        assert wide.factor == pytest.approx(0.5, rel=1e-2)
        assert Check((0,), (wide,), (1.0,)).std_factor == 1

    @pytest.mark.parametrize(("held_out", "word"), [(2.0, "worse"), (0.3, "better")])
    def test_wrong_prior(self, held_out, word):
        check = self.check(held_out)
        assert f"predicted much {word}" in check.verdict
        assert not self.check(held_out).prior_fits

    def test_neither_a_small_nor_an_uncertain_deviation_is_blamed(self):
        assert self.check(1.2).prior_fits  # significant, but it does not matter
        assert self.check(2.0, uncertainty=1.0).prior_fits  # large, but a chance finding

    def test_nothing_checked(self):
        assert Check().attributes() == {"std_factor": 1.0, "verdict": "Not checked against held-out k-space."}
