"""mri-ambient train: runs, resumes, refuses, and shows what it would do."""

import json

import pytest
from cli_checks import files_in, one_line

from mri_ambient import training
from mri_ambient.config import TrainConfig
from mri_ambient.prior import load_prior


@pytest.fixture
def train(run, tmp_path):
    def invoke(*words, code=0):
        result = run("train", *words, "--preset", "tiny", "--out", tmp_path / "run", "--precision", "fp32")
        assert result.exit_code == code, result.output
        return result

    return invoke


@pytest.mark.parametrize("method", ["ambient", "supervised"])
def test_a_run_leaves_a_prior_its_settings_and_its_log(train, wide_scan, tmp_path, method):
    result = train(wide_scan, "--images", 16, "--method", method, "--accel", 2, "--seed", 3)
    folder = tmp_path / "run"
    assert f"mri-ambient recon SCAN --prior {folder}" in result.stdout
    prior = load_prior(folder)
    assert (prior.card["images"], prior.card["method"], prior.card["seed"]) == (16, method, 3)
    assert json.loads((folder / "config.json").read_text())["accel"] == [2]
    assert "loss" in json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])


def test_folder_is_named_after_method_and_acceleration(run, wide_scan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--method", "supervised", "--accel", 2.5, "--preset", "tiny", "--images", 8, "--quiet"]
    result = run("train", wide_scan, *words)
    assert (result.exit_code, result.output) == (0, "")
    assert (tmp_path / "runs" / "supervised-r2.5" / "prior.safetensors").exists()


def test_volumes_are_simulated_as_asked(train, nifti, tmp_path):
    words = ["--method", "supervised", "--images", 8, "--coils", 3, "--noise", 0.05]
    train(nifti, *words, "--matrix", 104, "--matrix", 100, "--validation", nifti)
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (settings["coils"], settings["noise"], settings["matrices"]) == (3, 0.05, [104, 100])
    prepared = json.loads((tmp_path / "run" / "data" / "00000.json").read_text())
    assert {tuple(record["shape"]) for record in prepared} == {(3, 104, 104)}
    assert "heldout_error" in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_an_interrupted_run_says_how_to_continue_and_does(train, wide_scan, tmp_path, monkeypatch):
    words = [wide_scan, "--method", "supervised", "--images", 24]
    plain, steps = training.train_step, []

    def interrupted(config, state, objective, batch):
        if state.step == 2:
            raise KeyboardInterrupt
        return plain(config, state, objective, batch)

    def counted(config, state, objective, batch):
        steps.append(state.step)
        return plain(config, state, objective, batch)

    monkeypatch.setattr(training, "train_step", interrupted)
    line = one_line(train(*words, code=130))
    assert line == f"Stopped; the same command continues the run in {tmp_path / 'run'}."
    monkeypatch.setattr(training, "train_step", counted)
    train(*words)
    assert steps == [2, 3]


@pytest.fixture
def begun(tmp_path):
    """A run that has hardly begun: it has its settings, and images=8, preset tiny."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(TrainConfig(preset="tiny", images=8).to_json())


def test_another_run_is_not_overwritten(train, wide_scan, begun):
    assert "seed 0 (now 1)" in one_line(train(wide_scan, "--images", 8, "--seed", 1, code=2))


class TestDryRun:
    def test_shows_everything_and_writes_nothing(self, train, scan, wide_scan, nifti, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        output = train(scan, nifti, "--validation", wide_scan, "--dry-run", "--images", 80, "--accel", 3).stdout
        settings, _, rest = output.partition("\n}\n")
        assert json.loads(settings + "}")["accel"] == [3]
        lines = dict(line.split(maxsplit=1) for line in rest.splitlines())
        assert lines["run"] == str(tmp_path / "run")
        assert lines["data"] == "2 sources: 1 k-space file, 1 volume to simulate scans from"
        assert lines["validation"].startswith("1 source: ")
        assert "parameters, cpu, float32" in lines["network"]
        assert lines["time"].startswith("14 steps of 6 images, about ")
        assert files_in(tmp_path) == []

    def test_phantoms(self, train):
        assert "built-in phantoms" in train("--dry-run", "--method", "supervised").stdout

    def test_recognises_a_run_that_it_would_continue(self, train, wide_scan, tmp_path, begun):
        words = [wide_scan, "--images", 8, "--dry-run"]
        assert "(continues)" in train(*words).stdout
        assert "other settings" in one_line(train(*words, "--seed", 1, code=2))
        assert files_in(tmp_path) == ["run", "run/config.json"]
