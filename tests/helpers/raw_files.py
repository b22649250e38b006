"""Scan files written by other people's software: the ismrmrd library, BART's layout, twixtools.

All hold the same asymmetric object, so that a flip, a transposition or a shift of one sample shows.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

FLAGS = {"noise": 19, "calibration": 20, "both": 21, "reversed": 22, "navigation": 23, "phase_correction": 24}

XML = """<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
  <acquisitionSystemInformation>{receiver}</acquisitionSystemInformation>
  <experimentalConditions><H1resonanceFrequency_Hz>128000000</H1resonanceFrequency_Hz></experimentalConditions>
  <encoding>
    <encodedSpace>
      <matrixSize><x>{rows}</x><y>{columns}</y><z>1</z></matrixSize>
      <fieldOfView_mm><x>{field}</x><y>200</y><z>5</z></fieldOfView_mm>
    </encodedSpace>
    <reconSpace>
      <matrixSize><x>{kept}</x><y>{columns}</y><z>1</z></matrixSize>
      <fieldOfView_mm><x>{kept}</x><y>200</y><z>5</z></fieldOfView_mm>
    </reconSpace>
    <encodingLimits>{limits}</encodingLimits>
    <trajectory>{trajectory}</trajectory>
    {parallel}
  </encoding>
</ismrmrdHeader>"""


def noise(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Complex numbers of standard deviation 1 per component."""
    return rng.normal(size=shape) + 1j * rng.normal(size=shape)


def fft2c(image: np.ndarray, inverse: bool = False) -> np.ndarray:
    """Centred orthonormal transform of the last two axes, written with NumPy."""
    transform = np.fft.ifft2 if inverse else np.fft.fft2
    return np.fft.fftshift(transform(np.fft.ifftshift(image, axes=(-2, -1)), norm="ortho"), axes=(-2, -1))


def coil_images(slices: int, coils: int, height: int, width: int, margin: int = 0) -> np.ndarray:
    """Images (slice, coil, y, x) of an L with a spot, which no flip or rotation leaves alone.

    `margin` rows at the top and at the bottom stay empty.
    """
    image = np.zeros((slices, height, width))
    top = margin + 2
    image[:, top : height - margin - 2, 3:6] = 1
    image[:, height - margin - 5 : height - margin - 2, 3 : width - 4] = 0.7
    image[:, top : top + 2, width - 6] = 0.4
    image *= 1 + 0.3 * np.arange(slices)[:, None, None]
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    phase = np.exp(2j * (x + 0.5 * y))
    profiles = np.stack([np.cos((c + 1) * x / coils) + 0.5j * np.sin((c + 2) * y) for c in range(coils)])
    return image[:, None] * phase * profiles


def header(
    rows: int,
    columns: int,
    *,
    oversampling: int = 1,
    center: int | None = None,
    maximum: int | None = None,
    trajectory: str = "cartesian",
    bandwidth: float | None = None,
    mode: str | None = None,
) -> str:
    """XML header of a matrix of `rows` (oversampled) by `columns`."""
    limits = ""
    if center is not None:
        inner = f"<minimum>0</minimum><maximum>{maximum}</maximum><center>{center}</center>"
        limits = f"<kspace_encoding_step_1>{inner}</kspace_encoding_step_1>"
    factor = "<accelerationFactor><kspace_encoding_step_1>2</kspace_encoding_step_1></accelerationFactor>"
    return XML.format(
        rows=rows,
        columns=columns,
        field=rows,
        kept=rows // oversampling,
        limits=limits,
        trajectory=trajectory,
        receiver=""
        if bandwidth is None
        else f"<relativeReceiverNoiseBandwidth>{bandwidth}</relativeReceiverNoiseBandwidth>",
        parallel=""
        if mode is None
        else f"<parallelImaging>{factor}<calibrationMode>{mode}</calibrationMode></parallelImaging>",
    )


