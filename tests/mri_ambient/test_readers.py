"""Formats are recognised by content, whatever a file is called."""

from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
from orientation import write_series
from raw_files import bart_array, coil_images, fft2c, write_cfl

from mri_ambient.errors import InputError
from mri_ambient.readers import examine, is_scan, recognise, split_part

KSPACE = fft2c(coil_images(1, 2, 16, 15))


def test_names_do_not_matter(tmp_path):
    with h5py.File(tmp_path / "scan.dat", "w") as file:
        file["kspace"] = KSPACE
    assert recognise(tmp_path / "scan.dat") == "fastmri"
    np.save(tmp_path / "a.npy", np.ones((2, 9, 9, 4), np.float32))
    (tmp_path / "a.npy").rename(tmp_path / "a.h5")
    assert recognise(tmp_path / "a.h5") == "calgary"
    write_cfl(tmp_path / "b", bart_array(KSPACE))
    for name in ("b", "b.cfl", "b.hdr"):
        assert recognise(tmp_path / name) == "bart"


def test_an_image_is_no_scan(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)), tmp_path / "a.nii")
    nibabel.save(nibabel.Nifti1Pair(np.ones((4, 4, 4), np.float32), np.eye(4)), tmp_path / "a.hdr")
    for name in ("a.nii", "a.hdr", "a.img", "missing.nii"):
        assert not is_scan(tmp_path / name)
    with pytest.raises(InputError, match="no other known format"):
        recognise(tmp_path / "a.hdr")
    write_cfl(tmp_path / "b", bart_array(KSPACE))
    assert is_scan(f"{tmp_path / 'b.cfl'}#te=0")


def test_images_are_called_what_they_are(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)), tmp_path / "a.nii.gz")
    series = write_series(tmp_path / "series", np.ones((2, 4, 4)), np.eye(4))
    for path in (tmp_path / "a.nii.gz", series / "03", series):
        what = "holds images" if path == series else "is an image"
        for read in (recognise, examine):
            with pytest.raises(InputError, match=f"{path} {what}, not k-space: mri-ambient simulate makes a scan of"):
                read(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="is a folder where a file is needed"):
        examine(tmp_path / "empty")


def test_part_of_a_file(tmp_path):
    assert split_part("#1") == (Path("#1"), "")
    assert split_part("x/a.h5#contrast=1,set=0") == (split_part("x/a.h5")[0], "contrast=1,set=0")
    (tmp_path / "a#1.h5").touch()
    assert split_part(tmp_path / "a#1.h5") == (tmp_path / "a#1.h5", "")
    assert split_part(f"{tmp_path / 'a#1.h5'}#set=2") == (tmp_path / "a#1.h5", "set=2")
