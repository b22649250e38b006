"""Which format a scan file is in, and what is in it.

The format is recognised by content, never by the name alone. A file with several scans (contrasts, repetitions) is
named with the one that is meant after a ``#``, as in ``scan.h5#contrast=1``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mri_ambient.errors import InputError
from mri_ambient.formats import bart, calgary, fastmri, ismrmrd, twix
from mri_ambient.formats.base import ScanFile
from mri_ambient.hdf5 import is_hdf5, open_hdf5
from mri_ambient.specification import load_specification
from mri_ambient.volumes import is_image

if TYPE_CHECKING:
    import h5py

_EXAMINERS: dict[str, Callable[..., ScanFile]] = {
    "fastmri": fastmri.examine,
    "calgary": calgary.examine,
    "ismrmrd": ismrmrd.examine,
    "bart": bart.examine,
    "twix": twix.examine,
}
ENDINGS = (".h5", ".hdf5", ".mrd", ".cfl", ".npy", ".dat")
"""Of the names under which scan files are looked for in folders."""
RESULT = "_recon"
"""Ends the names of reconstructions, before what tells the files of one apart."""
_RESULT = re.compile(rf"{RESULT}(_std|_dicom)?(\.nii\.gz|\.\w+)?$")


def examine(path: str | Path) -> ScanFile:
    """Recognise a scan file, check it against its specification and read everything but its arrays.

    An HDF5 file is opened once for all of this; what only its readouts tell (ISMRMRD) is read after that.

    Parameters
    ----------
    path : str or Path
        The file; with ``#`` and the name of a scan, if it holds several.

    Raises
    ------
    InputError
        If the file cannot be read, is in no known format or not as specified, has no signal, or holds several scans
        and none is named (`mri_ambient.formats.base.SeveralScansError`).
    """
    file, part = split_part(path)
    if bart.header_of(file) is None and _is_hdf5(file):
        with open_hdf5(file) as opened:
            return _EXAMINERS[_hdf5_format(opened)](file, part, opened)
    return _EXAMINERS[recognise(file)](file, part)


def is_scan(path: str | Path) -> bool:
    """Whether a path is a scan file (or a scan in one) rather than an image: by content, or named like HDF5."""
    file, _ = split_part(path)
    try:
        return file.suffix in (".h5", ".hdf5") or bool(recognise(file))
    except InputError:
        return False


def is_result(path: str | Path) -> bool:
    """Whether a file or folder is named like what this program writes for a reconstruction; nothing is opened."""
    return _RESULT.search(Path(path).name) is not None


def split_part(path: str | Path) -> tuple[Path, str]:
    """The file, and the name of one of its scans or an empty text."""
    path = Path(path)
    name, mark, part = path.name.rpartition("#")
    if not mark or not name or path.exists():
        return path, ""
    return path.with_name(name), part


def scan_files(path: str | Path) -> list[Path]:
    """The files that a scan is stored in: one, or the two of a BART pair."""
    file, _ = split_part(path)
    header = bart.header_of(file)
    return [file] if header is None else [header, header.with_suffix(".cfl")]


def recognise(path: Path) -> str:
    """Name of the format of a file, as in ``data_specs``; data sets in the fastMRI layout count as ``fastmri``.

    Raises
    ------
    InputError
        If there is no such file, it cannot be read, or is in no known format.
    """
    if bart.header_of(path) is not None:
        return "bart"
    if _is_hdf5(path):
        with open_hdf5(path) as opened:
            return _hdf5_format(opened)
    with path.open("rb") as file:
        if file.read(len(calgary.NUMPY_SIGNATURE)) == calgary.NUMPY_SIGNATURE:
            return "calgary"
    try:
        if twix.is_twix(path):
            return "twix"
    except InputError:  # too short for that
        pass
    _refuse_images(path)
    raise InputError(
        f"{path} is not an HDF5 file and in no other known format (BART, NumPy, twix): convert it to HDF5."
    )


def _is_hdf5(path: Path) -> bool:
    """As `is_hdf5`, but a folder of images is called what it is."""
    if path.is_dir():
        _refuse_images(path)
    return is_hdf5(path)


def _refuse_images(path: Path) -> None:
    if is_image(path):
        what = "holds images" if path.is_dir() else "is an image"
        raise InputError(f"{path} {what}, not k-space: mri-ambient simulate makes a scan of a magnitude volume.")


def _hdf5_format(file: h5py.File) -> str:
    if ismrmrd.groups_of(file):
        return "ismrmrd"
    return "calgary" if load_specification("calgary").matches(file) else "fastmri"
