"""BART pairs: against BART itself where it is installed, and against its documented layout."""

import pickle
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from raw_files import bart_array, coil_images, fft2c, write_cfl

from mri_ambient.errors import InputError
from mri_ambient.inspection import inspect_scan
from mri_ambient.operators import ifft2c
from mri_ambient.scan import load_scan, load_scans

SHAPE = (2, 3, 24, 21)


@pytest.fixture
def kspace() -> np.ndarray:
    return fft2c(coil_images(*SHAPE))


def read_cfl(base: Path) -> np.ndarray:
    dimensions = [int(word) for word in base.with_suffix(".hdr").read_text().splitlines()[1].split()]
    return np.fromfile(base.with_suffix(".cfl"), "<c8").reshape(dimensions, order="F")


class TestLayout:
    def test_dimensions(self, tmp_path, kspace):
        scan = load_scan(write_cfl(tmp_path / "a", bart_array(kspace)))
        assert scan.name == "a"
        assert scan.shape == SHAPE
        np.testing.assert_allclose(scan.kspace, kspace, atol=1e-6)
        assert inspect_scan(tmp_path / "a.cfl")["format"] == "bart"

    def test_either_file_or_their_name_without_ending(self, tmp_path, kspace):
        write_cfl(tmp_path / "a.b", bart_array(kspace))
        for name in ("a.b", "a.b.hdr", "a.b.cfl"):
            assert load_scan(tmp_path / name).shape == SHAPE

    def test_a_place_without_a_name_is_no_pair(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for place in (".", "/", ".."):
            with pytest.raises(InputError, match="is a folder where a file is needed"):
                load_scan(place)

    def test_one_slice_and_one_coil_need_no_further_dimensions(self, tmp_path, kspace):
        scan = load_scan(write_cfl(tmp_path / "a", kspace[0, 0].astype(np.complex64)))
        assert scan.shape == (1, 1, *SHAPE[2:])
        np.testing.assert_allclose(scan.kspace[0, 0], kspace[0, 0], atol=1e-6)

    def test_mask_from_zeros(self, tmp_path, kspace):
        kspace[..., 1:6:2] = 0
        scan = load_scan(write_cfl(tmp_path / "a", bart_array(kspace)))
        assert (~scan.mask).nonzero().flatten().tolist() == [1, 3, 5]

    def test_echoes_are_scans(self, tmp_path, kspace):
        both = np.concatenate([bart_array(kspace), bart_array(2 * kspace)], axis=5)
        path = write_cfl(tmp_path / "a", both)
        with pytest.raises(InputError, match=r"holds 2 scans, te=0 and te=1: name one, as in .*#te=0"):
            load_scan(path)
        first, second = load_scans(path)
        assert (first.name, second.name) == ("a_te0", "a_te1")
        np.testing.assert_allclose(second.kspace, 2 * kspace, atol=1e-6)
        np.testing.assert_array_equal(load_scan(f"{tmp_path / 'a'}#te=1").kspace, second.kspace)

    def test_pickles_without_samples(self, tmp_path):
        kspace = fft2c(coil_images(2, 4, 48, 48))
        scan = pickle.loads(pickle.dumps(load_scan(write_cfl(tmp_path / "a", bart_array(kspace)))))
        assert len(pickle.dumps(scan)) < 5000
        np.testing.assert_allclose(scan.read(1), kspace[1], atol=1e-6)

    def test_replaced_after_loading(self, tmp_path, kspace):
        scan = load_scan(write_cfl(tmp_path / "a", bart_array(kspace)))
        write_cfl(tmp_path / "a", bart_array(kspace[:1]))
        with pytest.raises(InputError, match="bytes"):
            scan.read(1)


@pytest.mark.skipif(shutil.which("bart") is None, reason="BART is not installed")
class TestAgainstBart:
    def bart(self, folder: Path, *words: object) -> None:
        subprocess.run(["bart", *map(str, words)], cwd=folder, check=True, capture_output=True)

    @pytest.mark.parametrize(("rows", "columns"), [(32, 32), (30, 25), (31, 24), (31, 25)])
    def test_its_own_reconstruction_is_ours(self, tmp_path, rows, columns):
        self.bart(tmp_path, "phantom", "-k", "-x", 32, "-s", 3, "whole")
        self.bart(tmp_path, "resize", "-c", 0, rows, 1, columns, "whole", "k")
        self.bart(tmp_path, "fft", "-u", "-i", 3, "k", "image")
        scan = load_scan(tmp_path / "k")
        assert scan.shape == (1, 3, rows, columns)
        expected = read_cfl(tmp_path / "image").reshape(rows, columns, 3)
        difference = ifft2c(scan.read(0)).numpy() - expected.transpose(2, 0, 1)
        assert np.abs(difference).max() < 1e-5 * np.abs(expected).max()

    def test_a_slice_of_its_volume(self, tmp_path):
        for number in (0, 1):
            self.bart(tmp_path, "phantom", "-k", "-x", 16, "-s", 2, f"k{number}")
        self.bart(tmp_path, "scale", 3, "k1", "k3")
        self.bart(tmp_path, "join", 13, "k0", "k3", "volume")
        scan = load_scan(tmp_path / "volume.cfl")
        assert scan.shape == (2, 2, 16, 16)
        np.testing.assert_allclose(scan.read(1), 3 * scan.read(0), rtol=1e-6)
