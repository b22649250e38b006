"""Bad input: one clear sentence on standard error, exit code 2, and nothing left in the output folder."""

import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path

import h5py
import numpy as np
import pytest
from cli_checks import files_in, one_line

from mri_ambient.recon import files as recon_files
from mri_ambient.recon import places


def rewritten(scan: Path, folder: Path, **changes: object) -> Path:
    """A copy of a scan with some datasets replaced, or removed where the value is None."""
    path = folder / "bad.h5"
    shutil.copy(scan, path)
    with h5py.File(path, "r+") as file:
        for name, values in changes.items():
            if name in file:
                del file[name]
            if values is not None:
                file[name] = values
    return path


def kspace(scan: Path) -> np.ndarray:
    with h5py.File(scan) as file:
        return file["kspace"][()]


def missing(scan: Path, folder: Path) -> Path:
    return folder / "bad.h5"


def text(scan: Path, folder: Path) -> Path:
    path = folder / "bad.h5"
    path.write_text("This is not HDF5.")
    return path


def truncated(scan: Path, folder: Path) -> Path:
    path = folder / "bad.h5"
    path.write_bytes(scan.read_bytes()[: scan.stat().st_size // 2])
    return path


def without_kspace(scan: Path, folder: Path) -> Path:
    return rewritten(scan, folder, kspace=None)


def wrong_rank(scan: Path, folder: Path) -> Path:
    return rewritten(scan, folder, kspace=kspace(scan)[0, 0])


def wrong_type(scan: Path, folder: Path) -> Path:
    return rewritten(scan, folder, kspace=kspace(scan).real)


def not_a_number(scan: Path, folder: Path) -> Path:
    values = kspace(scan)
    values[1, 2, 24, 20] = np.nan
    return rewritten(scan, folder, kspace=values)


def zeros(scan: Path, folder: Path) -> Path:
    return rewritten(scan, folder, kspace=np.zeros_like(kspace(scan)))


def wrong_mask(scan: Path, folder: Path) -> Path:
    return rewritten(scan, folder, mask=np.ones(39, np.uint8))


def few_centre_lines(scan: Path, folder: Path) -> Path:
    mask = np.zeros(40, np.uint8)
    mask[::5] = mask[18:23] = 1
    return rewritten(scan, folder, mask=mask)


SCANS = [
    (missing, ["There is no file"]),
    (text, ["is not an HDF5 file"]),
    (truncated, ["truncated or damaged"]),
    (without_kspace, ["no dataset kspace"]),
    (wrong_rank, ["kspace", "(48, 40)"]),
    (wrong_type, ["kspace", "complex", "float32"]),
    (not_a_number, ["NaN", "slice 1"]),
    (zeros, ["zero everywhere"]),
    (wrong_mask, ["mask", "39", "40"]),
    (few_centre_lines, ["Only 5 contiguous central k-space lines", "8", "use a mask"]),
]


@pytest.mark.parametrize("method", ["posterior", "sense"])
@pytest.mark.parametrize(("spoil", "expected"), SCANS, ids=[spoil.__name__ for spoil, _ in SCANS])
def test_recon_of_a_bad_scan(run, scan, tiny_prior, tmp_path, spoil, expected, method):
    path = spoil(scan, tmp_path)
    result = run("recon", path, "--prior", tiny_prior, "--method", method, "--out", tmp_path / "out", "--format", "png")
    assert result.exit_code == 2
    line = one_line(result)
    assert "bad" in line
    for words in expected:
        assert words in line
    assert files_in(tmp_path / "out") == []


@pytest.mark.parametrize("command", ["inspect", "train"])
@pytest.mark.parametrize("spoil", [text, truncated, without_kspace, wrong_rank, wrong_type, zeros, wrong_mask])
def test_other_commands_on_a_bad_scan(run, scan, tmp_path, spoil, command):
    path = spoil(scan, tmp_path)
    words = ["--out", tmp_path / "out", "--preset", "tiny", "--images", 8] if command == "train" else []
    result = run(command, path, *words)
    assert result.exit_code == 2
    assert str(path) in one_line(result)


def prior_file(folder: Path, content: bytes) -> Path:
    path = folder / "x.safetensors"
    path.write_bytes(content)
    return path


def foreign_safetensors(folder: Path) -> Path:
    from safetensors.numpy import save

    return prior_file(folder, save({"weight": np.ones(3, np.float32)}, {"format": "pt"}))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda folder: prior_file(folder, b"\x80\x04pickled"), "is not a prior of mri-ambient"),
        (foreign_safetensors, "not a prior of mri-ambient"),
        (lambda folder: "nonesuch", "There is no prior 'nonesuch'"),
        (lambda folder: folder, "holds no finished prior"),
    ],
    ids=["pickle", "foreign safetensors", "unknown name", "folder without one"],
)
def test_bad_prior(run, scan, tmp_path, make, expected):
    for words in (["recon", scan, "--prior"], ["train", scan, "--preset", "tiny", "--dry-run", "--init"]):
        result = run(*words, make(tmp_path), "--out", tmp_path / "out")
        assert result.exit_code == 2
        assert expected in one_line(result)
        assert files_in(tmp_path / "out") == []


