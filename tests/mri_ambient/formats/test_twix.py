"""Siemens raw data, written by twixtools."""

import sys

import numpy as np
import pytest
from raw_files import coil_images, fft2c, noise, twix_block, write_twix

from mri_ambient.errors import InputError
from mri_ambient.inspection import inspect_scan
from mri_ambient.scan import load_scan, load_scans

pytest.importorskip("twixtools", reason="the extra twix is not installed")

SLICES, COILS, HEIGHT, WIDTH = SHAPE = (2, 3, 20, 21)


@pytest.fixture
def images() -> np.ndarray:
    """Twice as long along the readout as what is kept."""
    return coil_images(SLICES, COILS, 2 * HEIGHT, WIDTH, margin=HEIGHT // 2)


def blocks(kspace, columns=range(WIDTH), *flags, **counters):
    return [
        twix_block(kspace[index, :, :, column], *flags, Lin=column, Sli=index, middle=WIDTH // 2, **counters)
        for column in columns
        for index in range(len(kspace))
    ]


def load(folder, *measurements, **protocol):
    path = write_twix(folder / "meas.dat", list(measurements), rows=HEIGHT, columns=WIDTH, **protocol)
    return load_scan(path)


def test_image_is_where_it_was(tmp_path, images):
    scan = load(tmp_path, blocks(fft2c(images)))
    assert scan.shape == SHAPE
    assert scan.recon_size == (HEIGHT, WIDTH)
    assert scan.attributes["voxel_mm_y"] == 11
    np.testing.assert_allclose(fft2c(scan.kspace.numpy(), inverse=True), images[:, :, 10:30], atol=1e-6)
    found = inspect_scan(tmp_path / "meas.dat")
    assert (found["format"], found["details"]["oversampling"], found["problems"]) == ("twix", 2, [])


def test_flags(tmp_path, images):
    kspace = fft2c(images)
    stored = blocks(kspace, range(0, WIDTH, 2))
    stored += blocks(kspace[..., ::-1, :], range(1, 4, 2), "REFLECT")
    stored += blocks(kspace, range(7, 15, 2), "PATREFSCAN")
    stored += blocks(kspace * 9, [5], "PHASCOR")
    for block in stored[8:12]:
        block.add_flag("PATREFSCAN")
        block.add_flag("PATREFANDIMASCAN")
    scan = load(tmp_path, stored)
    expected = [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16, 18, 20]
    assert scan.mask.nonzero().flatten().tolist() == expected
    inside = fft2c(images[:, :, 10:30])
    np.testing.assert_allclose(scan.kspace[..., expected], inside[..., expected], atol=1e-6)


def test_noise_of_an_earlier_measurement(tmp_path):
    rng = np.random.default_rng(0)
    mixing = np.array([[2, 0, 0], [0.5j, 1, 0], [0.3, 0, 0.5]])
    adjust = [twix_block(mixing @ noise(rng, COILS, 4096), "NOISEADJSCAN") for _ in range(3)]
    kspace = np.einsum("dc,scyx->sdyx", mixing, noise(rng, SLICES, COILS, 2 * HEIGHT, WIDTH))
    scan = load(tmp_path, adjust, blocks(kspace))
    assert scan.noise_std == pytest.approx(np.sqrt(np.trace(mixing @ mixing.conj().T).real / COILS), rel=0.03)
    samples = scan.kspace.movedim(1, 0).reshape(COILS, -1).numpy()
    covariance = samples @ samples.conj().T / samples.shape[1] / (2 * scan.noise_std**2)
    np.testing.assert_allclose(covariance, np.eye(COILS), atol=0.15)


def test_repetitions_are_scans_and_averages_are_averaged(tmp_path, images):
    kspace = fft2c(images)
    stored = blocks(kspace, Rep=0) + blocks(kspace * 3, Rep=1, Ave=0) + blocks(kspace * 5, Rep=1, Ave=1)
    path = write_twix(tmp_path / "m.dat", [stored], rows=HEIGHT, columns=WIDTH)
    scans = load_scans(path)
    assert [scan.name for scan in scans] == ["m_repetition0", "m_repetition1"]
    np.testing.assert_allclose(scans[1].kspace, 4 * scans[0].kspace, rtol=1e-4, atol=1e-5)


def test_trajectory_is_refused_by_name(tmp_path, images):
    with pytest.raises(InputError, match="trajectory radial, which is not Cartesian"):
        load(tmp_path, blocks(fft2c(images)), trajectory=2)


def test_partitions_are_refused(tmp_path, images):
    with pytest.raises(InputError, match="3-D"):
        load(tmp_path, blocks(fft2c(images)) + blocks(fft2c(images), Par=1))


def test_without_the_library(tmp_path, images, monkeypatch):
    path = write_twix(tmp_path / "m.dat", [blocks(fft2c(images))], rows=HEIGHT, columns=WIDTH)
    for name in [name for name in sys.modules if name.startswith("twixtools")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "twixtools", None)
    with pytest.raises(InputError, match=r"needs the extra twix: pip install 'mri-ambient\[twix\]'"):
        load_scan(path)
