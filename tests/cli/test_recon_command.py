"""mri-ambient recon: what it writes and prints."""

import json
import shutil

import h5py
import numpy as np
import pytest
from cli_checks import files_in

from mri_ambient.recon.pipeline import REFINEMENT
from mri_ambient.recon.result import load_reconstruction


@pytest.fixture
def recon(run, tiny_prior, tmp_path):
    """Reconstruct into tmp_path / "out" with few steps."""

    def invoke(*words, code=0):
        result = run("recon", *words, "--prior", tiny_prior, "--samples", 2, "--steps", 3, "--out", tmp_path / "out")
        assert result.exit_code == code, result.output
        return result

    return invoke


def test_everything_a_user_should_know_up_front(recon, scan, tmp_path):
    output = recon(scan).stdout
    assert f"{scan}: 2 slices, 4 coils, 48 x 40, R = 2 (mask: from the file)" in output
    assert "noise 0.01 (from the file; " in output
    assert "scale " in output
    with h5py.File(tmp_path / "out" / "scan_recon.h5") as file:
        evaluations = file.attrs["network_evaluations"]
    assert (
        f"prior tiny, 2 samples x 3 steps: {evaluations} network evaluations, {2 * (1 + 4 * 3 + REFINEMENT)} of them to"
        in output
    )
    assert files_in(tmp_path / "out") == ["scan_recon.h5"]
    assert str(tmp_path / "out" / "scan_recon.h5") in output


def test_result_file(recon, scan, tmp_path):
    recon(scan, "--keep-samples", "--keep-maps", "--seed", 3)
    result = load_reconstruction(tmp_path / "out" / "scan_recon.h5")
    assert result.mean.shape == (2, 48, 40)
    assert result.samples.shape == (2, 2, 48, 40)
    assert result.sensitivity_maps.shape == (2, 4, 48, 40)
    factor = result.attributes["std_factor"]
    np.testing.assert_allclose(factor * result.samples.abs().std(1), result.std, rtol=1e-3, atol=1e-5)
    assert result.attributes["seed"] == 3
    assert result.attributes["prior"] == "tiny"


def test_json_summary(recon, scan, tmp_path):
    (summary,) = json.loads(recon(scan, "--json").stdout)
    with h5py.File(summary["files"][0]) as file:
        for name in ("noise_std", "scale", "method", "prior_hash", "network_evaluations", "seconds"):
            assert summary[name] == file.attrs[name], name
    expected = {"scan": str(scan), "slices": 2, "coils": 4, "matrix": [48, 40], "recon_size": [48, 40]}
    assert expected.items() <= summary.items()
    assert summary["mask_source"] == "from the file"
    assert summary["noise_source"] == "from the file"


def test_fit_to_the_data_is_shown(recon, scan, tmp_path):
    output = recon(scan, "--report").stdout
    verdict = load_reconstruction(tmp_path / "out" / "scan_recon.h5").attributes["verdict"]
    assert f"  {verdict} Seen on slices 0, 1; error bars multiplied by " in output
    page = (tmp_path / "out" / "scan_recon.html").read_text()
    assert verdict in page
    assert page.count("<circle") == 2  # chi-square of the acquired k-space, one a slice


def test_without_calibration(recon, scan):
    (summary,) = json.loads(recon(scan, "--no-calibration", "--json").stdout)
    assert summary["network_evaluations"] == 2 * (1 + 2 * 3 + REFINEMENT)
    assert summary["std_factor"] == 1
    assert "Not checked" in summary["verdict"]
    assert len(summary["chi_square_acquired"]) == 2


@pytest.mark.parametrize(("factor", "word"), [(0.2, "too small"), (5, "too large")])
def test_wrong_noise_is_said_in_plain_words(recon, scan, factor, word):
    output = recon(scan, "--noise", 0.01 * factor).stdout
    assert f"DOES NOT FIT: the noise level is {word}" in output
    assert "error bars multiplied by 1.00" in output


def test_quiet(recon, scan):
    result = recon(scan, "--quiet")
    assert result.output == ""


def test_all_formats_and_report(recon, scan, tmp_path):
    recon(scan, "--format", "nifti", "--format", "dicom", "--format", "png", "--report")
    stem = "scan_recon"
    top = {name for name in files_in(tmp_path / "out") if "/" not in name}
    assert top == {f"{stem}.h5", f"{stem}.nii.gz", f"{stem}_std.nii.gz", f"{stem}_dicom", f"{stem}.png", f"{stem}.html"}
    assert len(list((tmp_path / "out" / f"{stem}_dicom").glob("*.dcm"))) == 2
    assert "Zero-filled" in (tmp_path / "out" / f"{stem}.html").read_text()


