"""Tiny complex Gaussian images with a known covariance, seen by two coils: everything has a closed form.

Losses of training methods are parabolas in the parameters of a linear denoiser, so that their minimiser follows from
one gradient and one Hessian, and its standard error from repetitions.
"""

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import torch
from torch import Tensor

from mri_ambient.objectives import Batch
from mri_ambient.operators import MaskPattern, Sense, fft2c, ifft2c

SHAPE = (2, 16)
ACS = 4
KINDS = ("random", "bernoulli", "equispaced")
Feature = Callable[[Tensor, Tensor, Sense | None], Tensor]


def white(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Complex noise, standard deviation 1 per component."""
    return torch.view_as_complex(torch.randn(*shape, 2, generator=generator))


class World:
    """Images ``x = C^(1/2) w``: neither pixels nor frequencies are independent, and some are brighter than others.

    Attributes
    ----------
    covariance : Tensor (y * x, y * x)
        Per real component.
    sigma_data : float
    """

    def __init__(self, shape: tuple[int, int] = SHAPE) -> None:
        self.shape = shape
        size = shape[0] * shape[1]
        columns = torch.stack([self._colour(e) for e in torch.eye(size).to(torch.complex64).reshape(size, *shape)])
        root = columns.reshape(size, size).T
        self.covariance = root @ root.mH
        self.sigma_data = float(self.covariance.diagonal().real.mean().sqrt())

    def _colour(self, x: Tensor) -> Tensor:
        ny, nx = self.shape
        frequency = (torch.arange(nx) - nx // 2).abs() / nx
        spectrum = 2.0 / (1 + 6 * frequency)
        window = 1 + 0.5 * torch.cos(2 * torch.pi * (torch.arange(nx) - nx / 3) / nx)
        rows = torch.linspace(0.8, 1.2, ny)[:, None]
        return window * rows * ifft2c(spectrum * fft2c(x))

    def images(self, count: int, generator: torch.Generator) -> Tensor:
        """Images (count, y, x)."""
        return self._colour(white((count, *self.shape), generator))

    def mmse(self, z: Tensor, sigma: Tensor, operator: Sense | None) -> Tensor:
        """``E[x | z]`` for ``z = A^H y`` with noise `sigma` (batch,) in y: ``C (H C + s^2)^-1 z``."""
        normal = dense_normal(operator, len(z)) if operator is not None else torch.eye(z[0].numel()).to(z.dtype)
        system = normal @ self.covariance + diagonal(sigma, z[0].numel())
        solution = torch.linalg.solve(system, z.reshape(len(z), -1, 1))
        return (self.covariance @ solution).reshape(z.shape)


def diagonal(sigma: Tensor, size: int) -> Tensor:
    """``sigma^2 I`` (batch, size, size)."""
    return (sigma**2)[:, None, None] * torch.eye(size)


def dense_normal(operator: Sense, count: int) -> Tensor:
    """``A^H A`` (count, y * x, y * x)."""
    ny, nx = operator.image_shape[-2:]
    units = torch.eye(ny * nx).to(torch.complex64).reshape(ny * nx, 1, ny, nx).expand(-1, count, -1, -1)
    return operator.normal(units).reshape(ny * nx, count, ny * nx).permute(1, 2, 0)


def coil_maps(count: int, shape: tuple[int, int], coils: int, generator: torch.Generator) -> Tensor:
    """Smooth normalised maps (count, coils, y, x) that differ from item to item; one coil is uniform."""
    if coils == 1:
        return torch.ones(count, 1, *shape, dtype=torch.complex64)
    x = torch.arange(shape[1]) / shape[1] + 0.1 * torch.arange(shape[0])[:, None]
    start = 6 * torch.rand(count, coils, 1, 1, generator=generator)
    centre = torch.arange(coils)[:, None, None] / coils
    maps = (1.1 + torch.cos(2 * torch.pi * (x - centre))) * torch.polar(torch.ones(()), 2 * x + start)
    return maps / maps.abs().square().sum(1, keepdim=True).sqrt()


def draw_masks(
    kind: str,
    count: int,
    generator: torch.Generator,
    *,
    shape: tuple[int, int] = SHAPE,
    accel: float = 2.0,
    padding: tuple[int, int] = (0, 0),
) -> tuple[Tensor, Tensor]:
    """Line masks (count, 1, x) with nothing acquired in the padding, and the exact probabilities (x,) of their lines.

    Random lines are a fixed number among those that are no padding.
    """
    width = shape[1]
    possible = torch.zeros(width, dtype=torch.bool)
    possible[padding[0] : width - padding[1]] = True
    pattern = MaskPattern(kind, accel, acs=ACS)
    probability = pattern.probability(shape) * possible
    if kind != "random":
        masks = torch.stack([pattern.sample(shape, generator) for _ in range(count)])
        return (masks & possible)[:, None], probability
    centre = pattern.probability(shape) == 1
    free = possible & ~centre
    lines = round(width / accel) - ACS
    score = torch.rand(count, width, generator=generator).masked_fill(~free, 2.0)
    masks = centre.repeat(count, 1).scatter(1, score.argsort(1)[:, :lines], True)
    return masks[:, None], torch.where(free, lines / free.sum(), centre.float())


def make_batch(
    world: World,
    count: int,
    generator: torch.Generator,
    *,
    kind: str = "random",
    noise_std: float = 0.3,
    accel: float = 2.0,
    coils: int = 2,
    padding: tuple[int, int] = (0, 0),
    image: Tensor | None = None,
) -> Batch:
    """Scans of images of a world (`Batch.image` is the truth); accel 1 is full sampling."""
    image = world.images(count, generator) if image is None else image
    maps = coil_maps(count, world.shape, coils, generator)
    if accel == 1:
        mask, probability = torch.ones(count, 1, world.shape[1], dtype=torch.bool), torch.ones(world.shape[1])
    else:
        mask, probability = draw_masks(kind, count, generator, shape=world.shape, accel=accel, padding=padding)
    kspace = fft2c(maps * image[:, None]) + noise_std * white((count, coils, *world.shape), generator)
    if kind == "random" and accel != 1:
        probability = torch.where(probability > 0, -1.0, 0.0)
    return Batch(
        kspace * mask[:, None],
        maps,
        mask,
        probability.expand(count, 1, -1),
        torch.full((count,), ACS),
        torch.full((count,), noise_std),
        image,
    )


class Linear:
    """``sum_k theta_k f_k(z, sigma, operator)`` with the interface of the denoiser; remembers its calls."""

    def __init__(self, features: Sequence[Feature], theta: Tensor, sigma_data: float = 1.0) -> None:
        self.features = features
        self.theta = theta
        self.config = SimpleNamespace(sigma_data=sigma_data)
        self.calls: list[tuple[Tensor, Tensor, Sense | None]] = []

    def parameters(self) -> list[Tensor]:
        """The coefficients."""
        return [self.theta]

    def __call__(self, z: Tensor, sigma: Tensor, operator: Sense | None = None) -> Tensor:
        self.calls.append((z, sigma, operator))
        parts = torch.stack([f(z, sigma, operator) for f in self.features])
        return torch.tensordot(self.theta.to(parts.dtype), parts, 1)


def parabola(loss: Callable[[Tensor], Tensor], parameters: int) -> tuple[Tensor, Tensor]:
    """Gradient at zero and Hessian of a loss that is quadratic in theta, in double precision."""
    theta = torch.zeros(parameters, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(theta), theta, create_graph=True)
    hessian = [torch.autograd.grad(g, theta, retain_graph=True)[0] for g in gradient]
    return gradient.detach().double(), torch.stack(hessian).double()


def minimiser(losses: Sequence[Callable[[Tensor], Tensor]], parameters: int) -> tuple[Tensor, Tensor]:
    """Minimiser of the mean of independent draws of a loss, and its standard error."""
    gradients, hessians = (torch.stack(c) for c in zip(*(parabola(f, parameters) for f in losses), strict=True))
    inverse = torch.linalg.inv(hessians.mean(0))
    theta = -inverse @ gradients.mean(0)
    influence = (gradients + hessians @ theta) @ inverse.T
    return theta, influence.std(0) / len(losses) ** 0.5


def assert_minimiser(
    losses: Sequence[Callable[[Tensor], Tensor]], expected: Sequence[float], precision: float = 0.05
) -> None:
    """The minimiser is the expected one within 4 standard errors, which are small."""
    theta, error = minimiser(losses, len(expected))
    assert bool((error < precision).all()), f"too few draws: {error}"
    distance = (theta - torch.tensor(expected, dtype=theta.dtype)).abs()
    assert bool((distance < 4 * error + 1e-4).all()), f"{theta} +- {error}, not {expected}"


def assert_same_parabola(
    first: Sequence[Callable[[Tensor], Tensor]], second: Sequence[Callable[[Tensor], Tensor]], parameters: int
) -> None:
    """The expectations of two losses, evaluated on the same random numbers, differ by a constant."""
    pairs = [(parabola(f, parameters), parabola(g, parameters)) for f, g in zip(first, second, strict=True)]
    for part in range(2):
        difference = torch.stack([a[part] - b[part] for a, b in pairs])
        scale = torch.stack([b[1] for _, b in pairs]).mean(0).abs().max()
        error = difference.std(0) / len(pairs) ** 0.5
        assert bool((error < 0.02 * scale).all()), f"too few draws: {error} of {scale}"
        assert bool((difference.mean(0).abs() < 4 * error + 1e-4 * scale).all()), f"{difference.mean(0)} +- {error}"
