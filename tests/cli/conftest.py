"""A small scan, an untrained prior, and a way to run commands."""

from collections.abc import Callable
from pathlib import Path

import nibabel
import pytest
import torch
from typer.testing import CliRunner, Result

from mri_ambient.cli.main import app
from mri_ambient.denoiser import PRESETS, Denoiser
from mri_ambient.operators import MaskPattern
from mri_ambient.phantoms import phantom_volume
from mri_ambient.prior import save_prior
from mri_ambient.scan import write_scan
from mri_ambient.simulate import simulate_scan

Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    """Run a command line in this process."""

    def invoke(*words: object, **settings: object) -> Result:
        return CliRunner().invoke(app, [str(word) for word in words], **settings)

    return invoke


@pytest.fixture(scope="session")
def tiny_prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights: right in form, useless in content."""
    path = tmp_path_factory.mktemp("prior") / "tiny.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        denoiser = Denoiser(PRESETS["tiny"])
    save_prior(path, denoiser, {"method": "ambient", "acceleration": 4.0, "images": 0})
    return path


@pytest.fixture(scope="session")
def full_scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fully sampled scan of two 48 x 40 slices and 4 coils, with its truth."""
    return _simulated(tmp_path_factory.mktemp("full") / "full.h5", None)


@pytest.fixture(scope="session")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same at R = 2."""
    return _simulated(tmp_path_factory.mktemp("scan") / "scan.h5", MaskPattern("random", 2, acs=12))


@pytest.fixture(scope="session")
def wide_scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fully sampled scan of two 24 x 104 slices: wide enough for all accelerations that training draws."""
    return _simulated(tmp_path_factory.mktemp("wide") / "wide.h5", None, (24, 104))


@pytest.fixture(scope="session")
def nifti(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A magnitude volume of two 112 x 104 slices."""
    path = tmp_path_factory.mktemp("nifti") / "head.nii.gz"
    volume = phantom_volume(2, (112, 104), seed=6)
    nibabel.save(nibabel.Nifti1Image(volume.magnitude.transpose(2, 1, 0), volume.affine[:, [2, 1, 0, 3]]), path)
    return path


def _simulated(path: Path, pattern: MaskPattern | None, shape: tuple[int, int] = (48, 40)) -> Path:
    volume = phantom_volume(2, shape, seed=5)
    write_scan(simulate_scan(volume, coils=4, pattern=pattern, noise_std=0.01, name=path.stem), path)
    return path