def readout(samples: np.ndarray, *flags: str, center: int | None = None, **settings: object):
    """An acquisition of the ismrmrd library; `settings` are counters, or members of its header."""
    import ismrmrd

    acquisition = ismrmrd.Acquisition.from_array(np.ascontiguousarray(samples, dtype=np.complex64))
    acquisition.center_sample = samples.shape[-1] // 2 if center is None else center
    for flag in flags:
        acquisition.set_flag(FLAGS[flag])
    for name, value in settings.items():
        if hasattr(acquisition.idx, name):
            setattr(acquisition.idx, name, value)
        elif isinstance(value, tuple):
            getattr(acquisition, name)[:] = value
        else:
            setattr(acquisition, name, value)
    return acquisition


def lines_of(kspace: np.ndarray, columns: Iterable[int] | None = None, **settings: object) -> list:
    """Readouts of k-space (slice, coil, y, x), slices interleaved as scanners do."""
    chosen = range(kspace.shape[-1]) if columns is None else columns
    return [
        readout(kspace[index, :, :, column], kspace_encode_step_1=column, slice=index, **settings)
        for column in chosen
        for index in range(len(kspace))
    ]


def write_ismrmrd(path: Path, xml: str | None, acquisitions: list, group: str = "dataset") -> Path:
    """A file of the ismrmrd library."""
    import ismrmrd

    with ismrmrd.Dataset(str(path), group) as dataset:
        if xml is not None:
            dataset.write_xml_header(xml.encode())
    with ismrmrd.File(str(path), "a") as file:
        file[group].acquisitions = acquisitions
    return path


def write_cfl(base: Path, array: np.ndarray) -> Path:
    """A pair as BART writes it; returns the data file."""
    base.with_name(base.name + ".hdr").write_text("# Dimensions\n" + " ".join(map(str, array.shape)) + "\n")
    data = base.with_name(base.name + ".cfl")
    data.write_bytes(array.astype("<c8").ravel(order="F").tobytes())
    return data


def bart_array(kspace: np.ndarray) -> np.ndarray:
    """K-space (slice, coil, y, x) in the dimensions of BART."""
    slices, coils, height, width = kspace.shape
    return kspace.transpose(2, 3, 1, 0).reshape(height, width, 1, coils, *[1] * 9, slices)


PROTOCOL = """### ASCCONV BEGIN ###
sKSpace.lBaseResolution = {rows}
sKSpace.lPhaseEncodingLines = {columns}
sKSpace.ucTrajectory = {trajectory}
sSliceArray.asSlice[0].dThickness = 5.0
sSliceArray.asSlice[0].dReadoutFOV = 220.0
sSliceArray.asSlice[0].dPhaseFOV = 200.0
sRXSPEC.alDwellTime[0] = {dwell}
### ASCCONV END ###
"""


def twix_block(samples: np.ndarray, *flags: str, center: int | None = None, middle: int = 0, **counters: int):
    """A block of twixtools; flags by their Siemens names."""
    from twixtools.mdb import Mdb_local

    block = Mdb_local(np.ascontiguousarray(samples, dtype=np.complex64))
    block.mdh.CenterCol = samples.shape[-1] // 2 if center is None else center
    block.mdh.CenterLin = middle
    for flag in flags:
        block.add_flag(flag)
    for name, value in counters.items():
        setattr(block.mdh.Counter, name, value)
    return block


def write_twix(path: Path, measurements: list[list], **protocol: int) -> Path:
    """A file of twixtools in the layout of VD and later."""
    import contextlib
    import io

    from twixtools import write_twix as write

    text = PROTOCOL.format(**{"trajectory": 1, "dwell": 2000, **protocol}).encode() + b"\0"
    inside = b"".join([b"MeasYaps\0", np.uint32(len(text)).tobytes(), text])
    start = np.array([len(inside) + 8, 1], "<u4").tobytes() + inside
    scans = [{"hdr_str": np.frombuffer(start, "S1"), "mdb": blocks} for blocks in measurements]
    with contextlib.redirect_stdout(io.StringIO()):
        write(scans, str(path))
    return path
