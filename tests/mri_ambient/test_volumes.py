import gzip
from itertools import permutations

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from mri_ambient.errors import InputError
from mri_ambient.volumes import load_volume

SHAPE = (3, 6, 5)  # slice (superior), y (posterior), x (left)
VALUES = np.random.default_rng(0).integers(1, 1000, SHAPE).astype(np.uint16)
AFFINE = np.array([[0.1, 0.05, -1.2, 40], [0.2, -1.1, 0.02, 30], [4.0, 0.1, 0.15, -20], [0, 0, 0, 1.0]])
SERIES = generate_uid()


def save_nifti(path, array, affine):
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def rearranged(order, flips):
    """VALUES with permuted and flipped axes, and the affine that keeps every voxel where it is."""
    array, affine = VALUES.transpose(order), AFFINE[:, [*order, 3]].copy()
    for axis, flip in enumerate(flips):
        if flip:
            affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
            affine[:3, axis] *= -1
            array = np.flip(array, axis)
    return array, affine


def save_dicom(path, index, *, series=SERIES, values=VALUES, gap=None, **changes):
    """One slice of a series, rows to posterior and columns to the left, like VALUES."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
    dataset.SeriesInstanceUID, dataset.PatientID, dataset.Modality = series, "P7", "MR"
    dataset.Rows, dataset.Columns = values.shape[1:]
    dataset.PixelSpacing, dataset.SliceThickness = [1.5, 0.75], 2
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = [-30, -40, (4.0 * index if gap is None else gap) - 5]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.RescaleSlope, dataset.RescaleIntercept = 2, 3
    dataset.PixelData = values[index].tobytes()
    for tag, value in changes.items():
        setattr(dataset, tag, value)
    dataset.save_as(path)


@pytest.fixture
def series(tmp_path):
    folder = tmp_path / "series"
    folder.mkdir()
    for name, index in (("a", 2), ("b", 0), ("c", 1)):  # the names are not in the order of the slices
        save_dicom(folder / f"{name}.dcm", index)
    return folder


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("flips", [(0, 0, 0), (1, 0, 0), (0, 1, 1), (1, 1, 1)])
def test_every_nifti_orientation_gives_the_same_volume(tmp_path, order, flips):
    volume = load_volume(save_nifti(tmp_path / "patient01" / "t1.nii.gz", *rearranged(order, flips)))
    np.testing.assert_array_equal(volume.magnitude, VALUES)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-4)
    assert volume.magnitude.dtype == np.float32
    assert volume.magnitude.flags.c_contiguous
    assert (volume.patient, volume.name) == ("patient01", "t1")
    np.testing.assert_allclose(volume.voxel_size, np.linalg.norm(AFFINE[:3, :3], axis=0), rtol=1e-5)


@pytest.mark.parametrize(
    ("thick", "codes"), [(0, ("L", "I", "P")), (1, ("P", "I", "L")), (2, ("S", "P", "L"))], ids=("sag", "cor", "axi")
)
def test_slices_are_stacked_along_the_thick_axis_with_the_head_upright(tmp_path, thick, codes):
    voxels = np.ones(3)
    voxels[thick] = 3
    array = np.arange(1, 4 * 5 * 6 + 1, dtype=np.float32).reshape(4, 5, 6)
    volume = load_volume(save_nifti(tmp_path / "a" / "v.nii", array, np.diag([*voxels, 1])))
    assert nib.aff2axcodes(volume.affine) == codes
    assert volume.voxel_size == (3, 1, 1)
    corner = volume.affine @ [0, 0, 0, 1]
    assert volume.magnitude[0, 0, 0] == array[tuple((corner[:3] / voxels).round().astype(int))]


def test_isotropic_volume_is_cut_axially(tmp_path):
    array = np.ones((4, 5, 6), dtype=np.float32)
    assert load_volume(save_nifti(tmp_path / "a" / "v.nii", array, np.eye(4))).shape == (6, 5, 4)


def test_single_image_is_one_slice(tmp_path):
    array = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
    volume = load_volume(save_nifti(tmp_path / "a" / "v.nii", array, np.eye(4)))
    np.testing.assert_array_equal(volume.magnitude[0], array[::-1, ::-1].T)


def test_bids_subject_is_the_patient(tmp_path):
    folder = tmp_path / "sub-09" / "anat"
    folder.mkdir(parents=True)
    assert load_volume(save_nifti(folder / "v.nii.gz", VALUES, np.diag([1, 1, 3, 1]))).patient == "sub-09"


def test_complex_values_become_magnitude_and_ringing_is_clipped(tmp_path):
    array = np.full((2, 2, 2), 3 - 4j, dtype=np.complex64)
    assert (load_volume(save_nifti(tmp_path / "a" / "c.nii", array, np.eye(4))).magnitude == 5).all()
    array = np.ones((2, 2, 2), dtype=np.float32)
    array[0] = -0.01
    assert load_volume(save_nifti(tmp_path / "a" / "r.nii", array, np.eye(4))).magnitude.min() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a * 0, "no signal"),
        (lambda a: np.where(a == a.max(), np.nan, a), "not finite"),
        (lambda a: a - a.mean(), "negative"),
        (lambda a: np.stack([a, a], -1), "3-D"),
    ],
)
def test_unusable_nifti_values_are_refused(tmp_path, change, message):
    path = save_nifti(tmp_path / "a" / "v.nii", change(VALUES.astype(np.float32)), np.eye(4))
    with pytest.raises(InputError, match=message):
        load_volume(path)


def test_trailing_axes_of_length_one_are_dropped(tmp_path):
    assert load_volume(save_nifti(tmp_path / "a" / "v.nii", VALUES[..., None], np.diag([3, 1, 1, 1]))).shape == (
        3,
        5,
        6,
    )


def test_unreadable_sources_are_refused(tmp_path):
    (tmp_path / "text.nii").write_text("not an image")
    (tmp_path / "text.nii.gz").write_text("not even compressed")
    whole = save_nifti(tmp_path / "a" / "v.nii.gz", VALUES, np.eye(4)).read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole[:100])
    (tmp_path / "short.nii.gz").write_bytes(gzip.compress(gzip.decompress(whole)[:400]))
    (tmp_path / "scan.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(500))
    (tmp_path / "empty").mkdir()
    for name in ("text.nii", "text.nii.gz", "cut.nii.gz", "short.nii.gz"):
        with pytest.raises(InputError, match="cannot be read as NIfTI"):
            load_volume(tmp_path / name)
    for name, message in (("gone.nii", "does not exist"), ("scan.h5", "neither"), ("empty", "no files"), ("a", "NIf")):
        with pytest.raises(InputError, match=message):
            load_volume(tmp_path / name)
    with pytest.raises(InputError, match="No DICOM"):
        load_volume([])


def test_dicom_slices_are_sorted_by_position_rescaled_and_placed(series):
    volume = load_volume(series)
    np.testing.assert_array_equal(volume.magnitude, VALUES * 2.0 + 3)
    expected = [[0, 0, -0.75, 30], [0, -1.5, 0, 40], [4, 0, 0, -5], [0, 0, 0, 1]]
    np.testing.assert_allclose(volume.affine, expected, atol=1e-9)
    assert (volume.patient, volume.name) == ("P7", "series")
    np.testing.assert_array_equal(load_volume(sorted(series.iterdir())).magnitude, volume.magnitude)


def test_dicom_and_nifti_of_one_scan_agree(series, tmp_path):
    volume = load_volume(series)
    again = load_volume(save_nifti(tmp_path / "n" / "v.nii", volume.magnitude, volume.affine))
    np.testing.assert_array_equal(again.magnitude, volume.magnitude)
    np.testing.assert_allclose(again.affine, volume.affine, atol=1e-4)


def test_one_dicom_file_is_one_slice(series):
    volume = load_volume(series / "b.dcm")
    assert volume.shape == (1, *SHAPE[1:])
    assert volume.voxel_size == (2, 1.5, 0.75)


def test_hidden_files_beside_the_series_are_ignored(series):
    (series / ".DS_Store").write_text("x")
    assert load_volume(series).shape == SHAPE


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: save_dicom(folder / "d.dcm", 1, gap=12, series=generate_uid()), "2 DICOM series"),
        (lambda folder: save_dicom(folder / "d.dcm", 1), "several images of the same slice"),
        (lambda folder: save_dicom(folder / "d.dcm", 1, gap=20), "slice is missing"),
        (lambda folder: save_dicom(folder / "d.dcm", 1, gap=12, NumberOfFrames=2), "multi-frame"),
        (lambda folder: save_dicom(folder / "d.dcm", 1, gap=12, values=VALUES[:, :4]), "different size"),
        (lambda folder: save_dicom(folder / "d.dcm", 1, gap=12, ImageOrientationPatient=[0, 1, 0, 0, 0, 1]), "directi"),
        (lambda folder: save_dicom(folder / "d.dcm", 1, gap=12, ImagePositionPatient=None), "ImagePositionPatient"),
        (lambda folder: save_dicom(folder / "d.dcm", 1, gap=12, SamplesPerPixel=3), "colour"),
        (lambda folder: (folder / "notes.txt").write_text("x"), "notes.txt is neither"),
    ],
)
def test_what_is_not_one_dicom_series_is_refused(series, spoil, message):
    spoil(series)
    with pytest.raises(InputError, match=message):
        load_volume(series)


def test_dicom_without_image_or_with_damaged_pixels_is_refused(series):
    dataset = pydicom.dcmread(series / "a.dcm")
    dataset.PixelData = dataset.PixelData[:10]
    dataset.save_as(series / "a.dcm")
    with pytest.raises(InputError, match="cannot be decoded"):
        load_volume(series)
    del dataset.PixelData
    dataset.save_as(series / "a.dcm")
    with pytest.raises(InputError, match="without an image"):
        load_volume(series)


@pytest.mark.parametrize("source", ["open_ms/patient01/study1_T2W.nii.gz", "dicom_t1"])
def test_real_heads_are_mirror_images_from_left_to_right_only(data_dir, source):
    volume = load_volume(data_dir / source)
    assert nib.aff2axcodes(volume.affine) == ("S", "P", "L")

    def symmetry(axis):
        profile = volume.magnitude[len(volume.magnitude) // 2 :].sum(axis=(0, axis)).astype(np.float64)
        middle = round(float(profile @ np.arange(len(profile)) / profile.sum()))
        reach = min(middle, len(profile) - 1 - middle)
        return np.corrcoef(profile[middle - reach : middle], profile[middle + reach : middle : -1])[0, 1]

    assert symmetry(axis=1) > 0.995 > 0.99 > symmetry(axis=2)
