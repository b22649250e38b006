"""Reconstructions in the formats of other tools: NIfTI, DICOM and PNG. HDF5, the complete one, is in `result`.

*Geometry.* A volume is (slice, y, x) with an affine to RAS millimetres. NIfTI gets the axes (x, y, slice), so that the
columns of the affine are reversed; DICOM counts to the patient's left and posterior (LPS), so that the first two rows
of the affine change sign. Where the position of the voxels is not known, a NIfTI file says so (codes 0, for which
viewers show no left and right) and a DICOM file, in which a position is mandatory, says so in its comment.

*Intensities.* NIfTI holds float32 in units of the input k-space. DICOM holds 16-bit integers with one slope for the
volume: value = slope * stored. Nothing of the patient is written to either.

Every file or folder appears under its name only when it is complete.

References
----------
DICOM PS3.3, C.7 and C.8.3 (MR image module); https://dicom.nema.org/medical/dicom/current/output/html/part03.html
NIfTI-1 data format, https://nifti.nimh.nih.gov/nifti-1
"""

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

from mri_ambient.errors import InputError

from .result import Reconstruction, ReconstructionWriter

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

NOTICE = "Research use only. Not for diagnosis."
_ENDINGS = (".h5", ".hdf5", ".nii", ".nii.gz", ".png")


def export(reconstruction: Reconstruction, path: Path) -> Path:
    """Write to the format that the name asks for; see `Reconstruction.save`."""
    name = path.name.lower()
    if path.is_dir() or not path.suffix:
        write_dicom(reconstruction, path)
    elif name.endswith((".h5", ".hdf5")):
        write_hdf5(reconstruction, path)
    elif name.endswith((".nii", ".nii.gz")):
        write_nifti(reconstruction, path)
    elif name.endswith(".png"):
        write_png(reconstruction, path)
    else:
        known = ", ".join(_ENDINGS)
        raise InputError(f"The format of {path} is not known: end the name in {known}, or in nothing for DICOM files.")
    return path


def write_hdf5(reconstruction: Reconstruction, path: Path) -> None:
    """Everything, in the layout of `result`."""
    volume = reconstruction
    rest = (volume.std, volume.samples, volume.sensitivity_maps)
    with ReconstructionWriter(
        path,
        len(volume.mean),
        attributes=volume.attributes,
        name=volume.name,
        voxel_size=volume.voxel_size,
        affine=volume.affine,
    ) as writer:
        for index, mean in enumerate(volume.mean):
            writer.write(index, mean, *(None if array is None else array[index] for array in rest))


def write_nifti(reconstruction: Reconstruction, path: Path) -> None:
    """Magnitude as ``x.nii.gz`` and, where there is one, the error bar as ``x_std.nii.gz``."""
    _nifti(reconstruction, reconstruction.magnitude.numpy(), path)
    if reconstruction.std is not None:
        stem, ending = path.name[: path.name.lower().rindex(".nii")], path.name[path.name.lower().rindex(".nii") :]
        _nifti(reconstruction, reconstruction.std.numpy(), path.with_name(f"{stem}_std{ending}"))


def _nifti(reconstruction: Reconstruction, volume: np.ndarray, path: Path) -> None:
    import nibabel as nib

    affine = reconstruction.affine
    data = volume.transpose(2, 1, 0)
    image: Any = nib.Nifti1Image(data, None if affine is None else affine[:, [2, 1, 0, 3]])
    if affine is None:
        image.header.set_zooms(_voxel_size(reconstruction)[::-1])
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = f"mri-ambient. {NOTICE}".encode()
    with replacing(path) as temporary:
        nib.save(image, temporary)


def write_png(reconstruction: Reconstruction, path: Path) -> None:
    """All slices as a grid of magnitudes, one grey scale for the volume (clipped at its 99.9th percentile)."""
    from matplotlib.image import imsave

    magnitude = reconstruction.magnitude.numpy()
    slices, height, width = magnitude.shape
    columns = math.ceil(math.sqrt(slices * height / width))
    rows = math.ceil(slices / columns)
    grid = np.zeros((rows * columns, height, width), np.float32)
    grid[:slices] = magnitude
    grid = grid.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, columns * width)
    brightest = float(np.percentile(magnitude, 99.9)) or 1.0
    with replacing(path) as temporary:
        imsave(temporary, grid / brightest, cmap="gray", vmin=0, vmax=1)


