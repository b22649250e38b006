"""Solvers against dense matrices."""

import pytest
import torch
from operator_checks import dense, normal

from mri_ambient.operators import CgSolver, RowSolver, Sense, conjugate_gradient, normal_solver
from mri_ambient.operators.sense import SoftSense


def make(shape=(5, 6), line=True, coils=3, batch=None, hole=False):
    maps = normal((*(() if batch is None else (batch,)), coils, *shape), 20)
    maps = maps / maps.abs().square().sum(-3, keepdim=True).sqrt()
    if hole:
        maps[..., 0, :] = 0
        maps[..., :, 0] = 0
    lead = () if batch is None else (batch,)
    size = ((*lead, 1, shape[1]) if lead else (shape[1],)) if line else (*lead, *shape)
    mask = torch.rand(size, generator=torch.Generator().manual_seed(3)) > 0.5
    mask[..., shape[1] // 2] = True
    mask[..., 0] = False
    return Sense(maps, mask)


def exact(op, rhs, regularisation):
    matrix = dense(op.normal, op.image_shape)
    eye = torch.eye(len(matrix), dtype=matrix.dtype)
    return torch.linalg.solve(matrix + regularisation * eye, rhs.flatten()).reshape(rhs.shape)


@pytest.mark.parametrize("line", [True, False])
@pytest.mark.parametrize("shape", [(4, 6), (5, 3)])
def test_cg_solves_the_dense_system(shape, line):
    op, rhs = make(shape, line), normal(shape, 1)
    result = conjugate_gradient(op.normal, rhs, regularisation=0.1, iterations=200, tolerance=1e-12)
    assert bool(result.converged)
    torch.testing.assert_close(result.solution, exact(op, rhs, 0.1))


def test_cg_items_do_not_influence_each_other():
    op = make()
    rhs = torch.stack([normal((5, 6), 1), 1e3 * normal((5, 6), 2), torch.zeros(5, 6, dtype=torch.complex128)])
    lam = torch.tensor([0.01, 1.0, 0.5], dtype=torch.float64)
    together = conjugate_gradient(op.normal, rhs, regularisation=lam, iterations=300, tolerance=1e-12)
    assert together.converged.tolist() == [True, True, True]
    for i in range(2):
        torch.testing.assert_close(together.solution[i], exact(op, rhs[i], lam[i]))
    assert together.solution[2].abs().max() == 0
    few = conjugate_gradient(op.normal, rhs[:2], regularisation=lam[:2], iterations=3, tolerance=0)
    alone = conjugate_gradient(op.normal, rhs[1], regularisation=1.0, iterations=3, tolerance=0)
    torch.testing.assert_close(few.solution[1], alone.solution)


def test_cg_reports_when_it_has_not_converged():
    op, rhs = make(), normal((5, 6))
    result = conjugate_gradient(op.normal, rhs, regularisation=1e-6, iterations=2, tolerance=1e-10)
    assert not bool(result.converged)
    assert result.iterations == 2
    residual = rhs - op.normal(result.solution) - 1e-6 * result.solution
    torch.testing.assert_close(result.residual, residual.norm() / rhs.norm())


def test_cg_starts_where_it_is_told_and_refuses_a_negative_regularisation():
    op, rhs = make(), normal((5, 6))
    answer = exact(op, rhs, 0.3)
    result = conjugate_gradient(op.normal, rhs, regularisation=0.3, initial=answer, tolerance=1e-6)
    assert result.iterations == 0
    with pytest.raises(ValueError, match="negative"):
        conjugate_gradient(op.normal, rhs, regularisation=-1.0)


@pytest.mark.parametrize("shape", [(4, 6), (5, 7)])
@pytest.mark.parametrize("hole", [False, True])
def test_rows_are_exact(shape, hole):
    op, rhs = make(shape, hole=hole), normal(shape, 1)
    solver = RowSolver(op)
    torch.testing.assert_close(solver.solve(rhs, 0.05), exact(op, rhs, 0.05))
    torch.testing.assert_close(solver.apply((lambda e: e, rhs)), op.normal(rhs))


@pytest.mark.parametrize("hole", [False, True])
def test_noisy_rows_are_those_of_the_square_root_of_the_normal_operator(hole):
    op, rhs, noise = make((5, 7), hole=hole), normal((3, 5, 7), 1), normal((3, 5, 7), 2)
    values, vectors = torch.linalg.eigh(dense(op.normal, op.image_shape))
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.mH
    levels = torch.tensor([0.01, 0.1, 1.0], dtype=torch.float64)
    found = RowSolver(op).solve_noisy(rhs, noise, levels)
    for one, b, n, level in zip(found, rhs, noise, levels, strict=True):
        expected = exact(op, b + (root @ n.flatten()).reshape(b.shape), float(level))
        torch.testing.assert_close(one, expected, rtol=1e-5, atol=1e-5)


def test_rows_of_batches_and_samples():
    op = make((4, 5), batch=2)
    rhs = normal((3, 2, 4, 5))
    together = RowSolver(op).solve(rhs, 0.2)
    for i in range(2):
        single = Sense(op.sensitivity_maps[i], op.mask[i])
        for k in range(3):
            torch.testing.assert_close(together[k, i], exact(single, rhs[k, i], 0.2))


@pytest.mark.parametrize("shape", [(4, 6), (5, 7)])
@pytest.mark.parametrize("sets", [2, 3])
def test_rows_of_several_sets_of_maps(shape, sets):
    maps = normal((sets, 3, *shape), 21)
    maps[1, :, 2:] = 0  # rows that need one set alone
    maps[:, :, 0] = 0  # and one that needs none
    op = SoftSense(maps, make(shape).mask)
    rhs = normal((4, *op.image_shape), 1)
    solver = RowSolver(op)
    found = solver.solve(rhs, 0.05)
    for one, expected in zip(found, rhs, strict=True):
        torch.testing.assert_close(one, exact(op, expected, 0.05))
    torch.testing.assert_close(solver.apply((lambda e: e, rhs)), op.normal(rhs))
    torch.testing.assert_close(CgSolver(op, 300, 1e-12).solve(rhs, 0.05), found)


def test_pseudo_inverse_and_projection():
    op, x = make((4, 8), coils=1), normal((4, 8))
    matrix = dense(op.normal, op.image_shape)
    solver = RowSolver(op)
    torch.testing.assert_close(solver.pseudo_inverse(x).flatten(), torch.linalg.pinv(matrix, rtol=1e-3) @ x.flatten())
    projected = solver.project(x)
    torch.testing.assert_close(solver.project(projected), projected)
    torch.testing.assert_close(op.normal(projected), op.normal(x))


def test_the_solver_follows_the_mask():
    assert isinstance(normal_solver(make()), RowSolver)
    assert isinstance(normal_solver(make(line=False)), CgSolver)
    with pytest.raises(ValueError, match="phase-encode index alone"):
        RowSolver(make(line=False))


def test_cg_solver_agrees_with_rows():
    op, rhs = make((6, 5)), normal((2, 6, 5))
    torch.testing.assert_close(CgSolver(op, 100, 1e-10).solve(rhs, 0.1), RowSolver(op).solve(rhs, 0.1))


@pytest.mark.parametrize("silently", [True, False])
def test_rows_on_which_single_precision_does_not_converge(monkeypatch, silently):
    op = make((5, 6), hole=True)
    op = Sense(op.sensitivity_maps.to(torch.complex64), op.mask)
    rhs, usual = normal((5, 6)).to(torch.complex64), torch.linalg.eigh
    expected = RowSolver(op).solve(rhs, 0.1)

    def moody(matrices):
        if matrices.dtype != torch.complex64:
            return usual(matrices)
        if silently:
            return torch.linalg.eigvalsh(matrices), torch.full_like(matrices, torch.nan)
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "eigh", moody)
    found = RowSolver(op)
    assert found.eigenvalues.dtype == torch.float32
    torch.testing.assert_close(found.solve(rhs, 0.1), expected)
