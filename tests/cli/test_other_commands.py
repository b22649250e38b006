"""mri-ambient simulate, inspect, evaluate, priors and demo."""

import json

import h5py
import numpy as np
import pytest

from mri_ambient.denoiser import PRESETS, Denoiser
from mri_ambient.errors import InputError
from mri_ambient.prior import load_prior, save_prior
from mri_ambient.recon.demo import run_demo
from mri_ambient.recon.result import load_reconstruction
from mri_ambient.recon.settings import Settings
from mri_ambient.scan import load_scan


class TestSimulate:
    def test_writes_a_scan_with_its_truth(self, run, nifti, tmp_path):
        words = ["--coils", 3, "--accel", 2, "--mask", "equispaced", "--noise", 0.05, "--matrix", 32, "--seed", 1]
        result = run("simulate", nifti, *words, "--out", tmp_path)
        assert result.exit_code == 0
        assert result.stdout == f"{tmp_path / 'head.h5'}: 2 slices, 3 coils, 32 x 32, R = 2\n"
        scan = load_scan(tmp_path / "head.h5")
        assert (scan.shape, scan.noise_std) == ((2, 3, 32, 32), 0.05)
        assert scan.acceleration == pytest.approx(2, rel=0.1)
        assert scan.target.shape == (2, 32, 32)

    def test_json(self, run, nifti, tmp_path):
        result = run("simulate", nifti, "--accel", 2, "--seed", 3, "--coils", 2, "--out", tmp_path, "--json")
        found = json.loads(result.stdout)
        scan = load_scan(found["file"])
        assert (found["slices"], found["coils"], *found["matrix"]) == scan.shape
        assert (found["acceleration"], found["noise_std"], found["seed"]) == (scan.acceleration, 0.02, 3)

    def test_fully_sampled_by_default(self, run, nifti, tmp_path):
        assert run("simulate", nifti, "--out", tmp_path, "--quiet").output == ""
        assert load_scan(tmp_path / "head.h5").acceleration == 1

    def test_help_says_what_is_sampled_by_default(self, run):
        output = run("simulate", "--help").stdout
        assert "fully sampled" in output
        assert "as acquired" not in output

    def test_seed(self, run, nifti, tmp_path):
        def kspace(seed):
            run("simulate", nifti, "--out", tmp_path, "--seed", seed)
            return load_scan(tmp_path / "head.h5").read(0).numpy()

        first = kspace(0)
        np.testing.assert_array_equal(kspace(0), first)
        assert np.abs(kspace(1) - first).max() > 0.1

    def test_not_a_volume(self, run, scan, tmp_path):
        result = run("simulate", scan, "--out", tmp_path / "out")
        assert result.exit_code == 2
        assert not (tmp_path / "out").exists()


class TestInspect:
    def test_text(self, run, scan):
        output = run("inspect", scan).stdout
        lines = output.splitlines()
        expected = {
            "slices": "2",
            "k-space": "48 x 40 (y x x), complex64",
            "mask": "lines, from the file",
            "noise": "0.01 per real component (from the file)",
            "target": "reconstruction_rss",
        }
        for title, text in expected.items():
            assert f"{title:<14}{text}" in lines
        assert output.endswith("problems      none\n")

    def test_problems(self, run, scan, tmp_path):
        with h5py.File(scan) as old, h5py.File(tmp_path / "a.h5", "w") as file:
            file["kspace"] = old["kspace"][()] * np.array([1, 0])[:, None, None, None]
        result = run("inspect", tmp_path / "a.h5")
        assert result.exit_code == 0
        assert "detected from zeros" in result.stdout
        assert "problem       Slices without any signal: 1 of 2.\n" in result.stdout
        assert "problems      none" not in result.stdout

    def test_estimated_noise(self, run, scan, tmp_path):
        with h5py.File(scan) as old, h5py.File(tmp_path / "a.h5", "w") as file:
            file["kspace"] = old["kspace"][()]
        assert "estimated from outer k-space" in run("inspect", tmp_path / "a.h5").stdout

    def test_json(self, run, scan):
        found = json.loads(run("inspect", scan, "--json").stdout)
        assert (found["slices"], found["coils"], found["problems"]) == (2, 4, [])


