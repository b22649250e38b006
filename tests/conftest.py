"""Shared fixtures."""

import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded; see cli/main.py
os.environ["MRI_AMBIENT_CACHE_GB"] = "0"  # tests neither use nor fill the cache of the user

import pytest
import torch

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder with real data; tests that need it skip where it is absent."""
    path = Path(os.environ.get("MRI_AMBIENT_DATA", PROJECT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no real data at {path} (set MRI_AMBIENT_DATA)")
    return path


@pytest.fixture
def generator() -> torch.Generator:
    """Fresh CPU generator with a fixed seed."""
    return torch.Generator().manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `cuda` where there is no device."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(skip)
