r"""The denoiser ``D(z, sigma, operator)``: one network for every noise level and every sampling mask.

Problem. Given ``z = A^H y`` with ``y = A x + n``, noise ``n`` of standard deviation ``sigma`` per real component,
estimate ``E[x | z, A, sigma]``. With the full mask ``A^H A = I`` and ``z = x + n``: the denoiser of an unconditional
diffusion model. With a partial mask it is a one-step reconstruction.

Preconditioning. Let ``s`` be the standard deviation of the images. A linear (Wiener) estimate comes first,

.. math:: x_0 = (A^H A + \lambda I)^{-1} z, \qquad \lambda = \sigma^2 / s^2 ,

and the network ``F`` (a U-Net on real channels) adds what a linear estimate cannot know:
:math:`v = x_0 + c\,F(\cdot)`. For the full mask :math:`x_0 = c_{skip} z` and
:math:`c = \sigma s / \sqrt{\sigma^2 + s^2}`, the preconditioning of Karras et al. For a partial mask the error does not
vanish with the noise, so ``c`` keeps a floor that grows with the missing fraction.

Data consistency. For partial masks the last layer solves, with a learned :math:`\tau`,

.. math:: D = \arg\min_u \|A u - y\|^2 / \sigma^2 + \|u - v\|^2 / \tau^2 .

Conditioning. ``log sigma`` and the sampled fraction in radial bands of k-space modulate every block of the U-Net. No
normalisation layer looks across pixels, so that a network trained on strips or patches acts the same on whole images.

References
----------
T. Karras et al., Elucidating the design space of diffusion-based generative models, NeurIPS 2022 (preconditioning).
H. K. Aggarwal et al., MoDL: model-based deep learning architecture for inverse problems, IEEE TMI 38 (2019) 394-405
(data consistency as a layer).
"""

import contextlib
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mri_ambient.operators import Sense, conjugate_gradient

MASK_BANDS = 8


@dataclass(frozen=True)
class DenoiserConfig:
    """Size of the network and the scale of its images.

    Attributes
    ----------
    channels : tuple of int
        Width of each resolution level.
    blocks : int
        Residual blocks per level on the way down, and again on the way up.
    embedding : int
        Width of the conditioning vector.
    patch : int
        Side of the pixel blocks that the network folds into channels (1: none). At 2 the first level works at half the
        resolution, where the same time buys a wider network.
    sigma_data : float
        Root mean square of real and imaginary parts of the scaled training images.
    """

    channels: tuple[int, ...] = (32, 64, 128, 192)
    blocks: int = 1
    embedding: int = 128
    patch: int = 1
    sigma_data: float = 0.25

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "DenoiserConfig":
        """Inverse of `to_dict`."""
        return cls(**{**values, "channels": tuple(values["channels"])})


PRESETS: dict[str, DenoiserConfig] = {
    "tiny": DenoiserConfig(channels=(16, 32, 64), blocks=1, embedding=64),
    "small": DenoiserConfig(channels=(64, 128, 192), blocks=1, patch=2),
    "base": DenoiserConfig(channels=(128, 256, 384), blocks=2, embedding=256, patch=2),
}


