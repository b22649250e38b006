r"""A DICOM series that says where the slices of a reconstruction lie, and whose they are.

The slices of the template are sorted by position along their normal, and every image of the reconstruction gets the
tags of its slice. Let T and A be the affines of the template and of the volume, from array indices to millimetres. The
volume has the voxels of the template if

.. math:: T^{-1} A = \text{a permutation of the axes, some of them reversed},

to half a voxel at all corners; it is then permuted and reversed to the template's axes, never interpolated. A volume
without an affine is taken to have the axes (slice, row, column) of the template.

*Identity.* The place of the slices, their frame of reference and the parameters of the sequence are copied, nothing
else. Only on request are the patient and the study copied, and the template's images named as sources. Private elements
are never copied.
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mri_ambient.errors import InputError
from mri_ambient.volumes import NIFTI, DicomSeries, read_series

from .result import Reconstruction

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_HALF_A_VOXEL = 0.5
_LARGEST_NUMBER = 10**7  # of a series, times 100 in 32 bits
_PLACE = (
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SliceLocation"),
    *("FrameOfReferenceUID", "PositionReferenceIndicator", "PatientPosition"),
)
_SEQUENCE = (
    *("BodyPartExamined", "Laterality", "MRAcquisitionType", "ScanningSequence", "SequenceVariant", "ScanOptions"),
    *("RepetitionTime", "EchoTime", "InversionTime", "EchoTrainLength", "FlipAngle", "NumberOfAverages"),
    *("MagneticFieldStrength", "ImagingFrequency", "ImagedNucleus", "InPlanePhaseEncodingDirection"),
)
IDENTITY = (
    *("PatientName", "PatientID", "IssuerOfPatientID", "OtherPatientIDs", "PatientBirthDate", "PatientSex"),
    *("PatientAge", "PatientSize", "PatientWeight", "PatientIdentityRemoved", "DeidentificationMethod"),
    *("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber"),
    *("ReferringPhysicianName", "InstitutionName"),
)


@dataclass(frozen=True, eq=False)
class Template:
    """A DICOM series that says where the slices of a reconstruction lie, and whose they are.

    Attributes
    ----------
    path : Path
    series : DicomSeries
        Without pixels.
    """

    path: Path
    series: DicomSeries

    @property
    def series_number(self) -> int:
        """From which to count new series of the same study, so that viewers list them beside the template."""
        number = int(self.series.datasets[0].get("SeriesNumber") or 0)
        return 100 * number if 0 < number < _LARGEST_NUMBER else 0

    def fit(self, shape: tuple[int, ...], affine: np.ndarray | None) -> tuple[tuple[int, int, int], tuple[int, ...]]:
        """How a volume becomes one with the axes of the template.

        Parameters
        ----------
        shape : tuple of int
            (slice, y, x) of the volume.
        affine : ndarray (4, 4) or None
            Its array indices to RAS millimetres.

        Returns
        -------
        axes : tuple of int
            Order in which its axes are taken.
        flips : tuple of int
            Which of them are reversed then.

        Raises
        ------
        InputError
            If it does not have the voxels of the template.
        """
        to_template = np.eye(4) if affine is None else np.linalg.inv(self.series.affine) @ affine
        along = np.abs(to_template[:3, :3]).argmax(axis=0)  # axis of the template, of every axis of the volume
        if sorted(along) != [0, 1, 2]:
            raise InputError(f"The image is oblique to the template {self.path}: give a series of the same slices.")
        axes = np.argsort(along)
        size = tuple(shape[axis] for axis in axes)
        if size != self.series.shape:
            have, needed = (f"{slices} x {rows} x {columns}" for slices, rows, columns in (size, self.series.shape))
            raise InputError(
                f"The template {self.path} has {needed} voxels (slices x rows x columns) and the image {have}: give a "
                "series of the same slices and matrix."
            )
        flips = tuple(axis for axis in range(3) if to_template[axis, axes[axis]] < 0)
        exact = np.zeros((4, 4))
        exact[[0, 1, 2], axes] = [-1 if axis in flips else 1 for axis in range(3)]
        exact[:3, 3] = [size[axis] - 1 if axis in flips else 0 for axis in range(3)]
        corners = np.array([*product(*((0, count - 1) for count in shape))]).T
        distance = np.abs((to_template - exact)[:3] @ np.vstack([corners, np.ones(8)])).max()
        if not distance <= _HALF_A_VOXEL:
            raise InputError(
                f"The image lies up to {distance:.3g} voxels away from the slices of the template {self.path}: give a "
                "series of the same slices."
            )
        return (int(axes[0]), int(axes[1]), int(axes[2])), flips

    def arrange(self, reconstruction: Reconstruction) -> Reconstruction:
        """The estimate and its error bar with the axes and the affine of the template; errors as in `fit`."""
        axes, flips = self.fit(reconstruction.mean.shape, reconstruction.affine)
        mean, std = (
            None if volume is None else volume.permute(axes).flip(flips)
            for volume in (reconstruction.mean, reconstruction.std)
        )
        assert mean is not None
        voxel = reconstruction.voxel_size
        voxels = None if voxel is None else (voxel[axes[0]], voxel[axes[1]], voxel[axes[2]])
        return replace(
            reconstruction, mean=mean, std=std, samples=None, sensitivity_maps=None,
            affine=self.series.affine, voxel_size=voxels,
        )  # fmt: skip

    def elements(self, index: int, keep_identity: bool) -> Dataset:
        """What an image takes over from a slice of the template."""
        from pydicom.dataset import Dataset

        source, found = self.series.datasets[index], Dataset()
        for keyword in (*_PLACE, *_SEQUENCE, *(IDENTITY if keep_identity else ())):
            if keyword in source:
                _copy(found, source, keyword)
        if keep_identity and "SOPClassUID" in source and "SOPInstanceUID" in source:
            image = Dataset()
            image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
            image.SpatialLocationsPreserved = "YES"
            found.SourceImageSequence = [image]
        return found


def open_template(path: str | Path) -> Template:
    """Read the headers of a folder with one DICOM series.

    Raises
    ------
    InputError
        If there is no such folder, it does not hold one series of evenly spaced slices, or a value cannot be read.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"The template {path} is not a folder: name one that holds a DICOM series.")
    if any(file.name.lower().endswith(NIFTI) for file in path.iterdir()):
        raise InputError(f"The template {path} holds NIfTI files: name a folder with nothing but one DICOM series.")
    found = Template(path, read_series(path, pixels=False))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for index in range(found.series.shape[0]):
                found.elements(index, keep_identity=True)
            _ = found.series_number
    except Exception as error:  # pydicom decodes a value when it is asked for, and raises many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(f"The template {path} holds a value that cannot be read ({reason}): repair it.") from error
    return found


def _copy(found: Dataset, source: Dataset, keyword: str) -> None:
    """Copy an element. Text and identifiers stay as they are; others are left out if DICOM does not allow the value."""
    from pydicom.config import IGNORE, RAISE
    from pydicom.dataelem import DataElement

    element = source[keyword]
    value, kept = element.value, element.VR in ("UI", "LO", "SH", "PN")
    if element.VR == "DS" and element.VM:
        value = decimals(value)  # written again, as many scanners write more characters than are allowed
    elif element.VR == "PN":
        value = str(value)  # without the character set of the template
    with suppress(ValueError):
        found.add(DataElement(element.tag, element.VR, value, validation_mode=IGNORE if kept else RAISE))


def decimals(values: Any) -> Any:
    """Numbers as text of at most 16 characters."""
    if np.ndim(values):
        return [f"{float(value):.10g}" for value in values]
    return f"{float(values):.10g}"
