"""The audit must find a prior that stores its training images, and must not accuse one that knows other heads."""

import json
import math
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from torch import nn

from mri_ambient.calibration import calibrate, prepare_slice
from mri_ambient.config import TrainConfig
from mri_ambient.dataset import reverse
from mri_ambient.denoiser import PRESETS, Denoiser
from mri_ambient.errors import InputError
from mri_ambient.operators import MaskPattern, center_crop, center_pad
from mri_ambient.phantoms import phantom_volume
from mri_ambient.preparation import Simulation, find_sources
from mri_ambient.prior import Prior, save_prior
from mri_ambient.recon import audit as module
from mri_ambient.recon.audit import (
    Slices,
    audit,
    chance_of,
    compare,
    feature,
    independent,
    isolation,
    ratio_interval,
    similarities,
)
from mri_ambient.reporter import Silent
from mri_ambient.scan import Scan, load_scan, write_scan
from mri_ambient.simulate import simulate_scan
from mri_ambient.training_data import load_data

SHAPE, SLICES = (48, 40), 4


class Stored(nn.Module):
    """The exact denoiser of a population that consists of some images: at low noise the nearest of them."""

    def __init__(self, images):
        super().__init__()
        self.config = SimpleNamespace(sigma_data=0.25)
        self.device = torch.device("cpu")
        self.images = images

    def forward(self, z, sigma, operator=None):
        sigma = torch.as_tensor(sigma, dtype=torch.float64).expand(len(z))
        distance = (z[:, None] - self.images).abs().double().square().sum((-2, -1))
        weights = torch.softmax(-distance / (2 * sigma[:, None] ** 2), dim=1).to(z.dtype)
        return torch.einsum("bn,nyx->byx", weights, self.images)


class White(Stored):
    """The linear denoiser of white images."""

    def forward(self, z, sigma, operator=None):
        sigma = torch.as_tensor(sigma).expand(len(z))[:, None, None]
        return z / (1 + (sigma / self.config.sigma_data) ** 2)


def write(folder, seeds, pattern=None):
    folder.mkdir()
    for seed in seeds:
        scan = simulate_scan(phantom_volume(SLICES, SHAPE, seed), coils=3, pattern=pattern, noise_std=0.01)
        write_scan(scan, folder / f"{seed}.h5")
    return folder


