"""Magnitude volumes from NIfTI files and DICOM series, in one orientation.

A volume is an array ``(slice, y, x)`` with a 4 x 4 affine from its *array indices* to patient millimetres in NIfTI's
RAS convention (first coordinate to the patient's right, then anterior, then superior):

    (r, a, s, 1)^T = affine (slice, y, x, 1)^T.

The three anatomical axes are always stored in the same directions, whatever the file's:

    axial slices      slice upwards (S),      y to posterior (P),  x to the patient's left (L)
    coronal slices    slice to posterior (P), y downwards (I),     x to the patient's left (L)
    sagittal slices   slice to left (L),      y downwards (I),     x to posterior (P)

so that an image drawn with row 0 on top shows the forehead (or the vertex) on top in the radiological convention.
Axes are permuted and flipped only, never interpolated: oblique scans keep their samples, and the affine stays exact.

The slice axis of a NIfTI file is the one with clearly the largest voxels (thick 2-D slices); volumes that are close to
isotropic are cut axially. The slice axis of a DICOM series is the one along which its files are stacked.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mri_ambient.errors import InputError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

# The directions of (slice, y, x) for the anatomical axis the slices are stacked along, as nibabel axis codes.
_DIRECTIONS = {"L": ("L", "I", "P"), "P": ("P", "I", "L"), "S": ("S", "P", "L")}
LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM and ISMRMRD count to the patient's left and posterior
NIFTI = (".nii", ".nii.gz")
_PREAMBLE, _SIGNATURE = 128, b"DICM"  # of DICOM files
_ANISOTROPIC = 1.2  # ratio of the largest to the second voxel size from which slices are taken to be 2-D
_UNEVEN = 0.05  # relative deviation of a slice gap from the mean that is still rounding
_RINGING = 0.05  # negative values up to this fraction of the maximum are interpolation ringing, more are not magnitude


@dataclass(frozen=True)
class Volume:
    """A magnitude volume with its geometry.

    Attributes
    ----------
    magnitude : numpy.ndarray
        (slice, y, x), float32, finite, not negative; in the units of the source.
    affine : numpy.ndarray
        (4, 4), float64: array indices (slice, y, x) to RAS millimetres.
    patient : str or None
        Who it is, for splits and intervals by patient.
    name : str
        What it is, for file names.
    """

    magnitude: np.ndarray
    affine: np.ndarray
    patient: str | None = None
    name: str = "volume"

    @property
    def voxel_size(self) -> tuple[float, float, float]:
        """Voxel size in millimetres along (slice, y, x)."""
        slice_mm, y_mm, x_mm = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(slice_mm), float(y_mm), float(x_mm)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(slices, y, x)."""
        slices, y, x = self.magnitude.shape
        return slices, y, x


def load_volume(path: str | Path | Iterable[str | Path]) -> Volume:
    """Read a magnitude volume from a NIfTI file, a DICOM folder, or DICOM files.

    Parameters
    ----------
    path : path, or iterable of paths
        ``*.nii`` or ``*.nii.gz``; one DICOM file; a folder that holds the files of one DICOM series; or those files.

    Returns
    -------
    Volume
        In the fixed orientation of this module. The patient is the BIDS subject or else the parent folder's name for
        NIfTI, and the PatientID for DICOM.

    Raises
    ------
    InputError
        If there is nothing to read, it is not an image of a supported kind, it mixes series, or its values are not
        those of a magnitude image.
    """
    if not isinstance(path, (str, Path)):
        return _load_dicom([Path(item) for item in path])
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist.")
    if path.is_dir():
        return _load_dicom(path, name=path.resolve().name)
    if path.name.lower().endswith(NIFTI):
        return _load_nifti(path)
    return _load_dicom([path])


def is_image(path: Path) -> bool:
    """Whether a path is called like a NIfTI file, or is a DICOM file or a folder that holds some by content."""
    if path.is_dir():
        return any(_is_dicom(file) for file in path.iterdir())
    return path.name.lower().endswith(NIFTI) or _is_dicom(path)


def _is_dicom(path: Path) -> bool:
    if not path.is_file():
        return False
    with suppress(PermissionError), path.open("rb") as file:
        return file.read(_PREAMBLE + len(_SIGNATURE))[_PREAMBLE:] == _SIGNATURE
    return False


