"""The same voxel stays in the same place, from file to file: each path ends in a reader written in the tests."""

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from orientation import MARKS, SHAPE, brightest, lps_affine, marks_of_dicom, marks_of_nifti, phantom, rotation
from orientation import write_series as write_dicom_series
from raw_files import header, readout, write_ismrmrd

from mri_ambient.recon.dicom_template import open_template
from mri_ambient.recon.files import FileSettings, reconstruct_file
from mri_ambient.recon.result import load_reconstruction
from mri_ambient.recon.settings import Settings
from mri_ambient.scan import load_scan, write_scan
from mri_ambient.simulate import simulate_scan
from mri_ambient.volumes import load_volume

SPACING = (4.0, 1.2, 0.7)
CORNER = (-31.0, -40.0, 12.0)
# Unit vectors along (slice, row, column) as columns, in LPS.
AXIAL = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]], float)
SAGITTAL = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], float)
CORONAL_TURNED = np.array([[0, 0, -1], [-1, 0, 0], [0, 1, 0]], float)
ORIENTATIONS = {
    "axial": AXIAL,
    "downwards": AXIAL * [-1, 1, 1],
    "oblique": rotation(20, -15, 35) @ AXIAL,
    "sagittal": SAGITTAL,
    "coronal, turned and oblique": rotation(-10, 25, 8) @ CORONAL_TURNED,
}


ALL, SOME = [pytest.mark.parametrize("orientation", names) for names in (ORIENTATIONS, [*ORIENTATIONS][2::2])]


@pytest.fixture
def affine(orientation: str) -> np.ndarray:
    return lps_affine(ORIENTATIONS[orientation], SPACING, CORNER)


def expected(affine: np.ndarray) -> np.ndarray:
    return brightest(phantom(), affine)


def reconstruct(volume: object, folder: Path, cut: int = 0, **files: object) -> Path:
    """Simulate a scan without noise, write, reconstruct; the folder of the results."""
    scan = simulate_scan(load_volume(volume), coils=2, noise_std=0, name="scan")
    if cut:
        scan = replace(scan, recon_size=(scan.shape[2] - cut, scan.shape[3] - cut - 1))
        scan = replace(scan, source=replace(scan.source, targets=None))
    write_scan(scan, folder / "scan.h5")
    recon(folder / "scan.h5", folder, **files)
    return folder


def recon(scan: Path, folder: Path, **files: object) -> None:
    settings = FileSettings(noise_std=1e-4, formats=("nifti", "dicom"), **files)
    reconstruct_file(scan, folder, None, Settings("zero-filled"), settings)


def test_the_marks_are_what_they_should_be():
    places = brightest(phantom(), np.eye(4))
    np.testing.assert_array_equal(places, MARKS)


@ALL
def test_dicom_to_everything(affine, tmp_path):
    series = write_dicom_series(tmp_path / "series", phantom(), affine)
    np.testing.assert_allclose(marks_of_dicom(series), expected(affine), atol=1e-6)
    out = reconstruct(series, tmp_path)
    np.testing.assert_allclose(marks_of_dicom(out / "scan_recon_dicom"), expected(affine), atol=1e-4)
    np.testing.assert_allclose(marks_of_nifti(out / "scan_recon.nii.gz"), expected(affine), atol=1e-4)


@ALL
def test_dicom_to_dicom_with_a_template(affine, tmp_path):
    """Rows, columns and slices are stored as in the template, not as in the package."""
    series = write_dicom_series(tmp_path / "series", phantom(), affine)
    out = reconstruct(series, tmp_path, template=open_template(series)) / "scan_recon_dicom"
    np.testing.assert_allclose(marks_of_dicom(out), expected(affine), atol=1e-4)
    theirs = {}
    for path in series.iterdir():
        dataset = pydicom.dcmread(path)
        theirs[tuple(np.round(dataset.ImagePositionPatient, 4))] = dataset
    for path in out.glob("*.dcm"):
        ours = pydicom.dcmread(path)
        same = theirs[tuple(np.round(ours.ImagePositionPatient, 4))]
        np.testing.assert_allclose(ours.ImageOrientationPatient, same.ImageOrientationPatient, atol=1e-9)
        assert np.abs(ours.pixel_array / 65535 - same.pixel_array / 1000).max() < 0.02


