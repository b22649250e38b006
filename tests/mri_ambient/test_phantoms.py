import nibabel as nib
import numpy as np
import pytest
import torch

from mri_ambient.phantoms import FIELD_OF_VIEW, Head, _Noise, brain_phantom, phantom_volume
from mri_ambient.simulate import simulate_scan
from mri_ambient.streams import stream


@pytest.mark.parametrize("shape", [(64, 64), (63, 50), (9, 14)])
def test_slices_have_the_shape_asked_for_and_are_magnitudes(shape):
    image = brain_phantom(shape, stream(0))
    assert image.shape == shape
    assert image.dtype == np.float32
    assert np.isfinite(image).all()
    assert image.min() >= 0
    assert 0.2 < image.max() < 4


def test_the_generator_decides_the_slice():
    generator = stream(1)
    first, second = brain_phantom((48, 48), generator), brain_phantom((48, 48), generator)
    np.testing.assert_array_equal(first, brain_phantom((48, 48), stream(1)))
    assert np.abs(first - second).mean() > 0.02


def test_population_varies_in_contrast_size_and_content():
    images = np.stack([brain_phantom((48, 48), stream(seed)) for seed in range(24)])
    area = (images > 0.02).mean(axis=(1, 2))
    assert 0.15 < area.min() < area.max() < 0.8
    assert area.std() > 0.02
    centre = images[:, 18:30, 18:30].mean(axis=(1, 2))
    assert centre.std() / centre.mean() > 0.1
    flat = images.reshape(len(images), -1)
    assert np.corrcoef(flat)[~np.eye(24, dtype=bool)].max() < 0.97


def test_air_is_zero_and_the_head_fits_into_the_field_of_view():
    for seed in range(12):
        image = brain_phantom((64, 64), stream(seed))
        border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        assert not border.any()
        assert image[20:44, 24:40].min() > 0


def test_edges_carry_partial_volume_at_every_matrix():
    """The same head on a fine grid, averaged, is the head on the coarse grid up to texture and edge rounding."""
    head = Head(np.random.default_rng(3))
    fine, coarse = head.draw((256, 256), 0.05), head.draw((128, 128), 0.05)
    # Pixel N // 2 is the origin of both, so a coarse pixel is centred on a fine one.
    kernel = np.array([0.25, 0.5, 0.25])
    smooth = np.apply_along_axis(
        np.convolve, 0, np.apply_along_axis(np.convolve, 1, fine, kernel, "same"), kernel, "same"
    )
    error = np.linalg.norm(smooth[::2, ::2] - coarse) / np.linalg.norm(coarse)
    assert error < 0.045


def test_spectrum_falls_like_that_of_anatomy():
    """Power decays by about three orders of magnitude from the low to the highest frequencies, without a flat floor."""
    power = 0
    for seed in range(6):
        power = power + np.abs(np.fft.fftshift(np.fft.fft2(brain_phantom((96, 96), stream(seed))))) ** 2
    y, x = np.indices((96, 96)) - 48
    ring = np.hypot(y, x).astype(int)
    radial = np.bincount(ring.ravel(), power.ravel()) / np.bincount(ring.ravel())
    assert 50 < radial[5] / radial[45] < 1e5
    assert radial[20] > radial[45]


def test_slices_of_a_volume_belong_together():
    volume = phantom_volume(24, (48, 48), 0)
    flat = volume.magnitude.reshape(24, -1)
    neighbours = np.array([np.corrcoef(flat[i], flat[i + 1])[0, 1] for i in range(23)])
    assert neighbours.min() > 0.7
    assert neighbours.max() < 0.9999
    assert np.corrcoef(flat[0], flat[-1])[0, 1] < neighbours.min()
    area = (volume.magnitude > 0.02).sum(axis=(1, 2))
    assert area[-1] < 0.8 * area[:12].max()  # it closes towards the vertex


def test_volume_is_reproducible_and_placed_like_a_head():
    volume = phantom_volume(4, (40, 32), 7)
    np.testing.assert_array_equal(volume.magnitude, phantom_volume(4, (40, 32), 7).magnitude)
    assert not np.array_equal(volume.magnitude, phantom_volume(4, (40, 32), 8).magnitude)
    assert nib.aff2axcodes(volume.affine) == ("S", "P", "L")
    np.testing.assert_allclose(volume.voxel_size[1:], FIELD_OF_VIEW / 40)
    np.testing.assert_allclose((volume.affine @ [0, 20, 16, 1])[:2], 0, atol=1e-9)
    assert (volume.patient, volume.name) == ("phantom7", "phantom7")


def test_phantoms_can_be_scanned():
    scan = simulate_scan(phantom_volume(2, (32, 32), 0), coils=2, noise_std=0)
    assert scan.shape == (2, 2, 32, 32)
    assert torch.isfinite(scan.kspace.abs()).all()


def test_noise_has_unit_variance_is_smooth_and_closes_around_a_circle():
    rng = np.random.default_rng(0)
    around = np.linspace(-np.pi, np.pi, 200)
    fields = [
        _Noise(rng, (4, 6, 40), (0.0, 0.0, -np.pi), (1.0, 1.0, 2 * np.pi), True)(0.4, np.linspace(0, 1, 60), around)
        for _ in range(30)
    ]
    values = np.stack(fields)
    assert values.std() == pytest.approx(1, abs=0.05)
    np.testing.assert_allclose(values[..., 0], values[..., -1], atol=1e-4)
    assert np.abs(np.diff(values, axis=-1)).max() < 1.5
    near = _Noise(np.random.default_rng(1), (4, 6, 6))
    y = x = np.linspace(-0.5, 0.5, 30)
    assert np.abs(near(0.1, y, x) - near(0.101, y, x)).max() < 0.1