def _load_nifti(path: Path) -> Volume:
    import nibabel as nib

    try:
        image: Any = nib.load(path)
        array = np.asanyarray(image.dataobj)
    except Exception as e:  # damaged files raise what zlib, NumPy and nibabel happen to raise
        raise InputError(f"{path} cannot be read as NIfTI: {_first_line(e)}.") from e
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3:
        raise InputError(f"{path} has the shape {array.shape}; a single 3-D volume is needed, so split it first.")
    affine = np.asarray(image.affine, dtype=np.float64)
    _check_affine(affine, path)
    voxels = np.linalg.norm(affine[:3, :3], axis=0)
    magnitude, affine = _orient(_magnitude(array, path), affine, _slice_axis(array.shape, voxels, affine))
    return Volume(magnitude, affine, _nifti_patient(path), path.name[: path.name.lower().rindex(".nii")])


def _slice_axis(shape: tuple[int, ...], voxels: np.ndarray, affine: np.ndarray) -> int:
    """Array axis that the slices are stacked along."""
    from nibabel.orientations import io_orientation

    if shape.count(1) == 1:
        return shape.index(1)
    order = np.argsort(voxels)
    if voxels[order[2]] > _ANISOTROPIC * voxels[order[1]]:
        return int(order[2])
    return int(np.flatnonzero(io_orientation(affine)[:, 0] == 2)[0])


def _nifti_patient(path: Path) -> str | None:
    folders = [folder.name for folder in path.resolve().parents]
    subjects = [name for name in folders if name.startswith("sub-")]
    return (subjects or folders)[0] or None


