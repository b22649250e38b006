"""EM distillation: resumable laps that never see a reference, and the fixed point on Gaussian images."""

import json

import h5py
import numpy as np
import pytest
import torch
from gaussian_world import Linear, World, assert_minimiser, make_batch, white

import mri_ambient as ma
from mri_ambient.config import TrainConfig
from mri_ambient.dataset import PreparedSlices, Record, save_array
from mri_ambient.denoiser import PRESETS, Denoiser, DenoiserConfig
from mri_ambient.errors import InputError
from mri_ambient.methods import objective_of
from mri_ambient.objectives.supervised import Supervised
from mri_ambient.operators import MaskPattern, Sense, ifft1c
from mri_ambient.phantoms import phantom_volume
from mri_ambient.prior import Prior, load_prior, save_prior
from mri_ambient.recon import em
from mri_ambient.reporter import Silent
from mri_ambient.scan import write_scan
from mri_ambient.simulate import simulate_scan
from mri_ambient.streams import stream
from mri_ambient.training import train

SMALLEST = DenoiserConfig(channels=(4, 8), embedding=8)
SETTINGS = {
    "preset": "tiny", "batch": 2, "patch": 16, "strip": 16, "images": 4, "accel": 2, "device": "cpu",
    "precision": "fp32", "method": "em", "laps": 2,
}  # fmt: skip


