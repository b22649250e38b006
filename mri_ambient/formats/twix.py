"""Raw data of Siemens scanners (``data_specs/twix.yaml``), with the structures and the protocol parser of twixtools.

A file holds one measurement (VB) or a table of up to 64 (VD and later). A measurement is a protocol as text, then
blocks: a header of fixed size and, for every coil, samples with a header of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import partial
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mri_ambient.errors import InputError
from mri_ambient.formats.base import ScanFile, open_raw
from mri_ambient.formats.placement import Directions, placed
from mri_ambient.formats.readouts import Numbers, Readouts, ReadoutSource, assemble
from mri_ambient.header import Header
from mri_ambient.specification import load_specification

_PROTOCOLS = (b"Config", b"Dicom", b"Meas", b"Phoenix", b"Spice")  # names that the first part of a protocol can have
_MOST = 64  # measurements of a file
_TRAJECTORIES = {1: "cartesian", 2: "radial", 4: "spiral", 8: "blade"}
_ROUNDING = 1e-2  # of the length of a quaternion
_OVERSAMPLING = 2.0  # where the protocol does not say


def is_twix(path: Path) -> bool:
    """Whether a file starts like one of these, by its table and the name of the first part of a protocol."""
    with open_raw(path), path.open("rb") as file:
        start = _table(file)[0][0]
        file.seek(start + 8)
        return file.read(16).startswith(_PROTOCOLS)


def examine(path: Path, part: str = "") -> ScanFile:
    """Check a file; parameters and errors as in `mri_ambient.readers.examine`.

    Raises
    ------
    InputError
        Also if twixtools is not installed.
    """
    try:
        structures, protocols = import_module("twixtools.mdh_def"), import_module("twixtools.twixprot")
    except ModuleNotFoundError as error:
        raise InputError(
            f"{path} is Siemens raw data, which needs the extra twix: pip install 'mri-ambient[twix]'."
        ) from error
    specification = load_specification("twix")
    meaning = specification.readouts
    assert meaning is not None
    with open_raw(path), path.open("rb") as file:
        table = _table(file)
        size = path.stat().st_size
        protocol = [_protocol(file, start, protocols) for start, _, _ in table]
        measured = [_read_blocks(file, path, entry, size, structures) for entry in table]
        headers = [_header(path, found) for found in protocol]
    modern = table[0][2]
    fetch = partial(_fetch, gap=_channel_header(structures, modern))
    readouts = [_with_dwell(own, found) for own, found in zip(measured, protocol, strict=True)]
    noisy = [own.at(own.flagged(meaning.flags["noise"])) for own in readouts]
    noise = next(((own, fetch) for own in reversed(noisy) if len(own)), None)
    found = assemble(path, specification, readouts[-1], fetch, lambda number: headers[-1], part, noise)
    return placed(found, _directions(found, structures, modern), reverse=True)


def _table(file: BinaryIO) -> list[tuple[int, int, bool]]:
    """Start, end and kind (VD and later) of every measurement."""
    size = file.seek(0, 2)
    file.seek(0)
    first, count = (int(number) for number in np.frombuffer(file.read(8), "<u4"))
    if first >= 10_000 or not 1 <= count <= _MOST:
        return [(0, size, False)]
    entries = np.frombuffer(file.read(152 * count), "<u8").reshape(count, 19)
    return [(int(entry[1]), int(entry[1] + entry[2]), True) for entry in entries]


def _protocol(file: BinaryIO, start: int, protocols: Any) -> dict[str, Any]:
    file.seek(start)
    try:
        with redirect_stdout(StringIO()):  # it prints what it does not understand
            found: dict[str, Any] = protocols.parse_twix_hdr(file)
    except Exception as error:  # a parser by regular expressions stumbles in many ways
        raise ValueError("protocol") from error
    return found


def _channel_header(structures: Any, modern: bool) -> int:
    return np.dtype(structures.Channel_header if modern else structures.VB17_header).itemsize


def _read_blocks(file: BinaryIO, path: Path, entry: tuple[int, int, bool], size: int, structures: Any) -> Readouts:
    """Headers of all readouts of a measurement, up to the block that ends it."""
    modern = entry[2]
    structure = np.dtype(structures.Scan_header if modern else structures.VB17_header)
    gap = _channel_header(structures, modern)
    heads, address = [], []
    for position, head in _blocks(file, entry, size, structure, gap, structures):
        heads.append(head)
        address.append(position + (structure.itemsize if modern else 0))
    if not heads:
        raise InputError(f"{path} holds a measurement without readouts: export it again.")
    block = np.concatenate(heads)
    counter = block["Counter"]
    place, _, _, normal = _places(block)
    return Readouts(
        flags=block["EvalInfoMask"].astype(np.uint64),
        counters={name: counter[field].astype(np.int64) for name, field in _counters().items()},
        samples=block["SamplesInScan"].astype(np.int64),
        coils=block["UsedChannels"].astype(np.int64),
        centre=block["CenterCol"].astype(np.int64),
        before=block["CutOff"]["Pre"].astype(np.int64),
        after=block["CutOff"]["Post"].astype(np.int64),
        dwell=np.zeros(len(block)),
        along=np.sum(place * normal, axis=-1),
        encoding=np.zeros(len(block), np.int64),
        address=np.array(address, np.int64),
    )


def _counters() -> dict[str, str]:
    meaning = load_specification("twix").readouts
    assert meaning is not None
    return {**meaning.counters, **meaning.separate}


def _blocks(
    file: BinaryIO, entry: tuple[int, int, bool], size: int, structure: np.dtype[Any], gap: int, structures: Any
) -> Iterator[tuple[int, Numbers]]:
    """Position and header of every block that holds samples."""
    start, _, modern = entry
    file.seek(start)
    position = start + int(np.frombuffer(file.read(4), "<u4")[0])
    ended, synchronised = (1 << structures.mask_dict[name] for name in ("ACQEND", "SYNCDATA"))
    while True:
        file.seek(position)
        head = np.frombuffer(file.read(structure.itemsize), structure)
        flags = int(head["EvalInfoMask"][0])
        if flags & ended:
            return
        samples = 8 * int(head["SamplesInScan"][0])
        length = int(head["UsedChannels"][0]) * (samples + gap) + (structure.itemsize if modern else 0)
        if flags & synchronised:
            length = int(head["FlagsAndDMALength"][0]) % 2**25
        if length < structure.itemsize or position + length > size:
            raise EOFError("block")
        if not flags & synchronised:
            yield position, head
        position += length


def _places(blocks: Numbers) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """Positions in LPS millimetres, and directions of readout, phase encoding and slice, each (block, 3).

    Quaternions have the real part first; the columns of their rotations are phase encoding, readout, slice.
    """
    place = blocks["SliceData"]["SlicePos"]
    position = np.stack([place[name].astype(float) for name in ("Sag", "Cor", "Tra")], axis=-1)
    quaternion = blocks["SliceData"]["Quaternion"].astype(float)
    quaternion[np.abs(np.linalg.norm(quaternion, axis=-1) - 1) > _ROUNDING] = np.nan  # not filled in
    r, i, j, k = np.moveaxis(quaternion, -1, 0)
    phase = np.stack([1 - 2 * (j**2 + k**2), 2 * (i * j + k * r), 2 * (i * k - j * r)], axis=-1)
    read = np.stack([2 * (i * j - k * r), 1 - 2 * (i**2 + k**2), 2 * (j * k + i * r)], axis=-1)
    normal = np.stack([2 * (i * k + j * r), 2 * (j * k - i * r), 1 - 2 * (i**2 + j**2)], axis=-1)
    return position, read, phase, normal


def _directions(found: ScanFile, structures: Any, modern: bool) -> Directions:
    """Of the first readout of every slice."""
    assert isinstance(found.source, ReadoutSource)
    structure = np.dtype(structures.Scan_header if modern else structures.VB17_header)
    first = found.source.address[np.unique(found.source.index, return_index=True)[1]]
    heads = []
    with open_raw(found.path), found.path.open("rb") as file:
        for address in first.tolist():
            file.seek(address - (structure.itemsize if modern else 0))
            heads.append(np.frombuffer(file.read(structure.itemsize), structure))
    return Directions(*_places(np.concatenate(heads)))


def _with_dwell(readouts: Readouts, protocol: dict[str, Any]) -> Readouts:
    try:
        dwell = float(protocol["MeasYaps"]["sRXSPEC"]["alDwellTime"][0])
    except (LookupError, TypeError, ValueError):
        return readouts
    readouts.dwell[:] = dwell
    return readouts


def _header(path: Path, protocol: dict[str, Any]) -> Header:
    """Geometry from the protocol; what it lacks stays unknown."""
    yaps = protocol.get("MeasYaps") or {}
    try:
        space = yaps["sKSpace"]
        readout, lines = int(space["lBaseResolution"]), int(space["lPhaseEncodingLines"])
        trajectory = _TRAJECTORIES.get(int(space.get("ucTrajectory", 1)), "other")
        oversampling = float(protocol.get("Meas", {}).get("flReadoutOSFactor") or _OVERSAMPLING)
        extra = 1 + float(space.get("dPhaseOversamplingForDialog") or 0)
        slab = (yaps.get("sSliceArray", {}).get("asSlice") or [{}])[0]
        field = [slab.get(name) for name in ("dThickness", "dReadoutFOV", "dPhaseFOV")]
        voxel = None
        if all(isinstance(value, float) and value > 0 for value in field):
            voxel = (field[0], field[1] / readout, field[2] * extra / lines)
        if min(readout, lines, oversampling, extra) < 1:
            raise ValueError("sizes")
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise InputError(f"{path} has a protocol without usable matrix sizes: export it again.") from error
    return Header(
        encoded_size=(round(readout * oversampling), lines),
        recon_size=(readout, round(lines / extra)),
        voxel_size=voxel,
        readout_size=readout,
        trajectory=trajectory,
    )


def _fetch(path: Path, address: Numbers, coils: Numbers, samples: Numbers, gap: int) -> list[NDArray[np.complex64]]:
    values = []
    with open_raw(path), path.open("rb") as file:
        for start, count, length in zip(address.tolist(), coils.tolist(), samples.tolist(), strict=True):
            file.seek(start)
            stored = np.frombuffer(file.read(count * (gap + 8 * length)), np.uint8).reshape(count, -1)
            values.append(np.ascontiguousarray(stored[:, gap:]).view("<c8").astype(np.complex64))
    return values
