r"""Muon: momentum whose update of a weight matrix has singular values close to one.

For a gradient with momentum :math:`G = U \Sigma V^H`, the update is :math:`U V^H`, computed by five Newton-Schulz steps
(an odd polynomial that takes all singular values of a matrix of norm at most one towards one). Directions with small
gradients move as far as those with large ones. A convolution kernel counts as the matrix
(output channel, everything else). The factor :math:`0.2 \sqrt{\max(\text{rows}, \text{columns})}` makes the update as
large as Adam's, so that both share a learning rate.

References
----------
K. Jordan et al., Muon: an optimizer for hidden layers in neural networks (2024),
https://kellerjordan.github.io/posts/muon (the steps and their coefficients). J. Liu et al., Muon is scalable for LLM
training, arXiv:2502.16982 (2025) (the factor).
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
STEPS = 5
LEAST_CHANNELS = 16  # kernels with fewer, the first and last layer, are no hidden matrices


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for convolution kernels (torch's own Muon takes two-dimensional parameters only).

    Parameters
    ----------
    params : iterable of Tensor
        With two dimensions or more.
    lr, momentum : float
    precision : dtype
        Of the Newton-Schulz steps; bfloat16 is enough and, where the processor has it, faster.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        momentum: float = 0.95,
        precision: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})
        self.precision = precision

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
        ahead = parameter.grad.lerp(state["momentum"], group["momentum"])  # type: ignore[union-attr]
        matrix = ahead.reshape(len(ahead), -1)
        size = 0.2 * max(matrix.shape) ** 0.5
        update = orthogonalise(matrix.to(self.precision)).to(parameter.dtype)
        parameter.add_(update.reshape(parameter.shape), alpha=-group["lr"] * size)


def orthogonalise(matrix: Tensor) -> Tensor:
    """Matrix (m, n) with the same singular vectors and singular values between about 0.7 and 1.2."""
    a, b, c = NEWTON_SCHULZ
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def optimisers(
    network: nn.Module, learning_rate: float, precision: torch.dtype = torch.float32
) -> tuple[torch.optim.Optimizer, ...]:
    """Muon (in the given precision) for the hidden convolutions, Adam for everything else that is trained."""
    trained = [p for p in network.parameters() if p.requires_grad]
    kernels = [p for p in trained if p.ndim == 4 and min(p.shape[:2]) >= LEAST_CHANNELS]
    chosen = {id(p) for p in kernels}
    rest = [p for p in trained if id(p) not in chosen]
    adam = torch.optim.Adam(rest, lr=learning_rate, betas=(0.9, 0.99), fused=True)
    return (Muon(kernels, lr=learning_rate, precision=precision), adam) if kernels else (adam,)
