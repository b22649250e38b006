"""Every unusable input ends in one sentence that names the place and the way out."""

import errno
import os
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest

from mri_ambient.config import TrainConfig
from mri_ambient.errors import InputError
from mri_ambient.scan import Scan, load_scan, require_acs, write_scan

SHAPE = (2, 3, 20, 17)


def noise(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)


def save(path: Path, attributes: dict | None = None, **datasets: object) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name] = values
        file.attrs.update(attributes or {})
    return path


def refusal(path: Path) -> str:
    """The message of the error that opening and reading a file ends in."""
    with pytest.raises(InputError) as caught:
        load_scan(path).kspace  # noqa: B018
    message = str(caught.value)
    assert str(path) in message
    assert_one_sentence(message)
    return message


def assert_one_sentence(message: str) -> None:
    assert "\n" not in message
    assert message.endswith(".")
    assert ". " not in message
    assert ": " in message  # after the colon: what to do


class TestFiles:
    def test_no_such_file(self, tmp_path):
        assert "no file" in refusal(tmp_path / "missing.h5")

    def test_folder(self, tmp_path):
        assert "folder" in refusal(tmp_path)

    def test_empty_file(self, tmp_path):
        path = tmp_path / "a.h5"
        path.touch()
        assert "empty" in refusal(path)

    def test_another_format(self, tmp_path):
        path = tmp_path / "a.h5"
        path.write_bytes(b"not what it seems" * 100)
        assert "not an HDF5 file" in refusal(path)

    @pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.9, 0.9999])
    def test_truncated(self, tmp_path, fraction):
        path = save(tmp_path / "a.h5", kspace=noise(*SHAPE), mask=np.ones(17))
        content = path.read_bytes()
        path.write_bytes(content[: max(8, int(fraction * len(content)))])
        assert "truncated or damaged" in refusal(path)

    def test_damaged_inside(self, tmp_path):
        path = tmp_path / "a.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset("kspace", data=noise(*SHAPE), chunks=(1, *SHAPE[1:]), compression="gzip")
            start = file["kspace"].id.get_chunk_info(1).byte_offset
        content = bytearray(path.read_bytes())
        content[start : start + 64] = bytes(64)
        path.write_bytes(content)
        assert "truncated or damaged" in refusal(path)

    def test_forbidden(self, tmp_path, monkeypatch):
        path = save(tmp_path / "a.h5", kspace=noise(*SHAPE))

        def refuse(*_, **__):
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(Path, "open", refuse)
        assert "may not be read" in refusal(path)

    def test_removed_after_loading(self, tmp_path):
        path = save(tmp_path / "a.h5", kspace=noise(*SHAPE))
        scan = load_scan(path)
        path.unlink()
        with pytest.raises(InputError, match="no file"):
            scan.read(0)

    def test_replaced_after_loading(self, tmp_path):
        path = save(tmp_path / "a.h5", kspace=noise(*SHAPE))
        scan = load_scan(path)
        save(path, kspace=noise(2, 3, 20, 18))
        with pytest.raises(InputError, match="changed"):
            scan.read(0)


def zeroed(values: np.ndarray, **_: object) -> np.ndarray:
    return np.zeros_like(values)


def with_nan(values: np.ndarray) -> np.ndarray:
    values[1, 2, 3, 4] = np.nan
    return values


K = noise(*SHAPE)


