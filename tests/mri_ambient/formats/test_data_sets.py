"""Layouts of public data sets: Calgary-Campinas and M4Raw, with files made as their authors describe them."""

import h5py
import numpy as np
import pytest
from raw_files import coil_images, fft2c

from mri_ambient.errors import InputError
from mri_ambient.inspection import inspect_scan
from mri_ambient.operators import ifft2c
from mri_ambient.scan import load_scan

SHAPE = (3, 4, 26, 21)


def calgary(images: np.ndarray) -> np.ndarray:
    """K-space (slice, ky, kz, part) of images (slice, coil, y, x); its authors read it by ``np.fft.ifft2``."""
    kspace = np.fft.fftshift(np.fft.fft2(images), axes=(-2, -1)).transpose(0, 2, 3, 1)
    return np.stack([kspace.real, kspace.imag], axis=-1).reshape(*kspace.shape[:3], -1).astype(np.float32)


@pytest.fixture(params=["HDF5", "NumPy"])
def write(request, tmp_path):
    def save(array: np.ndarray):
        if request.param == "NumPy":
            np.save(tmp_path / "e1.npy", array)
            return tmp_path / "e1.npy"
        with h5py.File(tmp_path / "e1.h5", "w") as file:
            file["kspace"] = array
        return tmp_path / "e1.h5"

    return save


class TestCalgary:
    def test_image_is_where_its_authors_see_it(self, write):
        images = coil_images(*SHAPE)
        array = calgary(images)
        array[:, :, 18:] = 0
        kspace = array[..., ::2] + 1j * array[..., 1::2]
        theirs = np.abs(np.fft.ifft2(kspace, axes=(1, 2))).transpose(0, 3, 1, 2)
        scan = load_scan(write(array))
        assert scan.shape == SHAPE
        ours = ifft2c(scan.kspace).abs().numpy() / np.sqrt(SHAPE[2] * SHAPE[3])
        np.testing.assert_allclose(ours, theirs, atol=1e-6)

    @pytest.mark.parametrize("shape", [(2, 2, 20, 20), (1, 3, 25, 20), (1, 3, 20, 27), (2, 4, 25, 27)])
    def test_kspace_is_centred_in_both_domains(self, write, shape):
        images = coil_images(*shape)
        kept = int(np.ceil(0.85 * shape[3]))
        scan = load_scan(write(calgary(images)))
        expected = fft2c(images)[..., :kept] * np.sqrt(shape[2] * shape[3])
        np.testing.assert_allclose(scan.kspace[..., :kept], expected, atol=1e-4)

    def test_end_of_the_slice_encoding_was_not_acquired(self, write):
        scan = load_scan(write(calgary(coil_images(*SHAPE))))  # nothing is zero here
        assert scan.padding == (0, 3)
        assert scan.mask.tolist() == [True] * 18 + [False] * 3
        assert scan.acceleration == 1
        assert not scan.kspace[..., 18:].any()

    def test_undersampled_in_both_directions(self, write):
        array = calgary(coil_images(*SHAPE))
        mask = np.random.default_rng(0).random(SHAPE[2:]) < 0.4
        mask[10:16, 7:13] = True
        mask[:, 18:] = False
        scan = load_scan(write(array * mask[:, :, None]))
        np.testing.assert_array_equal(scan.mask, mask)
        assert scan.padding == (0, 3)

    def test_inspect_says_what_it_is(self, write):
        found = inspect_scan(write(calgary(coil_images(*SHAPE))))
        assert (found["format"], found["coils"], found["stored_as"]) == ("calgary", 4, "float32")

    def test_not_a_number(self, write):
        array = calgary(coil_images(*SHAPE))
        array[2, 3, 4, 5] = np.nan
        scan = load_scan(write(array))
        with pytest.raises(InputError, match="slice 2"):
            scan.read(2)

    @pytest.mark.parametrize("shape", [(3, 26, 21), (3, 26, 21, 7), (3, 26, 21, 2), (3, 26, 21, 24), (0, 26, 21, 8)])
    def test_other_arrays_are_refused(self, tmp_path, shape):
        np.save(tmp_path / "a.npy", np.ones(shape, np.float32))
        with pytest.raises(InputError, match=r"a\.npy"):
            load_scan(tmp_path / "a.npy")

    @pytest.mark.parametrize("array", [np.ones((3, 26, 21, 8), int), np.array([{}] * 3)])
    def test_other_types_are_refused(self, tmp_path, array):
        np.save(tmp_path / "a.npy", array)
        with pytest.raises(InputError, match=r"a\.npy"):
            load_scan(tmp_path / "a.npy")


M4RAW = """<ns0:ismrmrdHeader xmlns:ns0="http://www.ismrm.org/ISMRMRD">
<ns0:acquisitionSystemInformation><ns0:systemModel>x</ns0:systemModel></ns0:acquisitionSystemInformation>
<ns0:encoding><ns0:echoTrainLength>23</ns0:echoTrainLength></ns0:encoding>
<ns0:sequenceParameters><ns0:TE>128</ns0:TE><ns0:echo_spacing>N/A</ns0:echo_spacing></ns0:sequenceParameters>
</ns0:ismrmrdHeader>"""


class TestM4raw:
    @pytest.fixture
    def path(self, tmp_path):
        kspace = fft2c(coil_images(2, 4, 32, 32)).astype(np.complex64)
        kspace[..., :4] = kspace[..., -4:] = 0  # the data set fills up its lines on either side
        with h5py.File(tmp_path / "2022061003_T201.h5", "w") as file:
            file["kspace"] = kspace
            file["reconstruction_rss"] = np.sqrt((np.abs(fft2c(kspace, inverse=True)) ** 2).sum(1)).astype(np.float32)
            file["ismrmrd_header"] = M4RAW
            file.attrs.update({"acquisition": "AXT2", "max": 121.6, "patient_id": "88448eec"})
        return tmp_path / "2022061003_T201.h5"

    def test_is_read(self, path):
        scan = load_scan(path)
        assert (scan.shape, scan.padding, scan.acceleration) == ((2, 4, 32, 32), (4, 4), 1)
        assert (scan.patient, scan.attributes["acquisition"], scan.recon_size) == ("88448eec", "AXT2", (32, 32))
        assert scan.has_target

    def test_is_recognised(self, path):
        assert inspect_scan(path)["format"] == "m4raw"
        encoding = "<ns0:encodedSpace><ns0:matrixSize><ns0:x>32</ns0:x></ns0:matrixSize></ns0:encodedSpace>"
        with h5py.File(path, "a") as file:
            del file["ismrmrd_header"]
            file["ismrmrd_header"] = M4RAW.replace("<ns0:echoTrain", encoding + "<ns0:echoTrain")
        assert inspect_scan(path)["format"] == "fastmri"
