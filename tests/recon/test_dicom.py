"""DICOM files: what they say, whom they name, and that a validator finds no error in them."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from orientation import IDENTITY, lps_affine, rotation, write_series

from mri_ambient.errors import InputError
from mri_ambient.recon import dicom
from mri_ambient.recon.dicom_template import Template, open_template
from mri_ambient.recon.files import FileSettings
from mri_ambient.recon.result import Reconstruction
from mri_ambient.volumes import load_volume

SHAPE = (3, 6, 5)
AFFINE = np.array([[0.0, 0, -0.7, 31], [0, -1.2, 0, 40], [4, 0, 0, -20], [0, 0, 0, 1]])  # axial: S, P, L
LPS_RAS = np.diag([-1.0, -1, 1, 1])
TURNED = lps_affine(rotation(10, 20, 30) @ np.array([[0, 0, -1], [1, 0, 0], [0, 1, 0]]), (4, 1.2, 0.7), (1, 2, 3))

parametric = pytest.mark.skipif(not dicom.has_parametric_maps(), reason="the extra dicom is not installed")


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(len(shape)))


@pytest.fixture
def volume() -> Reconstruction:
    return Reconstruction(
        mean=1e-5 * normal(*SHAPE),
        std=1e-6 * normal(2, *SHAPE)[0].abs(),
        attributes={"method": "posterior", "prior": "brain"},
        name="scan7",
        voxel_size=(3.0, 1.2, 0.7),
        affine=AFFINE,
    )


@pytest.fixture
def series(tmp_path) -> Path:
    """A template of which the volume below has the voxels, with other axes."""
    return write_series(tmp_path / "series", np.ones(SHAPE), TURNED)


@pytest.fixture
def placed(volume) -> Reconstruction:
    """The slices of the template backwards, columns first."""
    affine = (LPS_RAS @ TURNED)[:, [0, 2, 1, 3]]
    affine[:3, 3] += 2 * affine[:3, 0]
    affine[:3, 0] *= -1
    mean, std = (values.flip(0).mT for values in (volume.mean, volume.std))
    return Reconstruction(mean, std, attributes=volume.attributes, name="scan7", affine=affine)


def read(folder: Path) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def contents(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*.dcm")))


@pytest.fixture
def without_highdicom(monkeypatch):
    monkeypatch.setattr(dicom, "has_parametric_maps", lambda: False)


class TestImages:
    def test_values_and_geometry(self, volume, tmp_path, without_highdicom):
        volume.save(tmp_path / "out")
        for folder, expected in ((tmp_path / "out", volume.magnitude), (tmp_path / "out" / "std", volume.std)):
            back = load_volume(folder)
            np.testing.assert_allclose(back.magnitude, expected, atol=0.6 * float(expected.max()) / 65535)
            np.testing.assert_allclose(back.affine, AFFINE, atol=1e-5)
            assert back.patient is None

    def test_header(self, volume, tmp_path, without_highdicom):
        volume.save(tmp_path / "out")
        assert files(tmp_path / "out") == [f"{start}000{n}.dcm" for start in ("", "std/") for n in (1, 2, 3)]
        datasets = read(tmp_path / "out") + read(tmp_path / "out" / "std")
        assert len({dataset.SOPInstanceUID for dataset in datasets}) == 6
        assert len({dataset.SeriesInstanceUID for dataset in datasets}) == 2
        assert len({(dataset.StudyInstanceUID, dataset.FrameOfReferenceUID) for dataset in datasets}) == 1
        for dataset in datasets:
            assert dataset.SOPClassUID == pydicom.uid.MRImageStorage == dataset.file_meta.MediaStorageSOPClassUID
            assert dataset.SOPInstanceUID == dataset.file_meta.MediaStorageSOPInstanceUID
            kinds = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")
            assert all(dataset[kind].value.is_valid for kind in kinds)
            assert list(dataset.ImageType[:2]) == ["DERIVED", "SECONDARY"]
            assert not any(dataset[tag].value for tag in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex"))
            assert dataset.PatientIdentityRemoved == "YES"
            assert "Research use only" in dataset.ImageComments
            assert "not known" not in dataset.ImageComments
            assert dataset.DerivationDescription == "posterior from undersampled k-space with prior brain"
        assert [dataset.InstanceNumber for dataset in datasets] == [1, 2, 3] * 2
        assert list(datasets[0].PixelSpacing) == [1.2, 0.7]
        assert (datasets[0].SliceThickness, datasets[0].SpacingBetweenSlices) == (3, 4)

    def test_real_world_values_are_in_units_of_k_space(self, volume, tmp_path):
        volume.save(tmp_path / "out")
        for dataset, expected in zip(read(tmp_path / "out"), volume.magnitude.numpy(), strict=True):
            (mapping,) = dataset.RealWorldValueMappingSequence
            values = dataset.pixel_array * mapping.RealWorldValueSlope + mapping.RealWorldValueIntercept
            np.testing.assert_allclose(values, expected, atol=0.6 * float(volume.magnitude.max()) / 65535)
            np.testing.assert_allclose(values, dataset.pixel_array * float(dataset.RescaleSlope), rtol=1e-9)
            (unit,) = mapping.MeasurementUnitsCodeSequence
            assert (unit.CodeValue, unit.CodingSchemeDesignator) == ("1", "UCUM")
            assert "unit of the input k-space" in mapping.LUTExplanation

    def test_without_position_it_says_so(self, tmp_path):
        Reconstruction(torch.zeros(SHAPE)).save(tmp_path / "out")
        dataset = read(tmp_path / "out")[1]
        assert "orientation are not known" in dataset.ImageComments
        assert "voxel size is not known" in dataset.ImageComments
        assert list(dataset.ImagePositionPatient) == [0, 0, 1]
        assert not dataset.pixel_array.any()

    def test_does_not_mix_with_other_files(self, volume, tmp_path):
        (tmp_path / "empty").mkdir()
        volume.save(tmp_path / "empty")
        before = files(tmp_path / "empty")
        with pytest.raises(InputError, match="is not empty: name"):
            volume.save(tmp_path / "empty")
        assert files(tmp_path / "empty") == before

    def test_rows_and_columns_at_other_angles_are_refused(self, volume, tmp_path):
        affine = AFFINE.copy()
        affine[0, 1] = 0.01
        with pytest.raises(InputError, match="not at right angles"):
            Reconstruction(volume.mean, affine=affine).save(tmp_path / "out")
        assert files(tmp_path) == []


@parametric
class TestParametricMap:
    def test_values_are_exact_and_named(self, volume, tmp_path):
        volume.save(tmp_path / "out")
        assert files(tmp_path / "out" / "std") == ["parametric_map.dcm"]
        found, images = read(tmp_path / "out" / "std")[0], read(tmp_path / "out")
        assert found.SOPClassUID == pydicom.uid.ParametricMapStorage
        np.testing.assert_array_equal(by_position(found, images), volume.std)
        (shared,) = found.SharedFunctionalGroupsSequence
        (mapping,) = shared.RealWorldValueMappingSequence
        assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1, 0)
        assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "1"
        assert mapping.LUTExplanation == "standard deviation in the unit of the input k-space"
        same = ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "ImageComments")
        assert all(found.get(keyword) == images[0].get(keyword) for keyword in same)
        assert (found.SeriesNumber, found.SeriesDescription) == (2, "mri-ambient standard deviation")

    def test_every_frame_lies_where_its_image_does(self, placed, series, tmp_path):
        placed.save(tmp_path / "out", template=series)
        found, images = read(tmp_path / "out" / "std")[0], read(tmp_path / "out")
        (shared,) = found.SharedFunctionalGroupsSequence
        orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
        assert orientation == images[0].ImageOrientationPatient
        assert shared.PixelMeasuresSequence[0].PixelSpacing == images[0].PixelSpacing
        np.testing.assert_array_equal(by_position(found, images), placed.std.flip(0).mT)


def by_position(found: pydicom.Dataset, images: list[pydicom.Dataset]) -> np.ndarray:
    """Frames of a parametric map in the order of images with the same positions."""
    values = np.frombuffer(found.FloatPixelData, "<f4").reshape(found.NumberOfFrames, found.Rows, found.Columns)
    frames = {
        tuple(frame.PlanePositionSequence[0].ImagePositionPatient): image
        for frame, image in zip(found.PerFrameFunctionalGroupsSequence, values, strict=True)
    }
    return np.stack([frames[tuple(image.ImagePositionPatient)] for image in images])


class TestTemplate:
    def test_axes_are_those_of_the_template(self, placed, series, tmp_path):
        placed.save(tmp_path / "out", template=series)
        for index, dataset in enumerate(read(tmp_path / "out")):
            expected = placed.magnitude.flip(0).mT[index]
            values = dataset.pixel_array * float(dataset.RescaleSlope)
            np.testing.assert_allclose(values, expected, atol=1e-4 * float(expected.max()))
            np.testing.assert_allclose(dataset.ImagePositionPatient, (TURNED @ [index, 0, 0, 1])[:3], atol=1e-6)

    def test_without_identity(self, placed, series, tmp_path):
        placed.save(tmp_path / "out", template=series)
        source, found = read_any(series), read(tmp_path / "out")[0]
        assert found.FrameOfReferenceUID == source.FrameOfReferenceUID  # the same place
        assert found.PatientIdentityRemoved == "YES"
        assert "SourceImageSequence" not in found
        everything = contents(tmp_path / "out")
        others = [str(getattr(pydicom.dcmread(path), uid)) for path in series.iterdir() for uid in _UIDS]
        for value in [*IDENTITY.values(), *others]:
            if len(value) > 2:  # one letter proves nothing
                assert value.encode("utf-8") not in everything, value
                assert value.encode("latin-1") not in everything, value
        assert not found.PatientSex

    def test_identity_on_request(self, placed, series, tmp_path):
        placed.save(tmp_path / "out", template=series, keep_identity=True)
        sources = {str(dataset.SOPInstanceUID): dataset for dataset in map(pydicom.dcmread, series.iterdir())}
        found = read(tmp_path / "out")
        for dataset in [*found, *read(tmp_path / "out" / "std")]:
            for keyword, value in IDENTITY.items():
                assert str(dataset[keyword].value) == value, keyword
            assert "PatientIdentityRemoved" not in dataset
            assert "DeidentificationMethod" not in dataset
        assert {dataset.SeriesNumber for dataset in found} == {701}
        for dataset in found:
            (reference,) = dataset.SourceImageSequence
            source = sources[reference.ReferencedSOPInstanceUID]
            np.testing.assert_allclose(source.ImagePositionPatient, dataset.ImagePositionPatient, atol=1e-6)
        new = {str(dataset.SeriesInstanceUID) for dataset in found}
        assert new.isdisjoint({str(dataset.SeriesInstanceUID) for dataset in sources.values()})

    @pytest.mark.parametrize("keep", [False, True])
    def test_other_elements_are_never_copied(self, placed, tmp_path, keep):
        series = write_series(
            tmp_path / "t", np.ones(SHAPE), TURNED, OperatorsName="Secret^O", StationName="SECRET2", EchoTime=17.5
        )
        for path in series.iterdir():
            dataset = pydicom.dcmread(path)
            dataset.private_block(0x0029, "VENDOR", create=True).add_new(1, "LO", "SECRET3")
            dataset.save_as(path)
        placed.save(tmp_path / "out", template=series, keep_identity=keep)
        assert b"SECRET" not in contents(tmp_path / "out").upper()
        assert read(tmp_path / "out")[0].EchoTime == 17.5  # belongs to the image

    def test_scan_without_a_position(self, volume, series, tmp_path):
        """Its axes are assumed to be those of the template, and the files say that it was an assumption."""
        Reconstruction(volume.mean).save(tmp_path / "out", template=series)
        for index, dataset in enumerate(read(tmp_path / "out")):
            np.testing.assert_allclose(dataset.ImagePositionPatient, (TURNED @ [index, 0, 0, 1])[:3], atol=1e-6)
            assert "were assumed to be the template's" in dataset.ImageComments

    def test_values_that_dicom_does_not_allow(self, placed, tmp_path):
        """Scanners and anonymisers write such; identifiers are kept, decimals shortened, the rest left out."""
        series = write_series(tmp_path / "t", np.ones(SHAPE), TURNED)
        for path in series.iterdir():
            dataset = pydicom.dcmread(path)
            for keyword, vr, value in (
                ("PatientAge", "AS", "42"),
                ("PatientName", "PN", "nobody"),
                ("StudyInstanceUID", "UI", "1.02.3"),
                ("StudyDate", "DA", "2020"),
                ("PatientSex", "CS", "U"),  # a code that is none of the three, and that highdicom refuses
                ("EchoTime", "DS", "3.45678901234567890"),
            ):
                element = pydicom.DataElement(keyword, vr, value, validation_mode=pydicom.config.IGNORE)
                dataset[keyword] = element
            dataset.save_as(path)
        placed.save(tmp_path / "out", template=series, keep_identity=True)
        for found in [*read(tmp_path / "out"), *read(tmp_path / "out" / "std")]:
            assert "PatientAge" not in found
            assert found.PatientSex == "U"
            with pytest.warns(UserWarning, match="Invalid value for VR UI"):
                assert (str(found.PatientName), found.StudyInstanceUID, found.StudyDate) == ("nobody", "1.02.3", "")
        assert str(read(tmp_path / "out")[0].EchoTime) == "3.456789012"

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda affine: affine[:, [0, 1, 2, 3]] @ np.diag([1, 1.3, 1, 1]), "voxels away"),
            (lambda affine: affine + np.eye(4)[:, [3, 2, 1, 0]] * 0.0 + _shift(affine, 0.6), "0.6 voxels away"),
            (lambda affine: _turned(affine, 40), "away from|oblique"),
            (lambda affine: affine @ np.diag([-1, 1, 1, 1]), "voxels away"),
        ],
    )
    def test_another_place_is_refused(self, placed, series, tmp_path, change, message):
        moved = Reconstruction(placed.mean, affine=change(placed.affine))
        with pytest.raises(InputError, match=message):
            moved.save(tmp_path / "out", template=series)
        assert not (tmp_path / "out").exists()

    def test_a_little_aside_is_rounding(self, placed, series, tmp_path):
        moved = Reconstruction(placed.mean, affine=placed.affine + _shift(placed.affine, 0.3))
        moved.save(tmp_path / "out", template=series)
        np.testing.assert_allclose(read(tmp_path / "out")[0].ImagePositionPatient, TURNED[:3, 3], atol=1e-6)

    @pytest.mark.parametrize("affine", [None, LPS_RAS @ TURNED])
    @pytest.mark.parametrize("shape", [(2, 6, 5), (3, 5, 6), (3, 7, 5)])
    def test_another_size_is_refused(self, series, tmp_path, shape, affine):
        with pytest.raises(InputError, match=r"has 3 x 6 x 5 voxels .* and the image {} x {} x {}".format(*shape)):
            Reconstruction(normal(*shape), affine=affine).save(tmp_path / "out", template=series)
        assert not (tmp_path / "out").exists()

    def test_what_is_no_template(self, volume, series, tmp_path):
        with pytest.raises(InputError, match="is not a folder"):
            open_template(series / "03")
        with pytest.raises(InputError, match="is not a folder"):
            volume.save(tmp_path / "out", template=tmp_path / "none")
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "text").write_text("no image")
        with pytest.raises(InputError, match="is no DICOM file"):
            open_template(tmp_path / "other")
        with pytest.raises(InputError, match="for DICOM files"):
            volume.save(tmp_path / "x.nii", template=series)
        with pytest.raises(InputError, match="for DICOM files"):
            volume.save(tmp_path / "x.h5", keep_identity=True)
        with pytest.raises(InputError, match="only be kept from a template"):
            volume.save(tmp_path / "out", keep_identity=True)
        (series / "99").write_bytes((series / "03").read_bytes()[:300])
        with pytest.raises(InputError, match="99"):
            open_template(series)
        assert files(tmp_path / "out") == []

    @pytest.mark.parametrize("keyword", ["SeriesNumber", "PatientWeight"])
    def test_a_damaged_value_is_found_before_the_work(self, series, keyword):
        for path in series.iterdir():
            dataset = pydicom.dcmread(path)
            dataset[keyword] = pydicom.DataElement(keyword, "LO", "not a number")
            dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian  # without the kind of value
            dataset.save_as(path)
        with pytest.raises(InputError, match=r"cannot be (read|used)"):
            open_template(series)

    def test_settings_that_would_be_ignored(self, series):
        with pytest.raises(InputError, match="add the format dicom"):
            FileSettings(template=open_template(series))
        with pytest.raises(InputError, match="only be kept from a template"):
            FileSettings(formats=("dicom",), keep_identity=True)

    def test_every_signed_permutation(self, series):
        """Against the coordinates of all voxels, one by one."""
        template = open_template(series)
        index = np.indices(SHAPE)
        for axes in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
            for flips in ((), (0,), (1, 2), (0, 1, 2)):
                places = np.flip(index, [flip + 1 for flip in flips]).transpose(0, *(axis + 1 for axis in axes))
                assert _restored(template, places)


_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


def read_any(folder: Path) -> pydicom.Dataset:
    return pydicom.dcmread(next(folder.iterdir()))


def _shift(affine: np.ndarray, voxels: float) -> np.ndarray:
    """What has to be added to move an image along its rows."""
    return np.outer(affine @ [0, voxels, 0, 0], [0, 0, 0, 1])


def _turned(affine: np.ndarray, degrees: float) -> np.ndarray:
    turn = np.eye(4)
    turn[:3, :3] = rotation(degrees, degrees, 0)
    return turn @ affine


def _restored(template: Template, places: np.ndarray) -> bool:
    """Whether `fit` undoes a rearrangement of the template's indices (3, slice, y, x)."""
    corner = places[:, 0, 0, 0]
    steps = np.stack([places[:, 1, 0, 0], places[:, 0, 1, 0], places[:, 0, 0, 1]], axis=1) - corner[:, None]
    affine = np.eye(4)
    affine[:3] = np.column_stack([steps, corner])
    axes, flips = template.fit(places.shape[1:], template.series.affine @ affine)
    again = np.flip(places.transpose(0, *(axis + 1 for axis in axes)), [flip + 1 for flip in flips])
    return np.array_equal(again, np.indices(SHAPE))


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (Debian package dicom3tools) is not installed")
class TestValidator:
    def check(self, folder: Path) -> None:
        paths = sorted(folder.rglob("*.dcm"))
        assert len(paths) > 3
        for path in paths:
            done = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True, check=False)
            errors = [line for line in done.stderr.splitlines() if line.startswith("Error")]
            assert (done.returncode, errors) == (0, []), path
            assert done.stdout.strip() or "MRImage" in done.stderr or "ParametricMap" in done.stderr

    @pytest.mark.parametrize("affine", [None, AFFINE])
    def test_without_a_template(self, volume, tmp_path, affine):
        Reconstruction(volume.mean, volume.std, attributes=volume.attributes, affine=affine).save(tmp_path / "out")
        self.check(tmp_path / "out")

    def test_standard_deviation_as_images(self, volume, tmp_path, without_highdicom):
        volume.save(tmp_path / "out")
        self.check(tmp_path / "out")

    @pytest.mark.parametrize("keep", [False, True])
    def test_with_a_template(self, placed, series, tmp_path, keep):
        placed.save(tmp_path / "out", template=series, keep_identity=keep)
        self.check(tmp_path / "out")

    @pytest.mark.parametrize("keep", [False, True])
    def test_with_a_real_template(self, data_dir, tmp_path, keep):
        volume = load_volume(data_dir / "dicom_t1")
        mean = torch.from_numpy(volume.magnitude).to(torch.complex64)
        Reconstruction(mean, mean.abs() / 9, affine=volume.affine).save(
            tmp_path / "out", template=data_dir / "dicom_t1", keep_identity=keep
        )
        self.check(tmp_path / "out")
        back = load_volume(tmp_path / "out")
        np.testing.assert_allclose(back.affine, volume.affine, atol=1e-6)
        np.testing.assert_allclose(back.magnitude, volume.magnitude, atol=volume.magnitude.max() / 65535)