class TestContents:
    @pytest.mark.parametrize(
        ("datasets", "expected"),
        [
            ({"image": np.ones((3, 3))}, ["no dataset kspace", "image"]),
            ({"kspace": K[0, 0]}, ["kspace", "(20, 17)", "(slice, coil, y, x)"]),
            ({"kspace": K[None]}, ["kspace", "(1, 2, 3, 20, 17)"]),
            ({"kspace": K.real}, ["kspace", "complex", "float32"]),
            ({"kspace": 1j}, ["kspace", "shape ()"]),
            ({"kspace": with_nan(K.copy())}, ["NaN", "slice 1"]),
            ({"kspace": np.where(np.isnan(with_nan(K.copy())), np.inf, K)}, ["infinite", "slice 1"]),
            ({"kspace": np.full(SHAPE, np.nan, np.complex64)}, ["NaN", "slice 1"]),
            ({"kspace": K.astype(np.complex128) * 1e300}, ["infinite", "slice 0"]),
            ({"kspace": np.zeros_like(K)}, ["zero everywhere"]),
            ({"kspace": K[:0]}, ["kspace", "empty along its slice axis"]),
            ({"kspace": K[:, :, :, :0]}, ["kspace", "empty along its x axis"]),
            ({"kspace": K, "mask": np.ones(16)}, ["mask", "16", "17"]),
            ({"kspace": K, "mask": np.ones((17, 20))}, ["mask", "17", "20"]),
            ({"kspace": K, "mask": np.ones((3, 1, 17))}, ["mask", "3", "slice"]),
            ({"kspace": K, "mask": np.zeros(17)}, ["mask", "no acquired sample"]),
            ({"kspace": K, "mask": np.full(17, 0.5)}, ["mask", "zeros and ones"]),
            ({"kspace": K, "mask": np.full(17, np.nan)}, ["mask", "zeros and ones"]),
            ({"kspace": K, "mask": np.ones(17, complex)}, ["mask", "complex128"]),
            ({"kspace": K, "reconstruction_rss": np.ones((3, 8, 8))}, ["reconstruction_rss", "3", "2"]),
            ({"kspace": K, "reconstruction_rss": K[:, 0]}, ["reconstruction_rss", "real"]),
            ({"kspace": K, "sensitivity_maps": K[:, :2]}, ["sensitivity_maps", "2", "3"]),
            ({"kspace": K, "ismrmrd_header": "<broken"}, ["ismrmrd_header"]),
            ({"kspace": K, "ismrmrd_header": np.ones(3)}, ["ismrmrd_header", "text"]),
        ],
    )
    def test_datasets(self, tmp_path, datasets, expected):
        message = refusal(save(tmp_path / "a.h5", **datasets))
        for words in expected:
            assert words in message

    def test_header_with_an_impossible_size(self, tmp_path):
        header = (
            "<h><encoding><reconSpace><matrixSize><x>{}</x><y>4</y><z>1</z></matrixSize></reconSpace></encoding></h>"
        )
        for size in ("0", "-3", "many", "nan"):
            assert "ismrmrd_header" in refusal(save(tmp_path / "a.h5", kspace=K, ismrmrd_header=header.format(size)))

    def test_group_in_place_of_kspace(self, tmp_path):
        path = tmp_path / "a.h5"
        with h5py.File(path, "w") as file:
            file.create_group("kspace")
        assert "group" in refusal(path)

    def test_unknown_order_of_axes(self, tmp_path):
        path = save(tmp_path / "a.h5", kspace=K)
        with h5py.File(path, "a") as file:
            file["kspace"].attrs["axes"] = "coil,slice,y,x"
        assert "coil,slice,y,x" in refusal(path)

    @pytest.mark.parametrize(
        ("name", "value"),
        [("noise_std", -1.0), ("noise_std", "low"), ("noise_std", np.nan), ("padding", 3), ("recon_size", [0, 4])],
    )
    def test_attributes(self, tmp_path, name, value):
        assert name in refusal(save(tmp_path / "a.h5", {name: value}, kspace=K))

    def test_target_that_is_not_finite(self, tmp_path):
        target = np.ones((2, 4, 4))
        target[1, 0, 0] = np.nan
        scan = load_scan(save(tmp_path / "a.h5", kspace=K, reconstruction_rss=target))
        scan.read_target(0)
        with pytest.raises(InputError, match=r"slice 1 of dataset reconstruction_rss"):
            scan.read_target(1)


class TestArrays:
    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            ({"kspace": K.real}, "complex"),
            ({"kspace": K[0, 0]}, "(20, 17)"),
            ({"kspace": K[:0]}, "(0, 3, 20, 17)"),
            ({"kspace": np.zeros_like(K)}, "zero everywhere"),
            ({"kspace": K, "mask": np.ones(16)}, "(16,)"),
            ({"kspace": K, "mask": np.ones(20)}, "(20,)"),
            ({"kspace": K, "mask": np.zeros(17)}, "no acquired sample"),
            ({"kspace": K, "mask": np.arange(17)}, "zeros and ones"),
            ({"kspace": K, "noise_std": -0.1}, "-0.1"),
            ({"kspace": K, "noise_std": float("nan")}, "nan"),
            ({"kspace": K, "target": np.ones((3, 8, 8))}, "(3, 8, 8)"),
            ({"kspace": K, "target": K[:, 0]}, "complex64"),
            ({"kspace": K, "sensitivity_maps": K[:, :2]}, "(2, 2, 20, 17)"),
        ],
    )
    def test_from_arrays(self, arguments, expected):
        with pytest.raises(InputError) as caught:
            Scan.from_arrays(**arguments)
        assert expected in str(caught.value)
        assert_one_sentence(str(caught.value))

    @pytest.mark.parametrize("mask", [np.ones(16), np.ones((17, 20)), np.zeros(17), np.full(17, 0.5)])
    def test_undersample(self, mask):
        with pytest.raises(InputError) as caught:
            Scan.from_arrays(K).undersample(mask)
        assert_one_sentence(str(caught.value))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"accel": 0.5}, "The accel must lie between 1 and 64, but is 0.5."),
        ({"learning_rate": 2}, "The learning_rate must lie between 1e-07 and 1, but is 2."),
        ({"mask": "x"}, "The mask 'x' is not one of random, bernoulli, equispaced, gaussian, poisson."),
        ({"method": "gsure", "variant": "clean"}, "The method gsure has no variants: leave 'clean' out."),
    ],
)
def test_settings_of_training_have_the_names_of_arguments(settings, expected):
    with pytest.raises(InputError) as caught:
        TrainConfig(**settings)
    assert str(caught.value) == str(pickle.loads(pickle.dumps(caught.value))) == expected