@SOME
def test_nifti_to_everything(affine, tmp_path):
    ras = np.diag([-1.0, -1, 1, 1]) @ affine
    (tmp_path / "p").mkdir()
    source = tmp_path / "p" / "t1.nii.gz"
    nibabel.save(nibabel.Nifti1Image(phantom().astype(np.float32).transpose(1, 0, 2), ras[:, [1, 0, 2, 3]]), source)
    out = reconstruct(source, tmp_path)
    np.testing.assert_allclose(marks_of_nifti(out / "scan_recon.nii.gz"), expected(affine), atol=1e-4)
    np.testing.assert_allclose(marks_of_dicom(out / "scan_recon_dicom"), expected(affine), atol=1e-4)


@SOME
def test_a_crop_moves_no_voxel(affine, tmp_path):
    out = reconstruct(write_dicom_series(tmp_path / "series", phantom(), affine), tmp_path, cut=4)
    height, width = load_scan(out / "scan.h5").shape[2:]
    assert load_reconstruction(out / "scan_recon.h5").mean.shape == (3, height - 4, width - 5)
    np.testing.assert_allclose(marks_of_dicom(out / "scan_recon_dicom"), expected(affine), atol=1e-4)
    np.testing.assert_allclose(marks_of_nifti(out / "scan_recon.nii.gz"), expected(affine), atol=1e-4)


@pytest.mark.parametrize("matrix", [(24, 24), (27, 25)])
def test_another_matrix_moves_nothing(matrix, tmp_path):
    """The centre of a smooth blob stays where it is, to a fraction of a voxel."""
    affine = lps_affine(ORIENTATIONS["oblique"], SPACING, CORNER)
    z, y, x = np.indices(SHAPE) - np.array([1, 14, 11])[:, None, None, None]
    values = 1000 * np.exp(-((y * SPACING[1]) ** 2 + (x * SPACING[2]) ** 2) / 18) * (z == 0)
    series = write_dicom_series(tmp_path / "series", values, affine)
    scan = simulate_scan(load_volume(series), coils=2, noise_std=0, matrix=matrix, name="scan")
    write_scan(scan, tmp_path / "scan.h5")
    recon(tmp_path / "scan.h5", tmp_path)
    image = load_reconstruction(tmp_path / "scan_recon.h5")
    assert image.mean.shape == (3, *matrix)
    weight = image.magnitude.numpy() ** 2
    centre = np.append([(weight * axis).sum() / weight.sum() for axis in np.indices(weight.shape)], 1)
    lps = np.diag([-1.0, -1, 1, 1]) @ image.affine
    np.testing.assert_allclose(lps @ centre, affine @ [1, 14, 11, 1], atol=0.05)
    np.testing.assert_allclose(
        marks_of_dicom(tmp_path / "scan_recon_dicom"), brightest(image.magnitude.numpy(), lps), atol=1e-4
    )


@SOME
def test_simpleitk_sees_the_same(affine, tmp_path):
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK, an independent reader, is not installed")
    series = write_dicom_series(tmp_path / "series", phantom(), affine)
    out = reconstruct(series, tmp_path)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(out / "scan_recon_dicom")))
    for image in (reader.Execute(), sitk.ReadImage(str(out / "scan_recon.nii.gz"))):
        values = sitk.GetArrayFromImage(image)
        order = np.argsort(values.ravel())[: -len(MARKS) - 1 : -1]
        index = np.stack(np.unravel_index(order, values.shape), axis=1)[:, ::-1]
        places = [image.TransformIndexToPhysicalPoint([int(number) for number in place]) for place in index]
        np.testing.assert_allclose(places, expected(affine), atol=2e-3)


