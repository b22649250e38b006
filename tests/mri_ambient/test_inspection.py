"""`inspect_scan` describes a file correctly and finds what is wrong with it."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from mri_ambient.errors import InputError
from mri_ambient.inspection import inspect_scan

SHAPE = (2, 3, 40, 32)
LINES = np.zeros(32, bool)
LINES[::4] = LINES[11:21] = True


@pytest.fixture
def kspace() -> np.ndarray:
    rng = np.random.default_rng(0)
    return (0.5 * (rng.normal(size=SHAPE) + 1j * rng.normal(size=SHAPE))).astype(np.complex64)


def save(path: Path, attributes: dict | None = None, **datasets: object) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name] = values
        file.attrs.update(attributes or {})
    return path


def problems(path: Path) -> str:
    return " ".join(inspect_scan(path)["problems"])


def test_description(tmp_path, kspace):
    target = np.ones((2, 20, 30), np.float32)
    path = save(
        tmp_path / "a.h5",
        {"patient_id": "p", "acquisition": "T1"},
        kspace=kspace * LINES,
        mask=LINES,
        reconstruction_rss=target,
    )
    found = json.loads(json.dumps(inspect_scan(path), allow_nan=False))
    noise = found.pop("noise_std")
    assert found == {
        "path": str(path),
        "name": "a",
        "format": "fastmri",
        "format_title": "fastMRI HDF5",
        "part": "",
        "stored_as": "complex64",
        "slices": 2,
        "coils": 3,
        "matrix": [40, 32],
        "recon_size": [20, 30],
        "padding": [0, 0],
        "mask_source": "dataset",
        "mask_kind": "lines",
        "mask_per_slice": False,
        "acceleration": pytest.approx(32 / LINES.sum()),
        "acs_lines": 10,
        "noise_source": "estimated",
        "header": False,
        "target": "reconstruction_rss",
        "sensitivity_maps": False,
        "patient": "p",
        "attributes": {"acquisition": "T1"},
        "details": {},
        "problems": [],
    }
    assert noise == pytest.approx(0.5, rel=0.25)


def test_noise_of_the_file_is_reported_as_it_is(tmp_path, kspace):
    found = inspect_scan(save(tmp_path / "a.h5", {"noise_std": 3.0}, kspace=kspace))
    assert (found["noise_std"], found["noise_source"], found["mask_source"]) == (3.0, "file", "zeros")


def test_kinds_of_mask(tmp_path, kspace):
    rng = np.random.default_rng(1)
    plane = rng.random((40, 32)) < 0.5
    plane[14:26, 10:22] = True
    found = inspect_scan(save(tmp_path / "a.h5", kspace=kspace * plane))
    assert (found["mask_kind"], found["mask_per_slice"], found["acs_lines"]) == ("2-D", False, 12)
    slices = np.stack([LINES, np.roll(LINES, 2)])[:, None]
    found = inspect_scan(save(tmp_path / "b.h5", kspace=kspace, mask=slices))
    assert (found["mask_kind"], found["mask_per_slice"]) == ("lines", True)
    assert found["acs_lines"] == 7  # 13 to 19 around the centre 16, of 13 to 22


def test_unusable_file_is_an_error(tmp_path):
    with pytest.raises(InputError):
        inspect_scan(tmp_path / "missing.h5")


class TestProblems:
    def test_slice_that_is_not_finite(self, tmp_path, kspace):
        kspace[0, 1, 2, 3] = np.nan
        assert "slice 0" in problems(save(tmp_path / "a.h5", kspace=kspace))

    def test_target_that_is_not_finite(self, tmp_path, kspace):
        target = np.full((2, 4, 4), np.inf)
        assert "reconstruction_rss" in problems(save(tmp_path / "a.h5", kspace=kspace, reconstruction_rss=target))

    def test_slice_and_coil_without_signal(self, tmp_path, kspace):
        kspace[0] = 0
        kspace[:, 2] = 0
        text = problems(save(tmp_path / "a.h5", {"noise_std": 1.0}, kspace=kspace))
        assert "Slices without any signal: 0 of 2." in text
        assert "Coils without any signal: 2 of 3." in text

    def test_noise_that_cannot_be_estimated(self, tmp_path, kspace):
        kspace[:, 2] = 0
        found = inspect_scan(save(tmp_path / "a.h5", kspace=kspace))
        assert found["noise_std"] is None
        assert found["noise_source"] is None
        assert any("noise cannot be estimated" in problem for problem in found["problems"])

    def test_few_central_lines(self, tmp_path, kspace):
        mask = np.zeros(32, bool)
        mask[::2] = True
        found = inspect_scan(save(tmp_path / "a.h5", kspace=kspace * mask))
        assert found["acs_lines"] == 1
        assert any("Only 1 " in problem for problem in found["problems"])

    def test_samples_outside_the_mask(self, tmp_path, kspace):
        text = problems(save(tmp_path / "a.h5", kspace=kspace, mask=LINES))
        assert "100.0% of the samples that the mask leaves out are not zero" in text

    def test_lines_that_the_mask_has_and_the_data_do_not(self, tmp_path, kspace):
        stored = LINES.copy()
        stored[8] = False
        assert "marks 1 columns as acquired" in problems(save(tmp_path / "a.h5", kspace=kspace * stored, mask=LINES))

    def test_samples_that_the_mask_has_and_the_data_do_not(self, tmp_path, kspace):
        kspace[..., :10, :] = 0
        text = problems(save(tmp_path / "a.h5", kspace=kspace, mask=np.ones(32)))
        assert "25.0% of the samples that the mask calls acquired are zero" in text

    def test_header_against_data(self, tmp_path, kspace):
        sizes = "<encodedSpace><matrixSize><x>40</x><y>36</y></matrixSize></encodedSpace>"
        limits = "<kspace_encoding_step_1><maximum>25</maximum><center>13</center></kspace_encoding_step_1>"
        header = f"<h><encoding>{sizes}<encodingLimits>{limits}</encodingLimits></encoding></h>"
        text = problems(save(tmp_path / "a.h5", kspace=kspace, ismrmrd_header=header))
        assert "declares 36 phase-encoding columns but k-space has 32" in text
        assert "declares (5, 1) padded columns, of which only (0, 0) are zero" in text

    def test_three_axes(self, tmp_path, kspace):
        assert "coil,y,x" in problems(save(tmp_path / "a.h5", kspace=kspace[0]))
        assert problems(save(tmp_path / "b.h5", kspace=kspace[0], reconstruction_esc=np.ones((3, 4, 4)))) == ""

    def test_target_larger_than_the_field_of_view(self, tmp_path, kspace):
        text = problems(save(tmp_path / "a.h5", kspace=kspace, reconstruction_rss=np.ones((2, 40, 40))))
        assert "40 x 40 is larger" in text

    def test_suspicious_number_of_coils(self, tmp_path):
        kspace = np.random.default_rng(0).normal(size=(1, 80, 16, 16)) * np.complex64(1 + 1j)
        assert "80 coils" in problems(save(tmp_path / "a.h5", {"noise_std": 1.0}, kspace=kspace))


def test_real_file(data_dir):
    found = inspect_scan(data_dir / "brain8" / "brain8.h5")
    assert found["problems"] == []
    assert found["mask_kind"] == "2-D"
    assert 0.005 < found["noise_std"] < 0.02
