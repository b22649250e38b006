"""Where results go."""

import pytest

from mri_ambient.errors import InputError
from mri_ambient.recon.places import find_scans, output_folders, result_stem


def test_scans_of_one_file_have_results_of_their_own(tmp_path):
    file = tmp_path / "scan.h5"
    file.touch()
    parts = [tmp_path / "scan.h5#contrast=0", tmp_path / "scan.h5#contrast=1"]
    assert [result_stem(p) for p in (file, *parts)] == ["scan", "scan_contrast=0", "scan_contrast=1"]
    assert [folder for _, folder in output_folders(parts, tmp_path)] == [tmp_path] * 2


def test_results_that_would_collide_are_refused(tmp_path):
    with pytest.raises(InputError, match="the same result"):
        output_folders([tmp_path / "scan.h5", tmp_path / "scan.cfl"], tmp_path)


def test_results_are_no_scans_unless_they_are_named(tmp_path):
    for name in ("p.h5", "p_recon.h5", "p_recon_std.h5"):
        (tmp_path / name).touch()
    for words in (tmp_path, tmp_path / "*.h5", tmp_path / "p*"):
        assert find_scans([words]) == [tmp_path / "p.h5"]
    assert find_scans([tmp_path / "p_recon.h5"]) == [tmp_path / "p_recon.h5"]
    with pytest.raises(InputError, match="no scan"):
        find_scans([tmp_path / "*_recon_std.h5"])
