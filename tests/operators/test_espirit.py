"""ESPIRiT against its definition, SigPy, BART and known maps; its gauge, its limits, and data with missing lines."""

import shutil
import subprocess
from importlib import import_module
from pathlib import Path

import h5py
import numpy as np
import pytest
import sigpy
import sigpy.mri
import torch
from torch import Tensor
from wrapped import fold

from mri_ambient.operators import espirit as espirit_function
from mri_ambient.operators.espirit import _dominant_eigenvectors, _polynomial, _signal_kernels, espirit
from mri_ambient.operators.fourier import fft2c, ifft2c


def simulate(coils: int, ny: int, nx: int, noise_std: float = 0.005, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """k-space of a head phantom with smooth phase in a birdcage coil, the true maps, and where the object is."""
    image = torch.as_tensor(sigpy.shepp_logan((ny, nx), dtype=np.complex64))
    y, x = torch.meshgrid(torch.linspace(-1, 1, ny), torch.linspace(-1, 1, nx), indexing="ij")
    maps = torch.as_tensor(sigpy.mri.birdcage_maps((coils, ny, nx), r=1.3)).to(torch.complex64)
    maps = maps / torch.linalg.vector_norm(maps, dim=0)
    kspace = fft2c(maps * image * torch.exp(1j * (1.5 * x + 2 * y**2)))
    noise = torch.randn(kspace.shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))
    return kspace + noise_std * 2**0.5 * noise, maps, image.abs() > 0.05


