"""Priors whose denoiser and posterior are known: a complex Gaussian and a mixture of two, seen by two coils.

Everything on the side of the oracle is a dense matrix in double precision. Covariances are per real component: those of
complex numbers are twice as large.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from operator_checks import dense, normal
from torch import Tensor

from mri_ambient.operators import RowSolver, Sense
from mri_ambient.recon.samplers import Problem, Sampler, sample

SHAPE = (6, 8)
SIZE = SHAPE[0] * SHAPE[1]
MASKS = {
    "lines R=2": torch.tensor([0, 1, 0, 1, 1, 0, 1, 0]),
    "lines R=4": torch.tensor([0, 0, 0, 1, 1, 0, 0, 0]),
    "points": torch.rand(SHAPE, generator=torch.Generator().manual_seed(1)) > 0.6,
}


@dataclass(frozen=True)
class Prior:
    """A mixture of Gaussians; called as a denoiser it is exact, and differentiable.

    Attributes
    ----------
    weights : Tensor (component,)
    means : Tensor (component, SIZE)
    covariances : Tensor (component, SIZE, SIZE)
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "_eigen", [torch.linalg.eigh(c) for c in self.covariances])

    def __call__(self, noisy: Tensor, sigma: float) -> Tensor:
        """``E[x | x + noise]`` (samples, y, x)."""
        flat = noisy.flatten(1)
        estimates, logs = [], []
        for weight, mean, (values, vectors) in zip(self.weights, self.means, self._eigen, strict=True):
            centred = (flat - mean.to(flat.dtype)) @ vectors.conj().to(flat.dtype)
            variance = (values + sigma**2).to(flat.real.dtype)
            shrunk = centred * (values / (values + sigma**2)).to(flat.real.dtype)
            estimates.append(mean.to(flat.dtype) + shrunk @ vectors.T.to(flat.dtype))
            square = centred.real**2 + centred.imag**2
            logs.append(weight.log().to(variance.dtype) - (square / variance / 2 + variance.log()).sum(1))
        share = torch.stack(logs).softmax(0)
        return sum(p[:, None] * e for p, e in zip(share, estimates, strict=True)).reshape(noisy.shape)

    def posterior(self, operator: Sense, kspace: Tensor, noise_std: float, coupling: float = 0.0) -> "Prior":
        """Given the data: again a mixture. With a coupling, the data are of a copy that differs by that much noise."""
        matrix = dense(lambda x: operator.forward(x.to(torch.complex64)).to(torch.complex128), SHAPE)
        y = kspace.flatten().to(torch.complex128)
        eye = torch.eye(len(y), dtype=torch.complex128)
        same = torch.eye(SIZE, dtype=torch.complex128)
        means, covariances, logs = [], [], []
        for weight, mean, covariance in zip(self.weights, self.means, self.covariances, strict=True):
            evidence = matrix @ (covariance + coupling**2 * same) @ matrix.mH + noise_std**2 * eye
            gain = covariance @ matrix.mH @ torch.linalg.inv(evidence)
            residual = y - matrix @ mean
            means.append(mean + gain @ residual)
            covariances.append(covariance - gain @ matrix @ covariance)
            square = (residual.conj() @ torch.linalg.solve(evidence, residual)).real
            logs.append(weight.log() - square / 2 - torch.logdet(evidence).real)
        covariances = [(c + c.mH) / 2 for c in covariances]
        return Prior(torch.stack(logs).softmax(0), torch.stack(means), torch.stack(covariances))

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean (SIZE,) and covariance (SIZE, SIZE) of the mixture."""
        weights = self.weights.to(torch.complex128)
        mean = weights @ self.means
        apart = self.means - mean
        spread = torch.einsum("k,ki,kj->ij", weights, apart, apart.conj()) / 2
        return mean, torch.einsum("k,kij->ij", weights, self.covariances) + spread

    def shares(self, samples: Tensor) -> Tensor:
        """Mean responsibility (component,) of each component for samples (count, SIZE)."""
        logs = []
        for weight, mean, covariance in zip(self.weights, self.means, self.covariances, strict=True):
            centred = samples.to(torch.complex128) - mean
            solved = torch.linalg.solve(covariance, centred.T).T
            square = (centred.conj() * solved).sum(1).real
            logs.append(weight.log() - square / 2 - torch.logdet(covariance).real)
        return torch.stack(logs).softmax(0).mean(1)


def gaussian(seed: int = 0) -> Prior:
    """One Gaussian: not centred, pixels correlated, of unequal brightness."""
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in SHAPE), indexing="ij")
    place = torch.stack((rows.flatten(), columns.flatten()), 1)
    near = (-(torch.cdist(place, place) ** 2) / 4).exp()
    phase = torch.polar(torch.ones(SIZE, dtype=torch.float64), place @ torch.tensor([0.3, 0.5], dtype=torch.float64))
    bright = 0.3 * (1 + 0.5 * torch.cos(place[:, 1])) * phase
    covariance = bright[:, None] * near * bright.conj() + 0.005 * torch.eye(SIZE)
    return Prior(torch.ones(1, dtype=torch.float64), 0.3 * normal((1, SIZE), seed + 40), covariance[None])


def mixture(gap: float = 3.0) -> Prior:
    """Two Gaussians, `gap` standard deviations apart in what the fewest lines do not show, one slightly brighter."""
    one = gaussian()
    covariance = one.covariances[0]
    root = torch.linalg.cholesky(covariance)
    _, vectors = torch.linalg.eigh(root.mH @ normal_matrix(coils("lines R=4")) @ root)
    means = torch.cat((one.means, one.means + gap * root @ vectors[:, 0]))
    return Prior(torch.tensor([0.4, 0.6], dtype=torch.float64), means, torch.stack((covariance, 0.97 * covariance)))


def coils(mask: str) -> Sense:
    """Two coils and one of `MASKS`."""
    maps = normal((2, *SHAPE), 1)
    return Sense((maps / maps.abs().square().sum(0).sqrt()).to(torch.complex64), MASKS[mask])


def normal_matrix(operator: Sense) -> Tensor:
    """``A^H A`` (SIZE, SIZE), complex128."""
    matrix = dense(lambda x: operator.normal(x.to(torch.complex64)).to(torch.complex128), SHAPE)
    return (matrix + matrix.mH) / 2


class ManySamples(Problem):
    """Draws the noise of all samples from one stream: thousands of generators would take most of a test's time."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.stream = torch.Generator().manual_seed(7)

    def noise(self, generators: Sequence[torch.Generator], coils: bool = False) -> Tensor:
        """White noise."""
        shape = self.operator.kspace_shape if coils else self.operator.image_shape
        return torch.view_as_complex(torch.randn(len(generators), *shape, 2, generator=self.stream))


