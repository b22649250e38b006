"""ISMRMRD files (``data_specs/ismrmrd.yaml``), read with h5py.

References
----------
S. J. Inati et al., "ISMRM Raw Data format: a proposed standard for MRI raw datasets", Magn. Reson. Med. 77, 2017.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mri_ambient.errors import InputError
from mri_ambient.formats.base import ScanFile, SeveralScansError
from mri_ambient.formats.placement import Directions, placed
from mri_ambient.formats.readouts import Numbers, Readouts, ReadoutSource, assemble
from mri_ambient.hdf5 import open_hdf5
from mri_ambient.header import Header, parse_header
from mri_ambient.specification import Specification, load_specification, plain

if TYPE_CHECKING:
    import h5py

_PREFIX = "dataset="  # of the name of a group in the name of a scan
_BLOCK = 4096  # readout headers read at a time


def groups_of(file: h5py.File) -> list[str]:
    """Names of the groups of a file that are in this format."""
    specification = load_specification("ismrmrd")
    return [name for name in file if hasattr(file[name], "keys") and specification.matches(file[name])]


def examine(path: Path, part: str = "", opened: h5py.File | None = None) -> ScanFile:
    """Check a file; parameters and errors as in `mri_ambient.readers.examine`.

    A file may have several groups. Those without image readouts can hold the noise scan; of several with images, every
    one is a scan of its own, and is named by ``dataset=NAME`` before the other counters.
    """
    specification = load_specification("ismrmrd")
    with open_hdf5(path, opened) as file:
        names = groups_of(file)
        layouts = {name: specification.check(file[name], f"{path}: group {name}") for name in names}
        texts = {name: str(plain(np.asarray(file[name]["xml"][()]))) for name in names}
        readouts = {name: _read_headers(file[name]["data"], specification) for name in names}
    meaning = specification.readouts
    assert meaning is not None
    noisy = {name: own.at(own.flagged(meaning.flags["noise"])) for name, own in readouts.items()}
    noise = next(((own, partial(_fetch, group=name)) for name, own in noisy.items() if len(own)), None)
    scans = [name for name in names if len(noisy[name]) < len(readouts[name])] or names
    name, rest = _choose_group(path, scans, part)

    def header(number: int) -> Header:
        try:
            return parse_header(texts[name], number)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    fetch = partial(_fetch, group=name)
    try:
        found = assemble(path, specification, readouts[name], fetch, header, rest, noise, layouts[name])
    except SeveralScansError as several:
        parts = [f"{_PREFIX}{name},{part}" for part in several.parts] if len(scans) > 1 else several.parts
        raise SeveralScansError(path, parts) from several
    with open_hdf5(path, opened) as file:
        where = _directions(file[name]["data"], found)
    return placed(replace(found, part=part), where, reverse="siemens" in (found.header.vendor or ""))


def _directions(dataset: h5py.Dataset, found: ScanFile) -> Directions:
    assert isinstance(found.source, ReadoutSource)
    slices, some = np.unique(found.source.index, return_index=True)
    address = found.source.address[some]
    order = np.argsort(address)  # h5py reads in the order of the file
    head = np.empty(len(slices), dataset.dtype["head"])
    head[order] = dataset.fields("head")[address[order]]
    return Directions(*(head[field].astype(np.float64) for field in ("position", "read_dir", "phase_dir", "slice_dir")))


def _choose_group(path: Path, names: list[str], part: str) -> tuple[str, str]:
    """Group of a scan, and its name within the group."""
    if len(names) == 1 and not part.startswith(_PREFIX):
        return names[0], part
    name, _, rest = part.removeprefix(_PREFIX).partition(",")
    if not part:
        raise SeveralScansError(path, [f"{_PREFIX}{name}" for name in names])
    if not part.startswith(_PREFIX) or name not in names:
        raise InputError(f"{path} holds no scan {part}: it holds {_PREFIX}{f' and {_PREFIX}'.join(names)}.")
    return name, rest


def _read_headers(dataset: h5py.Dataset, specification: Specification) -> Readouts:
    blocks = [dataset.fields("head")[start : start + _BLOCK] for start in range(0, len(dataset), _BLOCK)]
    kept = [_kept(block, specification) for block in blocks]
    arrays = {name: np.concatenate([block[name] for block in kept]) for name in kept[0]}
    meaning = specification.readouts
    assert meaning is not None
    counters = {name: arrays.pop(name) for name in (*meaning.counters, *meaning.separate)}
    return Readouts(**arrays, counters=counters, address=np.arange(len(dataset)))


def _kept(head: Numbers, specification: Specification) -> dict[str, Numbers]:
    meaning = specification.readouts
    assert meaning is not None
    with np.errstate(all="ignore"):
        along = np.sum(head["position"].astype(float) * head["slice_dir"], axis=-1)
    return {
        "flags": head["flags"].astype(np.uint64),
        "samples": head["number_of_samples"].astype(np.int64),
        "coils": head["active_channels"].astype(np.int64),
        "centre": head["center_sample"].astype(np.int64),
        "before": head["discard_pre"].astype(np.int64),
        "after": head["discard_post"].astype(np.int64),
        "dwell": head["sample_time_us"].astype(float),
        "along": along,
        "encoding": head["encoding_space_ref"].astype(np.int64),
        **{
            name: head["idx"][counter].astype(np.int64)
            for name, counter in {**meaning.counters, **meaning.separate}.items()
        },
    }


def _fetch(
    path: Path, address: Numbers, coils: Numbers, samples: Numbers, group: str = "dataset"
) -> list[NDArray[np.complex64]]:
    if not len(address):
        return []
    order = np.argsort(address)
    with open_hdf5(path) as file:
        stored = file[group]["data"].fields("data")[address[order]]
    values: list[Any] = [None] * len(address)
    for number, readout in zip(order, stored, strict=True):
        flat = np.ascontiguousarray(readout, dtype=np.float32)
        if flat.size != 2 * coils[number] * samples[number]:
            raise InputError(
                f"{path}: readout {address[number]} has {flat.size // 2} samples where its header says "
                f"{coils[number]} x {samples[number]}: convert the measurement again."
            )
        values[number] = flat.view(np.complex64).reshape(coils[number], samples[number])
    return values
