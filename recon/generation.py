r"""Unconditional images: what a prior holds to be plausible, drawn without any data.

With the full mask a prior is a denoiser :math:`D(x, \sigma) \approx E[x_0 \mid x]` of
:math:`x = x_0 + \sigma \epsilon`, and by Tweedie's formula
:math:`\nabla \log p_\sigma(x) = (D(x, \sigma) - x) / \sigma^2`. The probability flow

.. math:: \frac{dx}{d\sigma} = \frac{x - D(x, \sigma)}{\sigma}

carries the marginals :math:`p_\sigma` of all noise levels into each other. `integrate` follows it down a noise schedule
with Heun's second-order rule: a step with the slope at its start, the slope there, and the same step with the mean of
both slopes. From the lowest level the step to zero is the denoiser itself. The path is deterministic, so that all
randomness is in the start.

*Start.* At the highest level of training, fine detail is lost in noise, but coarse structure is not: of an image of 160
x 160, the lowest spatial frequency has about a hundred times the power of noise with :math:`\sigma = 2`. Pure noise is
therefore an image no training ever showed. The start is :math:`x_0 + \sigma \epsilon` with a Gaussian :math:`x_0` that
has the variance of the training images and a typical spectrum of head images with smooth phase, whose power falls like
:math:`(1 + k^2)^{-3/2}`, *k* in cycles per field of view. Where the highest level hides everything, it makes no
difference.

*Limits.* A prior that was trained on narrow strips, or whose highest noise level is low, knows textures but not what a
whole image looks like, and its samples show it. It can still be a good prior for reconstruction, where the data decide
the coarse structure.

References
----------
Y. Song et al., Score-based generative modeling through stochastic differential equations, ICLR 2021 (the flow).
T. Karras et al., Elucidating the design space of diffusion-based generative models, NeurIPS 2022 (Heun's rule on it).
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mri_ambient.allocator import keep_freed_memory
from mri_ambient.denoiser import noise_schedule
from mri_ambient.errors import InputError
from mri_ambient.hdf5 import create_hdf5
from mri_ambient.objectives import Supervised
from mri_ambient.objectives.base import complex_normal
from mri_ambient.operators import ifft2c
from mri_ambient.posterior import ImageDenoiser
from mri_ambient.prior import DEFAULT_PRIOR, Prior
from mri_ambient.recon.export import write_png
from mri_ambient.recon.pipeline import open_prior
from mri_ambient.recon.places import check_folder
from mri_ambient.recon.result import Reconstruction
from mri_ambient.reporter import Reporter, Silent
from mri_ambient.run_state import choose_device
from mri_ambient.streams import stream

STEPS = 50
PIXELS = 2**18  # at most so many in one call of the network
FALL = 3.0  # exponent of the falling power of the start


@torch.no_grad()
def integrate(
    denoiser: ImageDenoiser, image: Tensor, schedule: Sequence[float], on_step: Callable[[], None] = lambda: None
) -> Tensor:
    """Follow the probability flow from the first noise level to zero.

    Parameters
    ----------
    denoiser : callable
        ``(x (batch, y, x), sigma) -> image``.
    image : Tensor (batch, y, x)
        Images with noise of the first level.
    schedule : sequence of float
        Falling, positive noise levels; n of them take ``2 n - 1`` network evaluations.
    on_step : callable
        Called after every level.

    Returns
    -------
    Tensor (batch, y, x)
    """
    for sigma, lower in pairwise(schedule):
        slope = (image - denoiser(image, sigma)) / sigma
        trial = image + (lower - sigma) * slope
        slope = (slope + (trial - denoiser(trial, lower)) / lower) / 2
        image = image + (lower - sigma) * slope
        on_step()
    image = denoiser(image, schedule[-1])
    on_step()
    return image


def starting_image(shape: tuple[int, int], spread: float, sigma: float, generator: torch.Generator) -> Tensor:
    """A Gaussian image with the spectrum of the module, plus white noise.

    Parameters
    ----------
    shape : (y, x)
    spread, sigma : float
        Standard deviation per real component, of the image (its root mean square over pixels) and of the noise.
    generator : torch.Generator

    Returns
    -------
    Tensor (y, x), complex64
    """
    ky, kx = ((torch.arange(n) - n // 2).float() for n in shape)
    power = (1 + ky[:, None] ** 2 + kx**2) ** (-FALL / 2)
    amplitude = spread * (power / power.mean()).sqrt()
    cpu = torch.device("cpu")
    coarse = ifft2c(amplitude * complex_normal(shape, generator, cpu))
    return coarse + sigma * complex_normal(shape, generator, cpu)


def trained_range(prior: Prior) -> tuple[float, float]:
    """Lowest and highest noise level that the full-mask denoiser of a prior was trained at."""
    levels = [row[0] for row in prior.card.get("denoiser_error", [])]
    return (min(levels), max(levels)) if levels else Supervised().sigma_range


def generate(
    prior: Prior | str = DEFAULT_PRIOR,
    count: int = 16,
    matrix: int | tuple[int, int] = 160,
    *,
    steps: int = STEPS,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    reporter: Reporter | None = None,
) -> Tensor:
    """Draw images from a prior.

    Parameters
    ----------
    prior : Prior or str
        A loaded prior, or what `load_prior` takes.
    count : int
        Number of images.
    matrix : int or (y, x)
        Their size in pixels.
    steps : int
        Noise levels; each takes two network evaluations, the last one.
    seed : int
        Image k has its own stream: it does not depend on how many are drawn.
    device, precision : str
        As in `mri_ambient.train`.
    reporter : Reporter, optional

    Returns
    -------
    Tensor (count, y, x), complex64
        In prior units, on the CPU.

    Raises
    ------
    InputError
        If the prior cannot be loaded or draws nonsense, or a number is out of range.
    """
    shape = (matrix, matrix) if isinstance(matrix, int) else matrix
    check_request(count, shape, steps)
    keep_freed_memory()
    loaded = open_prior(prior, *choose_device(device, precision))
    images = torch.cat(list(_batches(loaded, count, shape, steps, seed, reporter or Silent())))
    if not torch.isfinite(torch.view_as_real(images)).all():
        raise InputError(f"The prior {loaded.name} draws values that are not finite: its training did not succeed.")
    return images


def check_request(count: int, shape: tuple[int, int], steps: int = STEPS) -> None:
    """Refuse what `generate` cannot do, before time is spent; raises InputError."""
    if not 1 <= count <= 65536 or not 1 <= steps <= 10_000:
        raise InputError("Sampling needs between 1 and 65536 images and between 1 and 10000 steps.")
    if not all(8 <= side <= 2048 for side in shape):
        raise InputError(f"The matrix must lie between 8 and 2048, but is {' x '.join(map(str, shape))}.")


def _batches(
    prior: Prior, count: int, shape: tuple[int, int], steps: int, seed: int, reporter: Reporter
) -> Iterator[Tensor]:
    low, high = trained_range(prior)
    schedule = noise_schedule(steps, high, low)
    spread = prior.denoiser.config.sigma_data
    size = max(1, PIXELS // math.prod(shape))
    done, total = 0, -(-count // size) * steps

    def on_step() -> None:
        nonlocal done
        done += 1
        reporter.stage("sampling", done, total)

    for first in range(0, count, size):
        streams = [stream(seed, "sample", k) for k in range(first, min(count, first + size))]
        start = torch.stack([starting_image(shape, spread, high, generator) for generator in streams])
        yield integrate(prior.denoiser, start.to(prior.denoiser.device), schedule, on_step).cpu()


def generate_files(
    prior: Prior | str,
    out: str | Path,
    *,
    count: int = 16,
    matrix: int = 160,
    steps: int = STEPS,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Draw images from a prior and write them to ``samples.h5`` and, as a grid of magnitudes, to ``samples.png``.

    Parameters
    ----------
    out : path
        Folder; what is there under these names is replaced.
    others
        As in `generate`.

    Returns
    -------
    dict
        ``files``, ``count``, ``matrix``, and the attributes of the HDF5 file: ``prior``, ``prior_hash``, ``steps``,
        ``seed``, ``sigma_max``, ``versions``.

    Raises
    ------
    InputError
        As `generate`, or if the folder cannot be written.
    """
    out = Path(out)
    check_request(count, (matrix, matrix), steps)
    check_folder(out, count * matrix**2 * 9)
    loaded = open_prior(prior, *choose_device(device, precision))
    images = generate(
        loaded, count, matrix, steps=steps, seed=seed, device=device, precision=precision, reporter=reporter
    )
    attributes = _provenance(loaded, steps, seed)
    with create_hdf5(out / "samples.h5") as file:
        file.create_dataset("samples", data=images.numpy())
        for name, value in attributes.items():
            file.attrs[name] = json.dumps(value) if isinstance(value, dict) else value
    write_png(Reconstruction(images, name="samples"), out / "samples.png")
    files = [str(out / name) for name in ("samples.h5", "samples.png")]
    return {"files": files, "count": count, "matrix": matrix, **attributes}


def _provenance(prior: Prior, steps: int, seed: int) -> dict[str, Any]:
    from mri_ambient import __version__

    return {
        "prior": prior.name,
        "prior_hash": prior.hash,
        "steps": steps,
        "seed": seed,
        "sigma_max": trained_range(prior)[1],
        "versions": {"mri-ambient": __version__, "torch": torch.__version__},
    }
