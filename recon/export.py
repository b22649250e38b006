"""Reconstructions in the formats of other tools: NIfTI, BART and PNG. DICOM is in `dicom`, HDF5, the complete one, in
`result`.

*NIfTI* holds the magnitude, float32, in units of the input k-space. A volume is (slice, y, x) with an affine to RAS
millimetres; the file gets the axes (x, y, slice), so that the columns of the affine are reversed. The affine is stored
as sform and, where it is a rotation with voxel sizes, as qform. Where it is not known, both have code 0, for which
viewers show no left and right.

*BART* gets the complex estimate with y as dimension 0 (READ), x as dimension 1 (PHS1) and slices as dimension 13
(SLICE), as in ``data_specs/bart.yaml``. The format has no place for a position.

Nothing of the patient is written to either. Files appear under their names only when all of them are complete.

References
----------
NIfTI-1 data format, https://nifti.nimh.nih.gov/nifti-1
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mri_ambient.errors import InputError
from mri_ambient.formats.bart import write_cfl_pair

from .dicom import write_dicom
from .dicom_template import Template
from .report import html_report
from .result import Reconstruction, ReconstructionWriter, voxel_size_of
from .writing import NOTICE, replacing, replacing_all

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Image

_ENDINGS = (".h5", ".hdf5", ".nii", ".nii.gz", ".cfl", ".png", ".html")
_SHEAR = 1e-3  # cosine between axes above which a qform, which is a rotation, would place voxels elsewhere


def export(
    reconstruction: Reconstruction, path: Path, template: Template | None = None, keep_identity: bool = False
) -> Path:
    """Write to the format that the name asks for; see `Reconstruction.save`."""
    name = path.name.lower()
    dicom = path.is_dir() or not path.suffix
    if (template is not None or keep_identity) and not dicom:
        raise InputError(f"A template and its patient are for DICOM files, and {path} is none: name a folder.")
    if dicom:
        write_dicom(reconstruction, path, template, keep_identity)
    elif name.endswith((".h5", ".hdf5")):
        write_hdf5(reconstruction, path)
    elif name.endswith((".nii", ".nii.gz")):
        write_nifti(reconstruction, path)
    elif name.endswith(".cfl"):
        write_cfl(reconstruction, path)
    elif name.endswith(".png"):
        write_png(reconstruction, path)
    elif name.endswith(".html"):
        html_report(path, reconstruction)
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


def write_nifti(reconstruction: Reconstruction, path: Path) -> list[Path]:
    """Magnitude as ``x.nii.gz`` and, where there is one, the error bar as ``x_std.nii.gz``; returns both paths."""
    import nibabel as nib

    cut = path.name.lower().rindex(".nii")
    volumes = {path: reconstruction.magnitude.numpy()}
    if reconstruction.std is not None:
        volumes[path.with_name(f"{path.name[:cut]}_std{path.name[cut:]}")] = reconstruction.std.numpy()
    with replacing_all(*volumes) as temporaries:
        for temporary, volume in zip(temporaries, volumes.values(), strict=True):
            nib.save(_nifti(reconstruction, volume), temporary)
    return list(volumes)


def _nifti(reconstruction: Reconstruction, volume: np.ndarray) -> "Nifti1Image":
    import nibabel as nib

    affine = None if reconstruction.affine is None else reconstruction.affine[:, [2, 1, 0, 3]]
    image: Any = nib.Nifti1Image(volume.transpose(2, 1, 0), affine)
    if affine is None:
        image.header.set_zooms(voxel_size_of(reconstruction)[::-1])
    else:
        axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
        orthogonal = np.abs(axes.T @ axes - np.eye(3)).max() < _SHEAR
        image.set_sform(affine, code="scanner")
        image.set_qform(affine, code="scanner" if orthogonal else "unknown")
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = f"mri-ambient. {NOTICE}".encode()
    return image


def write_cfl(reconstruction: Reconstruction, path: Path) -> list[Path]:
    """The complex estimate as ``x.cfl`` with ``x.hdr`` and, where there is one, the error bar as ``x_std.cfl``; returns
    all their paths."""
    volumes = {path: reconstruction.mean.numpy()}
    if reconstruction.std is not None:
        volumes[path.with_name(f"{path.stem}_std{path.suffix}")] = reconstruction.std.numpy()
    pairs = [place for data in volumes for place in (data, data.with_suffix(".hdr"))]
    with replacing_all(*pairs) as temporaries:
        for data, header, volume in zip(temporaries[::2], temporaries[1::2], volumes.values(), strict=True):
            write_cfl_pair(data, header, volume.transpose(1, 2, 0), ("y", "x", "slice"))
    return pairs


def write_png(reconstruction: Reconstruction, path: Path) -> list[Path]:
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
    return [path]