class TestCentre:
    def lines(self, count: int, width: int = 17) -> np.ndarray:
        """A mask with `count` central lines and two outer ones."""
        mask = np.zeros(width)
        start = width // 2 - count // 2
        mask[start : start + count] = mask[0] = mask[-1] = 1
        return mask

    def test_enough(self):
        assert require_acs(Scan.from_arrays(K, self.lines(8))) == 8

    def test_too_few(self):
        scan = Scan.from_arrays(K, self.lines(6), name="knee")
        with pytest.raises(InputError) as caught:
            require_acs(scan)
        message = str(caught.value)
        assert_one_sentence(message)
        assert "Only 6" in message
        assert "knee" in message
        assert require_acs(scan, minimum=6) == 6

    def test_one_slice_has_too_few(self):
        scan = Scan.from_arrays(K, np.stack([self.lines(10), self.lines(4)])[:, None])
        with pytest.raises(InputError, match=r"Only 4 .* slice 1"):
            require_acs(scan)

    def test_square_of_a_two_dimensional_pattern(self):
        mask = np.zeros((20, 17))
        mask[6:14, 4:12] = 1
        assert require_acs(Scan.from_arrays(K, mask)) == 8
        mask[6] = 0
        with pytest.raises(InputError):
            require_acs(Scan.from_arrays(K, mask))

    def test_small_matrix_that_is_complete(self):
        assert require_acs(Scan.from_arrays(noise(1, 2, 12, 6))) == 6

    def test_matrix_too_small_for_any_calibration(self):
        with pytest.raises(InputError, match="Only 4"):
            require_acs(Scan.from_arrays(noise(1, 2, 4, 21)))


class TestOutput:
    def refusal(self, path: Path) -> str:
        with pytest.raises(InputError) as caught:
            write_scan(Scan.from_arrays(K), path)
        assert_one_sentence(str(caught.value))
        assert str(path) in str(caught.value)
        return str(caught.value)

    def test_folder_in_the_way(self, tmp_path):
        assert "folder" in self.refusal(tmp_path)

    def test_file_in_place_of_the_folder(self, tmp_path):
        (tmp_path / "out").touch()
        assert "cannot be written" in self.refusal(tmp_path / "out" / "a.h5")

    @pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind this user")
    def test_folder_not_writable(self, tmp_path):
        tmp_path.chmod(0o500)
        try:
            assert "writable" in self.refusal(tmp_path / "a.h5")
        finally:
            tmp_path.chmod(0o700)

    @pytest.mark.parametrize("call", ["create_dataset", "__setitem__", "flush", "__exit__"])
    @pytest.mark.parametrize(
        "error",
        [
            OSError(errno.ENOSPC, "No space left on device"),
            OSError("Can't write data (file write failed: errno = 28, error message = 'No space left on device')"),
            RuntimeError("Can't decrement id ref count (errno = 28, error message = 'No space left on device')"),
        ],
    )
    def test_disk_full(self, tmp_path, monkeypatch, call, error):
        if call == "flush":
            monkeypatch.setattr(os, "fsync", self.failing(error))
        elif call == "__exit__":
            leave = h5py.File.__exit__

            def close_and_fail(file, *details):
                leave(file, *details)
                raise error

            monkeypatch.setattr(h5py.File, "__exit__", close_and_fail)
        else:
            monkeypatch.setattr(h5py.Group, call, self.failing(error))
        assert "disk is full" in self.refusal(tmp_path / "a.h5")
        monkeypatch.undo()
        assert list(tmp_path.iterdir()) == []

    @staticmethod
    def failing(error: Exception):
        def fail(*_, **__):
            raise error

        return fail
