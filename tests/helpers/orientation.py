"""Where the voxels of files lie, by readers that share no code with the package: all in LPS millimetres.

The object is an ellipsoid with five bright voxels of falling brightness, which no flip, rotation or shift maps onto
itself.
"""

import gzip
import struct
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

MARKS = [(0, 12, 9), (1, 17, 17), (2, 11, 14), (1, 21, 11), (0, 16, 13)]  # (slice, row, column), brightest first
SHAPE = (3, 33, 28)
IDENTITY = {
    "PatientName": "Müller^Änne", "PatientID": "P-4711", "PatientBirthDate": "19661001", "PatientSex": "F",
    "PatientAge": "042Y", "StudyInstanceUID": "1.2.3.4", "StudyDate": "20200102", "StudyTime": "101112.131415",
    "StudyID": "S5", "StudyDescription": "knee of Änne", "AccessionNumber": "A6", "ReferringPhysicianName": "House^G",
    "InstitutionName": "Charité", "OtherPatientIDs": "P-4712",
}  # fmt: skip


def phantom(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """(slice, row, column), from 0 to 1000."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    values = np.where((y / 0.8) ** 2 + (x / 0.8) ** 2 + 0.2 * z**2 < 1, 300.0, 0.0)
    for number, mark in enumerate(MARKS):
        values[mark] = 1000 - 100 * number
    return values


def rotation(*degrees: float) -> np.ndarray:
    """Product of rotations about the three axes."""
    result = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        first, second = [other for other in range(3) if other != axis]
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        result = result @ turn
    return result


def lps_affine(directions: np.ndarray, spacing: tuple[float, float, float], corner: tuple[float, ...]) -> np.ndarray:
    """(slice, row, column) to LPS millimetres from unit vectors along them, as columns, their steps and the first
    voxel."""
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing
    affine[:3, 3] = corner
    return affine


def write_series(folder: Path, values: np.ndarray, affine: np.ndarray, **tags: object) -> Path:
    """A DICOM series of a volume (slice, row, column); the order of file names is not that of the slices."""
    folder.mkdir(parents=True)
    series, frame = generate_uid(), generate_uid()
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    _, down, across = (affine[:3, :3] / spacing).T
    for index, image in enumerate(values):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        path = folder / f"{(index * 7 + 3) % 11:02d}"
        dataset = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
        dataset.SpecificCharacterSet = "ISO_IR 100"
        dataset.SOPClassUID, dataset.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID, dataset.SeriesNumber = series, frame, 7
        dataset.Modality, dataset.Manufacturer = "MR", "Somebody"
        dataset.Rows, dataset.Columns = image.shape
        dataset.PixelSpacing, dataset.SliceThickness = [float(size) for size in spacing[1:]], 2
        dataset.ImageOrientationPatient = [f"{value:.10g}" for value in (*across, *down)]
        dataset.ImagePositionPatient = [f"{value:.10g}" for value in affine[:3, 3] + index * affine[:3, 0]]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
        dataset.PixelData = np.round(image).astype("<u2").tobytes()
        for tag, value in {**IDENTITY, **tags}.items():
            setattr(dataset, tag, value)
        dataset.save_as(path)
    return folder


def brightest(values: np.ndarray, affine: np.ndarray, count: int = len(MARKS)) -> np.ndarray:
    """Places (count, 3) of the brightest voxels, in the order of brightness."""
    order = np.argsort(values.ravel())[: -count - 1 : -1]
    index = np.stack(np.unravel_index(order, values.shape))
    return (affine[:3, :3] @ index + affine[:3, 3:]).T


def marks_of_dicom(folder: Path, count: int = len(MARKS)) -> np.ndarray:
    """The brightest voxels of a folder of single-frame images."""
    places, values = [], []
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            continue
        dataset = pydicom.dcmread(path)
        across, down = np.array(dataset.ImageOrientationPatient, float).reshape(2, 3)
        row, column = np.indices((dataset.Rows, dataset.Columns)).reshape(2, -1, 1)
        down_mm, across_mm = (float(size) for size in dataset.PixelSpacing)
        corner = np.array(dataset.ImagePositionPatient, float)
        places.append(corner + row * down_mm * down + column * across_mm * across)
        values.append(dataset.pixel_array.ravel() * float(dataset.get("RescaleSlope") or 1))
    order = np.argsort(np.concatenate(values))[: -count - 1 : -1]
    return np.concatenate(places)[order]


def marks_of_nifti(path: Path, count: int = len(MARKS)) -> np.ndarray:
    """The brightest voxels of a single-precision NIfTI-1 file, by its sform; read byte by byte."""
    content = gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()
    shape = struct.unpack_from("<8h", content, 40)[1:4]
    assert struct.unpack_from("<h", content, 70)[0] == 16  # float32
    assert struct.unpack_from("<h", content, 254)[0] > 0  # sform_code
    affine = np.diag([-1.0, -1, 1, 1]) @ np.array([*struct.unpack_from("<12f", content, 280), 0, 0, 0, 1]).reshape(4, 4)
    start = int(struct.unpack_from("<f", content, 108)[0])
    return brightest(np.frombuffer(content, "<f4", offset=start).reshape(shape, order="F"), affine, count)
