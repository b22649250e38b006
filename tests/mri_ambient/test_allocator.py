"""The allocator setting: taken on glibc, harmless elsewhere."""

import sys

import pytest

from mri_ambient import allocator


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is a Linux library")
def test_settings_are_taken_twice():
    assert allocator.keep_freed_memory()
    assert allocator.keep_freed_memory()


def test_nothing_happens_elsewhere(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not allocator.keep_freed_memory()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    assert not allocator.keep_freed_memory()
