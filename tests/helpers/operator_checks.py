"""Checks that every linear operator has to pass, in double precision."""

from collections.abc import Callable

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]


def normal(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Complex128 white noise."""
    return torch.randn(*shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed))


def inner(a: Tensor, b: Tensor) -> Tensor:
    """<a, b>, conjugate in the first argument."""
    return (a.conj() * b).sum()


def check_linear(forward: Map, domain: tuple[int, ...]) -> None:
    """Additive and homogeneous over the complex numbers."""
    a, b, factor = normal(domain, 1), normal(domain, 2), 0.7 - 1.3j
    torch.testing.assert_close(forward(a + factor * b), forward(a) + factor * forward(b))


def check_adjoint(forward: Map, adjoint: Map, domain: tuple[int, ...], codomain: tuple[int, ...]) -> None:
    """<A x, y> = <x, A^H y>, and both sides have the promised shapes."""
    x, y = normal(domain, 3), normal(codomain, 4)
    assert forward(x).shape == codomain
    assert adjoint(y).shape == domain
    torch.testing.assert_close(inner(forward(x), y), inner(x, adjoint(y)))


def check_gradient_is_adjoint(forward: Map, adjoint: Map, domain: tuple[int, ...], codomain: tuple[int, ...]) -> None:
    """The gradient of 1/2 |A x - y|^2 is A^H (A x - y)."""
    x, y = normal(domain, 5).requires_grad_(), normal(codomain, 6)
    residual = forward(x) - y
    (0.5 * residual.abs().square().sum()).backward()
    torch.testing.assert_close(x.grad, adjoint(residual).detach())


def dense(forward: Map, domain: tuple[int, ...]) -> Tensor:
    """The matrix of a linear map, column by column."""
    size = int(torch.tensor(domain).prod())
    columns = [forward(e.reshape(domain)).flatten() for e in torch.eye(size, dtype=torch.complex128)]
    return torch.stack(columns, dim=1)
