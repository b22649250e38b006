"""From scan to image with every method: units, shapes, reproducibility, provenance."""

import pytest
import torch

from mri_ambient.denoiser import Denoiser, DenoiserConfig
from mri_ambient.errors import InputError
from mri_ambient.operators import MaskPattern
from mri_ambient.phantoms import phantom_volume
from mri_ambient.prior import Prior
from mri_ambient.recon import METHODS, reconstruct
from mri_ambient.recon.pipeline import undersample
from mri_ambient.scan import Scan
from mri_ambient.simulate import simulate_scan

FEW = {"samples": 2, "steps": 2, "device": "cpu", "precision": "fp32"}


@pytest.fixture(scope="module")
def prior():
    torch.manual_seed(0)
    model = Denoiser(DenoiserConfig(channels=(4, 8), embedding=8)).eval().requires_grad_(False)
    return Prior(model, {}, "untrained", "0")


def phantom(kind="random", shape=(64, 61), accel=2.0, slices=2):
    volume = phantom_volume(slices, shape, seed=2)
    return simulate_scan(volume, coils=4, pattern=MaskPattern(kind, accel), noise_std=0.01)


def psnr(target, image):
    return float(20 * torch.log10(target.max() / (target - image).square().mean().sqrt()))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["random", "poisson"])
def test_every_method_on_odd_sizes_and_both_kinds_of_masks(prior, method, kind):
    scan = phantom(kind, slices=1)
    rec = reconstruct(scan, prior, method=method, **FEW)
    assert rec.mean.shape == (1, 64, 61)
    assert (rec.std is not None) == (method == "posterior")
    assert psnr(scan.target, rec.magnitude) > (
        10 if method == "posterior" else 20
    )  # samples of an untrained prior are noisy
    assert rec.attributes["method"] == method


@pytest.mark.parametrize("method", ["posterior", "mmse", "sense"])
def test_outputs_are_in_input_units(prior, method):
    scan = phantom(slices=1)
    scaled = Scan.from_arrays(scan.kspace * 2.0**17, scan.mask, noise_std=0.01 * 2.0**17, name=scan.name)
    a, b = (reconstruct(s, prior, method=method, **FEW) for s in (scan, scaled))
    torch.testing.assert_close(b.mean / 2.0**17, a.mean, rtol=1e-3, atol=1e-4)


def test_same_seed_same_samples_whatever_else_is_drawn(prior):
    scan = phantom()
    few, many = (
        reconstruct(scan, prior, keep_samples=True, **{**FEW, "samples": n, "slices": s})
        for n, s in ((2, [1]), (4, None))
    )
    torch.testing.assert_close(few.samples[0], many.samples[1, :2], rtol=1e-4, atol=1e-5)
    other = reconstruct(scan, prior, keep_samples=True, slices=[1], seed=1, **FEW)
    assert (other.samples - few.samples).abs().max() > 1e-4
    assert (many.mean - many.samples.mean(1)).abs().max() < many.samples.abs().max()
    torch.testing.assert_close(many.std, many.samples.abs().std(1), rtol=1e-4, atol=1e-6)


def test_crop_comes_last_and_network_evaluations_are_counted(prior):
    scan = phantom(slices=1)
    small = Scan.from_arrays(scan.kspace, scan.mask, noise_std=0.01, recon_size=(40, 40), name=scan.name)
    whole, cropped = (reconstruct(s, prior, **FEW) for s in (scan, small))
    torch.testing.assert_close(cropped.mean[0], whole.mean[0, 12:52, 10:50])
    assert whole.attributes["network_evaluations"] == 1 + 2 * 2 + 10
    assert {"prior", "prior_hash", "seed", "versions", "noise_std", "scale", "seconds"} <= set(whole.attributes)


def test_empty_slices_are_empty(prior):
    scan = phantom()
    kspace = scan.kspace.clone()
    kspace[1] = 0
    rec = reconstruct(Scan.from_arrays(kspace, scan.mask, noise_std=0.01), prior, keep_samples=True, **FEW)
    assert rec.mean[1].abs().max() == 0
    assert rec.std[1].max() == 0
    assert rec.mean[0].abs().max() > 0


def test_single_coil(prior):
    volume = phantom_volume(1, (64, 64), seed=2)
    scan = simulate_scan(volume, coils=1, pattern=MaskPattern("random", 2), noise_std=0.01)
    assert psnr(scan.target, reconstruct(scan, prior, method="mmse", **FEW).magnitude) > 15


def test_retrospective_undersampling():
    full = simulate_scan(phantom_volume(1, (64, 64), seed=2), coils=2)
    scan = undersample(full, 4, "random", seed=0)
    assert scan.acceleration == pytest.approx(4)
    assert undersample(full, None) is full
    assert torch.equal(undersample(full, 4, seed=0).mask, scan.mask)
    assert not torch.equal(undersample(full, 4, seed=1).mask, scan.mask)
    for arguments in ((scan, 4), (full, 0.5), (full, 4, "spiral")):
        with pytest.raises(InputError):
            undersample(*arguments)


def test_unusable_settings(prior):
    scan = phantom(slices=1)
    for change in ({"method": "magic"}, {"samples": 0}, {"steps": 0}, {"noise_std": -1.0}, {"device": "tpu"}):
        with pytest.raises(InputError):
            reconstruct(scan, prior, **{**FEW, **change})


def test_the_shipped_prior_beats_cg_sense_on_anatomy_it_never_saw(data_dir):
    from mri_ambient.volumes import load_volume

    volume = load_volume(data_dir / "open_ms" / "patient04" / "study1_FLAIR.nii.gz")
    scan = simulate_scan(volume, matrix=128, pattern=MaskPattern("random", 4), slices=[24])
    settings = {"samples": 2, "steps": 8, "device": "cpu"}
    quality = {
        m: psnr(scan.target, reconstruct(scan, method=m, **settings).magnitude) for m in ("sense", "mmse", "posterior")
    }
    assert quality["mmse"] > quality["sense"] + 0.5
    assert quality["posterior"] > quality["sense"] + 0.5
