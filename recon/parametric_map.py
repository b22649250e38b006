"""The error bar as a DICOM parametric map: one multi-frame file of floating-point values with their unit.

References
----------
DICOM PS3.3, A.75; C. P. Bridge et al., "Highdicom: a Python library for standardized encoding of image annotations and
machine learning model outputs in pathology and radiology", J. Digit. Imaging 35, 2022.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

WITHOUT = (
    "The standard deviation is written as MR images: for a DICOM parametric map, pip install 'mri-ambient[dicom]'."
)


def has_parametric_maps() -> bool:
    """Whether the extra that writes them is installed."""
    return find_spec("highdicom") is not None


def parametric_map(
    volume: np.ndarray, images: list[Dataset], description: str, number: int, identity: tuple[str, ...]
) -> Dataset:
    """Make one of a volume that lies where a series of images does.

    Parameters
    ----------
    volume : ndarray (slice, row, column), float32
    images : list of Dataset
        The series, a slice each; patient, study and frame of reference are theirs.
    description : str
        What the values are.
    number : int
        Of the series.
    identity : tuple of str
        Elements of patient and study. They are copied as they are, since highdicom refuses some that scanners write.

    Returns
    -------
    Dataset
        Frames are in the order that highdicom gives them; each says where it lies.
    """
    from pydicom.sr.codedict import codes
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    content, maps = import_module("highdicom.content"), import_module("highdicom.pm")
    values = np.ascontiguousarray(volume, dtype=np.float32)
    window = float(np.percentile(values, 99.9)) or 1.0
    mapping = maps.RealWorldValueMapping(
        lut_label="k-space units",
        lut_explanation=f"{description} in the unit of the input k-space",
        unit=codes.UCUM.NoUnits,
        value_range=(float(values.min()), float(values.max())),
        slope=1.0,
        intercept=0.0,
    )
    found: Dataset = maps.ParametricMap(
        source_images=_without(images, identity),
        pixel_array=values,
        series_instance_uid=generate_uid(),
        series_number=number,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="mri-ambient",
        manufacturer_model_name="mri-ambient",
        software_versions=version("mri-ambient"),
        device_serial_number="none",
        contains_recognizable_visual_features=True,  # an outline of a head may show
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[content.VOILUTTransformation(window / 2, window, voi_lut_function="LINEAR_EXACT")],
        transfer_syntax_uid=ExplicitVRLittleEndian,
        content_label="STD",
        content_description=description,
        series_description=f"mri-ambient {description}",
    )
    for keyword in (*identity, "FrameOfReferenceUID", "ImageComments", "Laterality"):
        if keyword in images[0]:
            found.add(images[0][keyword])
    return found


def _without(images: list[Dataset], identity: tuple[str, ...]) -> list[Dataset]:
    """Copies in which the elements that are mandatory are empty, identifiers are new, and the rest is gone."""
    from pydicom.dataset import Dataset
    from pydicom.uid import generate_uid

    mandatory = (
        *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber"),
        *("StudyID", "StudyDate", "StudyTime"),
    )
    study, frame = generate_uid(), generate_uid()
    copies = []
    for image in images:
        found = Dataset()
        found.file_meta = image.file_meta
        for element in image:
            if element.keyword not in (*identity, "FrameOfReferenceUID"):
                found.add(element)
        for keyword in mandatory:
            setattr(found, keyword, "")
        found.StudyInstanceUID, found.FrameOfReferenceUID = study, frame
        copies.append(found)
    return copies
