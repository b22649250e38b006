import json

import numpy as np
import pytest
import torch

from mri_ambient.coil_array import CoilArray, coil_maps
from mri_ambient.errors import InputError
from mri_ambient.operators import MaskPattern, center_crop, fft2c, ifft2c
from mri_ambient.simulate import (
    resample_inplane,
    simulate_scan,
    simulate_slice,
    smooth_phase,
)
from mri_ambient.streams import stream
from mri_ambient.volumes import Volume


def volume(shape=(3, 24, 20), voxel=(3.0, 1.0, 1.0), seed=0, **names):
    magnitude = np.random.default_rng(seed).uniform(5, 50, shape).astype(np.float32)
    affine = np.diag([0.0, 0.0, 0.0, 1.0])
    affine[2, 0], affine[1, 1], affine[0, 2] = voxel[0], -voxel[1], -voxel[2]
    affine[:3, 3] = 7, 8, 9
    return Volume(magnitude, affine, **names)


def roughness(maps):
    """Share of the energy of the maps' windowed spectrum outside its central 17 x 17 samples."""
    shape = maps.shape[-2:]
    window = torch.hann_window(shape[0], False)[:, None] * torch.hann_window(shape[1], False)
    spectrum = fft2c(maps * window).abs().square()
    return float(1 - center_crop(spectrum, (17, 17)).sum() / spectrum.sum())


# Streams


def test_equal_addresses_give_equal_streams_and_others_differ():
    addresses = [(0,), (1,), (0, 1), (1, 0), (0, "1"), (0, 1, 1), (0, "a", "b"), (0, "ab"), (0, "a,b"), (-1,)]
    draws = {tuple(torch.rand(4, generator=stream(*address)).tolist()) for address in addresses}
    assert len(draws) == len(addresses)
    assert draws == {tuple(torch.rand(4, generator=stream(*address)).tolist()) for address in addresses}


def test_neighbouring_streams_are_uncorrelated():
    draws = torch.stack([torch.randn(4000, generator=stream(0, "noise", index)) for index in range(20)])
    correlation = draws @ draws.T / 4000 - torch.eye(20)
    assert correlation.abs().max() < 5 * (2 / 4000) ** 0.5


def test_numpy_integers_are_keys_and_other_types_are_refused():
    assert stream(np.int64(3), np.int32(1)).initial_seed() == stream(3, 1).initial_seed()
    for key in (0.5, None, True):
        with pytest.raises(TypeError, match="stream key"):
            stream(0, key)


# Coil maps


@pytest.mark.parametrize("coils", [1, 2, 3, 8, 13, 64])
@pytest.mark.parametrize("shape", [(64, 64), (45, 81), (7, 6)])
def test_maps_are_normalised_complex64(coils, shape):
    maps = coil_maps(coils, shape, stream(0, coils), z=0.1)
    assert maps.shape == (coils, *shape)
    assert maps.dtype == torch.complex64
    torch.testing.assert_close(maps.abs().square().sum(0), torch.ones(shape), atol=1e-5, rtol=0)


@pytest.mark.parametrize("coils", [4, 8, 32])
def test_maps_are_smooth_and_differ_between_coils_and_draws(coils):
    first, second = (coil_maps(coils, (128, 128), stream(seed)) for seed in range(2))
    assert roughness(first) < 1e-3
    gram = torch.einsum("cyx,dyx->cd", first.conj(), first)
    energy = gram.diagonal().real
    overlap = gram.abs() / (energy[:, None] * energy).sqrt() - torch.eye(coils)
    assert overlap.max() < 0.98
    assert (first - second).abs().mean() > 0.1 / coils**0.5


def test_maps_vary_smoothly_with_height_and_generator_decides_the_array():
    low, near, far = (coil_maps(8, (40, 40), stream(5), z=z) for z in (0.0, 0.01, 0.3))
    assert (low - coil_maps(8, (40, 40), stream(5), z=0.0)).abs().max() == 0
    assert 0 < (low - near).abs().mean() < 0.1 * (low - far).abs().mean()


def test_maps_are_functions_of_space_with_their_origin_at_pixel_half_n():
    coarse, fine = (coil_maps(6, (n, n), stream(1)) for n in (30, 90))
    torch.testing.assert_close(fine[:, ::3, ::3], coarse, atol=0.02, rtol=0)
    torch.testing.assert_close(coil_maps(6, (15, 15), stream(1))[:, 7, 7], coarse[:, 15, 15], atol=1e-4, rtol=0)


