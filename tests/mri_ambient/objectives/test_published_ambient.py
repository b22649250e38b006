"""The published form on noiseless Gaussian data: its minimiser is ``E[x | A~ (x + s eps)]``, and only there."""

from dataclasses import replace

import pytest
import torch
from gaussian_world import KINDS, Linear, World, assert_minimiser, dense_normal, diagonal, make_batch, parabola, white

from mri_ambient.objectives import Batch, published_ambient
from mri_ambient.objectives.published_ambient import PublishedAmbient, remove_lines, removed_count
from mri_ambient.operators import Sense, fft2c, ifft2c

WORLD = World()


def generator(seed):
    return torch.Generator().manual_seed(seed)


def published_optimum(z, sigma, operator):
    """``E[x | A~ (x + s eps)]`` from ``z = A~^H A~ (x + s eps)``."""
    inverse = torch.linalg.pinv(dense_normal(operator, len(z)), rtol=1e-4, hermitian=True)
    projection = dense_normal(operator, len(z)) @ inverse
    system = projection @ (WORLD.covariance + diagonal(sigma, z[0].numel())) @ projection
    measured = inverse @ z.reshape(len(z), -1, 1)
    return (WORLD.covariance @ torch.linalg.pinv(system, rtol=1e-4, hermitian=True) @ measured).reshape(z.shape)


def filtered(z, sigma, operator):
    return ifft2c(torch.linspace(0, 1, z.shape[-1]) * fft2c(z))


def shrunk(z, sigma, operator):
    return z / (1 + sigma[:, None, None] ** 2)


def losses(best, seeds=8, items=60, noise_std=0.0, coils=2, kind="random"):
    batches = [
        make_batch(WORLD, items, generator(i), noise_std=noise_std, accel=1.6, coils=coils, kind=kind)
        for i in range(seeds)
    ]
    return [
        lambda theta, i=i, batch=batch: PublishedAmbient(log_std=0.5).loss(
            Linear((best, filtered, shrunk), theta), batch, generator(100 + i)
        )
        for i, batch in enumerate(batches)
    ]


@pytest.mark.parametrize(("kind", "coils"), [("random", 1), ("random", 2), ("bernoulli", 2), ("equispaced", 2)])
def test_the_minimiser_is_the_reconstruction_from_the_noisy_image_behind_the_mask(kind, coils):
    assert_minimiser(losses(published_optimum, kind=kind, coils=coils), (1, 0, 0), precision=0.06)


def test_it_is_not_the_one_for_measured_noise():
    with pytest.raises(AssertionError, match="not"):
        assert_minimiser(losses(WORLD.mmse), (1, 0, 0), precision=0.06)


def test_nor_the_denoiser_of_a_diffusion_model():
    with pytest.raises(AssertionError, match="not"):
        assert_minimiser(losses(lambda z, sigma, operator: WORLD.mmse(z, sigma, None)), (1, 0, 0), precision=0.06)


def test_noise_in_the_data_is_taken_for_signal():
    with pytest.raises(AssertionError, match="not"):
        assert_minimiser(losses(published_optimum, noise_std=0.8), (1, 0, 0), precision=0.06)


def missing_part(z, sigma, operator):
    """Something that the input's own lines cannot show."""
    image = white(z.shape, generator(5)).reshape(len(z), -1, 1)
    normal = dense_normal(operator, len(z))
    projection = normal @ torch.linalg.pinv(normal, rtol=1e-4, hermitian=True)
    return (image - projection @ image).reshape(z.shape)


def curvature():
    batch = make_batch(WORLD, 20, generator(0), noise_std=0.0, accel=1.6, coils=1)

    def loss(theta):
        return PublishedAmbient().loss(Linear((missing_part,), theta), batch, generator(1))

    return float(parabola(loss, 1)[1])


def test_removed_lines_are_what_the_missing_part_is_learned_from(monkeypatch):
    assert curvature() > 1e-2
    monkeypatch.setattr(published_ambient, "remove_lines", lambda batch, rng: batch.mask)
    assert curvature() < 1e-6


def test_the_input_is_projected_twice():
    single = make_batch(
        WORLD, 1, generator(0), noise_std=0.0, image=torch.zeros(1, *WORLD.shape, dtype=torch.complex64)
    )
    count = 3000
    batch = Batch(*(value.expand(count, *value.shape[1:]) for value in vars(single).values() if value is not None))
    seen = Linear((shrunk,), torch.ones(1))
    PublishedAmbient(log_mean=0.0, log_std=0.0).loss(seen, batch, generator(1))
    z, sigma, told = seen.calls[0]
    assert torch.equal(sigma, torch.ones(count))
    normal = dense_normal(told, count)
    expected = 2 * (normal @ normal).diagonal(dim1=1, dim2=2).real.mean(0)
    torch.testing.assert_close((z.abs() ** 2).mean(0).flatten(), expected, rtol=0.12, atol=0.02)


@pytest.mark.parametrize(
    ("places", "measured", "expected"),
    [(320, 160, 54), (320, 80, 16), (320, 53, 8), (320, 40, 5), (160, 80, 27), (160, 40, 8), (320, 107, 9)],
)
def test_as_many_lines_are_removed_as_published(places, measured, expected):
    assert removed_count(places, measured, measured - 20) == expected


def test_one_line_is_removed_at_least_and_no_more_than_there_are():
    assert removed_count(16, 8, 4) == 3
    assert removed_count(16, 8, 2) == 2
    assert removed_count(20, 3, 3) == 1
    assert removed_count(20, 20, 0) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_off_centre_lines_are_removed_and_redrawn(kind):
    batch = make_batch(WORLD, 30, generator(0), kind=kind, padding=(2, 3), accel=1.6)
    kept = remove_lines(batch, generator(1))
    assert not bool((kept & ~batch.mask).any())
    assert bool(kept[..., 6:10].all())
    assert bool((kept.sum((1, 2)) < batch.mask.sum((1, 2))).all())
    assert not torch.equal(kept, remove_lines(batch, generator(2)))
    assert torch.equal(kept, remove_lines(batch, generator(1)))


def test_two_dimensional_masks():
    batch = make_batch(WORLD, 2, generator(0))
    mask = torch.rand(2, 2, 16, generator=generator(1)) < 0.5
    batch = replace(batch, mask=mask, probability=torch.full((2, 2, 16), 0.5))
    kept = remove_lines(batch, generator(2))
    assert kept.shape == mask.shape
    assert not bool((kept & ~mask).any())
    seen = Linear((shrunk,), torch.ones(1))
    assert bool(torch.isfinite(PublishedAmbient().loss(seen, batch, generator(3))))
    assert isinstance(seen.calls[0][2], Sense)
