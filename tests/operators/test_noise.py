"""Noise: known coloured noise is recovered under a strong image, whitening makes it white, bad input is refused."""

import math
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from nibabel.nifti1 import Nifti1Image
from sigpy.mri import birdcage_maps
from torch import Tensor

from mri_ambient.operators.fourier import center_crop, fft2c, ifft2c
from mri_ambient.operators.masks import MaskPattern
from mri_ambient.operators.noise import estimate_noise, noise_covariance, prewhiten, whitening_matrix


def coloured(coils: int, shape: tuple[int, ...], seed: int, colour: float = 0.4) -> tuple[Tensor, Tensor]:
    """Noise of shape (..., coils, y, x) and its covariance, for coils of unequal gain and complex correlation."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.eye(coils, dtype=torch.complex64)
    mixing += colour * torch.randn(coils, coils, dtype=torch.complex64, generator=generator) / math.sqrt(coils)
    mixing *= torch.linspace(0.5, 1.5, coils)[:, None]
    white = math.sqrt(2) * torch.randn(*shape[:-2], coils, *shape[-2:], dtype=torch.complex64, generator=generator)
    return torch.einsum("dc,...cyx->...dyx", mixing, white), 2 * mixing @ mixing.mH


def signal(coils: int, y: int, x: int, seed: int = 3) -> Tensor:
    """K-space of a smooth-edged ellipse seen by coils around it, 100 to 1000 times the noise in the centre."""
    rows, columns = torch.linspace(-1, 1, y)[:, None], torch.linspace(-1, 1, x)
    image = 30 * torch.sigmoid(12 * (0.7 - (rows**2 + 1.4 * columns**2).sqrt())) * (1 + 0.4 * torch.cos(9 * rows))
    angle = 2 * math.pi * torch.arange(coils) / coils + seed
    distance = (rows - angle.sin()[:, None, None]) ** 2 + (columns - angle.cos()[:, None, None]) ** 2
    return fft2c(torch.exp(-distance / 2 + 1j * distance) * image)


def line_mask(x: int) -> Tensor:
    return MaskPattern("random", 4, 8).sample((1, x), torch.Generator().manual_seed(0))


def point_mask(y: int, x: int) -> Tensor:
    return MaskPattern("poisson", 5, 10).sample((y, x), torch.Generator().manual_seed(0))


def distance_from_identity(estimate: Tensor, truth: Tensor) -> float:
    """Largest deviation of the eigenvalues of the whitened true covariance from 1."""
    whitening = whitening_matrix(estimate)
    return float((torch.linalg.eigvalsh(whitening @ truth @ whitening.mH) / 2 - 1).abs().max())


@pytest.mark.parametrize(
    ("coils", "y", "x", "slices", "kind"),
    [
        (6, 128, 96, 1, "full"),
        (6, 127, 95, 1, "full"),
        (6, 160, 128, 3, "lines"),
        (5, 161, 127, 3, "lines"),
        (4, 150, 120, 2, "points"),
        (1, 96, 96, 1, "full"),
        (16, 128, 96, 8, "lines"),
    ],
)
def test_known_covariance_is_recovered_under_an_image(coils: int, y: int, x: int, slices: int, kind: str) -> None:
    noise, truth = coloured(coils, (slices, y, x), seed=1)
    mask = {"full": torch.ones(x) > 0, "lines": line_mask(x), "points": point_mask(y, x)}[kind]
    kspace = (noise + signal(coils, y, x)) * mask
    estimate = noise_covariance(kspace, mask)
    assert estimate.dtype == torch.complex64
    assert estimate.shape == (coils, coils)
    assert torch.allclose(estimate, estimate.mH)
    relative = torch.linalg.norm(estimate - truth) / torch.linalg.norm(truth)
    assert relative < 0.2
    assert distance_from_identity(estimate, truth) < 0.35
    assert distance_from_identity(estimate.diagonal().diag(), truth) > 0.4 or coils == 1  # the check sees correlations


def test_many_samples_give_the_covariance_without_bias() -> None:
    noise, truth = coloured(4, (200, 64, 64), seed=2, colour=0.8)
    estimate = noise_covariance(noise, torch.ones(64))
    assert torch.linalg.norm(estimate - truth) / torch.linalg.norm(truth) < 0.02


def test_whitened_noise_is_white_with_unit_deviation() -> None:
    noise, _ = coloured(6, (64, 64), seed=3)
    calibration, truth = coloured(6, (20, 64, 64), seed=3)
    for covariance, tolerance in ((truth, 0.05), (noise_covariance(calibration, torch.ones(64)), 0.1)):
        white = prewhiten(noise, covariance)
        assert white.shape == noise.shape
        samples = white.reshape(6, -1)
        assert torch.allclose(samples @ samples.mH / samples.shape[1], 2 * torch.eye(6) + 0j, atol=2 * tolerance)
        assert samples.real.std().item() == pytest.approx(1, abs=tolerance)
        assert samples.imag.std().item() == pytest.approx(1, abs=tolerance)
    matrix = whitening_matrix(truth)
    assert torch.allclose(matrix @ truth @ matrix.mH, 2 * torch.eye(6) + 0j, atol=1e-5)
    slices = prewhiten(torch.stack([noise, 2 * noise]), truth)
    assert torch.allclose(slices[1], 2 * prewhiten(noise, truth), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mask_kind", ["full", "lines", "points"])
@pytest.mark.parametrize(("coils", "std"), [(1, 1.0), (8, 1.0), (8, 3e-8), (32, 2e4)])
def test_noise_level_in_any_unit(coils: int, std: float, mask_kind: str) -> None:
    white = torch.randn(coils, 128, 100, 2, generator=torch.Generator().manual_seed(4))
    mask = {"full": torch.ones(100), "lines": line_mask(100), "points": point_mask(128, 100)}[mask_kind]
    kspace = std * (torch.view_as_complex(white) + signal(coils, 128, 100)) * mask
    assert estimate_noise(kspace, mask) == pytest.approx(std, rel=0.12)
    assert estimate_noise(kspace.numpy(), mask.numpy()) == estimate_noise(kspace, mask)


def test_zero_padded_and_unacquired_samples_do_not_count() -> None:
    noise, truth = coloured(4, (3, 96, 120), seed=5)
    kspace = noise + signal(4, 96, 120)
    kspace[..., :14] = 0
    kspace[..., 109:] = 0
    kspace[..., :9, :] = 0  # asymmetric echo
    padded = noise_covariance(kspace, torch.ones(120))  # a mask that wrongly claims the padding
    assert torch.linalg.norm(padded - truth) / torch.linalg.norm(truth) < 0.12
    mask = torch.ones(120)
    mask[60:70] = 0
    mask[20:25] = 0
    kspace[..., 20:25] = 1e6  # not acquired: never looked at
    assert torch.linalg.norm(noise_covariance(kspace, mask) - truth) / torch.linalg.norm(truth) < 0.12


def test_masks_of_single_slices_are_respected() -> None:
    noise, truth = coloured(3, (2, 64, 80), seed=6)
    masks = torch.stack([line_mask(80), ~line_mask(80)])[:, None]
    kspace = torch.where(masks[:, None], noise, torch.tensor(1e5 + 0j))
    assert torch.linalg.norm(noise_covariance(kspace, masks) - truth) / torch.linalg.norm(truth) < 0.2


def test_spikes_do_not_move_the_estimate() -> None:
    noise, truth = coloured(4, (4, 96, 96), seed=7)
    kspace = noise.clone()
    spikes = torch.rand(4, 96, 96, generator=torch.Generator().manual_seed(8)) < 0.02
    kspace += 300 * spikes[:, None]
    estimate = noise_covariance(kspace, torch.ones(96))
    assert torch.linalg.norm(estimate - truth) / torch.linalg.norm(truth) < 0.15
    plain = kspace.movedim(1, 0).reshape(4, -1)
    assert torch.linalg.norm(plain @ plain.mH / plain.shape[1] - truth) / torch.linalg.norm(truth) > 10


@pytest.mark.parametrize("coils", [2, 8])
def test_noise_level_sees_past_signal_in_few_coil_directions(coils: int) -> None:
    generator = torch.Generator().manual_seed(9)
    white = torch.randn(coils, 128, 128, dtype=torch.complex64, generator=generator) * math.sqrt(2)
    common = torch.randn(128, 128, dtype=torch.complex64, generator=generator) * 8
    kspace = white + common * torch.exp(1j * torch.arange(float(coils)))[:, None, None]
    mask = torch.ones(128)
    assert estimate_noise(kspace, mask) == pytest.approx(1, rel=0.08)
    assert (noise_covariance(kspace, mask).diagonal().real.mean() / 2).sqrt() > 4


def test_too_few_samples_silent_coils_and_bad_values_are_refused() -> None:
    noise, _ = coloured(4, (32, 32), seed=10)
    mask = torch.ones(32)
    with pytest.raises(ValueError, match="too few"):
        noise_covariance(noise[:, :6, :6], torch.ones(6))
    with pytest.raises(ValueError, match="too few"):
        noise_covariance(noise, torch.zeros(32))
    with pytest.raises(ValueError, match="does not fit"):
        noise_covariance(noise, torch.ones(31))
    with pytest.raises(ValueError, match="shape"):
        noise_covariance(noise[0], mask)
    silent = noise.clone()
    silent[2] = 0
    with pytest.raises(ValueError, match=r"Coils \[2\]"):
        noise_covariance(silent, mask)
    with pytest.raises(ValueError, match="finite"):
        noise_covariance(noise * float("nan"), mask)
    copies = noise_covariance(noise[[0, 0]], mask)
    with pytest.raises(ValueError, match="positive definite"):
        whitening_matrix(copies)
    with pytest.raises(ValueError, match="coil, coil"):
        whitening_matrix(torch.ones(2, 3))
    with pytest.raises(ValueError, match="3 coils"):
        prewhiten(noise, torch.eye(3))


@pytest.mark.parametrize("accel", [1, 4, 8])
def test_noise_level_on_a_real_image(data_dir: Path, accel: float) -> None:
    """8 coils, noise 2 % of the bright tissue: within 10 %, though the image itself is noisy."""
    volume = Nifti1Image.from_filename(data_dir / "open_ms" / "patient01" / "study1_FLAIR.nii.gz")
    image = torch.as_tensor(np.asarray(volume.dataobj)[:, :, 18].astype(np.float32))
    image = ifft2c(center_crop(fft2c(image), (160, 160))).abs()
    image = image / image.quantile(0.99)
    maps = torch.as_tensor(birdcage_maps((8, 160, 160), nzz=8))
    kspace = fft2c(maps / maps.abs().square().sum(0).sqrt() * image).to(torch.complex64)
    generator = torch.Generator().manual_seed(0)
    mask = MaskPattern("random", accel).sample((160, 160), generator)
    kspace += 0.02 * torch.view_as_complex(torch.randn(8, 160, 160, 2, generator=generator))
    assert estimate_noise(kspace * mask, mask) == pytest.approx(0.02, rel=0.1)


def test_real_scan_has_plausible_noise(data_dir: Path) -> None:
    with h5py.File(data_dir / "brain8" / "brain8.h5") as file:
        kspace, mask = np.asarray(file["kspace"]), np.asarray(file["mask"])
    covariance = noise_covariance(kspace, mask)
    noise_std = estimate_noise(kspace, mask)
    centre = np.abs(kspace[..., 105:125, 80:100])
    assert torch.linalg.eigvalsh(covariance).min() > 0
    assert 0 < noise_std < 0.02 * np.sqrt(np.mean(centre**2))
    white = prewhiten(kspace, covariance)
    assert estimate_noise(white, mask) == pytest.approx(1, rel=0.02)