COMMANDS_WITH_OUTPUT = {
    "recon": lambda scan, prior: ["recon", scan, "--prior", prior],
    "train": lambda scan, prior: ["train", scan, "--preset", "tiny", "--images", 8],
    "dry run": lambda scan, prior: ["train", scan, "--preset", "tiny", "--dry-run"],
    "simulate": lambda scan, prior: ["simulate", scan],
    "demo": lambda scan, prior: ["demo"],
}


@pytest.mark.parametrize("name", COMMANDS_WITH_OUTPUT)
def test_output_below_a_file(run, scan, tiny_prior, tmp_path, name):
    blocked = tmp_path / "file"
    blocked.touch()
    result = run(*COMMANDS_WITH_OUTPUT[name](scan, tiny_prior), "--out", blocked / "out")
    assert result.exit_code == 2
    assert str(blocked) in one_line(result)
    assert files_in(tmp_path) == ["file"]


def test_output_folder_not_writable_is_found_before_the_work(run, scan, tiny_prior, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(places, "TemporaryFile", refuse)
    monkeypatch.setattr(recon_files, "Reconstructor", None)  # must not be reached
    result = run("recon", scan, "--prior", tiny_prior, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "Permission denied" in one_line(result)


def test_too_little_space_is_found_before_the_work(run, scan, tiny_prior, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    monkeypatch.setattr(recon_files, "_write", None)  # must not be reached
    result = run("recon", scan, "--prior", tiny_prior, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "free some space" in one_line(result)
    assert files_in(tmp_path / "out") == []


@pytest.mark.parametrize("command", ["recon", "simulate"])
def test_disk_full_while_writing(run, scan, nifti, tmp_path, monkeypatch, command):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    words = {"recon": ["recon", scan, "--method", "zero-filled"], "simulate": ["simulate", nifti]}[command]
    result = run(*words, "--quiet", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "disk is full" in one_line(result)
    assert files_in(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--method", "magic"], "'magic' is not one of posterior"),
        (["--samples", "0"], "between 1 and"),
        (["--format", "jpeg"], "'jpeg' is not one of h5"),
        (["--accel", "4"], "undersampled already"),
        (["--mask", "random"], "--accel"),
        (["--noise", "-1"], "noise"),
        (["--device", "abacus"], "abacus"),
        (["--precision", "fp7"], "fp7"),
        (["--seed", str(2**63)], "--seed must lie"),
    ],
)
def test_bad_options_of_recon(run, scan, tiny_prior, tmp_path, words, expected):
    result = run("recon", scan, "--prior", tiny_prior, "--out", tmp_path / "out", *words)
    assert result.exit_code == 2
    assert expected in one_line(result)
    assert files_in(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--method", "magic"], "'magic' is not one of ambient"),
        (["--mask", "magic"], "'magic' is not one of random"),
        (["--preset", "giant"], "'giant' is not one of tiny"),
        (["--method", "gsure", "--variant", "clean"], "The method gsure has no variants: leave 'clean' out."),
        (["--variant", "clean"], "--variant 'clean' of ambient is not one of weighted, published."),
        (["--accel", "0.5"], "--accel must lie between 1 and 64, but is 0.5."),
        (["--images", "0"], "--images must lie"),
        (["--matrix", "1"], "--matrix must lie"),
        (["--seed", "99999999999999999999999"], "--seed must lie between 0 and 9223372036854775807"),
        (["--seed", "-1"], "--seed must lie"),
        (["--validation", "nowhere/*.h5"], "nowhere"),
    ],
)
def test_bad_options_of_train(run, scan, tmp_path, words, expected):
    result = run("train", scan, "--out", tmp_path / "out", "--dry-run", *words)
    assert result.exit_code == 2
    assert expected in one_line(result)
    assert files_in(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--coils", "0"], "coils"),
        (["--noise", "-1"], "noise"),
        (["--accel", "0.5"], "accel"),
        (["--accel", "4", "--mask", "magic"], "magic"),
        (["--mask", "random"], "--accel"),
        (["--matrix", "1000"], "matrix"),
    ],
)
def test_bad_options_of_simulate(run, nifti, tmp_path, words, expected):
    result = run("simulate", nifti, "--out", tmp_path / "out", *words)
    assert result.exit_code == 2
    assert expected in one_line(result).lower()
    assert files_in(tmp_path / "out") == []
