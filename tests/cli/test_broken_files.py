"""Broken files of every format end in one sentence and exit code 2, and leave nothing behind.

A file is made as other software writes it and then damaged. The sentence names the file; it says what is wrong where
the damage can be told.
"""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from cli_checks import files_in, one_line
from raw_files import (
    bart_array,
    coil_images,
    fft2c,
    header,
    lines_of,
    noise,
    readout,
    twix_block,
    write_cfl,
    write_ismrmrd,
    write_twix,
)

HEIGHT, WIDTH = 24, 21
KSPACE = fft2c(coil_images(2, 3, HEIGHT, WIDTH))
KSPACE = KSPACE + 1e-3 * noise(np.random.default_rng(0), *KSPACE.shape)


def mrd(folder: Path, stored: list | None = None, xml: str | None = None) -> Path:
    pytest.importorskip("ismrmrd", reason="the ismrmrd library, an independent writer, is not installed")
    return write_ismrmrd(
        folder / "bad.h5", header(HEIGHT, WIDTH) if xml is None else xml, lines_of(KSPACE) if stored is None else stored
    )


def cfl(folder: Path, array: np.ndarray | None = None) -> Path:
    return write_cfl(folder / "bad", bart_array(KSPACE) if array is None else array)


def dat(folder: Path, stored: list | None = None, **protocol: int) -> Path:
    pytest.importorskip("twixtools", reason="the extra twix is not installed")
    if stored is None:
        stored = [twix_block(KSPACE[i, :, :, c], Lin=c, Sli=i, middle=WIDTH // 2) for c in range(WIDTH) for i in (0, 1)]
    return write_twix(folder / "bad.dat", [stored], **{"rows": HEIGHT // 2, "columns": WIDTH, **protocol})


def npy(folder: Path) -> Path:
    parts = np.stack([KSPACE.real, KSPACE.imag], axis=-1).transpose(0, 2, 3, 1, 4).reshape(2, HEIGHT, WIDTH, 6)
    np.save(folder / "bad.npy", parts.astype(np.float32))
    return folder / "bad.npy"


def h5(folder: Path, kspace: np.ndarray = KSPACE) -> Path:
    with h5py.File(folder / "bad.h5", "w") as file:
        file["kspace"] = kspace.astype(np.complex64)
        file["ismrmrd_header"] = header(HEIGHT, WIDTH)
    return folder / "bad.h5"


WRITERS: dict[str, Callable[[Path], Path]] = {"ismrmrd": mrd, "bart": cfl, "twix": dat, "calgary": npy, "fastmri": h5}


def cut(make: Callable[[Path], Path], fraction: float) -> Callable[[Path], Path]:
    def truncated(folder: Path) -> Path:
        path = make(folder)
        path.write_bytes(path.read_bytes()[: int(fraction * path.stat().st_size)])
        return path

    return truncated


def without(path: Path, name: str) -> Path:
    with h5py.File(path, "a") as file:
        del file[name]
    return path


def changed(path: Path, name: str, value: int) -> Path:
    """The same file with one member of all readout headers set."""
    with h5py.File(path, "a") as file:
        stored = file["dataset/data"][()]
        stored["head"][name] = value
        file["dataset/data"][:] = stored
    return path


def dimensions(folder: Path, line: str) -> Path:
    path = cfl(folder)
    path.with_suffix(".hdr").write_text(f"# Dimensions\n{line}\n")
    return path


def without_bart_header(folder: Path) -> Path:
    path = cfl(folder)
    path.with_suffix(".hdr").unlink()
    return path


def cut_header(folder: Path) -> Path:
    path = cfl(folder).with_suffix(".hdr")
    path.write_text("# Dimensions")
    return path


def without_bart_data(folder: Path) -> Path:
    path = cfl(folder)
    path.unlink()
    return path.with_suffix(".hdr")


def other_byte_order(folder: Path) -> Path:
    path = cfl(folder)
    path.write_bytes(np.fromfile(path, "<f4").astype(">f4").tobytes())
    return path


def with_line(path: Path, value: float) -> Path:
    values = np.fromfile(path, "<c8")
    values[100] = value
    values.tofile(path)
    return path


def another_line(**counters: int) -> list:
    return [*lines_of(KSPACE), readout(KSPACE[0, :, :, 3], kspace_encode_step_1=3, **counters)]


def patched(path: Path, start: int, content: bytes) -> Path:
    data = bytearray(path.read_bytes())
    data[start : start + len(content)] = content
    path.write_bytes(data)
    return path


def twix_lines(*shapes: int) -> list:
    return [twix_block(np.ones((coils, HEIGHT)), Lin=line, middle=WIDTH // 2) for line, coils in enumerate(shapes)]


CORPUS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "ismrmrd, no header": (lambda f: without(mrd(f), "dataset/xml"), "no dataset kspace"),
    "ismrmrd, no readouts": (lambda f: without(mrd(f), "dataset/data"), "no dataset kspace"),
    "ismrmrd, empty": (lambda f: mrd(f, []), "empty along its readout axis"),
    "ismrmrd, header not XML": (lambda f: mrd(f, xml="<broken"), "header is invalid"),
    "ismrmrd, negative size": (lambda f: mrd(f, xml=header(-HEIGHT, WIDTH)), "header is invalid"),
    "ismrmrd, absurd size": (lambda f: mrd(f, xml=header(900_000, 900_000)), "absurd"),
    "ismrmrd, smaller matrix": (lambda f: mrd(f, xml=header(HEIGHT, 9)), "line 9 lies outside"),
    "ismrmrd, limits": (lambda f: mrd(f, xml=header(HEIGHT, WIDTH, center=2, maximum=20)), "lies outside"),
    "ismrmrd, radial": (lambda f: mrd(f, xml=header(HEIGHT, WIDTH, trajectory="radial")), "trajectory radial"),
    "ismrmrd, spiral": (lambda f: mrd(f, xml=header(HEIGHT, WIDTH, trajectory="spiral")), "trajectory spiral"),
    "ismrmrd, epi": (lambda f: mrd(f, xml=header(HEIGHT, WIDTH, trajectory="epi")), "trajectory epi, whose ghosts"),
    "ismrmrd, mixed coils": (
        lambda f: mrd(f, [*lines_of(KSPACE[:, :, :, :9]), *lines_of(KSPACE[:, :2], range(9, WIDTH))]), "2 and 3 coils",
    ),
    "ismrmrd, duplicated line": (lambda f: mrd(f, another_line()), "line 3 of slice 0 2 times"),
    "ismrmrd, 3-D": (lambda f: mrd(f, another_line(kspace_encode_step_2=1)), "3-D"),
    "ismrmrd, two encodings": (lambda f: mrd(f, another_line(encoding_space_ref=1)), "2 encodings"),
    "ismrmrd, several scans": (lambda f: mrd(f, another_line(contrast=1)), "holds 2 scans, contrast=0 and contrast=1"),
    "ismrmrd, only noise": (lambda f: mrd(f, [readout(KSPACE[0, :, :, 3], "noise")]), "no readout of"),
    "ismrmrd, centre outside": (lambda f: changed(mrd(f), "center_sample", 60), "do not fit about the centre"),
    "ismrmrd, everything discarded": (lambda f: changed(mrd(f), "discard_pre", 60), "do not fit about the centre"),
    "ismrmrd, more coils than samples": (lambda f: changed(mrd(f), "active_channels", 5), "5 x 24"),
    "ismrmrd, no coil": (lambda f: changed(mrd(f), "active_channels", 0), "coils"),
    "ismrmrd, not a number": (lambda f: mrd(f, lines_of(KSPACE * np.nan)), "NaN"),
    "ismrmrd, other members": (
        lambda f: write_compound(f / "bad.h5"), "no member data",
    ),
    "bart, no header": (without_bart_header, "not an HDF5 file"),
    "bart, no data": (without_bart_data, "bad.cfl"),
    "bart, cut header": (lambda f: cut_header(f), "dimensions"),
    "bart, negative": (lambda f: dimensions(f, "24 -21 1 3 1"), "24 -21 1 3 1"),
    "bart, nothing": (lambda f: dimensions(f, "24 0 1 3"), "24 0 1 3"),
    "bart, words": (lambda f: dimensions(f, "24 x 21"), "dimensions"),
    "bart, absurd": (lambda f: dimensions(f, "99999999 99999999 99999999"), "reasonable"),
    "bart, too many": (lambda f: dimensions(f, "1 " * 20), "up to 16 dimensions"),
    "bart, other size": (lambda f: dimensions(f, "24 22 1 3 1 1 1 1 1 1 1 1 1 2"), "bytes where its header"),
    "bart, longer data": (lambda f: dimensions(f, "24 20 1 3 1 1 1 1 1 1 1 1 1 2"), "bytes where its header"),
    "bart, 3-D": (lambda f: cfl(f, KSPACE[0].transpose(1, 2, 0)[..., None]), "partition axis"),
    "bart, maps": (lambda f: cfl(f, np.ones((9, 9, 1, 3, 2))), "map axis"),
    "bart, byte order": (other_byte_order, "little-endian"),
    "bart, not a number": (lambda f: with_line(cfl(f), np.nan), "not finite"),
    "bart, zeros": (lambda f: cfl(f, np.zeros((9, 9))), "zero everywhere"),
    "twix, radial": (lambda f: dat(f, trajectory=2), "trajectory radial"),
    "twix, blade": (lambda f: dat(f, trajectory=8), "trajectory blade"),
    "twix, no size": (lambda f: dat(f, rows=0), "matrix sizes"),
    "twix, negative size": (lambda f: dat(f, columns=-5), "matrix sizes"),
    "twix, smaller matrix": (lambda f: dat(f, columns=9), "lies outside"),
    "twix, shorter readout": (lambda f: dat(f, rows=4), "do not fit about the centre"),
    "twix, duplicated line": (lambda f: dat(f, twix_lines(3, 3) + twix_lines(3)), "2 times"),
    "twix, mixed coils": (lambda f: dat(f, twix_lines(3, 3, 2)), "2 and 3 coils"),
    "twix, nothing": (lambda f: dat(f, [twix_block(np.ones((3, 24)), "ACQEND")]), "without readouts"),
    "twix, endless blocks": (lambda f: endless(f), "truncated or damaged"),
    "calgary, other type": (lambda f: patched(npy(f), 20, b"'descr': '<M8'"), "bad.npy"),
    "calgary, negative": (lambda f: renamed_shape(npy(f), b"(2, 24, ", b"(2,-24, "), "bad.npy"),
    "calgary, open bracket": (lambda f: renamed_shape(npy(f), b"6), }", b"6 , }"), "truncated or damaged"),
    "calgary, zeros": (lambda f: zeroed(npy(f)), "zero everywhere"),
    "fastmri, header": (lambda f: rewritten(h5(f), "ismrmrd_header", header(HEIGHT, -3)), "header is invalid"),
    "nothing": (lambda f: short(f / "bad.h5", b""), "is empty"),
    "one byte": (lambda f: short(f / "bad.dat", b"\1"), "not an HDF5 file"),
    **{
        f"{name}, {fraction:.0%} of it": (cut(make, fraction), "bad")
        for name, make in WRITERS.items()
        for fraction in (0.02, 0.3, 0.7, 0.97)
    },
}  # fmt: skip


def write_compound(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file["dataset/xml"] = [header(HEIGHT, WIDTH).encode()]
        file["dataset/data"] = np.zeros(3, [("head", [("flags", "<u8")]), ("samples", "<f4")])
    return path


def endless(folder: Path) -> Path:
    """A block that says it has no length, which a reader must not wait for."""
    path = dat(folder)
    data = path.read_bytes()
    start = data.rindex(b"### ASCCONV END ###\n\0") + 21
    flags = np.uint64(1 << 5).tobytes()  # synchronisation: the length is what the block says
    return patched(patched(path, start, bytes(4)), start + 40, flags)


def renamed_shape(path: Path, old: bytes, new: bytes) -> Path:
    path.write_bytes(path.read_bytes().replace(old, new))
    return path


def zeroed(path: Path) -> Path:
    np.save(path, np.zeros((2, 24, 21, 6), np.float32))
    return path


def rewritten(path: Path, name: str, value: object) -> Path:
    with h5py.File(path, "a") as file:
        del file[name]
        file[name] = value
    return path


def short(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def refused(run, path: Path, out: Path) -> str:
    """The sentence of `recon`; `inspect` must say the same."""
    results = [
        run("recon", path, "--method", "zero-filled", "--noise", 0.01, "--out", out),
        run("inspect", path),
    ]
    for result in results:
        assert result.exit_code == 2, (result.output, result.exception)
        sentence = one_line(result)
        assert sentence.startswith("Error: ")
        assert sentence.endswith(".")
        assert "Unexpected" not in sentence
    assert files_in(out) == []
    return one_line(results[0])


@pytest.mark.parametrize("case", CORPUS)
def test_broken_file(run, tmp_path, case):
    make, expected = CORPUS[case]
    sentence = refused(run, make(tmp_path), tmp_path / "out")
    assert str(tmp_path / "bad") in sentence
    assert expected in sentence


@pytest.mark.parametrize("name", WRITERS)
def test_random_damage_never_ends_in_a_traceback(run, tmp_path, name):
    whole = WRITERS[name](tmp_path)
    targets = [whole.with_suffix(".hdr"), whole] if name == "bart" else [whole]
    rng = np.random.default_rng(0)
    refusals = 0
    for number in range(24):
        target = targets[number % len(targets)]
        content = target.read_bytes()
        spoilt = bytearray(content)
        where = rng.integers(0, len(content) if number % 2 else min(len(content), 1500), size=1 + number % 5)
        for place in where:
            spoilt[place] ^= 1 << int(rng.integers(8))
        target.write_bytes(spoilt)
        result = run("inspect", whole)
        if result.exit_code != 0:
            assert result.exit_code == 2, (number, result.stderr)
            one_line(result)
            refusals += 1
        target.write_bytes(content)
    assert refusals > 0
    assert run("inspect", whole).exit_code == 0
