"""The forward model in other libraries equals ours on random data, and arrays are taken wherever tensors are."""

import numpy as np
import pytest
import torch
from operator_checks import check_adjoint, check_gradient_is_adjoint, inner, normal

import mri_ambient as ma
from mri_ambient import operators
from mri_ambient.errors import InputError
from mri_ambient.interop import from_channels, from_deepinv, to_channels, to_deepinv, to_sigpy
from mri_ambient.operators import Sense
from mri_ambient.operators.sense import SoftSense

SHAPES = [(6, 8), (5, 7), (4, 5), (7, 4)]
KINDS = ["line", "2d"]


def make(shape, kind, batch=None, coils=3) -> Sense:
    lead = () if batch is None else (batch,)
    maps = normal((*lead, coils, *shape), 10)
    size = (*lead, *shape) if kind == "2d" else (*lead, 1, shape[1])
    return Sense(maps, torch.rand(size, generator=torch.Generator().manual_seed(1)) > 0.4)


def batched(x, operator):
    return x if len(operator.image_shape) == 3 else x[None]


class TestChannels:
    @pytest.mark.parametrize("shape", [(2, 5, 6), (1, 3, 4, 7)])
    def test_round_trip(self, shape):
        x = normal(shape)
        channels = to_channels(x)
        assert channels.shape == (shape[0], 2, *shape[1:])
        torch.testing.assert_close(channels[:, 0], x.real, rtol=0, atol=0)
        torch.testing.assert_close(channels[:, 1], x.imag, rtol=0, atol=0)
        torch.testing.assert_close(from_channels(channels), x, rtol=0, atol=0)
        torch.testing.assert_close(from_channels(channels.numpy()), x, rtol=0, atol=0)
        torch.testing.assert_close(from_channels(to_channels(x.conj())), x.conj().resolve_conj(), rtol=0, atol=0)

    def test_other_layouts_are_refused(self):
        with pytest.raises(InputError, match="length 2"):
            from_channels(torch.zeros(1, 3, 4, 4))


@pytest.fixture(scope="session")
def deepinv():
    return pytest.importorskip("deepinv", reason="needs deepinv (pip install mri-ambient[deepinv])")


@pytest.mark.usefixtures("deepinv")
class TestDeepinv:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("batch", [None, 2])
    def test_equal_on_random_data(self, shape, kind, batch):
        operator = make(shape, kind, batch)
        physics = to_deepinv(operator)
        x, y = normal(operator.image_shape, 3), normal(operator.kspace_shape, 4)
        image, kspace = to_channels(batched(x, operator)), to_channels(batched(y, operator))
        forward, adjoint = physics(image), physics.A_adjoint(kspace)
        assert forward.shape == (batch or 1, 2, 3, *shape)
        torch.testing.assert_close(from_channels(forward), batched(operator.forward(x), operator))
        torch.testing.assert_close(from_channels(adjoint), batched(operator.adjoint(y), operator))
        torch.testing.assert_close(from_channels(physics.A_adjoint_A(image)), batched(operator.normal(x), operator))

    @pytest.mark.parametrize("shape", SHAPES)
    def test_is_adjoint_in_the_layout_of_deepinv(self, shape):
        physics = to_deepinv(make(shape, "line"))
        x, y = to_channels(normal((1, *shape), 3)), to_channels(normal((1, 3, *shape), 4))
        torch.testing.assert_close((physics.A(x) * y).sum(), (x * physics.A_adjoint(y)).sum())

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("batch", [None, 2])
    def test_round_trip(self, kind, batch):
        operator = make((5, 6), kind, batch)
        back = from_deepinv(to_deepinv(operator))
        assert back.is_line_mask == operator.is_line_mask
        assert back.image_shape == (batch or 1, 5, 6)
        x = normal(back.image_shape)
        torch.testing.assert_close(back.forward(x), batched(operator.forward(x if batch else x[0]), operator))
        check_adjoint(back.forward, back.adjoint, back.image_shape, back.kspace_shape)
        check_gradient_is_adjoint(back.forward, back.adjoint, back.image_shape, back.kspace_shape)

    def test_noise_is_per_real_component_and_on_acquired_samples(self):
        operator = Sense(normal((2, 64, 65)), np.arange(65) % 2)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            noise = to_deepinv(operator, noise_std=0.3)(torch.zeros(1, 2, 64, 65, dtype=torch.float64))
        acquired, others = noise[..., 1::2], noise[..., ::2]
        assert others.abs().max() == 0
        for component in (acquired[:, 0], acquired[:, 1]):
            assert component.std().item() == pytest.approx(0.3, abs=4 * 0.3 / (2 * component.numel()) ** 0.5)

    def test_single_precision_stays(self):
        maps = normal((2, 4, 5)).to(torch.complex64)
        assert to_deepinv(Sense(maps, np.ones(5)))(torch.ones(1, 2, 4, 5)).dtype == torch.float32

    def test_other_physics_are_refused(self, deepinv):
        with pytest.raises(InputError, match="Denoising is not a 2-D MultiCoilMRI"):
            from_deepinv(deepinv.physics.Denoising())
        physics = to_deepinv(make((4, 5), "line"))
        physics.mask[:, 1] = 0
        with pytest.raises(InputError, match="real and imaginary"):
            from_deepinv(physics)


