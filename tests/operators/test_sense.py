"""The forward model against its definition, dense matrices and SigPy."""

import numpy as np
import pytest
import torch
from operator_checks import check_adjoint, check_gradient_is_adjoint, check_linear, dense, normal

from mri_ambient.operators import Sense, fft2c
from mri_ambient.operators.sense import SoftSense, side_by_side

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


@pytest.mark.parametrize("kind", ["line", "2d"])
@pytest.mark.parametrize("batch", [None, 2])
def test_normal_operator_is_its_own_derivative(kind, batch):
    op = make((5, 6), kind, batch=batch)
    op = Sense(op.sensitivity_maps.to(torch.complex128), op.mask)
    x = normal(op.image_shape).to(torch.complex128).requires_grad_()
    assert torch.autograd.gradcheck(op.normal, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(op.normal, x)
    items = normal((3, *op.image_shape)).to(torch.complex128)
    torch.testing.assert_close(torch.func.vmap(op.normal)(items), op.normal(items))


@pytest.mark.parametrize("kind", ["line", "2d"])
def test_maps_that_are_learned_have_a_gradient(kind):
    op, x = make((5, 6), kind), normal((5, 6))
    gradients = []
    for function in (lambda a: a.normal(x), lambda a: a.adjoint(a.forward(x))):
        maps = op.sensitivity_maps.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(function(Sense(maps, op.mask)).abs().square().sum(), maps)
        gradients.append(gradient)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("kind", ["line", "2d"])
def test_one_image_serves_all_items(kind):
    op, x = make((5, 6), kind, batch=3), normal((5, 6))
    for function in (op.forward, op.normal):
        torch.testing.assert_close(function(x), function(x.expand(3, 5, 6)))


def test_blocks_of_rows_and_batches_change_nothing(monkeypatch):
    op, x = make((9, 8), "line"), normal((4, 9, 8))
    whole = op.normal(x)
    assert torch.equal(torch.stack([op.normal(one) for one in x]), whole)
    for size in (1, 2 * 4 * 3 * 8):  # one row, and two rows, which do not divide nine
        for name in ("BLOCK", "THREADED_BLOCK"):
            monkeypatch.setattr(f"mri_ambient.operators.sense.{name}", size)
        assert torch.equal(op.normal(x), whole)


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


class TestSoftSense:
    @staticmethod
    def make(shape, kind, sets=2):
        return SoftSense(normal((sets, 3, *shape), 11), make(shape, kind).mask)

    @pytest.mark.parametrize("kind", ["line", "2d", "full"])
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("sets", [1, 2, 3])
    def test_is_a_linear_operator_with_its_adjoint(self, shape, kind, sets):
        op = self.make(shape, kind, sets)
        assert op.image_shape == (shape[0], sets * shape[1])
        check_linear(op.forward, op.image_shape)
        check_adjoint(op.forward, op.adjoint, op.image_shape, op.kspace_shape)
        check_gradient_is_adjoint(op.forward, op.adjoint, op.image_shape, op.kspace_shape)
        matrix = dense(op.forward, op.image_shape)
        torch.testing.assert_close(dense(op.normal, op.image_shape), matrix.mH @ matrix)

    @pytest.mark.parametrize("kind", ["line", "2d"])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_sums_the_k_space_of_the_sets(self, shape, kind):
        op, images = self.make(shape, kind), normal((4, 2, *shape))
        singles = [Sense(maps, op.mask) for maps in op.each.sensitivity_maps]
        expected = sum(single.forward(images[:, s]) for s, single in enumerate(singles))
        torch.testing.assert_close(op.forward(side_by_side(images)), expected)
        assert torch.equal(op.apart(side_by_side(images)), images)
        kspace = normal((4, *op.kspace_shape))
        torch.testing.assert_close(
            op.apart(op.adjoint(kspace)), torch.stack([single.adjoint(kspace) for single in singles], 1)
        )

    def test_a_second_set_of_zeros_changes_nothing(self):
        one, x = make((5, 6), "line"), normal((5, 6))
        op = SoftSense(torch.stack([one.sensitivity_maps, 0 * one.sensitivity_maps]), one.mask)
        both = side_by_side(torch.stack([x, normal((5, 6), 1)]))
        torch.testing.assert_close(op.forward(both), one.forward(x))
        torch.testing.assert_close(op.apart(op.normal(both)), torch.stack([one.normal(x), torch.zeros_like(x)]))

    def test_what_is_shown_does_not_depend_on_the_basis(self):
        """Orthonormal maps: the magnitude is that of the coil images."""
        maps = torch.linalg.qr(normal((5, 6, 3, 2))).Q.permute(3, 2, 0, 1)
        turn = torch.linalg.qr(normal((5, 6, 2, 2), 1)).Q
        coils = fft2c(normal((3, 5, 6), 2))
        shown = []
        for basis in (maps, torch.einsum("yxst,scyx->tcyx", turn, maps)):
            op = SoftSense(basis, torch.ones(6))
            image = op.adjoint(coils)
            shown.append(op.combine(image).abs())
            torch.testing.assert_close(op.combine(image).angle(), op.apart(image)[0].angle())
        torch.testing.assert_close(shown[0], shown[1])
        spanned = fft2c(torch.einsum("scyx,syx->cyx", maps, SoftSense(maps, torch.ones(6)).each.adjoint(coils)))
        assert spanned.norm() == pytest.approx(float(shown[0].norm()))

    def test_other_masks_and_the_adjoint_operator(self):
        op = self.make((4, 6), "2d")
        y = normal(op.kspace_shape)
        torch.testing.assert_close(op.H(y), op.adjoint(y))
        everything = op.with_mask(np.ones(6))
        assert everything.is_line_mask
        assert everything.sets == 2
        assert torch.equal(everything.to("cpu").each.sensitivity_maps, op.each.sensitivity_maps)
        assert "2 sets" in repr(op)
        assert "2-D" in repr(op)

    @pytest.mark.parametrize(("maps", "mask"), [((3, 6, 8), (8,)), ((2, 3, 6, 8), (7,)), ((2, 3, 6, 8), (2, 1, 8))])
    def test_shapes_that_do_not_fit_are_refused(self, maps, mask):
        with pytest.raises(ValueError, match=r"fit|must be"):
            SoftSense(normal(maps), torch.ones(mask))

    def test_arguments_that_do_not_fit_are_refused(self):
        op = self.make((6, 8), "line")
        with pytest.raises(ValueError, match="cannot take image"):
            op.forward(normal((6, 8)))
        with pytest.raises(ValueError, match="cannot take k-space"):
            op.adjoint(normal((3, 6, 16)))


@pytest.mark.cuda
def test_cuda_agrees_with_the_cpu():
    op, x = make((32, 33), "line"), normal((32, 33))
    torch.testing.assert_close(op.to("cuda").normal(x).cpu(), op.normal(x))
