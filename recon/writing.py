"""Files and folders that appear under their names only when they are complete."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from mri_ambient.errors import InputError

NOTICE = "Research use only. Not for diagnosis."


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, with its ending, that becomes `path` if the block succeeds and nothing if not."""
    with replacing_all(path) as (temporary,):
        yield temporary


@contextmanager
def replacing_all(*paths: Path) -> Iterator[list[Path]]:
    """The same for files that belong together: all of them appear, or none of those that were written here.

    Raises
    ------
    InputError
        If one of them cannot be written.
    """
    temporaries = [path.with_name(f".{uuid4().hex}{_ending(path)}") for path in paths]
    placed: list[Path] = []
    try:
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        yield temporaries
        for temporary, path in zip(temporaries, paths, strict=True):
            if temporary.is_dir() and path.is_dir():
                path.rmdir()  # empty, and not every system renames onto a folder
            temporary.replace(path)
            placed.append(path)
    except OSError as error:
        for path in placed:
            _remove(path)
        blamed = paths[len(placed)]
        raise InputError(f"{blamed} cannot be written ({error.strerror or error}): choose another place.") from error
    finally:
        for temporary in temporaries:
            _remove(temporary)


def _ending(path: Path) -> str:
    return ".nii.gz" if path.name.lower().endswith(".nii.gz") else path.suffix


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        path.unlink()