def test_without_deepinv_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("mri_ambient.interop.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install mri-ambient\[deepinv\]"):
        to_deepinv(make((4, 5), "line"))


class TestSigpy:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("shape", SHAPES)
    def test_equal_on_random_data(self, shape, kind):
        operator = make(shape, kind)
        linop = to_sigpy(operator)
        assert (tuple(linop.ishape), tuple(linop.oshape)) == (operator.image_shape, operator.kspace_shape)
        x, y = normal(shape, 3), normal(operator.kspace_shape, 4)
        np.testing.assert_allclose(linop(x.numpy()), operator.forward(x.numpy()), atol=1e-12)
        np.testing.assert_allclose(linop.H(y.numpy()), operator.adjoint(y.numpy()), atol=1e-12)
        np.testing.assert_allclose(linop.N(x.numpy()), operator.normal(x.numpy()), atol=1e-12)
        left = inner(torch.as_tensor(linop(x.numpy())), y)
        torch.testing.assert_close(left, inner(x, torch.as_tensor(linop.H(y.numpy()))))

    def test_a_batch_is_refused(self):
        with pytest.raises(InputError, match="slice by slice"):
            to_sigpy(make((4, 5), "line", batch=2))


@pytest.mark.parametrize("convert", [to_deepinv, to_sigpy])
def test_several_sets_of_maps_are_refused(convert):
    with pytest.raises(InputError, match="2 sets of maps"):
        convert(SoftSense(normal((2, 3, 4, 5)), np.ones(5)))


@pytest.mark.parametrize("shape", SHAPES)
def test_tensors_of_fastmri_are_real_views_of_ours(shape):
    import fastmri

    x = normal((3, *shape))
    torch.testing.assert_close(torch.view_as_complex(fastmri.fft2c(torch.view_as_real(x))), operators.fft2c(x))
    torch.testing.assert_close(torch.view_as_complex(fastmri.ifft2c(torch.view_as_real(x))), operators.ifft2c(x))
    torch.testing.assert_close(fastmri.rss_complex(torch.view_as_real(x)), operators.rss(x))


KSPACE = normal((4, 32, 33)).to(torch.complex64)
IMAGE = normal((32, 33)).to(torch.complex64)
MASK = torch.arange(33) % 2 == 0
CENTRE = MASK | ((torch.arange(33) - 16).abs() < 6)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (operators.fft2c, (IMAGE,)),
        (operators.ifft2c, (IMAGE,)),
        (operators.fft1c, (IMAGE,)),
        (operators.rss, (KSPACE,)),
        (operators.espirit, (KSPACE, 12)),
        (operators.estimate_noise, (KSPACE, CENTRE)),
        (operators.noise_covariance, (KSPACE, CENTRE)),
        (lambda kspace: operators.compress_coils(kspace, 2)[0].abs(), (KSPACE,)),
        (operators.prewhiten, (KSPACE, torch.eye(4) + 0.1)),
        (operators.acs_width, (CENTRE,)),
        (operators.acs_mask, (CENTRE,)),
        (lambda maps, mask, x: Sense(maps, mask).forward(x), (KSPACE, MASK, IMAGE)),
        (lambda maps, mask, y: Sense(maps, mask).adjoint(y), (KSPACE, MASK, KSPACE)),
        (lambda maps, mask, x: Sense(maps, MASK).with_mask(mask).normal(x), (KSPACE, MASK, IMAGE)),
        (to_channels, (KSPACE,)),
    ],
)
def test_numpy_is_taken_where_tensors_are(function, arguments):
    arrays = [value.numpy() if isinstance(value, torch.Tensor) else value for value in arguments]
    copies = [np.copy(array) for array in arrays]
    torch.testing.assert_close(torch.as_tensor(function(*arrays)), torch.as_tensor(function(*arguments)))
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)  # and left as it was


def test_names_of_the_package():
    assert (ma.to_deepinv, ma.from_deepinv, ma.to_sigpy) == (to_deepinv, from_deepinv, to_sigpy)
