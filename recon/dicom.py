"""DICOM: a series of MR images, and the error bar as a parametric map.

*Files.* A folder holds ``0001.dcm`` and so on, one magnitude image a slice, in the order of the volume. The error bar
is in the folder ``std`` below it: with the extra ``dicom`` (highdicom) one parametric map of floating-point values,
without it a second series of MR images.

*Place.* A volume is (slice, y, x) with an affine to RAS millimetres; rows of an image run along x and columns along y.
DICOM counts to the patient's left and posterior (LPS), so that the first two rows of the affine change sign. Where the
place of the voxels is not known, a position, which is mandatory, is invented, and the comment says so.

*Template.* Given another series of the same scan, place and, on request, identity are copied from it; see
`dicom_template`. Without one no patient is named, and study and frame of reference are new.

*Values.* Pixels are 16-bit integers with one slope for the volume: value = slope * stored, in units of the input
k-space, which has none. The slope is given as a rescale slope (type US, unspecified), as most viewers expect it, and as
a real-world value mapping (unit 1 of UCUM).

References
----------
DICOM PS3.3, C.7.6.1, C.7.6.2, C.7.6.16.2.11 and C.8.3 (MR image), A.75 (parametric map);
https://dicom.nema.org/medical/dicom/current/output/html/part03.html
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mri_ambient.errors import InputError
from mri_ambient.volumes import LPS_RAS

from .dicom_template import IDENTITY, Template, decimals
from .parametric_map import has_parametric_maps, parametric_map
from .result import Reconstruction, voxel_size_of
from .writing import NOTICE, replacing

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

NO_SOURCE_OF_IDENTITY = "Patient and study can only be kept from a template: give one, a folder with a DICOM series."
_RIGHT_ANGLE = 1e-3  # cosine


def write_dicom(
    reconstruction: Reconstruction, path: Path, template: Template | None = None, keep_identity: bool = False
) -> list[Path]:
    """Write the folder, and return it; see the module.

    Parameters
    ----------
    reconstruction : Reconstruction
    path : Path
        The folder, new or empty.
    template : Template, optional
        Where the slices lie; otherwise the affine of the reconstruction says it.
    keep_identity : bool
        Copy patient and study of the template.

    Raises
    ------
    InputError
        If the folder holds files (they might be a scan, and slices of two volumes must not mix), the template does not
        fit, or the rows and columns of the image are not at right angles.
    """
    if path.is_dir() and any(path.iterdir()):
        raise InputError(f"The folder {path} is not empty: name an empty or a new one for the DICOM files.")
    if keep_identity and template is None:
        raise InputError(NO_SOURCE_OF_IDENTITY)
    placed = reconstruction if template is None else template.arrange(reconstruction)
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, about values of the template that DICOM does not allow
        headers = _headers(placed, template, keep_identity, known=reconstruction.affine is not None)
        for name, dataset in _files(
            placed, headers, 0 if template is None or not keep_identity else template.series_number
        ):
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            dataset.save_as(temporary / name, enforce_file_format=True)
    return [path]


def _files(reconstruction: Reconstruction, headers: list[Dataset], number: int) -> Iterator[tuple[str, Dataset]]:
    """Names within the folder, and what they hold."""
    images = _images(reconstruction.magnitude.numpy(), headers, "reconstruction", number + 1)
    yield from _numbered(images)
    if reconstruction.std is None:
        return
    std = reconstruction.std.numpy()
    if has_parametric_maps():
        yield "std/parametric_map.dcm", parametric_map(std, images, _STD, number + 2, IDENTITY)
    else:
        yield from _numbered(_images(std, headers, _STD, number + 2), "std/")


_STD = "standard deviation"


def _numbered(datasets: list[Dataset], folder: str = "") -> Iterator[tuple[str, Dataset]]:
    return ((f"{folder}{number:04d}.dcm", dataset) for number, dataset in enumerate(datasets, start=1))


def _headers(
    reconstruction: Reconstruction, template: Template | None, keep_identity: bool, known: bool
) -> list[Dataset]:
    """What describes every slice, and does not depend on its pixels."""
    from pydicom.dataset import Dataset
    from pydicom.uid import generate_uid

    study, frame = generate_uid(), generate_uid()
    method = reconstruction.attributes.get("method", "reconstruction")
    prior = reconstruction.attributes.get("prior")
    derivation = f"{method} from undersampled k-space" + (f" with prior {prior}" if prior not in (None, "none") else "")
    headers = []
    for index in range(len(reconstruction.mean)):
        header = Dataset()
        for key, value in {**_MODULES, **_placement(reconstruction, index)}.items():
            setattr(header, key, value)
        header.StudyInstanceUID, header.FrameOfReferenceUID = study, frame
        header.SoftwareVersions = version("mri-ambient")
        header.DerivationDescription = derivation
        header.ImageComments = NOTICE + _doubts(reconstruction, template, known)
        header.InstanceNumber = index + 1
        for element in [] if template is None else template.elements(index, keep_identity):
            header.add(element)
        if template is not None and keep_identity:
            for keyword in ("PatientIdentityRemoved", "DeidentificationMethod"):
                if keyword not in template.series.datasets[index]:
                    delattr(header, keyword)
        headers.append(header)
    return headers


def _doubts(reconstruction: Reconstruction, template: Template | None, known: bool) -> str:
    """What the comment has to say about the geometry."""
    if known:
        return ""
    if template is not None:
        return " The scan does not say where it lies: position and orientation were assumed to be the template's."
    sized = "" if reconstruction.voxel_size else " The voxel size is not known."
    return f" Position and orientation are not known.{sized}"


def _images(volume: np.ndarray, headers: list[Dataset], description: str, number: int) -> list[Dataset]:
    """A series of MR images of a volume (slice, row, column)."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

    slope = f"{float(volume.max()) / 65535 or 1.0:.9e}"  # as text: a decimal string has at most 16 characters
    window = float(np.percentile(volume, 99.9)) or 1.0
    series = generate_uid()
    images = []
    for header, image in zip(headers, volume, strict=True):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset = deepcopy(header)
        dataset.file_meta = meta
        dataset.SOPClassUID, dataset.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        dataset.SeriesInstanceUID, dataset.SeriesNumber = series, number
        dataset.SeriesDescription = f"mri-ambient {description}"
        dataset.Rows, dataset.Columns = image.shape
        stored = np.round(image.astype(np.float64) / float(slope)).clip(0, 65535).astype("<u2")
        dataset.PixelData = stored.tobytes()
        dataset.WindowCenter, dataset.WindowWidth = f"{window / 2:.9e}", f"{window:.9e}"
        dataset.VOILUTFunction = "LINEAR_EXACT"  # others need a window of at least 1
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = slope, "0", "US"
        dataset.RealWorldValueMappingSequence = [_real_world_values(float(slope), description)]
        images.append(dataset)
    return images


