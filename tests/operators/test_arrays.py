"""NumPy arrays in any memory layout, and eigenvectors that can be relied on."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from operator_checks import normal

from mri_ambient.operators import RowSolver, Sense, fft2c, rss
from mri_ambient.operators.arrays import as_mask, eigh
from mri_ambient.scan import Scan


@pytest.mark.parametrize(
    "change", [lambda x: x[..., ::-1], lambda x: x.astype(x.dtype.newbyteorder()), np.asfortranarray]
)
def test_memory_layout_and_byte_order_do_not_matter(change):
    samples = normal((1, 2, 10, 12), 1).to(torch.complex64).numpy()
    other = change(samples)
    same = torch.from_numpy(np.ascontiguousarray(other, np.complex64))
    assert torch.equal(fft2c(other), fft2c(same))
    assert torch.equal(rss(other), rss(same))
    assert torch.equal(as_mask(other.real > 0), same.real > 0)
    scan = Scan.from_arrays(other, mask=np.ones(12, bool)[::-1], target=np.abs(other[:, 0]))
    assert torch.equal(scan.read(0), same[0])
    torch.testing.assert_close(scan.read_target(0), same[0, 0].abs())


@pytest.mark.parametrize("count", [1, 7])
def test_threads_share_a_batch_of_matrices(count, monkeypatch):
    matrices = normal((count, 6, 6), 1)
    matrices = matrices + matrices.mH
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    values, vectors = eigh(matrices)
    torch.testing.assert_close((vectors * values[:, None]) @ vectors.mH, matrices)
    torch.testing.assert_close(values, torch.linalg.eigvalsh(matrices))


def test_the_number_of_threads_stays():
    """In a process of its own, with two threads that sleep: what comes after runs as before."""
    code = """
import torch
from mri_ambient.operators.arrays import eigh

a = torch.randn(40, 256, 256, dtype=torch.complex64)
eigh(a @ a.mH)
x = torch.linalg.solve(a, a)
assert (x - torch.eye(256)).abs().amax() < 0.1
assert torch.get_num_threads() == 2
"""
    environment = os.environ | {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env=environment)


@pytest.mark.cuda
def test_eigenvectors_on_a_gpu():
    matrices = normal((300, 200, 200), 1).to(torch.complex64)
    matrices = matrices @ matrices.mH / 200
    values, vectors = eigh(matrices.cuda())
    assert vectors.is_cuda
    again = (vectors * values[:, None]) @ vectors.mH
    torch.testing.assert_close(again.cpu(), matrices, atol=1e-3, rtol=1e-3)
    many = normal((2**15 + 3, 4, 4), 2).to(torch.complex64)
    torch.testing.assert_close(eigh((many + many.mH).cuda())[0].cpu(), eigh(many + many.mH)[0], atol=1e-4, rtol=1e-4)


@pytest.mark.cuda
def test_the_row_solver_on_a_gpu():
    maps = normal((4, 60, 64), 1).to(torch.complex64)
    op = Sense(maps / rss(maps, dim=0), torch.arange(64) % 3 == 0)
    rhs = normal((5, 60, 64), 2).to(torch.complex64)
    found = RowSolver(op.to("cuda")).solve_noisy(rhs.cuda(), 0.1 * rhs.cuda(), 0.01)
    torch.testing.assert_close(found.cpu(), RowSolver(op).solve_noisy(rhs, 0.1 * rhs, 0.01), atol=1e-3, rtol=1e-3)