def test_interpolated_fields_are_those_computed_pixel_by_pixel(monkeypatch):
    array = CoilArray.random(8, stream(2))
    quick = array.maps((121, 96), z=0.05)
    monkeypatch.setattr("mri_ambient.coil_array._NODES", 1000)
    error = (quick - array.maps((121, 96), z=0.05)).abs()
    assert error[:, 15:-15, 15:-15].max() < 1e-3
    assert error.max() < 0.05


def test_field_on_the_axis_of_a_loop_follows_biot_and_savart():
    """A loop of radius b facing x: B_x(d) ~ b^2 / (b^2 + d^2)^{3/2} and no B_y on its axis."""
    from mri_ambient.coil_array import _WIRE, _loops

    b = 0.2
    wire, current = _loops(torch.tensor([[-0.6, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([b]))
    array = CoilArray(wire, current, torch.ones(1, dtype=torch.complex64))
    x = torch.linspace(-0.4, 0.5, 10)
    field = array._field(torch.zeros(1), x, 0.0)[0, 0]
    expected = 2 * torch.pi * b**2 / (b**2 + _WIRE**2 + (x + 0.6) ** 2) ** 1.5
    torch.testing.assert_close(field.real, expected, rtol=1e-4, atol=1e-5)
    assert field.imag.abs().max() < 1e-5


def test_field_of_a_small_loop_is_that_of_a_dipole():
    """Off the axis: B = (3 r (m.r) - m r^2) / r^5 for the moment m, here along y, in the plane z = 0.2."""
    from mri_ambient.coil_array import _loops

    b, z = 0.01, 0.2
    wire, current = _loops(torch.zeros(1, 3), torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([b]))
    array = CoilArray(wire, current, torch.ones(1, dtype=torch.complex64))
    y, x = torch.tensor([0.5, -0.6]), torch.tensor([0.4, -0.5, 0.7])
    field = array._field(y, x, z)[0] / (torch.pi * b**2)
    r2 = y[:, None] ** 2 + x**2 + z**2
    expected = torch.complex(3 * x * y[:, None], -(3 * y[:, None] ** 2 - r2)) / r2**2.5
    torch.testing.assert_close(field, expected, rtol=0.06, atol=0.02)


def test_number_of_coils_is_checked():
    for coils in (0, 65):
        with pytest.raises(ValueError, match="between 1 and 64"):
            coil_maps(coils, (8, 8), stream(0))


# Phase


def test_phase_is_smooth_varied_and_reproducible():
    phases = torch.stack([smooth_phase((96, 80), stream(seed)) for seed in range(8)])
    assert phases.dtype == torch.float32
    assert torch.equal(phases[3], smooth_phase((96, 80), stream(3)))
    assert max(phases.diff(dim=1).abs().max(), phases.diff(dim=2).abs().max()) < 0.5
    spread = torch.polar(torch.ones(()), phases).mean(dim=0).abs().mean()
    assert spread < 0.8  # slices do not share one phase


# Resampling


@pytest.mark.parametrize("size", [(32, 32), (33, 35), (40, 31)])
@pytest.mark.parametrize("matrix", [20, 21, (24, 18)])
def test_resampling_a_band_limited_image_samples_it(size, matrix):
    """A wave that both grids resolve is the same wave on the coarse grid, with its origin at pixel N // 2."""
    voxel = (1.0, 1.0)
    my, mx = (matrix, matrix) if isinstance(matrix, int) else matrix
    pixel = max(size[0] / my, size[1] / mx)
    field = round(my * pixel), round(mx * pixel)

    def bump(shape, step):
        y, x = ((torch.arange(n, dtype=torch.float64) - n // 2) * s for n, s in zip(shape, step, strict=True))
        return torch.exp(-((y[:, None] - 2.3) ** 2 + (x + 3.1) ** 2) / (2 * 2.6**2))

    small = resample_inplane(bump(size, (1.0, 1.0)), voxel, matrix)
    expected = bump((my, mx), (field[0] / my, field[1] / mx))
    torch.testing.assert_close(small.real.double(), expected, atol=2e-3, rtol=0)
    assert small.imag.abs().max() < 2e-3


def test_resampling_keeps_the_shape_of_the_anatomy():
    """A disc on pixels of 1 x 2 mm is a disc on square pixels."""
    y, x = (torch.arange(64) - 32.0) * 1.0, (torch.arange(40) - 20.0) * 2.0
    disc = torch.exp(-(((y[:, None].square() + x.square()) / 12.0**2) ** 2))
    small = resample_inplane(disc, (1.0, 2.0), 32).abs()
    inside = small > 0.5
    assert small.shape == (32, 32)
    assert abs(int(inside.any(0).sum()) - int(inside.any(1).sum())) <= 1
    torch.testing.assert_close(small, small.T, atol=0.01, rtol=0)


def test_resampling_handles_stacks_complex_images_and_its_own_size():
    image = torch.complex(*torch.randn(2, 3, 16, 16, generator=stream(0)))
    torch.testing.assert_close(resample_inplane(image, (1, 1), 16), image)
    half = resample_inplane(image, (1, 1), 12)
    torch.testing.assert_close(half[1], resample_inplane(image[1].numpy(), (1, 1), (12, 12)))
    torch.testing.assert_close(fft2c(half) / fft2c(image)[:, 2:-2, 2:-2], torch.full((3, 12, 12), 0.75 + 0j))


def test_resampling_refuses_to_invent_resolution():
    with pytest.raises(ValueError, match="choose a smaller matrix"):
        resample_inplane(torch.ones(16, 16), (1, 1), 17)


# One slice


def test_noise_has_the_given_standard_deviation_in_both_components():
    maps = coil_maps(4, (64, 64), stream(0))
    mask = torch.arange(64) % 2 == 0
    kspace = simulate_slice(torch.zeros(64, 64), maps, 0.3, mask, stream(1))
    assert not kspace[..., ~mask].any()
    acquired = torch.view_as_real(kspace[..., mask]).reshape(-1, 2).double()
    count = len(acquired)
    covariance = acquired.T @ acquired / count
    torch.testing.assert_close(covariance, 0.09 * torch.eye(2).double(), atol=0.09 * 5 * (2 / count) ** 0.5, rtol=0)
    between = torch.corrcoef(kspace[..., mask].flatten(1)).abs() - torch.eye(4)
    assert between.max() < 5 / (kspace[0][..., mask].numel()) ** 0.5


def test_full_noiseless_slice_combines_to_the_image():
    image = torch.complex(*torch.randn(2, 25, 30, generator=stream(0)))
    maps = coil_maps(5, (25, 30), stream(1))
    kspace = simulate_slice(image, maps, 0.0, torch.ones(30, dtype=torch.bool), stream(2))
    assert kspace.dtype == torch.complex64
    torch.testing.assert_close((maps.conj() * ifft2c(kspace)).sum(0), image, atol=1e-5, rtol=1e-5)


def test_noise_of_a_sample_does_not_depend_on_the_mask():
    image, maps = np.ones((8, 9), dtype=np.float32), coil_maps(2, (8, 9), stream(0)).numpy()
    mask = np.zeros((8, 9), dtype=bool)
    mask[::2, ::3] = True
    full = simulate_slice(image, maps, 0.1, np.ones(9, dtype=bool), stream(7))
    torch.testing.assert_close(simulate_slice(image, maps, 0.1, mask, stream(7)), full * torch.as_tensor(mask))


# Whole scans


def test_truth_is_the_noiseless_coil_combination_and_its_percentile_is_one():
    scan = simulate_scan(volume(), coils=4, noise_std=0.0, seed=3)
    assert scan.shape == (3, 4, 24, 20)
    torch.testing.assert_close(ifft2c(scan.kspace).abs().square().sum(1).sqrt(), scan.target, atol=1e-5, rtol=1e-5)
    assert np.percentile(scan.target.numpy(), 99) == pytest.approx(1, rel=1e-5)
    torch.testing.assert_close(scan.target * 50, torch.as_tensor(volume().magnitude), rtol=0.1, atol=0.0)
    assert scan.noise_std == 0
    assert scan.recon_size == (24, 20)


def test_phase_is_not_flat_and_differs_between_slices():
    scan = simulate_scan(volume(), coils=1, noise_std=0.0)
    phase = ifft2c(scan.kspace)[:, 0] / scan.target
    assert phase[0].mean().abs() < 0.99
    assert (phase[0] - phase[1]).abs().mean() > 0.05


def test_noise_of_a_scan_is_measured_and_independent_between_slices():
    clean, noisy = (simulate_scan(volume(), coils=6, noise_std=std) for std in (0.0, 0.05))
    noise = torch.view_as_real(noisy.kspace - clean.kspace)
    assert noise.std().item() == pytest.approx(0.05, rel=0.03)
    flat = noise.flatten(1)
    assert (torch.corrcoef(flat) - torch.eye(3)).abs().max() < 5 / flat.shape[1] ** 0.5


def test_scan_is_reproducible_and_seed_and_volume_change_everything():
    pattern = MaskPattern("random", 2, 4)

    def scan(seed=0, **names):
        return simulate_scan(volume(**names), coils=3, pattern=pattern, seed=seed, name="same")

    first = scan()
    assert torch.equal(first.kspace, scan().kspace)
    others = [scan(seed=1), scan(name="other"), scan(patient="p2")]
    for other in others:
        shared = first.mask & other.mask
        assert not torch.isclose(first.kspace[..., shared], other.kspace[..., shared], rtol=1e-3).any()
    assert len({tuple(each.mask.tolist()) for each in [first, *others]}) > 1


def test_a_subset_of_slices_is_the_same_as_in_the_full_scan():
    options = {"coils": 3, "pattern": MaskPattern("equispaced", 2, 4), "seed": 4, "matrix": 16}
    full, part = simulate_scan(volume(), **options), simulate_scan(volume(), slices=[2, 0], **options)
    assert torch.equal(part.kspace, full.kspace[[2, 0]])
    assert torch.equal(part.target, full.target[[2, 0]])
    assert torch.equal(part.mask, full.mask)


@pytest.mark.parametrize("kind", ["random", "bernoulli", "equispaced", "gaussian", "poisson"])
def test_mask_is_that_of_the_pattern_and_fills_the_rest_with_zeros(kind):
    source = volume((1, 48, 40))
    scan = simulate_scan(source, coils=2, pattern=MaskPattern(kind, 3, 8), seed=1)
    expected = MaskPattern(kind, 3, 8).sample((48, 40), stream(1, "mask", "/volume"))
    assert torch.equal(scan.mask, expected)
    kspace = scan.kspace
    assert not kspace[~scan.mask.expand(kspace.shape)].any()
    assert kspace[scan.mask.expand(kspace.shape)].all()


def test_affine_of_a_resampled_scan_points_at_the_same_anatomy():
    magnitude = np.zeros((4, 41, 37), dtype=np.float32)
    magnitude[1:3, 10:13, 20:22] = 1
    source = Volume(magnitude, volume(voxel=(3.0, 1.0, 1.25)).affine)
    scan = simulate_scan(source, coils=1, noise_std=0, matrix=21, slices=[1, 2])
    affine = np.array(json.loads(scan.attributes["affine"]))

    def centre(image, matrix):
        where = np.stack(np.indices(image.shape)).reshape(3, -1) @ image.ravel() / image.sum()
        return matrix[:3] @ [*where, 1]

    truth = scan.target.numpy() ** 2
    np.testing.assert_allclose(centre(truth, affine), centre(magnitude, source.affine), atol=0.3)
    sizes = [scan.attributes[f"voxel_mm_{axis}"] for axis in ("slice", "y", "x")]
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), sizes, rtol=1e-5)
    np.testing.assert_allclose(sizes, [3, 2.2, 2.2], rtol=0.03)


def test_maps_of_a_scan_vary_with_its_slices_but_come_from_one_array():
    flat = Volume(np.ones((3, 16, 16), dtype=np.float32), volume(voxel=(4.0, 1.0, 1.0)).affine)
    scan = simulate_scan(flat, coils=4, noise_std=0, seed=2)
    array = CoilArray.random(4, stream(2, "coils", "/volume"))
    for index, z in enumerate((-0.25, 0.0, 0.25)):
        expected = array.maps((16, 16), z=z).abs()
        torch.testing.assert_close(ifft2c(scan.read(index)).abs(), expected, atol=1e-5, rtol=1e-4)


def test_a_scan_says_that_it_was_simulated():
    scan = simulate_scan(volume(name="t2", patient="p"), coils=1, seed=9)
    assert (scan.name, scan.patient) == ("t2", "p")
    assert scan.attributes["simulated_from"] == "t2"
    assert scan.attributes["seed"] == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coils": 0}, "coils"),
        ({"noise_std": -0.1}, "noise"),
        ({"noise_std": float("nan")}, "noise"),
        ({"matrix": 100}, "smaller matrix"),
        ({"matrix": 0}, "at least 8"),
        ({"slices": [3]}, "from 0 to 2"),
        ({"slices": []}, "from 0 to 2"),
        ({"pattern": MaskPattern("random", 500)}, "pattern"),
    ],
)
def test_impossible_requests_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        simulate_scan(volume(), **options)


def test_an_almost_empty_volume_is_refused():
    magnitude = np.zeros((2, 16, 16), dtype=np.float32)
    magnitude[0, 3, 3] = 1
    with pytest.raises(InputError, match="99 %"):
        simulate_scan(Volume(magnitude, np.eye(4)))
