"""What is measured during training without fully sampled data: error on held-out lines, and pictures.

Lines are held out from the measured k-space of patients that training never sees; the weighted error on them is an
unbiased estimate of the image error (plus the noise). The same strips, lines and noise are used every time; networks
that train on whole slices are validated on whole slices.
"""

from pathlib import Path

import torch
from torch import Tensor

from mri_ambient.config import END_TO_END, TrainConfig
from mri_ambient.dataset import WHOLE, PreparedSlices, Record
from mri_ambient.denoiser import Denoiser, noise_schedule
from mri_ambient.denoiser_error import RINGS, ring_power
from mri_ambient.objectives.ambient import further_undersample, heldout_loss
from mri_ambient.objectives.base import complex_normal
from mri_ambient.streams import stream

VALIDATION_SLICES = 32
ERROR_SLICES = 16


@torch.no_grad()
def reconstruct_record(denoiser: Denoiser, data: PreparedSlices, record: Record) -> Tensor:
    """One-step reconstruction (y, x) of a whole prepared slice."""
    kspace, operator = data.slice(record)
    operator = operator.to(denoiser.device)
    z = operator.adjoint(kspace)
    return denoiser(z[None], record.noise_std, operator)[0].cpu()


@torch.no_grad()
def validate(denoiser: Denoiser, data: PreparedSlices, config: TrainConfig) -> float:
    """Mean weighted error on held-out lines, the same strips, lines and noise every time."""
    errors = []
    rows = WHOLE if config.method in END_TO_END else config.strip
    for number in range(-(-VALIDATION_SLICES // config.batch)):
        generator = stream(config.seed, "validate", number)
        batch = data.batch(config.batch, rows, generator, augment=False).to(denoiser.device)
        split = further_undersample(batch, torch.full((len(batch),), 0.6), generator)
        errors.append(float(heldout_loss(denoiser, batch, split, batch.noise_std * 1.05, generator)))
    return sum(errors) / len(errors)


@torch.no_grad()
def denoiser_error(
    denoiser: Denoiser, data: PreparedSlices, config: TrainConfig
) -> list[tuple[float, float, list[float]]]:
    """Error of the full-mask denoiser on stored images: the table of `DenoiserError`."""
    order = torch.randperm(len(data), generator=stream(config.seed, "denoiser error")).tolist()
    table = []
    for sigma in noise_schedule(12, 2.0, 0.005):
        power, count = torch.zeros(len(RINGS) + 1), torch.zeros(len(RINGS) + 1)
        for number in order[:ERROR_SLICES]:
            image = torch.from_numpy(data.array(data.records[number], "image").copy())[None].to(denoiser.device)
            noise = complex_normal(image.shape, stream(config.seed, "denoiser error", number), image.device)
            more = ring_power((denoiser(image + sigma * noise, sigma) - image).cpu())
            power, count = power + more[0], count + more[1]
        rms = float((power.sum() / count.sum()).sqrt())
        rings = (power / count.clamp_min(1)).sqrt().clamp_min(1e-3 * rms)
        table.append((sigma, rms, rings.tolist()))
    return table


def panel(folder: Path, denoiser: Denoiser, data: PreparedSlices) -> None:
    """Write a picture of one validation slice: stored reconstruction and the network's."""
    from matplotlib.image import imsave

    record = data.records[len(data) // 2]
    stored = torch.from_numpy(data.array(record, "image").copy()).abs()
    image = torch.cat((stored, reconstruct_record(denoiser, data, record).abs()), dim=1)
    imsave(folder / "panel.png", image.numpy(), cmap="gray", vmin=0, vmax=float(stored.max()))
