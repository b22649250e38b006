"""mri-ambient train refuses data and settings that break a method's assumption, and names a method that works."""

import h5py
import numpy as np
import pytest
import torch
from cli_checks import files_in, one_line

from mri_ambient.denoiser import PRESETS, Denoiser, DenoiserConfig
from mri_ambient.phantoms import phantom_volume
from mri_ambient.prior import load_prior, save_prior
from mri_ambient.scan import write_scan
from mri_ambient.simulate import simulate_scan

WIDTH = 48
CENTRE = 9  # lines


@pytest.fixture(autouse=True)
def smallest_network(monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny", DenoiserConfig(channels=(4, 8), embedding=8))


@pytest.fixture
def train(run, tmp_path):
    """Run a training of one step; returns its line on standard error after checking that nothing was written."""

    def invoke(*words, code=2):
        settings = ["--preset", "tiny", "--images", 6, "--precision", "fp32", "--quiet"]
        result = run("train", *words, *settings, "--out", tmp_path / "run")
        assert result.exit_code == code, result.output
        if code == 0:
            return ""
        assert not (tmp_path / "run").exists()
        return one_line(result)

    return invoke


def archive(folder, offsets, noise_std=0.02):
    """Scans of one slice, every third line from the given offsets, and the centre."""
    folder.mkdir()
    centre = (torch.arange(WIDTH) - WIDTH // 2).abs() <= CENTRE // 2
    for i, offset in enumerate(offsets):
        scan = simulate_scan(phantom_volume(1, (32, WIDTH), seed=i), coils=2, noise_std=noise_std, name=f"scan{i}")
        write_scan(scan.undersample(centre | (torch.arange(WIDTH) % 3 == offset)), folder / f"scan{i}.h5")
    return folder


@pytest.fixture(scope="module")
def fixed(tmp_path_factory):
    """One equispaced mask for all."""
    return archive(tmp_path_factory.mktemp("fixed") / "scans", [0, 0, 0])


@pytest.fixture(scope="module")
def gaps(tmp_path_factory):
    """Two of three offsets."""
    return archive(tmp_path_factory.mktemp("gaps") / "scans", [0, 1, 0])


@pytest.fixture(scope="module")
def shifted(tmp_path_factory):
    """All three offsets."""
    return archive(tmp_path_factory.mktemp("shifted") / "scans", [0, 1, 2])


def prior(folder, card):
    path = folder / "start.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_prior(path, Denoiser(PRESETS["tiny"]), card)
    return path


LEARN_FROM_LINES = [
    ("ambient",), ("ambient", "--variant", "published"), ("gsure",), ("tweedie",), ("ssdu",),
    ("ssdu", "--variant", "published"),
]  # fmt: skip


class TestLinesThatAreNeverAcquired:
    @pytest.mark.parametrize("method", LEARN_FROM_LINES, ids=lambda words: words[0] + words[-1])
    def test_one_fixed_equispaced_mask(self, train, fixed, method):
        line = train(fixed, "--method", *method)
        assert "all scans acquired the same lines" in line
        assert f"--method {method[0]} cannot learn them" in line
        assert "--method em" in line
        assert "--method bootstrap --view centre:" in line

    def test_an_offset_that_is_missing(self, train, gaps):
        line = train(gaps)
        assert "no scan acquired them" in line
        free = [k for k in range(WIDTH - 1) if k % 3 == 2 and abs(k - WIDTH // 2) > CENTRE // 2]
        assert line.startswith(f"Error: {len(free)} of {WIDTH - 1} lines")  # the last one looks like zero padding

    def test_views_composed_on_such_scans(self, train, fixed, tmp_path):
        view = prior(tmp_path, {"method": "bootstrap", "view": {"kind": "centre", "lines": 5}})
        assert "--method bootstrap cannot learn them" in train(fixed, "--method", "bootstrap", "--views", view)

    def test_every_offset_is_enough(self, train, shifted):
        train(shifted, code=0)

    def test_the_methods_that_the_message_names_work(self, train, fixed, tmp_path, run):
        line = train(fixed)
        view = line.split("--view ")[1].split(")")[0]
        train(fixed, "--method", "bootstrap", "--view", view, code=0)
        words = ["--method", "em", "--init", prior(tmp_path, {}), "--preset", "tiny", "--images", 6, "--quiet"]
        assert run("train", fixed, *words, "--precision", "fp32", "--out", tmp_path / "em").exit_code == 0


class TestNoise:
    @pytest.mark.parametrize("method", ["gsure", "tweedie"])
    def test_zero_is_unknown(self, train, shifted, method):
        line = train(shifted, "--method", method, "--noise", 0)
        assert f"The method {method} needs the noise level" in line
        assert "--method ambient --variant published" in line

    def test_the_method_that_the_message_names_works(self, train, shifted):
        train(shifted, "--noise", 0, "--variant", "published", code=0)

    @pytest.mark.parametrize("method", ["gsure", "ambient"])
    def test_noise_that_cannot_be_estimated(self, train, shifted, tmp_path, method):
        path = tmp_path / "blank.h5"
        path.write_bytes((shifted / "scan0.h5").read_bytes())
        with h5py.File(path, "r+") as file:  # a silent coil, and no figure for the noise
            file["kspace"][:, 1] = 0
            for name in [name for name in file.attrs if "noise" in name]:
                del file.attrs[name]
        line = train(path, "--method", method)
        assert "cannot be estimated" in line
        assert "--noise" in line


def test_an_acceleration_that_no_mask_can_have(train, tmp_path):
    scan = simulate_scan(phantom_volume(1, (32, WIDTH), seed=0), coils=2, name="scan")
    write_scan(scan, tmp_path / "scans" / "scan.h5")
    line = train(tmp_path / "scans", "--accel", 8)
    assert "The sampling pattern does not fit a matrix of 32 x 48: Acceleration 8 leaves 6 of 48 lines" in line


class TestViews:
    def test_a_centre_wider_than_the_scans_have(self, train, shifted):
        line = train(shifted, "--method", "bootstrap", "--view", "centre:25")
        view = line.split("use --view ")[1].rstrip(".")
        train(shifted, "--method", "bootstrap", "--view", view, code=0)

    def test_rows_that_are_not_orthonormal(self, train, shifted, tmp_path):
        view = prior(tmp_path, {"method": "bootstrap", "view": {"kind": "lines", "mask": "1" * 47 + "2"}})
        line = train(shifted, "--method", "bootstrap", "--views", view)
        assert "must be orthonormal" in line
        assert "--method ambient" in line

    def test_something_else_than_a_view(self, train, shifted):
        assert "centre:LINES" in train(shifted, "--method", "bootstrap", "--view", "corner:3")


@pytest.mark.parametrize("words", [("supervised",), ("bootstrap", "--variant", "clean", "--view", "whole")])
def test_references_that_are_missing(train, shifted, words):
    line = train(shifted, "--method", *words)
    assert "needs fully sampled scans, but scan0 is undersampled: use --method ambient" in line


class TestStart:
    """--init and --laps."""

    def test_em_without_a_prior(self, train, shifted):
        assert "--init" in train(shifted, "--method", "em")

    def test_laps_of_another_method(self, train, shifted):
        assert "ambient has no laps" in train(shifted, "--laps", 1)

    @pytest.mark.parametrize("method", ["em", "ambient", "gsure"])
    def test_the_prior_of_a_view(self, train, shifted, tmp_path, method):
        view = prior(tmp_path, {"method": "bootstrap", "view": {"kind": "whole"}})
        assert "does not hold a denoiser of images" in train(shifted, "--method", method, "--init", view)

    @pytest.mark.parametrize("method", ["em", "ambient"])
    def test_a_prior_of_another_size(self, train, shifted, method):
        line = train(shifted, "--method", method, "--init", "brain")
        assert "another size than preset tiny: use --preset small" in line

    def test_a_prior_that_does_not_exist(self, train, shifted):
        assert "no prior 'nowhere'" in train(shifted, "--init", "nowhere")

    def test_laps_are_run_and_counted(self, train, shifted, tmp_path):
        train(shifted, "--method", "em", "--init", prior(tmp_path, {}), "--laps", 2, code=0)
        card = load_prior(tmp_path / "run").card
        assert (card["method"], card["laps"], card["init"]) == ("em", 2, "start.safetensors")
        assert np.isfinite([row[1] for row in card["denoiser_error"]]).all()
        assert {"lap-1", "lap-2", "prior.safetensors"} <= set(files_in(tmp_path / "run"))