def support(maps: Tensor) -> Tensor:
    return maps.abs().square().sum(-3) > 0.5


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Modulus of the inner product over coils, one for equal maps in any gauge, at the pixels both cover."""
    return (a.conj() * b).sum(-3).abs()[support(a) & support(b)]


def assert_same_maps(a: Tensor, b: Tensor, share: float = 0.01) -> None:
    """Same support but for 1 % of pixels; same maps, but for the given share of the common support."""
    assert support(a).any()
    assert (support(a) == support(b)).float().mean() > 0.99
    assert overlap(a, b).median() > 0.9999
    assert overlap(a, b).quantile(share) > 0.999


def brain(data_dir: Path) -> Tensor:
    path = data_dir / "brain8" / "brain8.h5"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    with h5py.File(path) as file:
        return torch.as_tensor(file["kspace"][0])


def eigendecomposition(kspace: Tensor, acs: int, kernel: int, threshold: float) -> tuple[Tensor, Tensor]:
    """ESPIRiT by its definition, in double precision: zero-pad every kernel to the image, transform, decompose.

    Eigenvalues (rank, y, x) and eigenvectors (rank, coil, y, x), the dominant one first.
    """
    data = kspace.numpy().astype(np.complex128)
    block = sigpy.resize(data, (len(data), acs, acs))
    rows = [
        block[:, y : y + kernel, x : x + kernel].ravel()
        for y in range(acs - kernel + 1)
        for x in range(acs - kernel + 1)
    ]
    _, singular, vh = np.linalg.svd(np.array(rows), full_matrices=False)
    signal = vh[singular > threshold * singular[0]].reshape(-1, len(data), kernel, kernel)
    images = sigpy.ifft(sigpy.resize(signal, (*signal.shape[:2], *data.shape[1:])), axes=(-2, -1))
    covariance = np.einsum("kcyx,kdyx->yxcd", images, images.conj()) * images[0, 0].size / kernel**2
    values, vectors = np.linalg.eigh(covariance)
    ranked = torch.as_tensor(vectors).permute(3, 2, 0, 1).flip(0).to(torch.complex64)
    return torch.as_tensor(values).permute(2, 0, 1).flip(0), ranked


# ---- agreement -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("coils", "ny", "nx", "acs", "kernel", "threshold", "crop"),
    [
        (8, 48, 40, 24, 6, 0.02, 0.95),
        (3, 41, 37, 16, 5, 0.05, 0.9),
        (12, 30, 47, 13, 4, 0.01, 0.8),
        (2, 24, 24, 24, 6, 0.02, 0.0),
    ],
)
def test_every_pixel_is_the_dominant_eigenvector(
    coils: int, ny: int, nx: int, acs: int, kernel: int, threshold: float, crop: float
) -> None:
    kspace, _, _ = simulate(coils, ny, nx)
    maps = espirit(kspace, acs, kernel=kernel, threshold=threshold, crop=crop)
    values, vectors = (found[0] for found in eigendecomposition(kspace, acs, kernel, threshold))
    clear = (values - crop).abs() > 1e-4
    assert torch.equal(support(maps)[clear], (values > crop)[clear])
    assert overlap(maps, vectors * support(maps)).min() > 0.99999


@pytest.mark.parametrize(
    ("coils", "ny", "nx", "noise_std"), [(8, 64, 60, 0.0), (8, 96, 90, 0.02), (16, 61, 45, 0.005), (3, 80, 97, 0.005)]
)
def test_agrees_with_sigpy(coils: int, ny: int, nx: int, noise_std: float) -> None:
    kspace, _, _ = simulate(coils, ny, nx, noise_std)
    assert_same_maps(espirit(kspace), espirit(kspace, backend="sigpy"))


def test_agrees_with_sigpy_on_a_scan_in_value_and_phase(data_dir: Path) -> None:
    kspace = brain(data_dir)
    ours, reference = espirit(kspace), espirit(kspace, backend="sigpy")
    assert_same_maps(ours, reference)
    both = support(ours) & support(reference)
    assert ((ours - reference).abs().amax(0)[both] < 1e-3).float().mean() > 0.999


@pytest.mark.parametrize("source", ["simulated", "scan"])
def test_agrees_with_bart(source: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if shutil.which("bart") is None:
        pytest.skip("the bart executable is not on PATH")
    kspace = simulate(8, 65, 60)[0] if source == "simulated" else brain(request.getfixturevalue("data_dir"))
    coils, ny, nx = kspace.shape
    (tmp_path / "kspace.hdr").write_text(f"# Dimensions\n{nx} {ny} 1 {coils}\n")
    kspace.numpy().tofile(tmp_path / "kspace.cfl")
    # BART compares its threshold with the squares of the singular values.
    options = ["-m1", "-r24", "-k6", f"-t{0.02**2}", "-c0.95"]
    subprocess.run(["bart", "ecalib", *options, "kspace", "maps"], cwd=tmp_path, check=True, capture_output=True)
    maps = torch.as_tensor(np.fromfile(tmp_path / "maps.cfl", np.complex64).reshape(kspace.shape))
    # It stops the power iteration early, which shows where two eigenvalues nearly coincide, on the rim of the support.
    assert_same_maps(espirit(kspace), maps, share=0.03)


def test_finds_the_true_maps() -> None:
    kspace, truth, inside = simulate(8, 64, 60)
    maps = espirit(kspace)
    assert support(maps)[inside].all()
    assert overlap(maps * inside, truth).quantile(0.01) > 0.999


@pytest.mark.parametrize("ratio", [0.8, 0.9, 0.93, 0.97, 0.99, 0.999])
def test_nearly_equal_eigenvalues_are_resolved(ratio: float, generator: torch.Generator) -> None:
    basis = torch.linalg.qr(torch.randn(500, 6, 6, dtype=torch.complex128, generator=generator)).Q
    values = torch.tensor([1.0, ratio, 0.5, 0.1, 0.0, 0.0], dtype=torch.float64)
    matrices = ((basis * values) @ basis.mH).to(torch.complex64)
    vectors = _dominant_eigenvectors(matrices, 0.95)
    found = (vectors.conj() * basis[..., 0].to(torch.complex64)).sum(-1).abs()
    assert found.min() > 0.99999


def test_eigenvalue_decides_the_support(generator: torch.Generator) -> None:
    basis = torch.linalg.qr(torch.randn(4, 5, 5, dtype=torch.complex128, generator=generator)).Q
    values = torch.tensor([[0.949, 0.9], [0.951, 0.9], [0.949, 0.0], [0.951, 0.0]], dtype=torch.float64)
    matrices = (basis[..., :2] * values[:, None]) @ basis[..., :2].mH
    assert _dominant_eigenvectors(matrices.to(torch.complex64), 0.95).abs().sum(-1).gt(0).tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("coils", [2, 9])  # fewer unknowns than windows, and more
def test_kernels_are_orthonormal_and_span_the_windows(coils: int) -> None:
    block = simulate(coils, 32, 32)[0][:, 10:22, 10:22]
    kernels = _signal_kernels(block, 5, 0.0).flatten(1)
    torch.testing.assert_close(kernels @ kernels.mH, torch.eye(len(kernels), dtype=kernels.dtype))
    window = block[:, 2:7, 3:8].flatten().to(kernels.dtype)
    torch.testing.assert_close((window @ kernels.mH) @ kernels, window, rtol=1e-4, atol=1e-5)
    trace = _polynomial(kernels.view(-1, coils, 5, 5))[0, 0].view(coils, coils).trace()
    assert trace.real.item() == pytest.approx(len(kernels) / 25, rel=1e-5)


# ---- several sets --------------------------------------------------------------------------------------------------


def wrapped(width: int = 50, noise_std: float = 0.005) -> tuple[Tensor, Tensor, Tensor]:
    """k-space with a field of view of `width` columns, of an object of 60; true sets of maps; where it lies on itself.

    The first set belongs to what is in the field of view, the second to what comes in from outside.
    """
    images = ifft2c(simulate(8, 64, 80, 0.0)[0])
    columns = torch.arange(80) - 40 + width // 2
    within = (columns >= 0) & (columns < width)
    parts = torch.stack([fold(images * within, width), fold(images * ~within, width)])
    energy = torch.linalg.vector_norm(parts, dim=1, keepdim=True)
    noise = torch.randn(8, 64, width, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    kspace = fft2c(parts.sum(0)) + noise_std * 2**0.5 * noise
    return kspace, parts / energy.clamp_min(1e-3), (energy > 0.02).all(0)[0]


def outside_span(vectors: Tensor, maps: Tensor) -> Tensor:
    """Length (y, x) of vectors (coil, y, x) outside the space that orthonormal maps (set, coil, y, x) span."""
    coefficients = (maps.conj() * vectors).sum(1, keepdim=True)
    return torch.linalg.vector_norm(vectors - (maps * coefficients).sum(0), dim=0)


@pytest.mark.parametrize(("width", "crop"), [(50, 0.8), (80, 0.8), (50, 0.3)])
def test_every_set_is_an_eigenvector(width: int, crop: float) -> None:
    kspace, _, _ = wrapped(width)
    maps = espirit(kspace, kernel=6, crop=crop, sets=3)
    values, vectors = eigendecomposition(kspace, 24, 6, 0.02)
    for rank, found in enumerate(maps):
        clear = (values[rank] - crop).abs() > 1e-3
        assert torch.equal(support(found)[clear], (values[rank] > crop)[clear])
        others = torch.cat((values[:rank], values[rank + 1 :]))
        alone = support(found) & (
            (others - values[rank]).abs().amin(0) > 0.02
        )  # equal ones have no vectors of their own
        assert (found.conj() * vectors[rank]).sum(0).abs()[alone].min() > 0.999 if alone.any() else rank > 0


def test_the_first_set_is_that_of_one_and_all_are_orthonormal() -> None:
    volume = torch.stack([wrapped(noise_std=noise)[0] for noise in (0.005, 0.02)])
    one, two = espirit(volume, crop=0.6), espirit(volume, crop=0.6, sets=2)
    assert two.shape == (2, 2, *volume.shape[1:])
    assert torch.equal(two[:, 0], one)
    assert torch.equal(espirit(volume[0], crop=0.6, sets=2), two[0])
    assert (two[:, 0].conj() * two[:, 1]).sum(1).abs().max() < 1e-3
    assert not support(two[:, 1])[~support(two[:, 0])].any()
    assert support(two[:, 1]).any()


def test_two_sets_span_the_coil_images_where_the_object_lies_on_itself() -> None:
    kspace, truth, overlap_region = wrapped(noise_std=0.0)
    two = espirit(kspace, crop=0.6, sets=2)
    middle = overlap_region & support(two[1])
    assert middle.sum() > 0.5 * overlap_region.sum()
    for part in truth:
        assert outside_span(part, two)[middle].median() < 0.05
    assert max(outside_span(part, two[:1])[middle].median() for part in truth) > 0.3


def test_agrees_with_two_sets_of_bart(tmp_path: Path) -> None:
    if shutil.which("bart") is None:
        pytest.skip("the bart executable is not on PATH")
    kspace, _, _ = wrapped()
    coils, ny, nx = kspace.shape
    (tmp_path / "kspace.hdr").write_text(f"# Dimensions\n{nx} {ny} 1 {coils}\n")
    kspace.numpy().tofile(tmp_path / "kspace.cfl")
    options = ["-m2", "-r24", "-k6", f"-t{0.02**2}", "-c0.8"]
    subprocess.run(["bart", "ecalib", *options, "kspace", "maps"], cwd=tmp_path, check=True, capture_output=True)
    theirs = torch.as_tensor(np.fromfile(tmp_path / "maps.cfl", np.complex64).reshape(2, *kspace.shape))
    ours = espirit(kspace, kernel=6, crop=0.8, sets=2)
    for a, b in zip(ours, theirs, strict=True):
        assert (support(a) == support(b)).float().mean() > 0.98
    both = support(ours[1]) & support(theirs[1])
    assert both.sum() > 50
    for found in theirs:
        assert outside_span(found, ours)[both].quantile(0.95) < 0.05
        assert outside_span(found, ours[:1])[both].max() > 0.9


def test_sets_that_cannot_be() -> None:
    kspace = simulate(3, 32, 32)[0]
    for options in ({"sets": 0}, {"sets": 4}, {"sets": 2, "backend": "sigpy"}):
        with pytest.raises(ValueError, match="sets"):
            espirit(kspace, **options)


# ---- normalisation, support, gauge ---------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["torch", "sigpy"])
def test_maps_are_normalised_on_the_support_and_zero_outside(backend: str) -> None:
    kspace, _, _ = simulate(8, 48, 44)
    energy = espirit(kspace, backend=backend).abs().square().sum(0)
    inside = energy > 0
    assert 0.3 < inside.float().mean() < 0.95
    torch.testing.assert_close(energy[inside], torch.ones_like(energy[inside]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", ["torch", "sigpy"])
def test_strongest_virtual_coil_is_real_and_positive(backend: str) -> None:
    kspace, _, _ = simulate(6, 40, 36)
    maps = espirit(kspace, backend=backend)
    u = torch.linalg.svd(kspace[:, 8:32, 6:30].flatten(1)).U[:, 0]
    virtual = torch.tensordot(u.conj(), maps, 1)
    virtual = (virtual / virtual.sum() * virtual.sum().abs())[support(maps)]  # u itself has a phase
    assert virtual.imag.abs().max() < 1e-4
    assert virtual.real.min() >= 0


def test_phase_is_smooth(data_dir: Path) -> None:
    maps = espirit(brain(data_dir))
    inside = support(maps)
    for axis in (1, 2):
        both = inside.narrow(axis - 1, 1, maps.shape[axis] - 1) & inside.narrow(axis - 1, 0, maps.shape[axis] - 1)
        jump = torch.linalg.vector_norm(maps.diff(dim=axis), dim=0)[both]
        assert jump.max() < 0.2


def test_maps_do_not_depend_on_unit_phase_or_order_of_the_coils() -> None:
    kspace, _, _ = simulate(6, 40, 36)
    maps = espirit(kspace)
    for factor in (1e-25, 1e-7, 1e4, 1e25, 1j):
        torch.testing.assert_close(espirit(kspace * factor), maps, atol=2e-3, rtol=0)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(espirit(kspace[order]), maps[order], atol=2e-3, rtol=0)


# ---- shapes, blocks, batches ---------------------------------------------------------------------------------------


def test_slices_are_independent() -> None:
    volume = torch.stack([simulate(4, 33, 40, seed=seed)[0] * (seed + 1) for seed in range(3)])
    maps = espirit(volume)
    for kspace, expected in zip(volume, maps, strict=True):
        assert torch.equal(espirit(kspace), expected)
    assert not torch.allclose(maps[0], maps[1], atol=1e-3)
    assert espirit(volume[:0]).shape == (0, 4, 33, 40)


def test_block_size_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    kspace, _, _ = simulate(5, 37, 40)
    module = import_module("mri_ambient.operators.espirit")  # the package attribute of this name is the function
    expected = espirit(kspace)
    for size in (1, 3 * 40 * 5 * 5 * 8, 2**40):
        monkeypatch.setattr(module, "BLOCK_BYTES", size)
        torch.testing.assert_close(espirit(kspace), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("coils", [1, 2, 64])
def test_number_of_coils(coils: int) -> None:
    kspace, truth, inside = simulate(coils, 40, 41)
    maps = espirit(kspace)
    assert maps.shape == kspace.shape
    assert support(maps)[inside].float().mean() > 0.99
    assert overlap(maps * inside, truth).median() > 0.998


@pytest.mark.parametrize("backend", ["torch", "sigpy"])
def test_map_of_a_single_coil_is_its_support(backend: str) -> None:
    kspace, _, _ = simulate(1, 40, 36)
    maps = espirit(kspace, backend=backend)
    torch.testing.assert_close(maps, support(maps)[None].to(maps.dtype), atol=1e-5, rtol=0)
    assert 0.3 < support(maps).float().mean() < 0.95


@pytest.mark.parametrize("backend", ["torch", "sigpy"])
def test_matrix_smaller_than_the_calibration_region(backend: str) -> None:
    kspace, _, _ = simulate(4, 40, 16)
    assert torch.equal(espirit(kspace, 24, backend), espirit(kspace, 16, backend))


def test_input_forms() -> None:
    kspace, _, _ = simulate(4, 32, 33)
    expected = espirit(kspace)
    assert expected.dtype == torch.complex64
    assert torch.equal(espirit(kspace.numpy()), expected)
    assert torch.equal(espirit(kspace.to(torch.complex128)), expected)
    assert torch.equal(espirit(kspace.mT.contiguous().mT), expected)
    assert not espirit(kspace.clone().requires_grad_()).requires_grad


@pytest.mark.cuda
def test_cuda_agrees_with_cpu() -> None:
    kspace, _, _ = simulate(16, 96, 90)
    maps = espirit(kspace.cuda())
    assert maps.is_cuda
    assert_same_maps(maps.cpu(), espirit(kspace))
    assert ((maps.cpu() - espirit(kspace)).abs().amax(0) < 1e-2).float().mean() > 0.99


# ---- missing data --------------------------------------------------------------------------------------------------


def test_samples_outside_the_calibration_region_are_not_used() -> None:
    kspace, _, _ = simulate(4, 40, 36)
    other = kspace.clone()
    other[..., ::2] = 0
    other[..., 8:32, 6:30] = kspace[..., 8:32, 6:30]
    assert torch.equal(espirit(other), espirit(kspace))
    other[..., 20, 20] += 1
    assert not torch.equal(espirit(other), espirit(kspace))


@pytest.mark.parametrize(("lines", "tolerance"), [(8, 2e-3), (9, 2e-3), (13, 5e-4)])
def test_fewer_lines_than_asked_for(lines: int, tolerance: float) -> None:
    kspace, truth, inside = simulate(8, 96, 96)
    mask = torch.zeros(96)
    mask[::8] = 1
    first = 48 - lines // 2
    mask[first : first + lines] = 1
    maps = espirit(kspace * mask)
    assert support(maps)[inside].all()
    assert 1 - overlap(maps * inside, truth).quantile(0.05) < tolerance
    square = espirit(kspace * mask, acs=lines)
    assert overlap(maps * inside, truth).median() >= overlap(square * inside, truth).median()


@pytest.mark.parametrize("backend", ["torch", "sigpy"])
def test_incomplete_corners_are_left_out(backend: str) -> None:
    kspace, truth, inside = simulate(8, 64, 64)
    y, x = torch.meshgrid(torch.arange(64) - 32, torch.arange(64) - 32, indexing="ij")
    maps = espirit(kspace * (y**2 + x**2 <= 12**2), backend=backend)
    assert support(maps)[inside].float().mean() > 0.99
    assert overlap(maps * inside, truth).quantile(0.05) > 0.999


@pytest.mark.parametrize("backend", ["torch", "sigpy"])
def test_empty_slice_has_empty_maps(backend: str) -> None:
    kspace, _, _ = simulate(4, 32, 32)
    maps = espirit(torch.stack([kspace, torch.zeros_like(kspace)]), backend=backend)
    assert torch.equal(maps[1], torch.zeros_like(kspace))
    assert torch.equal(maps[0], espirit(kspace, backend=backend))


@pytest.mark.parametrize("backend", ["torch", "sigpy"])
def test_dead_coil_has_an_empty_map(backend: str) -> None:
    kspace, _, _ = simulate(4, 32, 32)
    kspace[0] = 0
    maps = espirit(kspace, backend=backend)
    assert maps[0].abs().max() < 1e-6
    torch.testing.assert_close(maps[1:], espirit(kspace[1:], backend=backend), atol=1e-3, rtol=0)


@pytest.mark.parametrize("backend", ["torch", "sigpy"])
def test_too_few_calibration_lines(backend: str) -> None:
    kspace, _, _ = simulate(4, 40, 40)
    mask = torch.zeros(40)
    mask[16:23] = 1
    with pytest.raises(ValueError, match=r"needs at least 8 adjacent calibration lines .* hold 7"):
        espirit(kspace * mask, backend=backend, kernel=6)
    mask[23] = 1
    assert espirit(kspace * mask, backend="torch", kernel=6, crop=0.0).abs().max() > 0
    with pytest.raises(ValueError, match="hold 7"):
        espirit(kspace[..., :7], backend=backend, kernel=6)
    with pytest.raises(ValueError, match="hold 0"):
        espirit(kspace * (torch.arange(40) < 2), backend=backend)


def test_sigpy_needs_its_square_about_the_centre() -> None:
    kspace, _, _ = simulate(4, 40, 40)
    mask = torch.zeros(40)
    mask[19:28] = 1
    with pytest.raises(ValueError, match="complete square"):
        espirit(kspace * mask, backend="sigpy", kernel=6)


@pytest.mark.parametrize(
    ("shape", "options", "match"),
    [
        ((32, 32), {}, "must be"),
        ((1, 1, 4, 32, 32), {}, "must be"),
        ((0, 32, 32), {}, "not empty"),
        ((4, 32, 32), {"backend": "bart"}, "backend"),
        ((4, 32, 32), {"acs": 0}, "positive"),
        ((4, 32, 32), {"kernel": 0}, "positive"),
        ((4, 32, 32), {"threshold": 1.0}, "threshold"),
        ((4, 32, 32), {"crop": -0.1}, "crop"),
    ],
)
def test_unusable_arguments(shape: tuple[int, ...], options: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        espirit(torch.ones(shape), **options)


def test_values_that_are_not_finite() -> None:
    kspace, _, _ = simulate(2, 32, 32)
    kspace[0, 16, 16] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        espirit(kspace)


def test_package_exports_the_function() -> None:
    assert espirit_function is espirit
