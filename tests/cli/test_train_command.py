"""mri-ambient train: runs, resumes, refuses, and shows what it would do."""

import json

import pytest
from cli_checks import files_in, one_line

from mri_ambient import training
from mri_ambient.cli.dry_run import print_plan
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
    result = train(nifti, *words, "--matrix", 104, "--matrix", 100, "--validation", nifti, "--json")
    found = json.loads(result.stdout)
    assert (found["prior"], found["card"]["images"]) == (str(tmp_path / "run" / "prior.safetensors"), 8)
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (settings["coils"], settings["noise"], settings["matrices"]) == (3, 0.05, [104, 100])
    prepared = json.loads((tmp_path / "run" / "data" / "00000.json").read_text())["records"]
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
        assert lines["first"].startswith(
            "head: 2 slices, 8 coils, 112 x 104, fully sampled, to be undersampled at R = 3 "
        )
        assert lines["first"].endswith("(random), noise 0.02")
        assert lines["time"].startswith("14 steps of 6 images, about ")
        assert " GB in all; on disk " in lines["memory"]
        assert files_in(tmp_path) == []

    def test_json_knows_the_data(self, train, scan, wide_scan, capsys):
        plan = json.loads(train(scan, "--dry-run", "--json", "--images", 80).stdout)
        assert plan["first"] == {
            **{"name": "scan", "slices": 2, "coils": 4, "matrix": [48, 40], "noise_std": 0.01},
            "acceleration": pytest.approx(2, rel=0.1),
        }
        assert plan["settings"] == json.loads(TrainConfig(preset="tiny", images=80).to_json())
        assert plan["training_seconds"] == pytest.approx(14 * plan["step_seconds"])
        assert plan["data"] == {"sources": 1, "kspace_files": 1, "volumes": 0}
        more = json.loads(train(scan, "--validation", wide_scan, "--dry-run", "--json", "--images", 80).stdout)
        assert more["disk_bytes"] == 2 * plan["disk_bytes"]  # twice as many slices
        assert 1e8 < plan["memory_bytes"] < 1e11
        print_plan(plan)
        assert "scan: 2 slices, 4 coils, 48 x 40, R = 2 as acquired, noise 0.01" in capsys.readouterr().out

    def test_quiet(self, train, scan):
        assert train(scan, "--dry-run", "--quiet").output == ""

    def test_phantoms(self, train):
        assert "built-in phantoms" in train("--dry-run", "--method", "supervised").stdout

    def test_recognises_a_run_that_it_would_continue(self, train, wide_scan, tmp_path, begun):
        words = [wide_scan, "--images", 8, "--dry-run"]
        assert "(continues)" in train(*words).stdout
        assert "other settings" in one_line(train(*words, "--seed", 1, code=2))
        assert files_in(tmp_path) == ["run", "run/config.json"]
