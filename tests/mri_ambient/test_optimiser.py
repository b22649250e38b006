"""Muon: its update against a singular value decomposition, its size against Adam's, and which weights it takes."""

import pytest
import torch
from torch import nn

from mri_ambient.optimiser import Muon, optimisers, orthogonalise


@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (12, 12)])
def test_singular_values_move_to_one_and_vectors_stay(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    inside = u.T @ orthogonalise(matrix) @ v.T
    values = inside.diagonal()
    torch.testing.assert_close(inside, values.diag(), atol=1e-6, rtol=0)
    assert bool(((values > 0.6) & (values < 1.3)).all())


def test_the_first_step_is_as_large_as_adams():
    kernel = nn.Parameter(torch.zeros(24, 16, 3, 3))
    kernel.grad = torch.randn(kernel.shape, generator=torch.Generator().manual_seed(0)) * 1e-4  # its size is no matter
    Muon([kernel], lr=0.01).step()
    rms = kernel.detach().square().mean().sqrt()
    # rank 24 of a 24 x 144 matrix: sqrt(24 / (24 * 144)) * 0.2 * sqrt(144) = 0.2, as Adam's in the long run
    assert float(rms) == pytest.approx(0.01 * 0.2, rel=0.2)
    assert float((kernel.detach() * kernel.grad).sum()) < 0


def test_momentum_remembers_the_gradients():
    kernel = nn.Parameter(torch.zeros(16, 16, 1, 1))
    muon = Muon([kernel], lr=1.0, momentum=0.5)
    first, second = torch.randn(2, 16, 16, 1, 1, generator=torch.Generator().manual_seed(0)).unbind()
    for gradient in (first, second):
        kernel.grad = gradient
        before = kernel.detach().clone()
        muon.step()
    ahead = 0.5 * second + 0.5 * (0.5 * second + 0.25 * first)
    expected = -0.2 * 4 * orthogonalise(ahead.reshape(16, 16))
    torch.testing.assert_close((kernel.detach() - before).reshape(16, 16), expected)


def test_hidden_kernels_go_to_muon_and_the_rest_to_adam():
    network = nn.Sequential(nn.Conv2d(4, 32, 3), nn.Conv2d(32, 32, 3), nn.Conv2d(32, 2, 3), nn.Linear(32, 32))
    frozen = nn.Conv2d(32, 32, 3).requires_grad_(False)
    muon, adam = optimisers(nn.Sequential(network, frozen), 1e-3)
    assert [p is network[1].weight for group in muon.param_groups for p in group["params"]] == [True]
    assert sum(len(group["params"]) for group in adam.param_groups) == 7
    (alone,) = optimisers(network[3], 1e-3)
    assert isinstance(alone, torch.optim.Adam)