def _orient(array: np.ndarray, affine: np.ndarray, slice_axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Permute and flip to the module's directions; the affine follows, so every sample stays where it was."""
    from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

    start = io_orientation(affine)
    stacked = "LPS"[int(start[slice_axis, 0])]
    change = ornt_transform(start, axcodes2ornt(_DIRECTIONS[stacked]))
    oriented = np.ascontiguousarray(apply_orientation(array, change))
    return oriented, affine @ inv_ornt_aff(change, array.shape)


def _magnitude(array: np.ndarray, source: Path) -> np.ndarray:
    if array.dtype.names is not None:
        raise InputError(f"{source} holds colours; a magnitude image with one value a voxel is needed.")
    values = np.abs(array) if np.iscomplexobj(array) else np.asarray(array)
    values = values.astype(np.float32)
    if values.size == 0 or not values.any():
        raise InputError(f"{source} holds no signal: every voxel is zero.")
    if not np.isfinite(values).all():
        raise InputError(f"{source} holds values that are not finite (NaN or infinity).")
    if values.min() < -_RINGING * values.max():
        raise InputError(f"{source} holds negative values down to {values.min():g}; a magnitude image is needed.")
    return values.clip(min=0)


def _check_affine(affine: np.ndarray, source: Path) -> None:
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise InputError(f"{source} does not say how its voxels lie in space (its affine is singular).")


def _series_files(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.iterdir() if file.is_file())
    files = [file for file in files if not file.name.startswith(".") and file.name.upper() != "DICOMDIR"]
    if not files:
        raise InputError(f"{folder} holds no files; a folder with one DICOM series is needed.")
    if any(file.name.lower().endswith(NIFTI) for file in files):
        raise InputError(f"{folder} holds NIfTI files; give one of them instead of the folder.")
    return files


@dataclass(frozen=True, eq=False)
class DicomSeries:
    """A series of parallel, evenly spaced images, in the order of their positions along the normal.

    Attributes
    ----------
    datasets : list of pydicom.Dataset
    files : list of Path
        Where they were read from, in the same order.
    affine : numpy.ndarray
        (4, 4): (slice, row, column) to RAS millimetres.
    """

    datasets: list[Dataset]
    files: list[Path]
    affine: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """(slices, rows, columns)."""
        return len(self.datasets), int(self.datasets[0].Rows), int(self.datasets[0].Columns)


def read_series(source: Path | list[Path], pixels: bool = True) -> DicomSeries:
    """Read a DICOM series from a folder that holds nothing else, or from its files.

    Parameters
    ----------
    source : Path or list of Path
    pixels : bool
        Read the pixels too, not only what describes them.

    Raises
    ------
    InputError
        If it is not one series of evenly spaced images of one size and direction.
    """
    files = source if isinstance(source, list) else _series_files(source)
    if not files:
        raise InputError("No DICOM file was given.")
    datasets = [_read_dicom(file, pixels) for file in files]
    place = files[0].parent if len(files) > 1 else files[0]
    _check_series(datasets, place)
    first = datasets[0]
    across, down = np.asarray(first.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
    normal = np.cross(across, down)
    positions = np.array([dataset.ImagePositionPatient for dataset in datasets], dtype=np.float64)
    order = np.argsort(positions @ normal)
    step = _slice_step(positions[order], normal, first, place)
    down_mm, across_mm = (float(value) for value in first.PixelSpacing)
    affine = np.eye(4)
    affine[:3] = np.stack([step, down * down_mm, across * across_mm, positions[order[0]]], axis=1)
    affine = LPS_RAS @ affine
    _check_affine(affine, place)
    return DicomSeries([datasets[index] for index in order], [files[index] for index in order], affine)


def _load_dicom(source: Path | list[Path], name: str | None = None) -> Volume:
    series = read_series(source)
    first = series.datasets[0]
    place = series.files[0].parent if len(series.files) > 1 else series.files[0]
    array = np.stack([_pixels(dataset, file) for dataset, file in zip(series.datasets, series.files, strict=True)])
    magnitude, affine = _orient(_magnitude(array, place), series.affine, slice_axis=0)
    patient = str(first.get("PatientID") or "").strip() or None
    return Volume(magnitude, affine, patient, name or series.files[0].stem)


def _read_dicom(file: Path, pixels: bool) -> Dataset:
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        dataset = pydicom.dcmread(file, stop_before_pixels=not pixels)
    except InvalidDicomError as e:
        if not pixels:
            raise InputError(f"{file} is no DICOM file: leave nothing but the series in its folder.") from e
        raise InputError(f"{file} is neither a NIfTI file (.nii, .nii.gz) nor a DICOM file.") from e
    except OSError as e:
        raise InputError(f"{file} cannot be read: {_first_line(e)}.") from e
    if ("PixelData" not in dataset) if pixels else ("Rows" not in dataset or "Columns" not in dataset):
        raise InputError(f"{file} is a DICOM file without an image.")
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        kind = "NIfTI" if pixels else "files of one frame"
        raise InputError(f"{file} is a multi-frame DICOM file, which is not supported; convert it to {kind} first.")
    if int(dataset.get("SamplesPerPixel") or 1) != 1:
        raise InputError(f"{file} is a colour image; a magnitude image with one value a pixel is needed.")
    missing = [tag for tag in _GEOMETRY if dataset.get(tag) is None]
    if missing:
        raise InputError(f"{file} does not say where its image lies: {', '.join(missing)} is missing.")
    return dataset


_GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")


def _check_series(datasets: list[Dataset], source: Path) -> None:
    series = {str(dataset.get("SeriesInstanceUID", "")) for dataset in datasets}
    if len(series) > 1:
        raise InputError(f"{source} holds {len(series)} DICOM series; give the files of one.")
    first = datasets[0]
    for dataset in datasets[1:]:
        same = (dataset.Rows, dataset.Columns) == (first.Rows, first.Columns) and all(
            np.allclose(dataset.get(tag), first.get(tag), atol=1e-3) for tag in _GEOMETRY[1:]
        )
        if not same:
            raise InputError(f"{source} holds slices of different size or direction, which do not form one volume.")


def _slice_step(positions: np.ndarray, normal: np.ndarray, dataset: Dataset, source: Path) -> np.ndarray:
    """Vector from one slice to the next, from the sorted positions (the thickness says nothing about gaps)."""
    if len(positions) == 1:
        thickness = dataset.get("SpacingBetweenSlices") or dataset.get("SliceThickness") or 1.0
        return normal * float(thickness)
    gaps = np.diff(positions @ normal)
    mean = float(gaps.mean())
    if gaps.min() < 1e-3:
        raise InputError(f"{source} holds several images of the same slice (echoes or repetitions); give one of each.")
    if np.abs(gaps - mean).max() > _UNEVEN * mean:
        raise InputError(f"{source} has slice gaps from {gaps.min():.2f} to {gaps.max():.2f} mm: a slice is missing.")
    return (positions[-1] - positions[0]) / (len(positions) - 1)


def _pixels(dataset: Dataset, file: Path) -> np.ndarray:
    try:
        pixels = dataset.pixel_array
    except Exception as e:  # every decoder raises its own kinds
        raise InputError(f"{file}: its pixels cannot be decoded: {_first_line(e)}.") from e
    slope, intercept = float(dataset.get("RescaleSlope") or 1), float(dataset.get("RescaleIntercept") or 0)
    return pixels.astype(np.float32) * np.float32(slope) + np.float32(intercept)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