def write_dicom(reconstruction: Reconstruction, path: Path) -> None:
    """A folder with one MR image a slice, ``0001.dcm`` and so on, and the error bar as another series in ``std``.

    Raises
    ------
    InputError
        If the folder holds files: they might be a scan, and slices of two volumes must not mix.
    """
    from pydicom.uid import generate_uid

    if path.is_dir() and any(path.iterdir()):
        raise InputError(f"The folder {path} is not empty: name an empty or a new one for the DICOM files.")
    study, frame = generate_uid(), generate_uid()
    series = [("reconstruction", reconstruction.magnitude.numpy(), "")]
    if reconstruction.std is not None:
        series.append(("standard deviation", reconstruction.std.numpy(), "std"))
    with replacing(path) as temporary:
        for number, (description, volume, folder) in enumerate(series, start=1):
            (temporary / folder).mkdir(parents=True)
            slope = f"{float(volume.max()) / 65535 or 1.0:.9e}"  # as text: a decimal string has at most 16 characters
            window = float(np.percentile(volume, 99.9)) or 1.0
            common = {
                "StudyInstanceUID": study,
                "FrameOfReferenceUID": frame,
                "SeriesInstanceUID": generate_uid(),
                "SeriesNumber": number,
                "SeriesDescription": f"mri-ambient {description}",
                "WindowCenter": f"{window / 2:.9e}",
                "WindowWidth": f"{window:.9e}",
            }
            for index, image in enumerate(volume):
                dataset = _dicom_slice(reconstruction, index, image, slope)
                for key, value in common.items():
                    setattr(dataset, key, value)
                dataset.save_as(temporary / folder / f"{index + 1:04d}.dcm", enforce_file_format=True)


def _dicom_slice(reconstruction: Reconstruction, index: int, image: np.ndarray, slope: str) -> "Dataset":
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    for key, value in {**_MODULES, **_placement(reconstruction, index)}.items():
        setattr(dataset, key, value)
    method = reconstruction.attributes.get("method", "reconstruction")
    prior = reconstruction.attributes.get("prior")
    dataset.DerivationDescription = f"{method} from undersampled k-space" + (f" with prior {prior}" if prior else "")
    placed = "" if reconstruction.affine is not None else " Position and orientation are not known."
    sized = "" if reconstruction.affine is not None or reconstruction.voxel_size else " The voxel size is not known."
    dataset.ImageComments = NOTICE + placed + sized
    dataset.InstanceNumber = index + 1
    dataset.Rows, dataset.Columns = image.shape
    stored = np.round(image.astype(np.float64) / float(slope)).clip(0, 65535).astype("<u2")
    dataset.PixelData = stored.tobytes()
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = slope, "0", "US"
    return dataset


_MODULES: dict[str, Any] = {
    # Patient, study, equipment: mandatory elements may be empty, and are.
    **dict.fromkeys(("PatientName", "PatientID", "PatientBirthDate", "PatientSex"), ""),
    **dict.fromkeys(("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"), ""),
    "PatientIdentityRemoved": "YES",
    "DeidentificationMethod": "no identity was written",
    "Modality": "MR",
    "Manufacturer": "mri-ambient",
    # Image
    "ImageType": ["DERIVED", "SECONDARY", "OTHER"],
    "ContentQualification": "RESEARCH",
    "BurnedInAnnotation": "NO",
    "LossyImageCompression": "00",
    "SamplesPerPixel": 1,
    "PhotometricInterpretation": "MONOCHROME2",
    "BitsAllocated": 16,
    "BitsStored": 16,
    "HighBit": 15,
    "PixelRepresentation": 0,
    # MR: what this package cannot know stays empty where the standard allows it.
    "ScanningSequence": "RM",
    "SequenceVariant": "NONE",
    "MRAcquisitionType": "2D",
    **dict.fromkeys(("ScanOptions", "EchoTime", "EchoTrainLength", "RepetitionTime", "PositionReferenceIndicator"), ""),
}


def _placement(reconstruction: Reconstruction, index: int) -> dict[str, Any]:
    """Where a slice lies; rows of the image run along x, columns along y."""
    voxel = _voxel_size(reconstruction)
    affine = np.diag([*voxel, 1.0])[[2, 1, 0, 3]] if reconstruction.affine is None else reconstruction.affine
    if reconstruction.affine is not None:
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    directions = affine[:3, 1:3] / np.linalg.norm(affine[:3, 1:3], axis=0)
    position = affine[:3, 3] + index * affine[:3, 0]

    def decimals(values: Any) -> list[str]:
        return [f"{float(value):.8g}" for value in values]

    return {
        "ImageOrientationPatient": decimals([*directions[:, 1], *directions[:, 0]]),
        "ImagePositionPatient": decimals(position),
        "PixelSpacing": decimals(voxel[1:]),
        "SliceThickness": f"{voxel[0]:.8g}",
        "SpacingBetweenSlices": f"{voxel[0]:.8g}",
    }


def _voxel_size(reconstruction: Reconstruction) -> tuple[float, float, float]:
    """Millimetres along (slice, y, x): of the affine, else as given, else 1."""
    if reconstruction.affine is None:
        return reconstruction.voxel_size or (1.0, 1.0, 1.0)
    slice_mm, y_mm, x_mm = np.linalg.norm(reconstruction.affine[:3, :3], axis=0)
    return float(slice_mm), float(y_mm), float(x_mm)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, with its ending, that becomes `path` if the block succeeds and nothing if not."""
    ending = ".nii.gz" if path.name.lower().endswith(".nii.gz") else path.suffix
    temporary = path.with_name(f".{uuid4().hex}{ending}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if temporary.is_dir() and path.is_dir():
            path.rmdir()  # empty, and not every system renames onto a folder
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error}): choose another place.") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):
            temporary.unlink()
