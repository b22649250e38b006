"""mri-ambient recon --template: a DICOM series that fits, and what does not."""

import json
import shutil

import numpy as np
import pydicom
import pytest
from cli_checks import files_in, one_line
from orientation import IDENTITY, write_series

from mri_ambient.recon import dicom
from mri_ambient.scan import load_scan


@pytest.fixture
def series(scan, tmp_path):
    affine = np.diag([-1.0, -1, 1, 1]) @ np.array(json.loads(load_scan(scan).attributes["affine"]))
    return write_series(tmp_path / "series", np.ones((2, 48, 40)), affine)


@pytest.fixture
def recon(run, scan, tiny_prior, tmp_path):
    def invoke(*words, code=0, source=scan):
        method = ("--method", "zero-filled") if "--prior" not in words else ()
        result = run("recon", source, *method, "--out", tmp_path / "out", *words)
        assert result.exit_code == code, result.output
        return result

    return invoke


def read(folder):
    return [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]


def test_identity_is_kept_on_request_only(recon, series, tmp_path):
    recon("--format", "dicom", "--template", series)
    out = tmp_path / "out" / "scan_recon_dicom"
    assert [str(dataset.PatientName) for dataset in read(out)] == ["", ""]
    shutil.rmtree(out)
    recon("--format", "dicom", "--template", series, "--keep-identity")
    assert [str(dataset.PatientName) for dataset in read(out)] == [IDENTITY["PatientName"]] * 2
    assert {dataset.StudyInstanceUID for dataset in read(out)} == {IDENTITY["StudyInstanceUID"]}


def test_a_template_that_does_not_fit_is_refused_before_the_work(recon, scan, series, tmp_path):
    (series / "03").unlink()
    result = recon("--format", "dicom", "--template", series, code=2)
    assert one_line(result).startswith(f"Error: {scan}: The template {series} has 1 x 48 x 40 voxels")
    assert files_in(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--format", "dicom", "--template", "none"), "Error: The template none is not a folder"),
        (("--template", "SERIES"), "Error: A template is for DICOM files"),
        (("--format", "dicom", "--keep-identity"), "Error: Patient and study can only be kept from a template"),
        (("--format", "dicom", "--template", "TEXT"), "a.dcm is no DICOM file"),
        (("--format", "dicom", "--template", "IMAGES"), "holds NIfTI files: name a folder with nothing but"),
        (("--format", "dicom", "--template", "FRAMES"), "convert it to files of one frame first"),
        (("--format", "dicom", "--template", "EMPTY"), "holds no files"),
    ],
)
def test_bad_input(recon, series, tmp_path, words, message):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.dcm").write_text("no image")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.nii.gz").touch()
    (tmp_path / "frames").mkdir()
    dataset = pydicom.dcmread(series / "03")
    dataset.NumberOfFrames = 2
    dataset.save_as(tmp_path / "frames" / "a")
    (tmp_path / "empty").mkdir()
    names = {"SERIES": series, **{name.upper(): tmp_path / name for name in ("text", "images", "frames", "empty")}}
    result = recon(*(names.get(word, word) for word in words), code=2)
    assert message in one_line(result)
    assert files_in(tmp_path / "out") == []


def test_without_the_extra_it_says_what_brings_the_map(recon, tiny_prior, tmp_path, monkeypatch):
    from mri_ambient.recon import files

    words = ("--format", "dicom", "--prior", tiny_prior, "--samples", 2, "--steps", 2, "--no-calibration")
    out = tmp_path / "out" / "scan_recon_dicom" / "std"
    if dicom.has_parametric_maps():
        assert "parametric map" not in recon(*words).stdout
        assert files_in(out) == ["parametric_map.dcm"]
        shutil.rmtree(out.parent)
    for module in (files, dicom):
        monkeypatch.setattr(module, "has_parametric_maps", lambda: False)
    assert "pip install 'mri-ambient[dicom]'" in recon(*words).stdout
    assert files_in(out) == ["0001.dcm", "0002.dcm"]


def test_bart(recon, tmp_path):
    recon("--format", "cfl")
    assert files_in(tmp_path / "out") == ["scan_recon.cfl", "scan_recon.h5", "scan_recon.hdr"]