def zero(layer: nn.Conv2d | nn.Linear) -> None:
    """Set weights and biases of a layer to zero, so that it starts without effect."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()


class Block(nn.Module):
    """Residual block: two 3 x 3 convolutions, the hidden channels scaled and shifted by the conditioning vector."""

    def __init__(self, inputs: int, outputs: int, embedding: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        zero(self.modulation)
        with torch.no_grad():
            self.second.weight *= 0.1  # starts close to the identity, with gradients everywhere

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.modulation(condition)[..., None, None].chunk(2, dim=1)
        hidden = torch.addcmul(shift, self.first(nn.functional.silu(x)), 1 + scale)
        return self.shortcut(x) + self.second(nn.functional.silu(hidden))


def apply(blocks: nn.Module, x: Tensor, condition: Tensor) -> Tensor:
    """Run the blocks of a level one after the other."""
    for block in blocks.children():
        x = block(x, condition)
    return x


class UNet(nn.Module):
    """Convolutional U-Net with additive-concatenated skips; any image size (padded inside to a multiple of its
    stride)."""

    def __init__(self, inputs: int, outputs: int, config: DenoiserConfig) -> None:
        super().__init__()
        widths, e = config.channels, config.embedding
        self.patch = config.patch
        self.stem = nn.Conv2d(inputs * config.patch**2, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        self.shrink = nn.ModuleList()
        self.grow = nn.ModuleList()
        for i, width in enumerate(widths):
            self.down.append(nn.ModuleList([Block(width, width, e) for _ in range(config.blocks)]))
            if i + 1 < len(widths):
                self.shrink.append(nn.Conv2d(width, widths[i + 1], 2, stride=2))
                self.grow.append(nn.ConvTranspose2d(widths[i + 1], width, 2, stride=2))
                ups = [Block(2 * width if j == 0 else width, width, e) for j in range(config.blocks)]
                self.up.append(nn.ModuleList(ups))
        self.middle = Block(widths[-1], widths[-1], e)
        self.head = nn.Conv2d(widths[0], outputs * config.patch**2, 3, padding=1)
        zero(self.head)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        stride = self.patch * 2 ** len(self.shrink)
        x = nn.functional.pad(x, (0, -width % stride, 0, -height % stride))
        x = self.stem(nn.functional.pixel_unshuffle(x, self.patch).contiguous(memory_format=torch.channels_last))
        skips = []
        for i, blocks in enumerate(self.down):
            x = apply(blocks, x, condition)
            if i < len(self.shrink):
                skips.append(x)
                x = self.shrink[i](x)
        x = self.middle(x, condition)
        for i in reversed(range(len(self.grow))):
            x = torch.cat((self.grow[i](x), skips[i]), dim=1)
            x = apply(self.up[i], x, condition)
        x = nn.functional.pixel_shuffle(self.head(nn.functional.silu(x)), self.patch)
        return x[..., :height, :width]


class Denoiser(nn.Module):
    """Complex image denoiser conditioned on noise level and sampling mask.

    Parameters
    ----------
    config : DenoiserConfig
    """

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config = config
        self.network = UNet(4, 2, config)
        self.embed = nn.Sequential(
            nn.Linear(_N_FEATURES, config.embedding),
            nn.SiLU(),
            nn.Linear(config.embedding, config.embedding),
            nn.SiLU(),
        )
        self.log_tau = nn.Linear(config.embedding, 1)
        zero(self.log_tau)
        self.precision = torch.float32

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self.network.stem.weight.device

    def forward(self, z: Tensor, sigma: float | Tensor, operator: Sense | None = None) -> Tensor:
        """Estimate the image.

        Parameters
        ----------
        z : Tensor (batch, y, x), complex64
            ``A^H y`` in prior units (99th percentile of the magnitude about 1); with no operator, image plus noise.
        sigma : float or Tensor (batch,)
            Noise standard deviation per real component of ``y``.
        operator : Sense, optional
            Forward model with one mask for all or one an item. None means fully sampled.

        Returns
        -------
        Tensor (batch, y, x), complex64
        """
        return self.explain(z, sigma, operator)[0]

    def explain(self, z: Tensor, sigma: float | Tensor, operator: Sense | None = None) -> tuple[Tensor, Tensor]:
        """The estimate, and what the network added in units of the expected error; both (batch, y, x)."""
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=z.device).expand(len(z))
        mask = None if operator is None else operator.mask.to(z.device)
        features, missing = _features(sigma, mask, z.shape[-2:], self.config.sigma_data)
        condition = self.embed(features)
        variance = self.config.sigma_data**2
        shrink = variance / (variance + sigma**2)
        c_in = (shrink / variance).sqrt()[:, None, None]
        c_out = (sigma**2 * shrink + MISSING_VARIANCE * variance * missing).sqrt()
        guess = self.first_guess(z, sigma, operator)
        inputs = torch.cat((_channels(z * c_in), _channels(guess / self.config.sigma_data)), dim=1)
        residual = _image(self._run(inputs, condition))
        estimate = guess + c_out[:, None, None] * residual
        if operator is not None:
            tau = c_out * self.log_tau(condition)[:, 0].exp()
            estimate = soft_data_consistency(z, estimate, sigma, tau, operator)
        return estimate, residual

    def first_guess(self, z: Tensor, sigma: Tensor, operator: Sense | None = None) -> Tensor:
        """What the network starts from: the linear estimate."""
        return wiener(z, sigma, operator, self.config.sigma_data)

    def _run(self, inputs: Tensor, condition: Tensor) -> Tensor:
        """The real-valued network, the only part under autocast."""
        inputs = inputs.to(memory_format=torch.channels_last)
        enabled = self.precision != torch.float32
        context = torch.autocast(inputs.device.type, self.precision) if enabled else contextlib.nullcontext()
        with context:
            return self.network(inputs, condition).float()


CONVERGED = 1e-5  # without noise the system is singular: going on after convergence would amplify rounding errors
MISSING_VARIANCE = 0.1  # share of the image variance that undersampling can hide: the acquired centre holds the rest


def wiener(z: Tensor, sigma: Tensor, operator: Sense | None, sigma_data: float, iterations: int = 6) -> Tensor:
    """Linear estimate ``(A^H A + sigma^2 / sigma_data^2)^-1 z`` for white images; differentiable in `z`."""
    ratio = (sigma / sigma_data) ** 2
    if operator is None:
        return z / (1 + ratio)[:, None, None]
    ratio = ratio.clamp_min(1e-3)  # beyond this a few iterations cannot resolve, and noise is amplified
    return conjugate_gradient(operator.normal, z, regularisation=ratio, iterations=iterations, tolerance=0).solution


def soft_data_consistency(
    z: Tensor, estimate: Tensor, sigma: Tensor, tau: Tensor, operator: Sense, iterations: int = 4
) -> Tensor:
    """``argmin_u ||A u - y||^2 / sigma^2 + ||u - estimate||^2 / tau^2``, given ``z = A^H y``; differentiable."""
    ratio = (sigma / tau) ** 2
    rhs = z + ratio[:, None, None] * estimate
    return conjugate_gradient(
        operator.normal, rhs, regularisation=ratio, initial=estimate, iterations=iterations, tolerance=CONVERGED
    ).solution


_N_FEATURES = 8 + MASK_BANDS


def _features(sigma: Tensor, mask: Tensor | None, shape: torch.Size, sigma_data: float) -> tuple[Tensor, Tensor]:
    """Conditioning features (batch, n) and the missing fraction of k-space (batch,)."""
    level = (sigma / sigma_data).clamp_min(1e-6).log()
    waves = level[:, None] * (0.25 * 2.0 ** torch.arange(4, device=sigma.device))
    if mask is None:
        density = sigma.new_ones(len(sigma), MASK_BANDS)
        missing = torch.zeros_like(sigma)
    else:
        density = band_density(mask, shape).expand(len(sigma), -1)
        missing = (1 - mask.float().mean((-2, -1))).expand(len(sigma))
    return torch.cat((waves.sin(), waves.cos(), 2 * density - 1), dim=1), missing


def band_density(mask: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """Sampled fraction in equally wide bands of distance from the k-space centre.

    Parameters
    ----------
    mask : Tensor (1 or y, x) or (batch, 1 or y, x), bool
    shape : (y, x)

    Returns
    -------
    Tensor (batch or 1, MASK_BANDS)
    """
    mask = mask.float() if mask.ndim == 3 else mask.float()[None]
    _, nx = shape
    ny = mask.shape[-2]
    ky = (torch.arange(ny, device=mask.device) - ny // 2).float() / max(ny / 2, 1) if ny > 1 else mask.new_zeros(1)
    kx = (torch.arange(nx, device=mask.device) - nx // 2).float() / (nx / 2)
    radius = torch.maximum(ky.abs()[:, None], kx.abs())
    band = (radius * MASK_BANDS).long().clamp_max(MASK_BANDS - 1).flatten()
    total = torch.zeros(MASK_BANDS, device=mask.device).index_add_(0, band, torch.ones_like(band, dtype=torch.float32))
    sampled = mask.new_zeros(len(mask), MASK_BANDS).index_add_(1, band, mask.flatten(1))
    return sampled / total.clamp_min(1)


def _channels(image: Tensor) -> Tensor:
    return torch.stack((image.real, image.imag), dim=1)


def _image(channels: Tensor) -> Tensor:
    channels = channels.permute(0, 2, 3, 1).contiguous()
    return torch.view_as_complex(channels)


def set_precision(network: nn.Module, precision: torch.dtype) -> None:
    """Let a network, and those it is composed of, run under autocast to this type (float32: no autocast)."""
    for module in network.modules():
        if hasattr(module, "precision"):
            setattr(module, "precision", precision)  # noqa: B010 (modules type their attributes as tensors)


def count_parameters(module: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def log_uniform(low: float, high: float, count: int, generator: torch.Generator) -> Tensor:
    """`count` numbers whose logarithm is uniform between the bounds."""
    u = torch.rand(count, generator=generator)
    return torch.exp(math.log(low) + u * (math.log(high) - math.log(low)))


def noise_schedule(steps: int, high: float, low: float, rho: float = 7.0) -> list[float]:
    """`steps` noise levels from high to low, equally spaced in their rho-th root (Karras et al. 2022)."""
    if steps == 1:
        return [high]
    top, bottom = high ** (1 / rho), low ** (1 / rho)
    return [(top + i / (steps - 1) * (bottom - top)) ** rho for i in range(steps)]
