"""From scan to image with every method: units, shapes, reproducibility, provenance."""

from dataclasses import replace

import pytest
import torch
from wrapped import wrap

from mri_ambient.calibration import calibrate, prepare_slice
from mri_ambient.denoiser import Denoiser, DenoiserConfig
from mri_ambient.errors import InputError
from mri_ambient.operators import MaskPattern
from mri_ambient.operators.classical import cg_sense
from mri_ambient.phantoms import phantom_volume
from mri_ambient.prior import Prior
from mri_ambient.recon import METHODS, PosteriorDenoiser, reconstruct
from mri_ambient.recon.consistency import HeldOut, hold_out
from mri_ambient.recon.pipeline import REFINEMENT, Reconstructor, undersample
from mri_ambient.recon.result import Reconstruction
from mri_ambient.recon.samplers import SAMPLERS
from mri_ambient.recon.settings import Settings
from mri_ambient.scan import Scan
from mri_ambient.simulate import simulate_scan
from mri_ambient.streams import stream

FEW = {"samples": 2, "steps": 2, "device": "cpu", "precision": "fp32", "calibrate": False}


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
    sampled = method == "posterior" or method in SAMPLERS
    assert (rec.std is not None) == sampled
    assert rec.attributes["steps"] == (FEW["steps"] if sampled else 0)
    assert bool(torch.isfinite(torch.view_as_real(rec.mean)).all())
    if method not in SAMPLERS:  # made for many more steps
        assert psnr(scan.target, rec.magnitude) > (10 if sampled else 20)  # samples of an untrained prior are noisy
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


def test_one_sample_has_no_standard_deviation(prior):
    scan = simulate_scan(phantom_volume(1, (32, 24), seed=0), coils=3, pattern=MaskPattern("random", 2))
    assert reconstruct(scan, prior, samples=1, steps=2, device="cpu").std is None


def test_crop_comes_last_and_network_evaluations_are_counted(prior):
    scan = phantom(slices=1)
    small = Scan.from_arrays(scan.kspace, scan.mask, noise_std=0.01, recon_size=(40, 40), name=scan.name)
    whole, cropped = (reconstruct(s, prior, **FEW) for s in (scan, small))
    torch.testing.assert_close(cropped.mean[0], whole.mean[0, 12:52, 10:50])
    assert whole.attributes["network_evaluations"] == 1 + 2 * 2 + REFINEMENT
    assert {"prior", "prior_hash", "seed", "versions", "noise_std", "scale", "seconds"} <= set(whole.attributes)


@pytest.mark.parametrize("noise_std", [0.0, 0.01], ids=["zeros", "noise"])
@pytest.mark.parametrize("method", ["posterior", "sense"])
def test_slices_without_signal_are_zero_and_named(prior, noise_std, method):
    scan = phantom(slices=3)
    kspace = scan.kspace.clone()
    white = torch.randn(*kspace.shape[1:], 2, generator=torch.Generator().manual_seed(3))
    kspace[1] = noise_std * torch.view_as_complex(white) * scan.mask  # the slice that the check would take first
    dark = Scan.from_arrays(kspace, scan.mask, noise_std=0.01)
    rec = reconstruct(dark, prior, method=method, keep_samples=True, **{**FEW, "calibrate": True})
    assert rec.attributes["empty_slices"] == [1]
    assert rec.mean[1].abs().max() == 0
    assert rec.mean[0].abs().max() > 0
    if method == "posterior":
        assert rec.std[1].max() == 0
        assert rec.attributes["chi_square_acquired"][1] is None
        assert set(rec.attributes["chi_square_held_out_slices"]) == {"0", "2"}