class TestAcquisitionHeaders:
    """Signals are computed from the definition of k-space, at places in the patient; no discrete transform is used."""

    ROWS, COLUMNS, SLICES = 22, 25, 3
    VOXEL = (5.0, 1.0, 200 / 25)  # of the header in raw_files
    POINTS = ((0, 3, -4, 10.0), (1, -5, 6, 8.0), (2, -2, -7, 6.0), (1, 4, 3, 4.0))  # slice, steps of y and x, amount

    def measure(self, directions, centre, order, vendor, oversampling=1):
        """Readouts of blobs at POINTS on a wide one; every slice in turn, in the order given."""
        normal, read, phase = directions.T
        rows = self.ROWS * oversampling
        ky = (np.arange(rows) - rows // 2) / (rows * self.VOXEL[1])
        kx = (np.arange(self.COLUMNS) - self.COLUMNS // 2) / (self.COLUMNS * self.VOXEL[2])
        acquisitions = []
        for counter, index in enumerate(order):
            position = centre + index * 6.0 * normal  # 1 mm of gap
            blobs = [(np.zeros(3), 1.0, 5.0)] + [
                (y * self.VOXEL[1] * read + x * self.VOXEL[2] * phase, amount, 0.45)
                for place, y, x, amount in self.POINTS
                if place == index
            ]
            signal = np.zeros((rows, self.COLUMNS), complex)
            for offset, amount, width in blobs:
                along_y, along_x = ky * (offset @ read), kx * (offset @ phase)
                wide_y, wide_x = (
                    2 * (np.pi * width * self.VOXEL[1] * ky) ** 2,
                    2 * (np.pi * width * self.VOXEL[2] * kx) ** 2,
                )
                line_y, line_x = np.exp(-2j * np.pi * along_y - wide_y), np.exp(-2j * np.pi * along_x - wide_x)
                signal += amount * width**2 * np.outer(line_y, line_x)
            signal = signal.conj() if "siemens" in vendor.lower() else signal
            where = {"position": tuple(position), "read_dir": tuple(read), "phase_dir": tuple(phase)}
            for column in range(self.COLUMNS):
                samples = np.stack([signal[:, column], 0.5j * signal[:, column]])
                line = {"kspace_encode_step_1": column, "slice": counter, "slice_dir": tuple(normal), **where}
                acquisitions.append(readout(samples, **line))
        return acquisitions

    def places(self, directions, centre):
        normal, read, phase = directions.T
        steps = [(6.0 * place, y * self.VOXEL[1], x * self.VOXEL[2]) for place, y, x, _ in self.POINTS]
        return np.array([centre + z * normal + y * read + x * phase for z, y, x in steps])

    @pytest.mark.parametrize("vendor", ["Somebody", "SIEMENS"])
    @pytest.mark.parametrize(("oversampling", "order"), [(1, (2, 1, 0)), (2, (0, 1, 2)), (2, (2, 0, 1))])
    def test_ismrmrd_to_everything(self, vendor, oversampling, order, tmp_path):
        pytest.importorskip("ismrmrd", reason="the ismrmrd library, an independent writer, is not installed")
        directions = rotation(20, -15, 35) @ AXIAL
        centre = np.array([12.0, -34.0, 56.0])
        xml = header(self.ROWS * oversampling, self.COLUMNS, oversampling=oversampling)
        xml = xml.replace(
            "<acquisitionSystemInformation>", f"<acquisitionSystemInformation><systemVendor>{vendor}</systemVendor>"
        )
        acquisitions = self.measure(directions, centre, order, vendor, oversampling)
        write_ismrmrd(tmp_path / "scan.h5", xml, acquisitions)
        recon(tmp_path / "scan.h5", tmp_path)
        expected = self.places(directions, centre)
        np.testing.assert_allclose(marks_of_nifti(tmp_path / "scan_recon.nii.gz", len(expected)), expected, atol=1e-3)
        np.testing.assert_allclose(marks_of_dicom(tmp_path / "scan_recon_dicom", len(expected)), expected, atol=1e-3)