class Impulses(Problem):
    """Its noise is a unit impulse for each of the last samples: their outcomes are the columns of the noise's effect.

    The first `quiet` samples have no noise. Before the first pass, `sizes` collects how many numbers each call draws.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.quiet = 0
        self.calls = 0
        self.sizes: list[int] = []

    def noise(self, generators: Sequence[torch.Generator], coils: bool = False) -> Tensor:
        """Zero (samples, ...) but for the impulses of this call."""
        shape = self.operator.kspace_shape if coils else self.operator.image_shape
        size = shape.numel() if isinstance(shape, torch.Size) else int(torch.tensor(shape).prod())
        noise = torch.zeros(len(generators), size, dtype=torch.complex64)
        if self.quiet:
            first = self.quiet + sum(self.sizes[: self.calls])
            noise[first : first + size] = torch.eye(size)
        else:
            self.sizes.append(size)
        self.calls += 1
        return noise.reshape(-1, *shape)


class Dense:
    """Exact solver for any mask, and not the row-wise one, so that samplers take their general path."""

    def __init__(self, operator: Sense) -> None:
        values, vectors = torch.linalg.eigh(normal_matrix(operator))
        self.values, self.vectors = values.clamp_min(0).float(), vectors.to(torch.complex64)

    def solve(self, rhs: Tensor, regularisation: float, initial: Tensor | None = None) -> Tensor:
        """``(A^H A + regularisation)^-1 rhs``."""
        del initial
        rotated = rhs.flatten(-2) @ self.vectors.conj()
        return ((rotated / (self.values + regularisation)) @ self.vectors.T).reshape(rhs.shape)


@dataclass(frozen=True)
class Scan:
    """Simulated data of one prior."""

    prior: Prior
    operator: Sense
    kspace: Tensor
    noise_std: float

    def problem(self, kind: type[Problem] = ManySamples, denoiser=None) -> Problem:
        """The problem with the exact denoiser and an exact solver."""
        op = self.operator
        solver = RowSolver(op) if op.is_line_mask else Dense(op)
        return kind(denoiser or self.prior, self.kspace, op, self.noise_std, solver)

    def posterior(self, coupling: float = 0.0) -> Prior:
        """The oracle."""
        return self.prior.posterior(self.operator, self.kspace, self.noise_std, coupling)


def simulate(prior: Prior, mask: str = "lines R=2", noise_std: float = 0.1, seed: int = 0) -> Scan:
    """A scan of an image half-way between the components."""
    operator = coils(mask)
    root = torch.linalg.cholesky(2 * prior.covariances[0])
    image = (prior.means.mean(0) + root @ normal((SIZE,), seed + 60)).reshape(SHAPE).to(torch.complex64)
    noise = 2**0.5 * noise_std * normal(operator.kspace_shape, seed + 80).to(torch.complex64)
    return Scan(prior, operator, operator.forward(image) + noise * operator.mask, noise_std)


@dataclass(frozen=True)
class Miss:
    """How far samples are from a posterior.

    Attributes
    ----------
    bias : float
        Distance of the means, in root mean square posterior standard deviations.
    spread : float
        Total standard deviation of the samples over that of the posterior.
    shape : float
        Frobenius distance of the covariances over the norm of the posterior's.
    z_mean, z_covariance : float
        Largest difference of an entry of mean and covariance, in Monte-Carlo standard errors.
    """

    bias: float
    spread: float
    shape: float
    z_mean: float
    z_covariance: float


def miss(samples: Tensor, mean: Tensor, covariance: Tensor) -> Miss:
    """Compare samples (count, y, x) with a mean and a covariance per component."""
    flat = samples.flatten(1).to(torch.complex128)
    count, centred = len(flat), flat - mean
    covariance = 2 * covariance
    diagonal = covariance.diagonal().real
    found = centred.T @ centred.conj() / count
    own = flat - flat.mean(0)
    scale = (diagonal[:, None] * diagonal).sqrt() / count**0.5
    return Miss(
        bias=float((centred.mean(0).abs().square().sum() / diagonal.sum()).sqrt()),
        spread=float((own.abs().square().mean(0).sum() / diagonal.sum()).sqrt()),
        shape=float(torch.linalg.norm(own.T @ own.conj() / count - covariance) / torch.linalg.norm(covariance)),
        z_mean=float((centred.mean(0).abs() / (diagonal / count).sqrt()).max()),
        z_covariance=float(((found - covariance).abs() / scale).max()),
    )


def run(sampler: Sampler, problem: Problem, samples: int, steps: int) -> Tensor:
    """Samples (count, y, x) from a start that says nothing."""
    generators = [torch.Generator()] * samples
    return sample(sampler, problem, samples, steps, generators, torch.zeros(SHAPE, dtype=torch.complex64))


def probe(sampler: Sampler, scan: Scan, sigma: float, next_sigma: float) -> tuple[Tensor, Tensor, Tensor]:
    """What a step, affine in image and noise, does: matrix of the image, matrix of the noise, value at zero."""
    problem = scan.problem(Impulses)
    sampler.step(torch.zeros(1, *SHAPE, dtype=torch.complex64), sigma, next_sigma, problem, [torch.Generator()])
    quiet = torch.cat((torch.zeros(1, SIZE), torch.eye(SIZE)))
    problem.quiet, problem.calls = len(quiet), 0
    inputs = torch.cat((quiet, torch.zeros(sum(problem.sizes), SIZE))).to(torch.complex64)
    generators = [torch.Generator()] * len(inputs)
    outcome = sampler.step(inputs.reshape(-1, *SHAPE), sigma, next_sigma, problem, generators)
    outcome = outcome.flatten(1).to(torch.complex128)
    effects = (outcome[1:] - outcome[0]).T
    return effects[:, :SIZE], effects[:, SIZE:], outcome[0]


def propagate(sampler: Sampler, scan: Scan, steps: int) -> tuple[Tensor, Tensor]:
    """Exact mean and covariance per component of the samples, where steps are affine; starts as `run` does."""
    levels = sampler.levels(steps)
    mean = torch.zeros(SIZE, dtype=torch.complex128)
    covariance = levels[0] ** 2 * torch.eye(SIZE, dtype=torch.complex128)
    known: dict[tuple[float, float], tuple[Tensor, Tensor, Tensor]] = {}
    for pair in pairwise([*levels, 0.0]):
        if pair not in known:
            known[pair] = probe(sampler, scan, *pair)
        image, noise, shift = known[pair]
        mean = image @ mean + shift
        covariance = image @ covariance @ image.mH + noise @ noise.mH
    return mean, covariance


def distance(mean: Tensor, covariance: Tensor, posterior: Prior) -> Miss:
    """As `miss`, of exact moments; the scores are zero."""
    true_mean, true = posterior.moments()
    variance = true.diagonal().real.sum()
    return Miss(
        bias=float(((mean - true_mean).abs().square().sum() / 2 / variance).sqrt()),
        spread=float((covariance.diagonal().real.sum() / variance).sqrt()),
        shape=float(torch.linalg.norm(covariance - true) / torch.linalg.norm(true)),
        z_mean=0.0,
        z_covariance=0.0,
    )


def masked_denoiser(prior: Prior, operator: Sense) -> Callable[[Tensor, float, Sense], Tensor]:
    """``E[x | A^H y]`` of a Gaussian for data with noise `sigma`, as a denoiser that is told its operator."""
    matrix, mean, covariance = normal_matrix(operator), prior.means[0], prior.covariances[0]

    def denoise(z: Tensor, sigma: float, told: Sense) -> Tensor:
        assert told is operator
        gain = covariance @ torch.linalg.inv(matrix @ covariance + sigma**2 * torch.eye(SIZE))
        offset = mean - gain @ matrix @ mean
        return (z.flatten(1) @ gain.T.to(z.dtype) + offset.to(z.dtype)).reshape(z.shape)

    return denoise
