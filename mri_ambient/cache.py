"""Prepared scans that runs share, on disk.

Preparing a scan (reading, whitening, calibration, first reconstruction) takes far longer than training on it once. What
was prepared is therefore kept, and another run that needs the same arrays finds them. The cache holds entries, each a
folder of read-only files with a manifest, named by a hash of everything that decides its content:

* the version of the preparation and of this package,
* the *fingerprint* of the source: size, time of change and hash of eight blocks of every file of it. It is cheap (half
  a megabyte is read of a scan of any size) and differs for a file that was edited, exchanged or cut off; a copy that
  keeps its time of change has the same one. What changes bytes between the blocks and puts the time back is not seen,
* the settings that decide the arrays (`mri_ambient.preparation`).

A run gets hard links to the files, or copies where the file system has no links. An entry that is removed is therefore
never missed by a run that uses it, and a link costs no space. Nothing writes through a link: files are read-only, and
`mri_ambient.dataset.save_array` puts a new file in the place of the old one.

An entry is put together under another name and renamed when it is complete, so that two processes never see half of
one, whatever happens to either. While one process prepares a scan, others that need it wait (`Cache.turn`) and then
take what was prepared: runs that start together share the work. Beyond the limit, entries go that have not been used
for longest. The limit is checked at the first entry that a process adds and after every 5 % of it that it adds, so that
this is how far each process can exceed it.

========================  ==========================================================================================
environment variable      meaning
========================  ==========================================================================================
``MRI_AMBIENT_CACHE``     the folder; default ``$XDG_CACHE_HOME/mri-ambient`` or ``~/.cache/mri-ambient``. The file
                          system of the runs is best: links need no further space there
``MRI_AMBIENT_CACHE_GB``  the limit in units of 10^9 bytes, default 20; 0 for no cache. The cache holds what the scans
                          hold: images of patients
========================  ==========================================================================================
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from mri_ambient.errors import InputError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

DEFAULT_GB = 20.0
CHECK_EVERY = 0.05  # of the limit
ABANDONED = 86_400.0  # seconds after which an unfinished entry belongs to a process that was killed
MANIFEST = "manifest.json"
_BLOCKS, _BLOCK = 8, 2**16


class Cache:
    """Entries of files in a folder, up to a limit.

    Parameters
    ----------
    folder : Path
        Made when needed, for this user only.
    limit : float
        Bytes.

    Attributes
    ----------
    hits : int
        Entries that were found so far.
    """

    def __init__(self, folder: Path, limit: float) -> None:
        self.folder = folder
        self.limit = limit
        self.hits = 0
        self._unchecked = limit  # bytes added since the limit was checked; other processes may have filled it before

    def fetch(self, key: str, folder: Path, prefix: str) -> Any:
        """Link the files of an entry into a folder, their names after a prefix; returns what was noted, None if absent.

        A damaged entry is removed and counts as absent.
        """
        entry = self.folder / key
        try:
            manifest = json.loads((entry / MANIFEST).read_text())
            sound = all((entry / name).stat().st_size == size for name, size in manifest["files"].items())
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            sound = False
        if not sound:
            if entry.exists():
                self._remove(entry)
            return None
        try:
            for name in manifest["files"]:
                _link(entry / name, folder / f"{prefix}{name}")
        except OSError:  # removed by another process at this moment, or the folder cannot be written to
            return None
        with suppress(OSError):
            os.utime(entry / MANIFEST)
        self.hits += 1
        return manifest["note"]

    def store(self, key: str, files: Mapping[str, Path], note: Any) -> None:
        """Add an entry: files by their name in it, and a note (JSON). What cannot be stored is not."""
        with suppress(OSError):
            sizes = {name: path.stat().st_size for name, path in files.items()}
            if sum(sizes.values()) > self.limit:
                return
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._unfinished() as entry:
                for name, path in files.items():
                    _link(path, entry / name)
                    (entry / name).chmod(0o444)
                    _flush(entry / name)
                manifest = entry / MANIFEST
                manifest.write_text(json.dumps({"files": sizes, "note": note}))
                _flush(manifest)
                entry.rename(self.folder / key)  # fails if another process was faster
            self._unchecked += sum(sizes.values())
            if self._unchecked >= CHECK_EVERY * self.limit:
                self.trim()

    @contextmanager
    def turn(self, key: str) -> Iterator[None]:
        """Waits while another process is inside with this key; where files cannot be locked it does not wait."""
        with ExitStack() as held:
            with suppress(OSError):
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                file = held.enter_context((self.folder / ".turns").open("ab"))
                if fcntl:  # one byte of it for each key; the system lets go of it when the process ends or is killed
                    fcntl.lockf(file, fcntl.LOCK_EX, 1, int(key[:12], 16))
            yield

    def trim(self) -> None:
        """Remove the entries that have not been used for longest, until the limit is kept, and what was abandoned."""
        self._unchecked = 0.0
        entries = []
        for entry in self.folder.iterdir():
            with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):  # removed by another process
                if entry.name.startswith("."):
                    if time.time() - entry.stat().st_mtime > ABANDONED:
                        shutil.rmtree(entry)
                    continue
                manifest = entry / MANIFEST
                used = manifest.stat().st_mtime_ns
                entries.append((used, sum(json.loads(manifest.read_text())["files"].values()), entry))
        total = sum(size for _, size, _ in entries)
        for _, size, entry in sorted(entries, key=lambda e: e[0]):
            if total <= self.limit:
                break
            self._remove(entry)
            total -= size

    def _remove(self, entry: Path) -> None:
        """At once, as far as others see."""
        with suppress(OSError):
            shutil.rmtree(entry.rename(self.folder / f".{uuid4().hex}"))

    @contextmanager
    def _unfinished(self) -> Iterator[Path]:
        """A folder that is gone in the end, unless it was renamed."""
        folder = self.folder / f".{uuid4().hex}"
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def default_cache() -> Cache | None:
    """The cache that the environment names; None if it is switched off.

    Raises
    ------
    InputError
        If the limit is not a number of gigabytes.
    """
    text = os.environ.get("MRI_AMBIENT_CACHE_GB", str(DEFAULT_GB))
    try:
        limit = float(text)
    except ValueError:
        limit = -1
    if not 0 <= limit < float("inf"):
        raise InputError(f"MRI_AMBIENT_CACHE_GB is {text!r}: give the cache's limit in gigabytes, 0 for no cache.")
    if limit == 0:
        return None
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    root = os.environ.get("MRI_AMBIENT_CACHE") or str(Path(base) / "mri-ambient")
    return Cache(Path(os.path.expanduser(root)) / "prepared", 1e9 * limit)


def key_of(*parts: Any) -> str:
    """Hash of parts that JSON can hold."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:40]


def fingerprint(files: Sequence[Path]) -> str:
    """What tells the content of files from any other, without reading all of it: see the module.

    Raises
    ------
    OSError
        If a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            digest.update(f"{status.st_size} {status.st_mtime_ns} ".encode())
            for number in range(_BLOCKS):
                file.seek(max(0, status.st_size - _BLOCK) * number // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK))
                if status.st_size <= _BLOCK:
                    break
    return digest.hexdigest()


def _link(source: Path, target: Path) -> None:
    """Another name of a file, or a copy of it where that is not possible."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _flush(path: Path) -> None:
    """Have the content on the disk before the name: after a power cut a file must not be there without it."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