class TestCheck:
    def test_scales_the_standard_deviation_and_nothing_else(self, prior, monkeypatch):
        scan = phantom()
        monkeypatch.setattr(HeldOut, "factor", 1.7)
        plain, scaled = (
            reconstruct(scan, prior, keep_samples=True, **{**FEW, "calibrate": calibrate})
            for calibrate in (False, True)
        )
        factor = scaled.attributes["std_factor"]
        assert factor == 1.7
        assert plain.attributes["std_factor"] == 1
        assert "Not checked" in plain.attributes["verdict"]
        torch.testing.assert_close(scaled.mean, plain.mean)
        torch.testing.assert_close(scaled.samples, plain.samples)
        torch.testing.assert_close(scaled.std, factor * plain.std, rtol=1e-3, atol=1e-6)

    def test_does_not_depend_on_the_slices_wanted(self, prior):
        scan = phantom()
        early, late = (Reconstructor(scan, prior, Settings(samples=2, steps=2)) for _ in range(2))
        assert late.slice(1).std.equal(early.slices([1]).__next__().std)
        assert late.check == early.check
        assert early.check.slices == (0, 1)

    @pytest.mark.parametrize(("count", "expected"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (30, [5, 15, 25])])
    def test_slices_are_evenly_spread(self, prior, count, expected):
        kspace = phantom(slices=1).kspace.expand(count, -1, -1, -1)
        scan = Scan.from_arrays(kspace, phantom(slices=1).mask, noise_std=0.01)
        assert Reconstructor(scan, prior, Settings()).evaluations_of_check == len(expected) * (1 + 4 * 25 + REFINEMENT)
        assert Reconstructor(scan, prior, Settings())._checked_slices == expected

    def test_counts_its_evaluations(self, prior):
        rec = reconstruct(phantom(), prior, **{**FEW, "calibrate": True})
        assert rec.attributes["network_evaluations"] == 2 * (1 + 2 * 2 + REFINEMENT) + 2 * (1 + 4 * 2 + REFINEMENT)

    def test_held_out_samples_are_not_used(self, prior, monkeypatch):
        scan = phantom(slices=1)
        seen = []
        plain = Reconstructor._posterior

        def spy(self, item, count, address):
            result = plain(self, item, count, address)
            seen.append((*result[:2], item.operator.mask))
            return result

        monkeypatch.setattr(Reconstructor, "_posterior", spy)
        assert Reconstructor(scan, prior, Settings(samples=2, steps=2)).check.parts
        kept = hold_out(scan.mask[None], stream(0, "held out", scan.name, 0))
        assert 0 < (scan.mask & ~kept).sum() < 0.3 * scan.mask.sum()
        prepare = Reconstructor._prepare

        def damaged(self, index):
            item = prepare(self, index)
            return replace(item, kspace=torch.where(kept, item.kspace, torch.nan))

        monkeypatch.setattr(Reconstructor, "_prepare", damaged)
        assert Reconstructor(scan, prior, Settings(samples=2, steps=2)).check.parts
        for first, second in zip(*seen, strict=True):
            assert torch.equal(first, second)
        assert torch.equal(seen[0][2], kept)

    def test_nothing_to_hold_out(self, prior):
        full = simulate_scan(phantom_volume(1, (64, 61), seed=2), coils=4, noise_std=0.01)
        mask = torch.zeros(61, dtype=torch.bool)
        mask[20:41] = True  # a centre and nothing else
        attributes = reconstruct(full.undersample(mask), prior, **{**FEW, "calibrate": True}).attributes
        assert attributes["std_factor"] == 1
        assert "Not checked" in attributes["verdict"]
        assert attributes["chi_square_acquired"] == [None]
        assert attributes["network_evaluations"] == 1 + 2 * 2 + REFINEMENT

    def test_a_fully_sampled_scan_can_be_checked(self, prior):
        scan = simulate_scan(phantom_volume(1, (64, 64), seed=2), coils=4, noise_std=0.05)
        assert Reconstructor(scan, prior, Settings(samples=2, steps=2)).check.parts