def images(folder):
    """All slices as they are known to be: combined coils, in prior units."""
    found = []
    for path in sorted(folder.glob("*.h5")):
        scan = load_scan(path)
        items = [prepare_slice(scan, i, calibrate(scan)) for i in range(SLICES)]
        found += [item.operator.adjoint(item.kspace) for item in items]
    return torch.stack(found)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Five patients in training, three held out, five others."""
    folder = tmp_path_factory.mktemp("scans")
    groups = {"training": range(10, 15), "heldout": range(20, 23), "others": range(30, 35)}
    return {name: write(folder / name, seeds) for name, seeds in groups.items()}


@pytest.fixture
def nifti_volume(tmp_path):
    """A volume of two 112 x 104 slices."""
    volume, path = phantom_volume(2, (112, 104), 6), tmp_path / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(volume.magnitude.transpose(2, 1, 0), volume.affine[:, [2, 1, 0, 3]]), path)
    return path


def prior(denoiser, **card):
    return Prior(denoiser, {"patients": 5, **card}, "test", "0" * 16)


def examine(scans, denoiser, **settings):
    return audit(prior(denoiser), [scans["training"]], [scans["heldout"]], count=12, **settings)


class TestVerdict:
    def test_a_prior_that_stores_its_training_images(self, scans):
        found = examine(scans, Stored(images(scans["training"])))
        assert found.memorises
        assert found.similarity.copies
        assert found.similarity.singled_out == 12
        assert found.similarity.samples_to_training == pytest.approx(1, abs=1e-3)
        assert found.similarity.samples_to_training > found.similarity.heldout_to_training + 0.01
        for level in found.recovery:
            assert level.known
            assert level.training < 0.1 < level.heldout
            assert level.high < 0.5
        assert found.notes == ()

    def test_a_prior_that_knows_other_heads(self, scans):
        found = examine(scans, Stored(images(scans["others"])))
        assert not found.memorises
        assert found.similarity.plausible  # as good as real heads, which is what they are
        assert found.similarity.probability > 0.05
        assert all(0.7 < level.ratio < 1.4 for level in found.recovery)
        assert all(level.low < 1 < level.high for level in found.recovery)

    def test_a_linear_prior(self, scans):
        found = examine(scans, White(torch.empty(0)))
        assert not found.memorises
        assert not found.similarity.plausible
        assert any("resemble no real slice" in note for note in found.notes)
        for level in found.recovery:
            image = images(scans["heldout"])
            shrink = 1 / (1 + (level.sigma / 0.25) ** 2)
            bias = (1 - shrink) ** 2 + 2 * (shrink * level.sigma) ** 2 / image.abs().square().mean((-2, -1))
            assert level.heldout == pytest.approx(float(bias.sqrt().median()), rel=0.03)

    def test_mirrored_copies_are_copies(self, scans, monkeypatch):
        mirrored = Stored(reverse(images(scans["training"]), -1))
        assert examine(scans, mirrored).similarity.singled_out == 12
        monkeypatch.setattr(module, "reverse", lambda x, dim: x)
        assert examine(scans, mirrored).similarity.singled_out < 12

    def test_swapped_sets_do_not_accuse(self, scans):
        """A prior that stores the held-out images restores those, and draws nothing of training."""
        found = examine(scans, Stored(images(scans["heldout"])))
        assert not found.memorises
        assert all(level.ratio > 3 for level in found.recovery)

    def test_the_seed_decides(self, scans):
        denoiser = White(torch.empty(0))
        first = examine(scans, denoiser)
        assert examine(scans, denoiser).as_dict() == first.as_dict()
        assert examine(scans, denoiser, seed=1).recovery != first.recovery


class TestSources:
    def test_undersampled_scans_are_reconstructed_and_it_is_said(self, scans, tmp_path):
        folder = write(tmp_path / "under", [40, 41], MaskPattern("random", 2, acs=12))
        found = audit(prior(White(torch.empty(0)), patients=2), [folder], [scans["heldout"]], count=1)
        assert found.training_slices == 2 * SLICES
        assert any("CG-SENSE" in note for note in found.notes)

    def test_volumes_are_seen_as_training_saw_them(self, nifti_volume, tmp_path):
        path = nifti_volume
        run = tmp_path / "run"
        run.mkdir()
        denoiser = Denoiser(PRESETS["tiny"])
        save_prior(run / "prior.safetensors", denoiser, {"seed": 3})
        (run / "config.json").write_text(TrainConfig(coils=2, matrices=(48, 40), seed=3).to_json())
        simulation = module._simulation(str(run), ())
        assert (simulation.coils, simulation.matrices) == (2, (48, 40))
        assert module._simulation(str(run), (32,)).matrices == (32,)
        seen = {}
        prepared = load_data(
            [path], [], TrainConfig(method="supervised", coils=2, matrices=(48,), seed=3, noise=0.0), run, Silent()
        )[0]
        look = module._Look(prior(denoiser, seed=3), module._simulation(str(run), ()), SHAPE, None, 0, Silent())
        for index, image in look._images(look._open(path, 0)):
            seen[index] = image
            trained = torch.from_numpy(np.array(prepared.array(prepared.records[index], "image")))
            alike = (trained.conj() * image).sum().abs() / (trained.norm() * image.norm())
            assert image.shape == (48, 48)
            assert float(alike) > 0.98  # in phase everywhere; maps of training are from the undersampled scan
            assert float(image.norm() / trained.norm()) == pytest.approx(1, rel=0.1)  # fewer centre lines, same rule
        assert len(seen) == 2

    def test_samples_have_the_most_frequent_size(self, scans, nifti_volume):
        none, two = module.Simulation(matrices=()), module.Simulation(matrices=(32, 36))
        volumes, scan = [nifti_volume] * 2, scans["training"] / "10.h5"
        assert module._common_shape([scan, *volumes], none) == (112, 104)
        assert module._common_shape([*volumes, scan, scan], two) == SHAPE
        assert module._common_shape(volumes, two) == (36, 36)

    def test_by_default_what_training_put_aside(self, tmp_path):
        folder = write(tmp_path / "all", range(50, 54))
        config = TrainConfig(method="supervised", seed=7)
        trained, put_aside = load_data([folder], [], config, tmp_path / "run", Silent())
        known = prior(White(torch.empty(0)), patients=3, seed=7)
        look = module._Look(known, module._simulation(known, ()), SHAPE, None, 0, Silent())
        everything = look.at(module.find_sources([folder]))
        training, heldout = module._split(everything, known.card)
        assert set(heldout.patients) == {record.patient for record in put_aside.records}
        assert set(training.patients) == {record.patient for record in trained.records}
        found = audit(known, [folder], count=1)
        assert (found.training_patients, found.heldout_patients) == (3, 1)
        assert found.recovery[0].low is None
        assert any("One patient" in note for note in found.notes)

    @pytest.mark.parametrize("card", [{"patients": 5}, {"patients": None}, {"patients": 3}])
    def test_no_guess_where_training_put_nothing_aside(self, scans, card):
        with pytest.raises(InputError, match="--heldout"):
            audit(prior(White(torch.empty(0)), **card), [scans["training"]])

    def test_doubtful_sets(self, scans, tmp_path):
        again = write(tmp_path / "again", [10])
        found = audit(prior(White(torch.empty(0)), patients=9), [scans["training"]], [again], count=1)
        assert any("phantom10" in note for note in found.notes)
        assert any("trained on 9 patients, but the data hold 5" in note for note in found.notes)

    def test_a_file_in_both_sets(self, scans):
        path = scans["training"] / "10.h5"
        with pytest.raises(InputError, match=r"10\.h5 is both"):
            audit(prior(White(torch.empty(0))), [scans["training"]], [path])

    def test_nothing_to_draw(self, scans):
        with pytest.raises(InputError, match="images"):
            audit(prior(White(torch.empty(0))), [scans["training"]], [scans["heldout"]], count=0)


class TestFeatures:
    image = torch.from_numpy(phantom_volume(1, (96, 80), 1).magnitude[0])

    def test_what_does_not_matter(self):
        plain = feature(self.image, (96, 80))
        assert float(plain.norm()) == pytest.approx(1, abs=1e-5)
        assert float(plain.sum()) == pytest.approx(0, abs=1e-4)
        turned = 7 * self.image * torch.polar(torch.ones(()), 5 * self.image)
        torch.testing.assert_close(feature(turned, (96, 80)), plain, atol=1e-5, rtol=0)
        torch.testing.assert_close(feature(center_pad(self.image, (120, 101)), (96, 80)), plain)
        larger = feature(self.image, (120, 101))
        torch.testing.assert_close(feature(center_pad(self.image, (120, 101)), (120, 101)), larger)

    def test_only_coarse_structure_counts(self):
        generator = torch.Generator().manual_seed(0)
        noise = 0.05 * torch.randn(96, 80, generator=generator)
        noisy, other = feature(self.image + noise, (96, 80)), feature(center_crop(self.image, (48, 40)), (96, 80))
        assert float((noisy * feature(self.image, (96, 80))).sum()) > 0.99
        assert float((other * feature(self.image, (96, 80))).sum()) < 0.9

    def test_similarity_is_the_largest_over_flips(self):
        references = torch.stack([feature(reverse(reverse(self.image, -2), -1), (96, 80)), -torch.ones(32, 32) / 32])
        found = similarities(feature(self.image, (96, 80))[None], references)
        torch.testing.assert_close(found, torch.tensor([[1.0, 0.0]]), atol=2e-3, rtol=0)


class TestStatistics:
    def test_isolation(self):
        patients = ["a", "b", "a", "c"]
        similarity = torch.tensor([[0.98, 0.5, 0.97, 0.92], [0.5, 0.6, 0.5, 0.6], [1.0, 0.0, 0.0, 0.5]])
        expected = [math.sqrt(0.02 / 0.08), 1.0, 0.0]  # the second slice of patient a is not another patient
        torch.testing.assert_close(isolation(similarity, patients), torch.tensor(expected), atol=1e-6, rtol=1e-5)
        single = isolation(similarity, ["a"] * 4)
        torch.testing.assert_close(single, torch.tensor([0.2, math.sqrt(0.8), 0.0]), atol=1e-6, rtol=1e-5)

    def test_chance_is_that_of_a_random_order(self):
        rng = np.random.default_rng(0)
        ranks = rng.random((20_000, 11)).argsort(1).argsort(1)  # six samples, then five held-out slices
        for smallest in range(4):
            found = ((ranks[:, :6] < ranks[:, 6:].min(1, keepdims=True)).sum(1) >= smallest).mean()
            assert chance_of(smallest, 6, 5) == pytest.approx(found, abs=0.012)
        assert chance_of(0, 6, 5) == 1

    def test_slices_of_a_patient_are_no_independent_witnesses(self):
        assert independent(["a"] * 100 + ["b"] * 3) == module.INDEPENDENT + 3
        assert chance_of(4, 16, 100) < module.CHANCE < chance_of(4, 16, independent(["a"] * 100))

    @pytest.mark.parametrize(("independent", "calibrated"), [(module.INDEPENDENT, True), (1000, False)])
    def test_false_alarms_are_rare_and_copies_are_found(self, monkeypatch, independent, calibrated):
        """New heads as samples, then the same with eight copies among sixteen."""
        monkeypatch.setattr(module, "INDEPENDENT", independent)
        generator = torch.Generator().manual_seed(0)
        basis = torch.randn(8, module.SIDE, module.SIDE, generator=generator)

        def heads(patients, slices=10):
            centre = torch.randn(patients, 1, 8, generator=generator)
            points = centre + 0.2 * torch.randn(patients, slices, 8, generator=generator)
            found = torch.einsum("psk,kyx->psyx", points, basis).flatten(0, 1)
            names = tuple(str(k) for k in range(patients) for _ in range(slices))
            return Slices(found / found.flatten(1).norm(dim=1)[:, None, None], names, torch.empty(0), 0)

        alarms, missed, repeats = 0, 0, 150
        for _ in range(repeats):
            training, heldout, samples = heads(8), heads(3), heads(16, 1).features
            alarms += compare(samples, training, heldout).copies
            samples[:8] = training.features[::10]
            missed += not compare(samples, training, heldout).copies
        assert (alarms <= 0.07 * repeats) is calibrated
        assert missed == 0

    @pytest.mark.parametrize("by_patient", [True, False])
    def test_interval_covers_where_patients_are_the_unit(self, by_patient, monkeypatch):
        """Errors differ between patients and hardly within: resampling slices would claim too much."""
        monkeypatch.setattr(module, "REPEATS", 300)
        rng = np.random.default_rng(1)
        hits, repeats = 0, 60
        for _ in range(repeats):
            groups = [[np.exp(rng.normal(0, 0.3) + rng.normal(0, 0.02, 6)) for _ in range(12)] for _ in range(2)]
            if not by_patient:
                groups = [[np.array([value]) for patient in group for value in patient] for group in groups]
            low, high = ratio_interval(*groups)
            hits += low < 1 < high
        assert (hits >= 0.88 * repeats) is by_patient


def test_the_result_is_plain_data(scans):
    found = examine(scans, White(torch.empty(0)))
    values = json.loads(json.dumps(found.as_dict()))
    assert values["memorises"] is False
    assert values["recovery"][1]["sigma"] == 1.0
    assert values["heldout_patients"] == 3


def test_files_of_one_name_are_the_patients_that_training_took_them_for(tmp_path):
    for number in range(2):
        (tmp_path / f"sub{number}").mkdir()
        full = simulate_scan(phantom_volume(1, SHAPE, number), coils=3, noise_std=0.01)
        write_scan(Scan.from_arrays(full.kspace, noise_std=0.01), tmp_path / f"sub{number}" / "scan.h5")
    look = module._Look(prior(White(torch.empty(0))), Simulation(), SHAPE, None, 0, Silent())
    found = look.at(find_sources([tmp_path])).patients
    config = TrainConfig(preset="tiny", method="supervised")
    trained, _ = load_data([tmp_path], [], config, tmp_path / "run", Silent())
    assert set(found) == {record.patient for record in trained.records} == {"sub0/scan", "sub1/scan"}
