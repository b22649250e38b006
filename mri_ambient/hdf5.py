"""Opening and creating HDF5 files such that whatever goes wrong is said in one sentence.

A new file is written under another name in the same folder and renamed when it is complete. A rename within a folder is
atomic, so a reader sees the whole file or none, and a failed run leaves an older result as it was.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from mri_ambient.errors import InputError

if TYPE_CHECKING:
    import h5py

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_TEXTS = ("no space left", "quota exceeded", "file too large")


@contextmanager
def open_hdf5(path: str | Path, opened: h5py.File | None = None) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading.

    Parameters
    ----------
    path : str or Path
        The file.
    opened : h5py.File, optional
        The same file, if it is open already; it stays open.

    Yields
    ------
    h5py.File
        The open file.

    Raises
    ------
    InputError
        If there is no such file, it is a folder, is not HDF5, may not be read, or turns out to be damaged here or while
        it is read inside the ``with`` block.
    """
    import h5py

    try:
        if opened is not None:
            yield opened
            return
        if not is_hdf5(Path(path)):
            raise InputError(f"{path} is not an HDF5 file: convert it to HDF5 in the fastMRI layout first.")
        with h5py.File(path, "r") as file:
            yield file
    except InputError:
        raise
    except PermissionError as error:
        raise InputError(f"{path} may not be read by this user: change its permissions.") from error
    except (OSError, RuntimeError, LookupError, ValueError) as error:  # h5py reports damage as any of these
        raise InputError(f"{path} is truncated or damaged: copy or download it again.") from error


def is_hdf5(path: Path) -> bool:
    """Whether a file is HDF5.

    Raises
    ------
    InputError
        If there is no such file, it is a folder or empty, or may not be read.
    """
    import h5py

    if not path.exists():
        raise InputError(f"There is no file {path}: check the name and the folder.")
    if path.is_dir():
        raise InputError(f"{path} is a folder where a file is needed: name a file in it.")
    try:
        with path.open("rb"):  # h5py does not tell a forbidden file from one in another format
            pass
    except PermissionError as error:
        raise InputError(f"{path} may not be read by this user: change its permissions.") from error
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty: copy or download it again.")
    return bool(h5py.is_hdf5(path))


@contextmanager
def create_hdf5(path: str | Path) -> Iterator[h5py.File]:
    """Create an HDF5 file that appears under its name only when it is complete; replaces an older one.

    Parameters
    ----------
    path : str or Path
        The file; missing folders are created.

    Yields
    ------
    h5py.File
        The open file, to be filled inside the ``with`` block.

    Raises
    ------
    InputError
        If it cannot be written: the folder is not writable, the disk is full.
    """
    import h5py

    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder and cannot be replaced by a file: choose another output name.")
    temporary = path.with_name(f".{uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(temporary, "x") as file:
            yield file
        with temporary.open("rb") as written:
            os.fsync(written.fileno())  # after a power cut the new name must not point to data still in memory
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # closing a file on a full disk is a RuntimeError
        raise InputError(_why_unwritable(path, error)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _why_unwritable(path: Path, error: OSError | RuntimeError) -> str:
    text = str(error).lower()
    if getattr(error, "errno", None) in _FULL or any(sign in text for sign in _FULL_TEXTS):
        return f"{path} cannot be written because the disk is full: free some space or choose another output folder."
    return f"{path} cannot be written: make its folder {path.parent} writable or choose another one."
