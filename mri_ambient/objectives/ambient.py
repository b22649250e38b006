r"""Ambient training: learning from undersampled, noisy scans alone (noise-aware, weighted form).

A measured scan ``y`` (lines :math:`\Omega`, noise :math:`\sigma_n`) is undersampled further and made noisier,

.. math:: \tilde y = \tilde M (y + \sqrt{s^2 - \sigma_n^2}\, e), \quad \tilde\Omega \subset \Omega, \quad s > \sigma_n ,

and the network sees only :math:`z = \tilde A^H \tilde y`. Its output is compared with the measurement in k-space:

* on held-out lines :math:`\Omega \setminus \tilde\Omega` with ``y`` itself, whose noise never entered the input,
  weighted by :math:`w_j = 1 / P(j \in \Omega \mid \tilde\Omega)`; then the expected loss is the *image* error (up to
  a constant);
* on input lines with :math:`t = y - \sigma_n^2 / \sqrt{s^2 - \sigma_n^2}\, e`, whose expectation given
  the input is the noise-free line. Its variance grows as ``s`` approaches the noise, hence the factor
  :math:`(1 - \sigma_n^2 / s^2)^2`.

The minimiser is ``E[x | z, A~]``, the supervised one. The gradient's variance comes from the lines that happen to be
there to hold out; each scan is therefore weighted by its probability ``P`` (any weight that depends on the input alone
keeps the minimiser), and many lines are held out.

Every step trains the full-mask denoiser on the current reconstructions of the training scans (`Supervised`): first
classical ones, then the network's own, which are good enough above their own error level. The loss on measured lines
costs more than twice as much and is taken in a share of the batches, drawn at random.

References
----------
G. Daras et al., Ambient diffusion, NeurIPS 2023. A. Aali et al., Ambient diffusion posterior sampling, ICLR 2025.
C. Millard, M. Chiew, A theoretical framework for self-supervised MR image reconstruction using sub-sampling via
variable density Noisier2Noise, IEEE TCI 9 (2023) 707-720 (the weights). N. Moran et al., Noisier2Noise, CVPR 2020 and
T. Pang et al., Recorrupted-to-recorrupted, CVPR 2021 (the noise-corrected target).
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mri_ambient.denoiser import Denoiser, log_uniform
from mri_ambient.objectives.base import Batch, complex_normal, expected_error
from mri_ambient.objectives.supervised import Supervised
from mri_ambient.operators import Sense, heldout_weights, split_mask

LEAST_NOISE = 1e-4  # of the input, in prior units


@dataclass(frozen=True)
class Ambient:
    """Further undersampling and noise, compared on measured lines.

    Attributes
    ----------
    keep_range : tuple
        Bounds of the uniform distribution of the share of off-centre lines that stay in the input.
    noise_factor_range : tuple
        Bounds of the log-uniform ratio of the noisier input's noise to the data's.
    measured_share : float
        Share of the batches with the loss on measured lines.
    on_reconstructions : Supervised, optional
        The loss on the current reconstructions. None leaves the measured lines alone.
    """

    keep_range: tuple[float, float] = (0.3, 0.9)
    noise_factor_range: tuple[float, float] = (1.1, 4.0)
    measured_share: float = 0.15
    on_reconstructions: Supervised | None = field(default_factory=lambda: Supervised(reconstruction_share=0.15))

    def loss(self, denoiser: Denoiser, batch: Batch, generator: torch.Generator) -> Tensor:
        """Loss on reconstructions, and in a share of the batches on measured lines."""
        if self.on_reconstructions is None:
            return self.measured(denoiser, batch, generator)
        loss = self.on_reconstructions.loss(denoiser, batch, generator)
        if float(torch.rand((), generator=generator)) < self.measured_share:
            loss = loss + self.measured(denoiser, batch, generator)
        return loss

    def measured(self, denoiser: Denoiser, batch: Batch, generator: torch.Generator) -> Tensor:
        """The loss on measured k-space alone."""
        low, high = self.keep_range
        keep = low + (high - low) * torch.rand(len(batch), generator=generator)
        split = further_undersample(batch, keep, generator)
        factor = log_uniform(*self.noise_factor_range, len(batch), generator).to(batch.kspace.device)
        return heldout_loss(denoiser, batch, split, batch.noise_std * factor, generator)


@dataclass(frozen=True)
class Split:
    """Further undersampling of a batch.

    Attributes
    ----------
    kept : Tensor, bool, shaped like the batch's masks
        What the network sees.
    weights : Tensor, same shape
        1 on kept samples, 1 / P on held-out ones, 0 elsewhere.
    probability : Tensor (batch,)
        Mean probability P with which a sample that is not kept was measured; it depends on the input alone.
    """

    kept: Tensor
    weights: Tensor
    probability: Tensor


def further_undersample(batch: Batch, keep: Tensor, generator: torch.Generator) -> Split:
    """Draw what to keep of each scan of a batch, for shares (batch,) of the samples outside the centre."""
    kept, weights, probabilities = [], [], []
    rows = zip(batch.mask.cpu(), batch.probability.cpu(), batch.acs.tolist(), keep.tolist(), strict=True)
    for mask, acquisition, acs, share in rows:
        line = mask[0] if len(mask) == 1 else mask
        part = split_mask(line, share, generator=generator, acs=acs)
        p = acquisition.reshape(line.shape)
        if bool((p < 0).any()):
            able = torch.nonzero(p)[:, 0]
            padding = int(able[0]), len(p) - 1 - int(able[-1])
            weight = heldout_weights(line, part, acs=acs, padding=padding)
        else:
            weight = heldout_weights(line, part, probability=p, keep=share, acs=acs)
        kept.append(part.reshape(mask.shape))
        weights.append(weight.reshape(mask.shape))
        probabilities.append(heldout_probability(line, part, p, share))
    device = batch.mask.device
    return Split(torch.stack(kept).to(device), torch.stack(weights).to(device), torch.tensor(probabilities).to(device))


def heldout_probability(mask: Tensor, kept: Tensor, acquisition: Tensor, keep: float) -> float:
    """Mean of P(measured | not kept) over what is not kept and could be acquired; 1 where there is nothing."""
    missing = ~kept & (acquisition != 0)
    if not bool(missing.any()):
        return 1.0
    p = acquisition[missing]
    if bool((p < 0).any()):
        return float((mask & missing).sum() / missing.sum())
    return float((p * (1 - keep) / (1 - p * keep).clamp_min(1e-6)).mean())


def heldout_loss(denoiser: Denoiser, batch: Batch, split: Split, sigma: Tensor, generator: torch.Generator) -> Tensor:
    """Weighted error on the measured samples, for given input noise levels (batch,); noise-free data get a little."""
    noise_std, sigma = batch.noise_std, sigma.clamp_min(LEAST_NOISE)
    extra = (sigma**2 - noise_std**2).clamp_min(0).sqrt()[:, None, None, None]
    e = complex_normal(batch.kspace.shape, generator, batch.kspace.device)
    operator = Sense(batch.sensitivity_maps, split.kept)
    estimate = denoiser(operator.adjoint(batch.kspace + extra * e), sigma, operator)

    share = (noise_std / sigma)[:, None, None, None] ** 2
    kept, held_out = split.kept[:, None], (batch.mask & ~split.kept)[:, None]
    correction = torch.where(kept, share / (1 - share).clamp_min(1e-6) * extra * e, 0.0)
    residual = operator.with_mask(batch.mask).forward(estimate) - (batch.kspace - correction)
    weight = torch.where(held_out, split.weights[:, None], (1 - share) ** 2 * kept)
    mean_error = (weight * residual.abs() ** 2).sum((-3, -2, -1)) / (residual.shape[-2] * residual.shape[-1])

    missing = 1 - kept.float().mean((-3, -2, -1))
    expected = expected_error(sigma, missing, denoiser.config.sigma_data)
    return (split.probability * mean_error / expected).sum() / split.probability.sum().clamp_min(1e-6)
