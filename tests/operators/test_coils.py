"""Coil combination and compression: energy, orthonormality, noise, and what the matrix does to the data."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mri_ambient.operators.coils import compress_coils, rss


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def mixed_coils(sources: int, coils: int, seed: int = 0) -> Tensor:
    """Slices (2, coil, 12, 9) in which every coil is a mixture of a few sources."""
    return torch.einsum("cs,bsyx->bcyx", noise(coils, sources, seed=seed), noise(2, sources, 12, 9, seed=seed + 1))


def test_rss_is_the_norm_over_coils() -> None:
    x = np.array([[[3.0 + 4.0j]], [[12.0j]]])
    assert rss(x).tolist() == [[13.0]]
    assert torch.equal(rss(torch.as_tensor(x).movedim(0, -1), dim=-1), rss(x))


def test_matrix_makes_the_compressed_data() -> None:
    kspace = mixed_coils(3, 8)
    compressed, matrix = compress_coils(kspace, 4)
    assert compressed.shape == (2, 4, 12, 9)
    assert matrix.shape == (4, 8)
    assert compressed.dtype == matrix.dtype == torch.complex64
    torch.testing.assert_close(compressed, torch.einsum("vc,bcyx->bvyx", matrix, kspace))
    largest = matrix.take_along_dim(matrix.abs().argmax(1, keepdim=True), 1)
    assert largest.imag.abs().max() < 1e-6
    assert largest.real.min() > 0


def test_rows_are_orthonormal_so_that_noise_stays_white() -> None:
    _, matrix = compress_coils(mixed_coils(8, 8), 5)
    torch.testing.assert_close(matrix @ matrix.mH, torch.eye(5, dtype=matrix.dtype), atol=1e-6, rtol=0)
    samples = matrix @ noise(8, 200_000)
    covariance = samples @ samples.mH / 200_000
    torch.testing.assert_close(covariance, torch.eye(5, dtype=matrix.dtype), atol=0.015, rtol=0)


def test_as_many_coils_as_sources_lose_nothing() -> None:
    kspace = mixed_coils(3, 8)
    compressed, matrix = compress_coils(kspace, 3)
    torch.testing.assert_close(torch.einsum("vc,bvyx->bcyx", matrix.conj(), compressed), kspace, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rss(compressed), rss(kspace), atol=1e-4, rtol=1e-4)


def test_kept_energy_is_the_sum_of_the_largest_singular_values() -> None:
    kspace = mixed_coils(8, 8)
    compressed, _ = compress_coils(kspace, 4)
    energy = compressed.abs().square().sum((0, 2, 3))
    singular = torch.linalg.svdvals(kspace.movedim(-3, 0).flatten(1))
    torch.testing.assert_close(energy, singular[:4].square(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("unit", [1e-25, 1e-7, 1e4, 1e25])
def test_matrix_does_not_depend_on_the_unit(unit: float) -> None:
    kspace = mixed_coils(8, 8)
    torch.testing.assert_close(compress_coils(kspace * unit, 3)[1], compress_coils(kspace, 3)[1], atol=1e-4, rtol=0)


def test_input_forms() -> None:
    kspace = mixed_coils(4, 6)
    expected = compress_coils(kspace[0], 2)
    for form in (kspace[0].numpy(), kspace[0][None, None], kspace[0].to(torch.complex128)):
        compressed, matrix = compress_coils(form, 2)
        torch.testing.assert_close(compressed.reshape(2, 12, 9).to(torch.complex64), expected[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(matrix.to(torch.complex64), expected[1], atol=1e-4, rtol=0)


def test_empty_scan_compresses_to_zeros() -> None:
    compressed, matrix = compress_coils(torch.zeros(4, 6, 5), 2)
    assert torch.equal(compressed, torch.zeros(2, 6, 5, dtype=torch.complex64))
    torch.testing.assert_close(matrix @ matrix.mH, torch.eye(2, dtype=torch.complex64))


@pytest.mark.parametrize(
    ("kspace", "coils", "match"),
    [(torch.ones(4, 4), 1, "must be"), (torch.ones(4, 8, 8), 5, "cannot"), (torch.ones(4, 8, 8), 0, "cannot")],
)
def test_unusable_arguments(kspace: Any, coils: int, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        compress_coils(kspace, coils)
