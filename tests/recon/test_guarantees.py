"""Never worse than doing nothing: where the data are good, the estimate stays above least squares.

A head of the validation patient, and a phantom, which the prior has never seen: CG-SENSE with its default weight is the
bar at R = 1, 1.5 and 2, at nearly no, low and high noise. Fully sampled noisy images are denoised: better by a decibel.
"""

import pytest

from mri_ambient.operators import MaskPattern
from mri_ambient.phantoms import phantom_volume
from mri_ambient.prior import load_prior
from mri_ambient.recon import reconstruct
from mri_ambient.simulate import simulate_scan
from mri_ambient.volumes import load_volume

CLEAN, LOW, HIGH = 0.002, 0.02, 0.1
SLICE = 22


@pytest.fixture(scope="module")
def prior():
    return load_prior("brain-r4")


@pytest.fixture(scope="module")
def head(data_dir):
    return load_volume(data_dir / "open_ms" / "patient04" / "study1_T1W.nii.gz")


def estimates(volume, prior, accel, noise, kind="random", index=0):
    """PSNR of CG-SENSE and of the posterior estimate."""
    scan = simulate_scan(
        volume, matrix=112, slices=[index], pattern=MaskPattern(kind, accel), noise_std=noise, name="good data"
    )
    truth = scan.target
    settings = {"samples": 2, "steps": 8, "calibrate": False, "device": "cpu", "precision": "fp32"}

    def psnr(method):
        image = reconstruct(scan, prior, method=method, **settings).magnitude
        return float(20 * (truth.max() / (truth - image).square().mean().sqrt()).log10())

    return psnr("sense"), psnr("posterior")


@pytest.mark.parametrize("noise", [CLEAN, LOW, HIGH])
@pytest.mark.parametrize("accel", [1, 1.5, 2])
def test_a_head_is_better_than_with_least_squares(head, prior, accel, noise):
    sense, posterior = estimates(head, prior, accel, noise, index=SLICE)
    assert posterior > sense + (1 if noise >= LOW else 0)


@pytest.mark.parametrize("accel", [2, 4])
def test_data_without_noise_are_no_trap(prior, accel):
    sense, posterior = estimates(phantom_volume(1, (112, 112), seed=5), prior, accel, 0.0)
    assert posterior > sense


@pytest.mark.parametrize("noise", [CLEAN, LOW, HIGH])
@pytest.mark.parametrize(("kind", "accel"), [("random", 1), ("random", 2), ("poisson", 2)])
def test_what_the_prior_has_never_seen_is_not_damaged(prior, kind, accel, noise):
    sense, posterior = estimates(phantom_volume(1, (112, 112), seed=5), prior, accel, noise, kind)
    assert posterior > sense
