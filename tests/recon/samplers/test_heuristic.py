"""By how much the heuristic samplers miss a closed-form posterior: measured, and held in bands so that a change shows.

`bias` is in posterior standard deviations, `spread` is the standard deviation over that of the posterior, `shape` the
relative error of the covariance. Exact samplers have 0, 1 and 0. The figures of those whose steps are affine are exact
too; DDS and the two with norms are sampled, and the bands as wide as that needs.
"""

import pytest
from gaussian_posterior import coils, distance, gaussian, masked_denoiser, miss, mixture, propagate, run, simulate

from mri_ambient.recon.samplers import ADPS, DAPS, DDS, DPS, DiffPIR, through_mask

SAMPLERS = {
    "dps": (DPS(high=5.0), 40),
    "dds": (DDS(high=5.0), 25),
    "diffpir": (DiffPIR(high=5.0), 25),
    "daps": (DAPS(high=5.0), 25),
    "adps": (ADPS(), 60),
}
AFFINE = ("diffpir", "daps")
MISSES = {  # bias, spread, shape
    ("dps", "lines R=2", 0.1): (1.41, 0.46, 0.96),
    ("dps", "lines R=4", 0.02): (0.54, 1.24, 1.16),
    ("dds", "lines R=2", 0.1): (0.90, 0.46, 0.80),
    ("dds", "lines R=4", 0.02): (1.08, 1.39, 1.75),
    ("diffpir", "lines R=2", 0.1): (0.81, 1.16, 0.88),
    ("diffpir", "lines R=4", 0.02): (0.60, 0.98, 0.44),
    ("diffpir", "points", 0.1): (0.89, 1.11, 0.73),
    ("daps", "lines R=2", 0.1): (0.37, 1.20, 0.54),
    ("daps", "lines R=4", 0.02): (0.52, 1.88, 3.42),
    ("daps", "points", 0.1): (0.33, 1.27, 0.82),
    ("adps", "lines R=2", 0.1): (4.06, 2.31, 27.6),
    ("adps", "lines R=4", 0.02): (0.61, 1.06, 3.18),
}
WEIGHTS = {"dps": 0.35, "dds": 0.46, "diffpir": 0.33, "daps": 0.53}  # the truth is 0.42


@pytest.mark.parametrize(("name", "mask", "noise_std"), MISSES)
def test_miss_of_a_gaussian_posterior(name, mask, noise_std):
    scan, (sampler, steps) = simulate(gaussian(), mask, noise_std), SAMPLERS[name]
    if name in AFFINE:
        found = distance(*propagate(sampler, scan, steps), scan.posterior())
    else:
        further = coils("lines R=4")
        masked = through_mask(masked_denoiser(scan.prior, further), further) if name == "adps" else None
        found = miss(run(sampler, scan.problem(denoiser=masked), 400, steps), *scan.posterior().moments())
    expected = MISSES[name, mask, noise_std]
    band = 0.03 if name in AFFINE else 0.12
    assert (found.bias, found.spread, found.shape) == pytest.approx(expected, rel=band, abs=band)
    assert max(found.bias, abs(found.spread - 1), found.shape) > 0.3, "no longer heuristic"


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_of_a_mixture(name):
    scan, (sampler, steps) = simulate(mixture(), "lines R=4", 0.02), SAMPLERS[name]
    samples = run(sampler, scan.problem(), 400, steps)
    assert float(scan.posterior().shares(samples.flatten(1))[0]) == pytest.approx(WEIGHTS[name], abs=0.09)