@pytest.fixture(autouse=True)
def smallest_network(monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny", SMALLEST)


@pytest.fixture(scope="module")
def init(tmp_path_factory):
    """A prior that nobody trained."""
    path = tmp_path_factory.mktemp("init") / "init.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_prior(path, Denoiser(SMALLEST), {"method": "ambient"})
    return path


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """A fully sampled scan of two slices, and the lines of each that training will not use."""
    path = tmp_path_factory.mktemp("scan") / "scan.h5"
    write_scan(simulate_scan(phantom_volume(2, (32, 36), seed=0), coils=2, noise_std=0.02), path)
    masks = [MaskPattern("random", 2).sample((32, 36), stream(0, "mask", 0, i)) for i in range(2)]
    return path, [~mask for mask in masks]


@pytest.fixture(scope="module")
def whole(scan, init, tmp_path_factory):
    """A run of two laps that nothing interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "tiny", SMALLEST)
        return ma.train([scan[0]], out=tmp_path_factory.mktemp("whole"), init=str(init), **SETTINGS)


def weights(run):
    return load_prior(run.folder).denoiser.state_dict()


def assert_same(first, second):
    for (name, a), b in zip(weights(first).items(), weights(second).items(), strict=True):
        torch.testing.assert_close(a, b[1], rtol=0, atol=0, msg=name)


class TestRun:
    def test_the_last_laps_prior_is_the_result_and_names_its_origin(self, whole, init):
        card = whole.card
        assert (card["method"], card["laps"], card["slices"], card["seed"]) == ("em", 2, 2, 0)
        assert (card["init"], card["init_hash"]) == ("init.safetensors", load_prior(init).hash)
        assert len(card["denoiser_error"]) > 5
        last = whole.folder / "lap-2" / "prior.safetensors"
        assert whole.prior.read_bytes() == last.read_bytes()
        assert last.read_bytes() != (whole.folder / "lap-1" / "prior.safetensors").read_bytes()

    def test_every_lap_draws_anew_and_from_the_lap_before(self, whole, init, scan):
        config = TrainConfig.from_json((whole.folder / "config.json").read_text())
        marker = json.loads((whole.folder / "data" / "00000.json").read_text())
        records = [Record.from_json(values) for values in marker["records"]]
        data = PreparedSlices(whole.folder / "data", records)
        for lap, prior in ((1, load_prior(init)), (2, load_prior(whole.folder / "lap-1"))):
            for record in records:
                expected = em.draw(prior, data, record, stream(config.seed, "em", lap, record.name))
                drawn = np.load(whole.folder / f"lap-{lap}" / "draws" / f"{record.name}.npy")
                torch.testing.assert_close(torch.from_numpy(drawn), expected, rtol=0, atol=0)

    @pytest.mark.parametrize(("stage", "done"), [("lap 1 of 2", 1), ("training", 2), ("lap 2 of 2", 1)])
    def test_a_killed_run_continues_as_if_nothing_had_happened(
        self, scan, init, whole, tmp_path, monkeypatch, stage, done
    ):
        class Killer(Silent):
            def stage(self, text, number, total):
                if stage in text and number == done:
                    raise KeyboardInterrupt

        words = {"out": tmp_path, "init": str(init), **SETTINGS}
        with pytest.raises(KeyboardInterrupt):
            ma.train([scan[0]], reporter=Killer(), **words)
        assert not (tmp_path / "prior.safetensors").exists()
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("draws/*.npy")}
        assert before
        resumed = ma.train([scan[0]], **words)
        assert all(path.stat().st_mtime_ns == time for path, time in before.items())
        assert_same(whole, resumed)
        monkeypatch.setattr(em, "run_lap", None)  # a finished run has nothing to do
        assert_same(whole, ma.train([scan[0]], **words))

    def test_lines_that_were_not_acquired_are_never_read(self, scan, init, whole, tmp_path):
        path, missing = scan
        other = tmp_path / path.name
        other.write_bytes(path.read_bytes())
        with h5py.File(other, "r+") as file:
            kspace = file["kspace"][...]
            for i, lines in enumerate(missing):
                kspace[i][..., lines.numpy()] *= 100j
            file["kspace"][...] = kspace
        assert_same(whole, ma.train([other], out=tmp_path / "run", init=str(init), **SETTINGS))

    def test_a_changed_measurement_changes_the_prior(self, scan, init, whole, tmp_path):
        path, missing = scan
        other = tmp_path / path.name
        other.write_bytes(path.read_bytes())
        with h5py.File(other, "r+") as file:
            kspace = file["kspace"][...]
            kspace[0][..., ~missing[0].numpy()] *= 1.5
            file["kspace"][...] = kspace
        with pytest.raises(AssertionError):
            assert_same(whole, ma.train([other], out=tmp_path / "run", init=str(init), **SETTINGS))


class TestRefusals:
    def prior(self, folder, card, network=None):
        save_prior(folder / "p.safetensors", network or Denoiser(SMALLEST), card)
        return str(folder / "p.safetensors")

    def test_no_prior_or_laps_elsewhere(self, scan, tmp_path):
        with pytest.raises(InputError, match="--init"):
            ma.train([scan[0]], out=tmp_path / "run", method="em")
        with pytest.raises(InputError, match="no laps"):
            ma.train([scan[0]], out=tmp_path / "run", method="ambient", laps=1)
        with pytest.raises(InputError, match="laps must lie"):
            ma.train([scan[0]], out=tmp_path / "run", method="em", init="brain", laps=0)
        assert list(tmp_path.iterdir()) == []

    def test_priors_that_are_no_denoisers_of_images(self, scan, tmp_path):
        view = self.prior(tmp_path, {"method": "bootstrap", "view": {"kind": "whole"}})
        with pytest.raises(InputError, match="does not hold a denoiser of images"):
            ma.train([scan[0]], out=tmp_path / "run", init=view, **SETTINGS)
        from mri_ambient.unrolled import Unrolled, UnrolledConfig

        ssdu = self.prior(tmp_path, {"method": "ssdu"}, Unrolled(UnrolledConfig()))
        with pytest.raises(InputError, match=r"method ssdu.* --method em"):
            ma.train([scan[0]], out=tmp_path / "run", init=ssdu, **SETTINGS)
        assert not (tmp_path / "run").exists()

    def test_a_prior_of_another_size_names_the_preset_that_fits(self, scan, tmp_path):
        with pytest.raises(InputError, match="use --preset tiny"):
            ma.train([scan[0]], out=tmp_path / "run", init=self.prior(tmp_path, {}), **{**SETTINGS, "preset": "small"})
        assert not (tmp_path / "run").exists()

    def test_a_prior_that_draws_nonsense(self, scan, tmp_path):
        broken = Denoiser(SMALLEST)
        with torch.no_grad():
            next(broken.parameters()).fill_(float("nan"))
        with pytest.raises(InputError, match="not finite"):
            ma.train([scan[0]], out=tmp_path / "run", init=self.prior(tmp_path, {}, broken), **SETTINGS)
        assert not list(tmp_path.rglob("draws/*.npy"))

    def test_the_loop_below_names_the_function_above(self, scan, tmp_path, init):
        with pytest.raises(InputError, match=r"mri_ambient\.train"):
            train([scan[0]], out=tmp_path / "run", init=str(init), **SETTINGS)


SPREAD, NOISE = 0.25, 0.1


class White(torch.nn.Module):
    """The exact denoiser of white Gaussian images, whose error is that of a prior without a table."""

    config = DenoiserConfig(sigma_data=SPREAD)
    device = torch.device("cpu")

    def forward(self, z, sigma, operator=None):
        return z * (SPREAD**2 / (SPREAD**2 + sigma**2))


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """R = 2 scans of white Gaussian images, and the images."""
    folder = tmp_path_factory.mktemp("archive")
    shape, generator = (24, 24), torch.Generator().manual_seed(0)
    world, records, images = World(shape), [], []
    for i in range(30):
        image = SPREAD * white((1, *shape), generator)
        batch = make_batch(world, 1, generator, noise_std=NOISE, image=image)
        name = f"{i}"
        save_array(folder / f"{name}_kspace.npy", ifft1c(batch.kspace[0], dim=-2).movedim(0, 1))
        save_array(folder / f"{name}_maps.npy", batch.sensitivity_maps[0].movedim(0, 1))
        save_array(folder / f"{name}_mask.npy", batch.mask[0])
        records.append(Record(name, name, (2, *shape), NOISE, True, 4, True, 2.0))
        images.append(image[0])
    return PreparedSlices(folder, records), torch.stack(images)


def drawn(archive, lap=1):
    data, _ = archive
    prior = Prior(White(), {}, "white", "")
    return torch.stack([em.draw(prior, data, r, stream(0, "em", lap, r.name)) for r in data.records])


def m_step(images):
    """Losses of the M-step, one an image, as functions of a factor on the true prior's denoiser at high noise levels.

    At low ones every denoiser is close to the identity.
    """
    objective = objective_of(TrainConfig(method="em", init="brain"))
    assert isinstance(objective, Supervised)

    def shrunk(z, sigma, operator):
        level = sigma[:, None, None]
        return z * (SPREAD**2 / (SPREAD**2 + level**2)) * (level > SPREAD / 2)

    def low(z, sigma, operator):
        level = sigma[:, None, None]
        return z * (SPREAD**2 / (SPREAD**2 + level**2)) * (level <= SPREAD / 2)

    def loss(seed):
        copies = images[seed][None].expand(16, -1, -1)
        return lambda theta: objective.denoising(
            Linear([shrunk, low], theta, SPREAD), copies, torch.Generator().manual_seed(seed)
        )

    return [loss(seed) for seed in range(len(images))]


@pytest.fixture
def exact_error(monkeypatch):
    """The denoiser's error is known here, and needs no allowance."""
    for name in ("ERROR_FACTOR", "SPREAD_FACTOR"):
        monkeypatch.setattr(f"mri_ambient.prior.{name}", 1.0)


class TestFixedPoint:
    """With the true prior, a lap changes nothing."""

    def test_on_white_images_with_the_code_that_draws(self, archive, exact_error):
        images = drawn(archive)
        assert_minimiser(m_step(images), [1.0, 1.0], precision=0.02)
        assert float((images - drawn(archive, 2)).abs().mean()) > 0.1  # draws, not a point estimate

    def test_draws_that_are_too_similar_fail(self, archive, exact_error):
        means = torch.stack([drawn(archive, lap) for lap in range(1, 4)]).mean(0)
        with pytest.raises(AssertionError, match="not"):
            assert_minimiser(m_step(means), [1.0, 1.0], precision=0.02)

    @pytest.mark.parametrize("means", [False, True])
    def test_on_coloured_images_with_closed_form_draws(self, means):
        world, generator = World(), torch.Generator().manual_seed(0)
        batch = make_batch(world, 4000, generator, coils=2)
        operator = Sense(batch.sensitivity_maps, batch.mask)

        def mean(kspace):
            return world.mmse(operator.adjoint(kspace), batch.noise_std, operator)

        other = make_batch(world, 4000, generator, coils=2).image  # Matheron's rule: prior draw + gain * (y - its y)
        simulated = operator.forward(other) + 0.3 * white(operator.kspace_shape, generator)
        draws = mean(batch.kspace) if means else other + mean(batch.kspace) - mean(simulated)
        features = [world.mmse, lambda z, s, o: z / (1 + s[:, None, None] ** 2)]
        objective = Supervised()
        losses = [
            lambda theta, seed=seed: objective.denoising(
                Linear(features, theta),
                draws[100 * seed : 100 * seed + 100],
                torch.Generator().manual_seed(seed),
            )
            for seed in range(40)
        ]
        if means:
            with pytest.raises(AssertionError, match="not"):
                assert_minimiser(losses, [1.0, 0.0])
        else:
            assert_minimiser(losses, [1.0, 0.0])


def test_draws_play_the_part_of_references(archive, tmp_path):
    data, _ = archive
    draws = em.Draws(data, tmp_path)
    for number, record in enumerate(data.records):
        save_array(draws.image_file(record), torch.full(record.shape[1:], number + 1, dtype=torch.complex64))
    batch = draws.batch(4, 16, torch.Generator().manual_seed(0), augment=False)
    assert set(batch.image.real.flatten().tolist()) <= set(range(1, 31))
    assert len(set(batch.image.real.flatten().tolist())) > 1
    assert draws.array(data.records[0], "maps").shape == (24, 2, 24)
