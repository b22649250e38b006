"""Files of a run are whole, whatever stops the process that writes them."""

import os

import numpy as np
import pytest
import torch

from mri_ambient.dataset import save_array, write_atomically


@pytest.mark.parametrize("write", [write_atomically, save_array], ids=["bytes", "array"])
def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch, write):
    calls, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: calls.append(os.fstat(number).st_size) or sync(number))
    monkeypatch.setattr(os, "replace", lambda *names: calls.append("renamed") or replace(*names))
    write(tmp_path / "x", b"12345" if write is write_atomically else torch.ones(3))
    assert calls == [(tmp_path / "x").stat().st_size, "renamed"]
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_alone(tmp_path, monkeypatch, function):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    save_array(tmp_path / "x.npy", torch.zeros(3))
    monkeypatch.setattr(os, function, fail)
    with pytest.raises(OSError, match="No space left"):
        save_array(tmp_path / "x.npy", torch.ones(3))
    assert os.listdir(tmp_path) == ["x.npy"]
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), np.zeros(3))


def test_two_writers_of_a_file_do_not_meet(tmp_path, monkeypatch):
    replace, names = os.replace, []

    def slow(source, target):
        names.append(source)
        if len(names) == 1:  # another process writes the same file now
            write_atomically(tmp_path / "x", b"second")
        replace(source, target)

    monkeypatch.setattr(os, "replace", slow)
    write_atomically(tmp_path / "x", b"first")
    assert len(set(names)) == 2
    assert (tmp_path / "x").read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["x"]