class TestFieldOfViewSmallerThanTheObject:
    """Sets of coil maps: the phantom has 45 columns."""

    @staticmethod
    def scan(slices=1, width=37):
        full = simulate_scan(phantom_volume(slices, (64, 64), seed=2), coils=6, noise_std=0.0)
        mask = MaskPattern("random", 2).sample((64, width), torch.Generator().manual_seed(1))
        return wrap(full, width, mask, 0.01)

    @pytest.mark.parametrize("method", [method for method in METHODS if method != "adps"])
    def test_every_method(self, prior, method):
        rec = reconstruct(self.scan(), prior, method=method, keep_samples=True, keep_maps=True, **FEW)
        assert rec.attributes["map_sets"] == 2
        assert rec.mean.shape == (1, 64, 37)
        assert rec.sensitivity_maps.shape == (1, 6, 64, 2 * 37)
        if rec.samples is not None:
            assert rec.samples.shape == (1, 2, 64, 37)
            torch.testing.assert_close(rec.std, rec.samples.abs().std(1), rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize(("method", "gain"), [("sense", 2.0), ("l1-wavelet", 2.0), ("mmse", 2.0)])
    def test_two_sets_mend_what_one_cannot(self, prior, method, gain, monkeypatch):
        scan = self.scan()
        two = psnr(scan.target, reconstruct(scan, prior, method=method, **FEW).magnitude)
        monkeypatch.setattr("mri_ambient.recon.pipeline.map_sets", lambda *arguments: 1)
        one = reconstruct(scan, prior, method=method, **FEW)
        assert one.attributes["map_sets"] == 1
        assert two > psnr(scan.target, one.magnitude) + gain

    def test_the_result_is_the_root_sum_of_squares(self):
        scan = self.scan()
        item = prepare_slice(scan, 0, calibrate(scan), sets=2)
        images = item.operator.apart(cg_sense(item.kspace, item.operator, item.noise_std)) * item.scale
        rec = reconstruct(scan, method="sense", **FEW)
        torch.testing.assert_close(rec.magnitude[0], images.abs().square().sum(0).sqrt())
        torch.testing.assert_close(rec.mean[0] / rec.magnitude[0], images[0] / images[0].abs(), equal_nan=True)
        assert images[1].abs().max() > 0.1 * images[0].abs().max()

    def test_evaluations_are_counted_for_each_set(self, prior):
        attributes = reconstruct(self.scan(2), prior, **{**FEW, "calibrate": True}).attributes
        assert attributes["network_evaluations"] == 2 * 2 * (1 + 2 * 2 + REFINEMENT + 1 + 4 * 2 + REFINEMENT)
        assert attributes["chi_square_held_out_slices"].keys() == {"0", "1"}

    def test_an_ordinary_scan_has_one_set(self, prior):
        assert reconstruct(phantom(slices=1), prior, method="sense", **FEW).attributes["map_sets"] == 1

    def test_anatomy_with_the_shipped_prior(self, data_dir, monkeypatch):
        from mri_ambient.volumes import load_volume

        volume = load_volume(data_dir / "open_ms" / "patient12" / "study1_T1W.nii.gz")
        full = simulate_scan(volume, matrix=128, noise_std=0.0, slices=[24])
        width = 67  # of 81 columns with signal
        mask = MaskPattern("random", 2).sample((128, width), torch.Generator().manual_seed(7))
        scan = wrap(full, width, mask, 0.02)
        settings = {"samples": 1, "steps": 6, "device": "cpu", "calibrate": False}
        two = reconstruct(scan, **settings)
        monkeypatch.setattr("mri_ambient.recon.pipeline.map_sets", lambda *arguments: 1)
        one = reconstruct(scan, **settings)
        assert psnr(scan.target, two.magnitude) > psnr(scan.target, one.magnitude) + 4
        assert two.attributes["chi_square_acquired"][0] < one.attributes["chi_square_acquired"][0] / 1.2


def test_memory_that_runs_out_changes_nothing_but_the_batch(prior, monkeypatch):
    scan = phantom()
    settings = {**FEW, "samples": 5, "keep_samples": True}
    expected = reconstruct(scan, prior, **settings)
    batches, plain = [], PosteriorDenoiser.draw

    def limited(self, noisy, sigma, generators):
        batches.append(len(noisy))
        result = plain(self, noisy, sigma, generators)
        if len(noisy) > 2 and sigma < 0.5:  # after some random numbers were used
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return result

    monkeypatch.setattr(PosteriorDenoiser, "draw", limited)
    found = reconstruct(scan, prior, **settings)
    assert batches == [5, 5, 2, 2, 2, 2, 1, 1, 2, 2, 2, 2, 1, 1]  # the second slice starts with what fitted
    torch.testing.assert_close(found.samples, expected.samples, rtol=1e-3, atol=1e-3)  # batches round differently
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-3, atol=1e-3)
    assert found.attributes["network_evaluations"] == expected.attributes["network_evaluations"]


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
    settings = {"samples": 2, "steps": 8, "device": "cpu", "calibrate": False}
    quality = {
        m: psnr(scan.target, reconstruct(scan, method=m, **settings).magnitude) for m in ("sense", "mmse", "posterior")
    }
    assert quality["mmse"] > quality["sense"] + 0.5
    assert quality["posterior"] > quality["sense"] + 0.5


@pytest.mark.parametrize(("samples", "level"), [(3, 0.5), (8, 0.9)])
def test_intervals_cover_what_they_promise(samples, level):
    """Gaussian errors; mean and standard deviation are those of a few samples, and uncertain."""
    generator = torch.Generator().manual_seed(0)
    truth, *drawn = 10 + torch.randn(1 + samples, 1, 200, 200, generator=generator)
    drawn = torch.stack(drawn)
    rec = Reconstruction(drawn.mean(0), drawn.std(0), attributes={"samples_drawn": samples})
    lower, upper = rec.interval(level)
    assert ((lower < truth) & (truth < upper)).float().mean() == pytest.approx(level, abs=0.01)


def test_intervals_need_samples_and_a_level():
    image = torch.ones(1, 4, 4)
    for rec, level in (
        (Reconstruction(image), 0.9),
        (Reconstruction(image, image, attributes={"samples_drawn": 1}), 0.9),
        (Reconstruction(image, image, attributes={"samples_drawn": 4}), 1.0),
    ):
        with pytest.raises(ValueError, match=r"standard deviation|level"):
            rec.interval(level)
    lower, _ = Reconstruction(image, image, attributes={"samples_drawn": 4}).interval()
    assert lower.min() == 0