def _real_world_values(slope: float, description: str) -> Dataset:
    from pydicom.dataset import Dataset

    unit, mapping = Dataset(), Dataset()
    unit.CodeValue, unit.CodingSchemeDesignator, unit.CodeMeaning = "1", "UCUM", "no units"
    mapping.add_new("RealWorldValueFirstValueMapped", "US", 0)
    mapping.add_new("RealWorldValueLastValueMapped", "US", 65535)
    mapping.RealWorldValueIntercept, mapping.RealWorldValueSlope = 0.0, slope
    mapping.LUTLabel, mapping.LUTExplanation = "k-space units", f"{description} in the unit of the input k-space"
    mapping.MeasurementUnitsCodeSequence = [unit]
    return mapping


_MODULES: dict[str, Any] = {
    "SpecificCharacterSet": "ISO_IR 192",
    # Patient, study, equipment: mandatory elements may be empty, and are.
    **dict.fromkeys(("PatientName", "PatientID", "PatientBirthDate", "PatientSex"), ""),
    **dict.fromkeys(("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"), ""),
    "PatientIdentityRemoved": "YES",
    "DeidentificationMethod": "no identity was written",
    "Modality": "MR",
    **dict.fromkeys(("PatientPosition", "Laterality"), ""),
    "Manufacturer": "mri-ambient",
    "ManufacturerModelName": "mri-ambient",
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
    affine, voxel = reconstruction.affine, voxel_size_of(reconstruction)
    lps = np.diag([*voxel, 1.0])[[2, 1, 0, 3]] if affine is None else LPS_RAS @ affine
    directions = lps[:3, 1:3] / np.linalg.norm(lps[:3, 1:3], axis=0)
    if abs(directions[:, 0] @ directions[:, 1]) > _RIGHT_ANGLE:
        raise InputError(
            f"Rows and columns of {reconstruction.name} are not at right angles, which DICOM cannot say: write NIfTI."
        )
    thickness = reconstruction.voxel_size[0] if reconstruction.voxel_size else voxel[0]
    return {
        "ImageOrientationPatient": decimals([*directions[:, 1], *directions[:, 0]]),
        "ImagePositionPatient": decimals(lps[:3, 3] + index * lps[:3, 0]),
        "PixelSpacing": decimals(voxel[1:]),
        "SliceThickness": decimals(thickness),
        "SpacingBetweenSlices": decimals(voxel[0]),
    }
