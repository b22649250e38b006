"""The forward model against its definition, dense matrices and SigPy."""

import numpy as np
import pytest
import torch
from operator_checks import check_adjoint, check_gradient_is_adjoint, check_linear, dense, normal

from mri_ambient.operators import Sense, fft2c

SHAPES = [(6, 8), (5, 7), (4, 5), (7, 4)]


def make(shape, kind, coils=3, batch=None):
    lead = () if batch is None else (batch,)
    maps = normal((*lead, coils, *shape), 10)
    maps = maps / maps.abs().square().sum(-3, keepdim=True).sqrt()
    size = {"line": (shape[1],), "2d": shape, "full": (shape[1],)}[kind]
    if batch is not None:
        size = (batch, 1, shape[1]) if kind == "line" else (batch, *shape)
    mask = torch.rand(size, generator=torch.Generator().manual_seed(1)) > (0.5 if kind != "full" else -1)
    return Sense(maps, mask)


@pytest.mark.parametrize("kind", ["line", "2d", "full"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch", [None, 2])
def test_is_a_linear_operator_with_its_adjoint(shape, kind, batch):
    op = make(shape, kind, batch=batch)
    check_linear(op.forward, op.image_shape)
    check_adjoint(op.forward, op.adjoint, op.image_shape, op.kspace_shape)
    check_gradient_is_adjoint(op.forward, op.adjoint, op.image_shape, op.kspace_shape)
    x = normal(op.image_shape, 7)
    torch.testing.assert_close(op.normal(x), op.adjoint(op.forward(x)))


@pytest.mark.parametrize("kind", ["line", "2d"])
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_is_mask_fourier_maps(shape, kind):
    op, x = make(shape, kind), normal(shape)
    torch.testing.assert_close(op.forward(x), op.mask * fft2c(op.sensitivity_maps * x))


@pytest.mark.parametrize("kind", ["line", "2d"])
def test_adjoint_and_normal_are_the_dense_matrices(kind):
    op = make((3, 4), kind)
    matrix = dense(op.forward, op.image_shape)
    torch.testing.assert_close(dense(op.adjoint, op.kspace_shape), matrix.mH)
    torch.testing.assert_close(dense(op.normal, op.image_shape), matrix.mH @ matrix)


def test_full_sampling_with_normalised_maps_is_an_isometry():
    op, x = make((6, 5), "full"), normal((6, 5))
    torch.testing.assert_close(op.normal(x), x)


def test_gradient_of_normal_is_normal():
    op, x = make((5, 6), "line"), normal((5, 6)).requires_grad_()
    y = normal((5, 6), 3)
    (y.conj() * op.normal(x)).sum().real.backward()
    torch.testing.assert_close(x.grad, op.normal(y))


def test_samples_share_an_operator_and_items_have_their_own():
    one = make((5, 6), "line")
    x = normal((4, 5, 6))
    torch.testing.assert_close(one.normal(x), torch.stack([one.normal(v) for v in x]))
    batched = make((5, 6), "2d", batch=3)
    x = normal((3, 5, 6))
    singles = [Sense(m, k) for m, k in zip(batched.sensitivity_maps, batched.mask, strict=True)]
    torch.testing.assert_close(batched.normal(x), torch.stack([s.normal(v) for s, v in zip(singles, x, strict=True)]))


def test_agrees_with_sigpy():
    from sigpy.mri.linop import Sense as SigpySense

    op = make((6, 8), "line")
    mask = op.mask.expand(6, 8).numpy().astype(float)
    reference = SigpySense(op.sensitivity_maps.numpy(), weights=mask)
    x = normal((6, 8)).numpy()
    np.testing.assert_allclose(op.forward(x).numpy(), reference(x), atol=1e-6)
    np.testing.assert_allclose(op.normal(x).numpy(), reference.N(x), atol=1e-6)


def test_adjoint_operator_and_other_masks():
    op = make((4, 6), "2d")
    y = normal(op.kspace_shape)
    torch.testing.assert_close(op.H(y), op.adjoint(y))
    assert op.H.H is op
    everything = op.with_mask(np.ones(6))
    assert everything.is_line_mask
    assert not op.is_line_mask
    assert "2-D" in repr(op)


@pytest.mark.parametrize(
    ("maps", "mask"),
    [((6, 8), (8,)), ((2, 6, 8), (7,)), ((2, 6, 8), (5, 8)), ((3, 2, 6, 8), (2, 1, 8)), ((2, 6, 8), (1, 1, 1, 8))],
)
def test_shapes_that_do_not_fit_are_refused(maps, mask):
    with pytest.raises(ValueError, match=r"fit|must be|combined"):
        Sense(normal(maps), torch.ones(mask))


def test_arguments_that_do_not_fit_are_refused():
    op = make((6, 8), "line", batch=2)
    with pytest.raises(ValueError, match="cannot take image"):
        op.forward(normal((3, 6, 8)))
    with pytest.raises(ValueError, match="cannot take k-space"):
        op.adjoint(normal((2, 6, 8)))


@pytest.mark.cuda
def test_cuda_agrees_with_the_cpu():
    op, x = make((32, 33), "line"), normal((32, 33))
    torch.testing.assert_close(op.to("cuda").normal(x).cpu(), op.normal(x))