@pytest.mark.parametrize("words", [("--json",), ()])
def test_all_that_was_written_is_listed(recon, scan, tmp_path, words):
    output = recon(scan, "--format", "nifti", "--format", "cfl", "--format", "png", "--no-calibration", *words).stdout
    written = [str(tmp_path / "out" / name) for name in files_in(tmp_path / "out")]
    assert len(written) == 8
    if words:
        (summary,) = json.loads(output)
        assert sorted(summary["files"]) == written
    else:
        (line,) = [line for line in output.splitlines() if line.startswith(f"  {tmp_path}")]
        assert sorted(line.strip().rpartition(" in ")[0].split(", ")) == written


def test_dicom_series_is_never_mixed_with_another(recon, scan, tmp_path):
    recon(scan, "--format", "dicom")
    before = (tmp_path / "out" / "scan_recon.h5").stat().st_mtime_ns
    again = recon(scan, "--format", "dicom", code=2)
    assert "is not empty" in again.stderr
    assert (tmp_path / "out" / "scan_recon.h5").stat().st_mtime_ns == before  # said before the work, not after


def test_retrospective_undersampling(recon, full_scan):
    (summary,) = json.loads(
        recon(full_scan, "--accel", 2, "--mask", "equispaced", "--seed", 7, "--json", "--method", "sense").stdout
    )
    assert summary["acceleration"] == pytest.approx(2, rel=0.1)
    assert summary["mask_source"] == "equispaced, seed 7"
    assert summary["prior"] == "none"


def test_noise_of_the_user_wins(recon, scan):
    output = recon(scan, "--noise", 0.5, "--method", "sense").stdout
    assert "noise 0.5 (given; " in output
    assert "method sense" in output


def test_one_bad_scan_does_not_stop_the_others(recon, scan, tmp_path):
    shutil.copy(scan, tmp_path / "z.h5")
    result = recon(tmp_path / "none.h5", scan, tmp_path / "z.h5", "--method", "zero-filled", code=2)
    assert files_in(tmp_path / "out") == ["scan_recon.h5", "z_recon.h5"]
    first, last = result.stderr.splitlines()
    assert first.startswith(f"Error: There is no file {tmp_path / 'none.h5'}")
    assert last == "1 of 3 scans failed."


def test_failures_in_json(recon, scan, tmp_path):
    summaries = json.loads(recon(tmp_path / "none.h5", scan, "--json", "--method", "mmse", code=2).stdout)
    assert [entry["scan"] for entry in summaries] == [str(scan), str(tmp_path / "none.h5")]
    assert "There is no file" in summaries[1]["error"]


def test_a_defect_in_one_scan_does_not_stop_the_others(recon, scan, tmp_path, monkeypatch):
    from mri_ambient.recon import files

    shutil.copy(scan, tmp_path / "a.h5")
    plain = files.examine
    monkeypatch.setattr(files, "examine", lambda path: plain(path) if "a.h5" not in str(path) else 1 / 0)
    result = recon(tmp_path / "a.h5", scan, "--method", "zero-filled", code=1)
    assert "please report" in result.stderr
    assert f"{tmp_path / 'a.h5'}: " in result.stderr
    assert files_in(tmp_path / "out") == ["scan_recon.h5"]


def test_the_result_depends_on_the_seed_alone(recon, scan, tmp_path):
    def image(*words):
        recon(scan, *words)
        return load_reconstruction(tmp_path / "out" / "scan_recon.h5").mean.numpy()

    first = image()
    np.testing.assert_array_equal(image(), first)
    assert np.abs(image("--seed", 1) - first).max() > 0.01


def test_an_interruption_leaves_nothing_behind(recon, scan, tmp_path, monkeypatch):
    from mri_ambient.recon.pipeline import Reconstructor

    plain = Reconstructor.slice

    def interrupted(self, index):
        if index == 1:
            raise KeyboardInterrupt
        return plain(self, index)

    monkeypatch.setattr(Reconstructor, "slice", interrupted)
    assert recon(scan, code=130).stderr == "Stopped.\n"
    assert files_in(tmp_path / "out") == []
