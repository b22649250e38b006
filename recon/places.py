"""Which scan files are meant, where their results go, and whether they can go there."""

import shutil
from collections.abc import Sequence
from os.path import commonpath
from pathlib import Path
from tempfile import TemporaryFile

from mri_ambient.errors import InputError
from mri_ambient.preparation import find_sources, is_volume
from mri_ambient.readers import is_result, split_part


def find_scans(scans: Sequence[str | Path]) -> list[Path]:
    """Scan files of files, folders and glob patterns, each once, in the order given.

    A name that does not exist is kept if it is no pattern: opening it says what is wrong, and the others can be done.

    Raises
    ------
    InputError
        If a pattern matches nothing, or a folder holds no scan.
    """
    found: dict[Path, Path] = {}
    for item in scans:
        path = Path(item)
        if path.is_dir() or (not path.exists() and any(sign in str(item) for sign in "*?[")):
            matches = [m for m in find_sources([item]) if not is_result(m) and not is_volume(m)]
            if not matches:
                raise InputError(
                    f"There is no scan in {item}: name files with k-space, or make scans of magnitude images with "
                    "`mri-ambient simulate`."
                )
        else:
            matches = [path]
        for match in matches:
            found.setdefault(match.resolve(), match)
    return list(found.values())


def result_stem(scan: str | Path) -> str:
    """Name of a scan's results without ending: that of the file, with the scan's where the file holds several."""
    file, part = split_part(scan)
    return f"{file.stem}_{part}" if part else file.stem


def output_folders(scans: Sequence[Path], out: Path) -> list[tuple[Path, Path]]:
    """Every scan with the folder for its results: `out`, or folders below it where names would collide."""
    if len({result_stem(path) for path in scans}) == len(scans):
        return [(path, out) for path in scans]
    parents = [path.resolve().parent for path in scans]
    common = commonpath(parents)
    jobs = [(path, out / parent.relative_to(common)) for path, parent in zip(scans, parents, strict=True)]
    taken: dict[tuple[Path, str], Path] = {}
    for path, folder in jobs:
        other = taken.setdefault((folder, result_stem(path)), path)
        if other != path:
            raise InputError(f"{other} and {path} would have the same result: reconstruct them into different folders.")
    return jobs


def check_folder(folder: Path, needed: int = 0) -> None:
    """Check that files of `needed` bytes can be created in a folder, which may not exist yet; nothing is left there.

    Raises
    ------
    InputError
        If a part of the path is a file, it may not be written, or the disk is too full.
    """
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not existing.is_dir():
        raise InputError(f"Nothing can be written to {folder}, as {existing} is a file: choose another output folder.")
    try:
        with TemporaryFile(dir=existing):  # permission bits say little about network and read-only file systems
            free = shutil.disk_usage(existing).free
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"Nothing can be written to {folder} ({why}): choose another output folder.") from error
    if free < needed:
        raise InputError(
            f"The result needs {needed / 1e6:.0f} MB but {folder} has {free / 1e6:.0f} MB left: free some space or "
            "choose another output folder."
        )