class TestEvaluate:
    @pytest.fixture
    def reconstructed(self, run, scan, tmp_path):
        run("recon", scan, "--method", "zero-filled", "--out", tmp_path)
        return tmp_path / "scan_recon.h5"

    def test_table(self, run, reconstructed, scan):
        result = run("evaluate", reconstructed, "--target", scan)
        assert result.exit_code == 0
        titles, row, mean = result.stdout.splitlines()
        assert titles.split() == ["volume", "patient", "slices", "PSNR/dB", "SSIM", "NMSE"]
        assert row.split()[:3] == ["scan", "phantom5", "2"]
        assert mean.startswith("mean of 1 volume of 1 patient: PSNR ")

    def test_json_agrees_with_the_table(self, run, reconstructed, scan):
        (row,) = json.loads(run("evaluate", reconstructed, "--target", scan, "--json").stdout)["rows"]
        with h5py.File(scan) as truth, h5py.File(reconstructed) as file:
            target, image = truth["reconstruction_rss"][()], file["reconstruction"][()]
        expected = 10 * np.log10(target.max() ** 2 / np.mean((target - image) ** 2))
        assert row["psnr"] == pytest.approx(expected, abs=1e-3)
        assert f"{row['psnr']:.2f}" in run("evaluate", reconstructed, "--target", scan).stdout

    def test_perfect_images_give_valid_json(self, run, scan, tmp_path):
        with h5py.File(scan) as truth, h5py.File(tmp_path / "scan_recon.h5", "w") as file:
            file["reconstruction"] = truth["reconstruction_rss"][()]
        result = run("evaluate", tmp_path, "--target", scan, "--json")
        assert json.loads(result.stdout)["rows"][0]["psnr"] is None  # JSON has no infinity

    def test_no_target(self, run, reconstructed, full_scan):
        result = run("evaluate", reconstructed, "--target", full_scan)
        assert result.exit_code == 2
        assert "no target" in result.stderr


class TestPriors:
    @pytest.fixture
    def runs(self, tiny_prior, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("mri_ambient.prior.shipped_priors", lambda: {})
        for name, content in {"good": tiny_prior.read_bytes(), "broken": b"?"}.items():
            folder = tmp_path / "runs" / name
            folder.mkdir(parents=True)
            (folder / "prior.safetensors").write_bytes(content)

    def test_table(self, run, runs):
        result = run("priors")
        assert result.exit_code == 0
        titles, row, broken = result.stdout.splitlines()
        shown = dict(zip(titles.split(), row.split(), strict=True))
        assert shown["prior"] == "runs/good"
        assert (shown["method"], shown["R"], shown["mask"]) == ("ambient", "4", "-")
        assert broken.startswith("runs/broken: ")

    @pytest.mark.parametrize(("method", "shown"), [("ambient", ["2,3.5,8", "random"]), ("supervised", ["-", "-"])])
    def test_accelerations(self, run, tmp_path, monkeypatch, method, shown):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("mri_ambient.prior.shipped_priors", lambda: {})
        (tmp_path / "runs" / "mix").mkdir(parents=True)
        card = {"method": method, "acceleration": [2.0, 3.5, 8.0], "mask": "random"}
        save_prior(tmp_path / "runs" / "mix" / "prior.safetensors", Denoiser(PRESETS["tiny"]), card)
        _, row = run("priors").stdout.splitlines()
        assert row.split()[1:4] == [method, *shown]

    def test_json(self, run, runs, tiny_prior):
        broken, good = json.loads(run("priors", "--json").stdout)
        assert good["hash"] == load_prior(tiny_prior).hash
        assert "not a prior" in broken["error"]

    def test_none(self, run, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("mri_ambient.prior.shipped_priors", lambda: {})
        assert "mri-ambient train" in run("priors").stdout


class TestDemo:
    def test_with_an_untrained_prior(self, tiny_prior, tmp_path):
        result = run_demo(tmp_path, prior=str(tiny_prior), matrix=64, settings=Settings(samples=2, steps=2))
        names = ["scan.h5", "scan_recon.h5", "scan_recon.html", "panel.png"]
        assert result["files"] == [str(tmp_path / name) for name in names]
        assert all((tmp_path / name).stat().st_size > 1000 for name in names)
        assert load_reconstruction(tmp_path / "scan_recon.h5").mean.shape == (2, 64, 64)
        assert 10 < result["psnr_zero_filled"] < 40

    def test_with_the_shipped_prior(self, run, tmp_path):
        try:
            load_prior("brain")
        except InputError as error:
            pytest.skip(str(error))
        settings = Settings(samples=2, steps=10)  # the demo's own take minutes on two cores
        result = run_demo(tmp_path, settings=settings)
        assert result["psnr"] > result["psnr_zero_filled"] + 3

    def test_json(self, run, tmp_path, monkeypatch):
        def stand_in(out, reporter):
            reporter.say("a line that would spoil the JSON")
            return {"psnr": 30.0, "files": [str(out)]}

        monkeypatch.setattr("mri_ambient.recon.demo.run_demo", stand_in)
        found = json.loads(run("demo", "--out", tmp_path, "--json").stdout)
        assert found == {"psnr": 30.0, "files": [str(tmp_path)]}
