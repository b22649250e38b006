"""Training end to end on tiny scans: what is written, what is resumed, what is refused."""

import json
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import torch

import mri_ambient as ma
from mri_ambient import training, training_data
from mri_ambient.config import TrainConfig
from mri_ambient.dataset import PreparedSlices
from mri_ambient.denoiser import PRESETS, DenoiserConfig
from mri_ambient.errors import InputError
from mri_ambient.methods import check_data
from mri_ambient.operators import MaskPattern, Sense
from mri_ambient.phantoms import phantom_volume
from mri_ambient.preparation import find_sources
from mri_ambient.prior import load_prior
from mri_ambient.recon import reconstruct
from mri_ambient.reporter import Silent
from mri_ambient.run_state import choose_device, new_state
from mri_ambient.scan import Scan, load_scan, write_scan
from mri_ambient.simulate import simulate_scan
from mri_ambient.training import learning_rate, train
from mri_ambient.training_data import begin, check_resumable, load_data, locked
from mri_ambient.validation import validate

SETTINGS = {"preset": "tiny", "batch": 2, "strip": 16, "images": 12, "accel": 2, "device": "cpu", "precision": "fp32"}


@pytest.fixture(autouse=True)
def smallest_network(monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny", DenoiserConfig(channels=(4, 8), embedding=8))


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Fully sampled k-space of two patients."""
    folder = tmp_path_factory.mktemp("scans")
    for i in range(2):
        volume = phantom_volume(2, (48, 48), seed=i)
        write_scan(simulate_scan(volume, coils=3, noise_std=0.02, name=f"scan{i}"), folder / f"scan{i}.h5")
    return folder


def weights(folder):
    return load_prior(folder).denoiser.state_dict()


def test_a_run_leaves_a_prior_with_its_card_metrics_and_configuration(scans, tmp_path):
    run = train([scans], out=tmp_path / "run", **SETTINGS, notes={"data": "phantoms"})
    prior = load_prior(run.folder)
    assert prior.card["method"] == "ambient"
    assert prior.card["slices"] == 4
    assert prior.card["data"] == "phantoms"
    assert 0 < prior.error.rms(0.1) < 0.25
    assert TrainConfig.from_json((run.folder / "config.json").read_text()).accel == (2.0,)
    entries = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(e["loss"]) for e in entries if "loss" in e)


@pytest.mark.parametrize("method", ["ambient", "supervised"])
def test_a_killed_run_continues_as_if_nothing_had_happened(scans, tmp_path, method):
    whole = train([scans], out=tmp_path / "whole", method=method, **SETTINGS)

    class Killer(Silent):
        def stage(self, text, done, total):
            if text == "training" and done >= 6:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train([scans], out=tmp_path / "killed", method=method, reporter=Killer(), **SETTINGS)
    assert not (tmp_path / "killed" / "prior.safetensors").exists()
    resumed = train([scans], out=tmp_path / "killed", method=method, **SETTINGS)
    for (name, a), b in zip(weights(whole.folder).items(), weights(resumed.folder).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("damage", ["empty", "cut", "no counters"])
def test_a_damaged_state_says_what_to_do(scans, tmp_path, damage):
    run = train([scans], out=tmp_path / "run", **SETTINGS)
    path = run.folder / "state.safetensors"
    if damage == "no counters":
        path.write_bytes(run.prior.read_bytes())
    else:
        path.write_bytes(path.read_bytes()[: 0 if damage == "empty" else -100])
    damaged = path.read_bytes()
    with pytest.raises(InputError, match=rf"state\.safetensors is damaged .*: remove {run.folder} to begin it anew"):
        train([scans], out=run.folder, **SETTINGS)
    assert path.read_bytes() == damaged


HOLD = """
import sys
from pathlib import Path
from mri_ambient.training_data import locked

with locked(Path(sys.argv[1])):
    print("inside", flush=True)
    sys.stdin.read()
"""


class TestLock:
    @pytest.fixture(autouse=True)
    def locks(self):
        pytest.importorskip("fcntl", reason="this system cannot lock files")

    @pytest.fixture
    def other(self, tmp_path):
        """Another process that trains in the folder run."""
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, tmp_path / "run"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdout.readline() == b"inside\n"
        yield process
        process.kill()
        process.communicate()

    def test_a_second_process_is_refused_until_the_first_is_gone(self, scans, tmp_path, other):
        with pytest.raises(InputError, match=r"Another process is training in .*run: wait .* choose another --out"):
            train([scans], out=tmp_path / "run", **SETTINGS)
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
        other.kill()
        other.communicate()
        train([scans], out=tmp_path / "run", **SETTINGS)

    @pytest.mark.parametrize("method", ["ambient", "em"])
    def test_it_is_held_from_the_beginning_to_the_end_and_not_longer(self, scans, tmp_path, method):
        settings, refused = {**SETTINGS, "method": method}, []
        if method == "em":
            settings["init"] = str(train([scans], out=tmp_path / "first", **SETTINGS).folder)

        class Intruder(Silent):
            def stage(self, text, done, total):
                with pytest.raises(InputError, match="Another process"), locked(tmp_path / "run"):
                    pass
                refused.append(text)

        ma.train([scans], out=tmp_path / "run", reporter=Intruder(), **settings)
        assert {"preparing scans", "training"} <= set(refused)
        with locked(tmp_path / "run"):
            pass

    def test_a_failure_lets_go_of_it(self, scans, tmp_path):
        config = TrainConfig(preset="tiny", accel=2)
        check_resumable(tmp_path / "run", replace(config, seed=1))
        with ExitStack() as held, pytest.raises(InputError, match="other settings"):
            begin([scans], [], config, tmp_path / "run", Silent(), held)
        with locked(tmp_path / "run"):
            pass

    def test_clears_what_a_killed_process_left(self, scans, tmp_path):
        (tmp_path / "run" / "data").mkdir(parents=True)
        left = tmp_path / "run" / "data" / ".0123.unfinished"
        left.touch()
        with locked(tmp_path / "run"):
            assert not left.exists()


def test_another_seed_gives_another_prior(scans, tmp_path):
    first = train([scans], out=tmp_path / "a", **SETTINGS)
    second = train([scans], out=tmp_path / "b", seed=1, **SETTINGS)
    assert any(
        not torch.equal(a, b)
        for a, b in zip(weights(first.folder).values(), weights(second.folder).values(), strict=True)
    )


def test_a_run_starts_from_a_prior(scans, tmp_path):
    first = train([scans], out=tmp_path / "a", **SETTINGS)
    state = new_state(TrainConfig(preset="tiny", init=str(first.folder)), torch.device("cpu"), torch.float32)
    for a, b in zip(weights(first.folder).values(), state.denoiser.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", ["ambient", "supervised", "gsure", "tweedie"])
def test_fine_tuning_that_learns_nothing_leaves_the_prior_as_it_was(scans, tmp_path, monkeypatch, method):
    first = train([scans], out=tmp_path / "first", **SETTINGS)
    monkeypatch.setattr(training, "learning_rate", lambda step, steps, peak: 0.0)
    tuned = train([scans], out=tmp_path / "tuned", init=str(first.folder), method=method, **SETTINGS)
    for (name, a), b in zip(weights(first.folder).items(), weights(tuned.folder).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)
    assert (tuned.card["init"], tuned.card["init_hash"]) == ("first", load_prior(first.folder).hash)
    assert "init" not in first.card


def test_fine_tuning_learns_and_remembers_its_origin_when_it_is_resumed(scans, tmp_path):
    first = train([scans], out=tmp_path / "first", **SETTINGS)
    origin = load_prior(first.folder).hash

    class Killer(Silent):
        def stage(self, text, done, total):
            if text == "training" and done >= 6:
                raise KeyboardInterrupt

    words = {"out": tmp_path / "tuned", "init": str(first.folder), **SETTINGS}
    with pytest.raises(KeyboardInterrupt):
        train([scans], reporter=Killer(), **words)
    train([scans], out=tmp_path / "other", seed=5, **SETTINGS).prior.replace(first.prior)
    tuned = train([scans], **words)
    assert tuned.card["init_hash"] == origin != load_prior(tuned.folder).hash


def test_steps_that_are_not_finite_change_nothing_and_are_counted():
    config = TrainConfig(preset="tiny")
    state = new_state(config, torch.device("cpu"), torch.float32)
    before = {k: v.clone() for k, v in state.denoiser.state_dict().items()}

    class Broken:
        def loss(self, denoiser, batch, generator):
            return sum(p.sum() for p in denoiser.parameters()) * float("nan")

    training.train_step(config, state, Broken(), None)
    assert state.skipped == 1
    assert state.step == 1
    assert all(torch.equal(before[k], v) for k, v in state.denoiser.state_dict().items())


def test_validation_uses_other_patients(scans, tmp_path):
    seen = []

    class Listener(Silent):
        def say(self, text):
            seen.append(text)

    train([scans / "scan0.h5"], validation=[scans / "scan1.h5"], out=tmp_path / "run", reporter=Listener(), **SETTINGS)
    assert any("held-out error" in text for text in seen)
    assert (tmp_path / "run" / "panel.png").stat().st_size > 0


def test_the_heldout_error_finds_a_bad_network(scans, tmp_path):
    config = TrainConfig(**{k: v for k, v in SETTINGS.items() if k not in ("device", "precision")})
    data, _ = load_data([scans], [], config, tmp_path, Silent())
    state = new_state(config, torch.device("cpu"), torch.float32)
    good = validate(state.average, data, config)
    assert good == validate(state.average, data, config)
    with torch.no_grad():
        state.average.network.head.bias += 20.0
    assert validate(state.average, data, config) > 1.5 * good


def test_prepared_strips_are_exact_smaller_scans(scans, tmp_path):
    config = TrainConfig(**{k: v for k, v in SETTINGS.items() if k not in ("device", "precision")}, method="supervised")
    data, _ = load_data([scans], [], config, tmp_path, Silent())
    for augment in (False, True):
        batch = data.batch(4, 16, torch.Generator().manual_seed(0), augment=augment)
        op = Sense(batch.sensitivity_maps, batch.mask)
        assert batch.kspace.shape == (4, 3, 16, 48)
        residual = op.forward(batch.image) - batch.kspace
        rms = residual.abs().square().sum((1, 2, 3)) / (2 * 3 * 16 * op.mask.sum((-2, -1)))
        ratio = rms.sqrt() / batch.noise_std
        assert bool((ratio > 0.7).all())  # the reference shares part of the noise
        assert bool((ratio < 2.0).all())  # noise, and what maps from the centre cannot explain


def test_patches_are_turned_crops_of_the_images(scans, tmp_path):
    config = TrainConfig(**{k: v for k, v in SETTINGS.items() if k not in ("device", "precision")}, method="supervised")
    data, _ = load_data([scans], [], config, tmp_path, Silent())
    data.records = data.records[:1]
    image = torch.from_numpy(data.array(data.records[0], "image").copy()).abs()
    crops = image.unfold(0, 9, 1).unfold(1, 9, 1).reshape(-1, 9, 9)
    turned = torch.cat([t for c in (crops, crops.mT) for t in (c, c.flip(-1), c.flip(-2), c.flip(-1, -2))])
    turned = turned.flatten(1) / turned.flatten(1).norm(dim=1, keepdim=True).clamp_min(1e-9)
    patches = data.patches(30, 9, torch.Generator().manual_seed(0)).abs().flatten(1)
    likeness = (patches / patches.norm(dim=1, keepdim=True)) @ turned.T
    assert bool((likeness.amax(1) > 1 - 1e-5).all())
    upright = likeness[:, : len(crops)].amax(1)
    assert bool((upright < 0.999).any())  # some were turned
    assert data.patches(1, 500, torch.Generator().manual_seed(0)).shape == (1, 48, 48)


def test_the_networks_own_reconstructions_replace_the_first_ones(scans, tmp_path):
    settings = {k: v for k, v in SETTINGS.items() if k not in ("device", "precision")}
    config = TrainConfig(**{**settings, "accel": 3})
    data, _ = load_data([scans], [], config, tmp_path, Silent())
    clean = load_data([scans], [], replace(config, method="supervised", accel=1), tmp_path / "clean", Silent())[0]
    record, truth = data.records[0], torch.from_numpy(clean.array(clean.records[0], "image").copy())

    class Oracle(torch.nn.Module):
        device = torch.device("cpu")
        config = DenoiserConfig()

        def forward(self, z, sigma, operator=None):
            return truth.expand_as(z)

    before = torch.from_numpy(data.array(record, "image").copy())
    after = training.improved(Oracle(), data, record, [(0.005, 0.001), (2.0, 0.01)])
    scale = float((after.conj() * truth).sum().abs() / truth.abs().square().sum())
    assert float((after / scale - truth).abs().square().mean()) < 0.3 * float((before - truth).abs().square().mean())


def test_probabilities_come_from_the_pattern_or_from_the_archive(scans, tmp_path):
    config = TrainConfig(**{k: v for k, v in SETTINGS.items() if k not in ("device", "precision")})
    data, _ = load_data([scans], [], config, tmp_path, Silent())
    record = data.records[0]
    assert bool((data.probability(record) == -1).all())  # a fixed number of random lines: exact form
    padded = replace(record, padding=(3, 2))
    assert torch.nonzero(data.probability(padded)[0])[:, 0].tolist() == list(range(3, 46))
    by_pattern = PreparedSlices(data.folder, data.records, "equispaced")
    torch.testing.assert_close(by_pattern.probability(record).sum(), torch.tensor(24.0))
    counted = PreparedSlices(data.folder, [replace(r, retrospective=False) for r in data.records])
    masks = np.stack([data.array(r, "mask") for r in data.records])
    probability = counted.probability(counted.records[0])
    torch.testing.assert_close(probability, torch.from_numpy(masks.mean(0, dtype=np.float32)))


def test_scans_take_the_accelerations_in_turn(scans, tmp_path):
    settings = {k: v for k, v in SETTINGS.items() if k not in ("device", "precision")}
    config = TrainConfig(**{**settings, "accel": (2, 3), "mask": "bernoulli"})
    data, _ = load_data([scans], [], config, tmp_path, Silent())
    by_patient = {r.name[:5]: r.acceleration for r in data.records}
    assert list(by_patient.values()) == [(2.0, 3.0)[i % 2] for i in range(len(by_patient))]
    assert data.accelerations() == [2.0, 3.0]
    record = replace(data.records[0], retrospective=False)
    share = float(data.array(record, "mask").mean())
    assert PreparedSlices(data.folder, [record]).accelerations() == [round(1 / share, 1)]
    padded = replace(record, padding=(3, 2))
    assert PreparedSlices(data.folder, [padded]).accelerations() == [round((1 - 5 / record.shape[2]) / share, 1)]
    for record in data.records:
        assert np.mean(data.array(record, "mask")) == pytest.approx(1 / record.acceleration, abs=0.15)
        assert float(data.probability(record).mean()) == pytest.approx(1 / record.acceleration, rel=0.05)


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({"method": "ambient", "variant": "published"}, "posterior"),
        ({"method": "gsure"}, "posterior"),
        ({"method": "tweedie"}, "posterior"),
        ({"method": "ssdu"}, "mmse"),
        ({"method": "bootstrap", "variant": "clean", "views": "centre:7"}, "posterior"),
    ],
    ids=lambda v: v if isinstance(v, str) else v["method"],
)
def test_every_method_trains_a_prior_that_reconstructs(scans, tmp_path, settings, method):
    if "views" in settings:
        view = train([scans], out=tmp_path / "view", **{**SETTINGS, "method": "bootstrap", "view": settings["views"]})
        with pytest.raises(InputError, match="prior of a view"):
            reconstruct(load_scan(scans / "scan0.h5"), str(view.folder), samples=1, steps=1)
        settings = {**settings, "views": (str(view.folder),)}
    run = train([scans], out=tmp_path / "run", **{**SETTINGS, **settings})
    assert run.card["method"] == settings["method"]
    result = reconstruct(load_scan(scans / "scan0.h5"), str(run.folder), method=method, samples=1, steps=2)
    assert bool(torch.isfinite(result.mean.abs()).all())


def test_methods_refuse_data_that_break_their_assumptions(scans, tmp_path):
    config = TrainConfig(method="gsure", accel=2, mask="equispaced")
    data, _ = load_data([scans], [], config, tmp_path, Silent())
    check_data(config, data)
    data.records = [replace(r, noise_std=0.0) for r in data.records]
    with pytest.raises(InputError, match="noise level"):
        check_data(config, data)


@pytest.mark.parametrize(
    "change",
    [
        {"method": "bootstrap"},
        {"view": "whole"},
        {"variant": "clean"},
        {"method": "bootstrap", "view": "corner:3"},
        {"method": "bootstrap", "views": ("brain",)},
        {"method": "ssdu", "init": "brain"},
    ],
)
def test_settings_that_do_not_fit_the_method(scans, tmp_path, change):
    with pytest.raises(InputError):
        train([scans], out=tmp_path / "run", **{**SETTINGS, **change})


def test_learning_rate_warms_up_and_falls_to_zero():
    rates = [learning_rate(s, 1000, 1.0) for s in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] < 1e-4


@pytest.mark.parametrize(
    "change",
    [{"method": "magic"}, {"accel": 0.5}, {"accel": (4, 0.5)}, {"accel": ()},
     {"preset": "huge"}, {"mask": "spiral"}, {"images": 0}, {"precision": "fp8"},
     {"device": "tpu"}, {"init": "nowhere"}],
)  # fmt: skip
def test_unusable_settings(scans, tmp_path, change):
    with pytest.raises(InputError):
        train([scans], out=tmp_path / "run", **{**SETTINGS, **change})


def test_unusable_data_and_folders(scans, tmp_path):
    with pytest.raises(InputError, match="Nothing found"):
        train([tmp_path / "absent"], out=tmp_path / "run", **SETTINGS)
    assert not (tmp_path / "run").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="No k-space"):
        find_sources([tmp_path / "empty"])
    train([scans], out=tmp_path / "run2", **SETTINGS)
    with pytest.raises(InputError, match=r"other settings: accel 2(\.0)? \(now 3"):
        train([scans], out=tmp_path / "run2", **{**SETTINGS, "accel": 3})
    check_resumable(tmp_path / "run3", TrainConfig(method="bootstrap", views=("a", "b")))
    with pytest.raises(InputError, match=r"views a, b \(now a\)"):
        check_resumable(tmp_path / "run3", TrainConfig(method="bootstrap", views=("a",)))
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="Cannot write"):
        train([scans], out=tmp_path / "file" / "run", **SETTINGS)


def test_supervised_training_refuses_undersampled_scans(tmp_path):
    scan = simulate_scan(phantom_volume(1, (48, 48), seed=0), coils=2, pattern=MaskPattern("random", 2))
    write_scan(scan, tmp_path / "scan.h5")
    with pytest.raises(InputError, match="fully sampled"):
        train([tmp_path / "scan.h5"], out=tmp_path / "run", method="supervised", **SETTINGS)


def test_an_archive_with_one_mask_is_refused(tmp_path):
    scan = simulate_scan(phantom_volume(3, (48, 48), seed=0), coils=2, pattern=MaskPattern("equispaced", 2))
    write_scan(scan, tmp_path / "scan.h5")
    with pytest.raises(InputError, match="same lines"):
        train([tmp_path / "scan.h5"], out=tmp_path / "run", **SETTINGS)


def test_embedded_phantoms_train_without_data(tmp_path, monkeypatch):
    monkeypatch.setattr(training_data, "PHANTOMS", 1)
    monkeypatch.setattr(training_data, "PHANTOM_SLICES", 2)
    monkeypatch.setattr(training_data, "PHANTOM_SHAPE", (48, 48))
    assert train(out=tmp_path / "run", **SETTINGS).card["slices"] == 2


def test_scans_from_arrays_have_patients(tmp_path):
    kspace = torch.randn(1, 2, 32, 32, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    write_scan(Scan.from_arrays(kspace, patient="p7"), tmp_path / "x.h5")
    assert find_sources([str(tmp_path / "*.h5")]) == [tmp_path / "x.h5"]


@pytest.mark.parametrize("name", ["mps", "cpu:1", "cuda:99", "cuda:x", "gpu"])
def test_devices_that_are_not_there_are_refused(name):
    with pytest.raises(InputError, match=name):
        choose_device(name, "auto")
