r"""GSURE: learning a diffusion prior from undersampled scans of known noise, without holding anything out.

Data ``y = A x + n`` with ``A = M F S`` and noise :math:`\sigma_n`. The denoiser's input is ``u = B y + (more noise)``
with a known linear ``B``, its output ``D(u)`` is compared with the same ``y`` that the input holds, and the term by
which that is too optimistic is known from Stein's lemma alone:

.. math::

    E \|A D - y\|_W^2 = E \|A D - A x\|_W^2 + 2 \sigma_n^2 \,\mathrm{tr}\,W
                        - 2 \sigma_n^2 \, E \,\mathrm{tr}\big(W A \, \tfrac{\partial D}{\partial u} \, B\big) .

Only the part of the input's noise that came with ``y`` counts, hence :math:`\sigma_n^2` at every input level. The last
trace (over real components) is estimated by one Hutchinson probe ``b`` of white k-space noise,
:math:`\mathrm{Re}\langle A^H W b, D(u + \epsilon B b) - D(u)\rangle / \epsilon`. The finite difference costs one more
network evaluation; it is taken instead of automatic differentiation because the denoiser's linear first stage carries
no graph. Terms of second order in the step average out, ``b`` and ``-b`` being equally likely.

Projection and weights. ``A D = A P D`` with ``P`` the projection on the range of ``A^H``: the loss sees the error
``P (D - x)`` alone. The weight is ``W = diag(1 / p)``, ``p`` being each line's probability to be acquired. For one coil
``A^H W A`` is ``P E[P]^-1`` itself, a mask times a weight. For several coils ``P`` mixes lines and no diagonal weight
inverts ``E[P]``; but :math:`E[A^H W A] = I` still holds, so that the expected loss is the error of the whole image, for
an error that does not depend on the mask. (It does depend on it a little, as the input reveals the mask: GSURE assumes
that away, ambient training does not have to.) Measured in k-space, directions that the coils see weakly count by their
eigenvalue, whereas in ``||P (D - A^+ y)||^2`` their amplified noise would rule the gradient; for a network that is told
the mask both have the same minimiser, ``P E[x | u]``.

Two inputs, each with half of the batch:

* *The prior.* The published input for one coil holds measured lines at noise level s and pure noise of the same level
  on all others, and the network is not told the mask. For several coils the noise of ``A^+ y`` is coloured,
  :math:`\sigma_n^2 (A^H A)^+`. With a white image ``c`` and one solve,

  .. math::

      u = s\,c + (A^H A + \mu)^{-1} A^H \big[(1 + \mu)\, y - 2 s A c\big] , \qquad
      \frac{4 \mu}{(1 + \mu)^2} = \frac{\sigma_n^2}{s^2} ,

  has noise that is white, exactly, at level s: on an eigenvector of ``A^H A`` with eigenvalue e the image noise is
  multiplied by ``(mu - e) / (mu + e)`` and the measured noise adds what is missing to one. The signal is multiplied by
  ``(1 + mu) e / (mu + e)``: one where everything is measured, nearly one where coils see enough at this noise level,
  zero where nothing is measured. For one coil (e = 0 or 1) this is the published input; at high levels it is
  ``A^+ y`` plus noise. ``B = (1 + mu) (A^H A + mu)^-1 A^H``.
* *One-step reconstruction.* ``u = A^H (y + sqrt(s^2 - sigma_n^2) e)``, noise :math:`s^2 A^H A`, and the network is
  told the mask, as everywhere else in this project. ``B = A^H``.

What it cannot do. No noise level below the data's is learned (`Tweedie` adds consistency for those); directions that
the input lacks are learned only so far as other masks show them; and at sampling all directions carry signal, which
no training input did unless coils make up for the missing lines.

References
----------
B. Kawar, N. Elata, T. Michaeli, M. Elad, GSURE-based diffusion model training with corrupted data, TMLR 2024 (single
coil). Y. C. Eldar, Generalized SURE for exponential families, IEEE Trans. Signal Process. 57 (2009) 471-481.
H. K. Aggarwal, A. Pramanik, M. John, M. Jacob, ENSURE, IEEE TMI 42 (2023) 1133-1144 (weights from the mask density).
The white multi-coil input is derived here.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mri_ambient.denoiser import Denoiser
from mri_ambient.errors import InputError
from mri_ambient.objectives.base import Batch, complex_normal, expected_error
from mri_ambient.operators import Sense, acs_mask, conjugate_gradient, normal_solver

PROBE_STEP = 0.05  # of the finite difference, in units of the input's noise: right to 1 % in bfloat16 too
SMALLEST_MU = 0.03  # directions with eigenvalues below it are left to noise
ITERATIONS = 14  # reach the exact solution to half a percent


@dataclass(frozen=True)
class GSURE:
    """Measured lines as input and as target, with Stein's correction.

    Attributes
    ----------
    sigma_max : float
        Highest noise level of the prior, in prior units; the lowest is that of the data. Log-uniform.
    noise_factor_range : tuple
        Input noise of one-step reconstruction in units of the data's, at least 1. Log-uniform.
    exact : bool
        Prior: solve line masks row by row through an eigendecomposition instead of by conjugate gradients. It takes
        about as long as a small network and changes the input by less than a hundredth.
    """

    sigma_max: float = 2.0
    noise_factor_range: tuple[float, float] = (1.0, 4.0)
    exact: bool = False

    def loss(self, denoiser: Denoiser, batch: Batch, generator: torch.Generator) -> Tensor:
        """Mean of the two halves' losses."""
        half = len(batch) // 2
        parts = [self.reconstruction(denoiser, subset(batch, slice(half, None)), generator)]
        if half:
            parts.append(self.prior(denoiser, subset(batch, slice(half)), generator))
        return torch.stack(parts).mean()

    def prior(self, denoiser: Denoiser, batch: Batch, generator: torch.Generator) -> Tensor:
        """Loss of the unconditional denoiser, which is not told the mask (the published form)."""
        sigma = log_between(batch.noise_std, batch.noise_std.clamp_min(self.sigma_max), generator)
        operator = Sense(batch.sensitivity_maps, batch.mask)
        probe = complex_normal(batch.kspace.shape, generator, batch.kspace.device)
        u, direction = white_input(operator, batch.kspace, probe, batch.noise_std, sigma, generator, self.exact)
        return stein_loss(denoiser, batch, u, probe, direction, sigma, None)

    def reconstruction(self, denoiser: Denoiser, batch: Batch, generator: torch.Generator) -> Tensor:
        """Loss of one-step reconstruction, the mask being told."""
        low, high = self.noise_factor_range
        sigma = log_between(low * batch.noise_std, high * batch.noise_std, generator)
        operator = Sense(batch.sensitivity_maps, batch.mask)
        extra = (sigma**2 - batch.noise_std**2).clamp_min(0).sqrt()[:, None, None, None]
        noise, probe = (complex_normal(batch.kspace.shape, generator, batch.kspace.device) for _ in range(2))
        u = operator.adjoint(batch.kspace + extra * noise)
        return stein_loss(denoiser, batch, u, probe, operator.adjoint(probe), sigma, operator)


def stein_loss(
    denoiser: Denoiser,
    batch: Batch,
    u: Tensor,
    probe: Tensor,
    direction: Tensor,
    sigma: Tensor,
    operator: Sense | None,
) -> Tensor:
    """Unbiased estimate of the weighted error ``||A (D(u) - x)||_W^2`` a pixel, over the error one expects.

    Parameters
    ----------
    denoiser : Denoiser
    batch : Batch
    u : Tensor (batch, y, x)
        Input.
    probe : Tensor (batch, coil, y, x)
        White noise b.
    direction : Tensor (batch, y, x)
        B b.
    sigma : Tensor (batch,)
        Noise level of the input.
    operator : Sense or None
        What the denoiser is told.
    """
    measured = Sense(batch.sensitivity_maps, batch.mask)
    weight = line_weights(batch)[:, None]
    variance = batch.noise_std**2
    step = PROBE_STEP * sigma
    estimate = denoiser(u, sigma, operator)
    change = denoiser(u + step[:, None, None] * direction, sigma, operator) - estimate
    residual = (measured.forward(estimate) - batch.kspace).abs() ** 2
    error = (weight * (residual - 2 * variance[:, None, None, None])).sum((-3, -2, -1))
    error = error + 2 * variance * divergence(measured.adjoint(weight * probe), change, step)
    expected = level_error(batch, sigma, denoiser.config.sigma_data)
    return (error / (u.shape[-2] * u.shape[-1]) / expected).mean()


def divergence(probe: Tensor, change: Tensor, step: Tensor) -> Tensor:
    """Hutchinson's estimate (batch,) of ``tr(W A J B)``: change of the output along ``B b`` against ``A^H W b``."""
    return (probe.conj() * change).real.sum((-2, -1)) / step


def white_input(
    operator: Sense,
    kspace: Tensor,
    probe: Tensor,
    noise_std: Tensor,
    sigma: Tensor,
    generator: torch.Generator,
    exact: bool = False,
) -> tuple[Tensor, Tensor]:
    """Image with white noise of level `sigma` from measured k-space (module docstring), and ``B b`` of a probe.

    At noise levels so high that mu would fall below `SMALLEST_MU`, noise is added to the k-space first.

    Parameters
    ----------
    operator : Sense
        Batched.
    kspace, probe : Tensor (batch, coil, y, x)
    noise_std, sigma : Tensor (batch,)
        `sigma` not below `noise_std`.
    generator : torch.Generator
    exact : bool
        Row-wise eigendecomposition for line masks.

    Returns
    -------
    Tensor, Tensor (batch, y, x)
    """
    share = (noise_std / sigma).clamp_max(1) ** 2
    mu = (share / (1 + (1 - share).sqrt()) ** 2).clamp_min(SMALLEST_MU)
    level = 2 * mu.sqrt() / (1 + mu) * sigma
    extra = (level**2 - noise_std**2).clamp_min(0).sqrt()[:, None, None, None]
    noisier = kspace + extra * complex_normal(kspace.shape, generator, kspace.device)
    white = sigma[:, None, None] * complex_normal(operator.image_shape, generator, kspace.device)
    gain = (1 + mu)[:, None, None]
    rhs = torch.stack((gain * operator.adjoint(noisier) - 2 * operator.normal(white), gain * operator.adjoint(probe)))
    solution = solve_exactly(operator, rhs, mu) if exact else solve(operator, rhs, mu)
    return white + solution[0], solution[1]


def solve(operator: Sense, rhs: Tensor, mu: Tensor) -> Tensor:
    """``(A^H A + mu) u = rhs`` (items, batch, y, x) for mu (batch,), by conjugate gradients."""
    return conjugate_gradient(operator.normal, rhs, regularisation=mu, iterations=ITERATIONS).solution


def solve_exactly(operator: Sense, rhs: Tensor, mu: Tensor) -> Tensor:
    """The same with the solver that fits the mask: exact for lines."""
    singles = [Sense(*pair) for pair in zip(operator.sensitivity_maps, operator.mask, strict=True)]
    columns = [normal_solver(a).solve(rhs[:, i], float(mu[i])) for i, a in enumerate(singles)]
    return torch.stack(columns, dim=1)


def acquisition_probability(batch: Batch) -> Tensor:
    """Probability of each line or sample, shaped like the masks.

    For a fixed number of uniformly random lines (-1 in the batch) it is the share of off-centre lines that this scan
    acquired of those it could acquire.
    """
    probability = batch.probability.clone()
    for i, acs in enumerate(batch.acs.tolist()):
        counted = batch.probability[i] < 0
        if bool(counted.any()):
            free = counted & ~acs_mask(batch.mask[i, 0] if batch.mask.shape[-2] == 1 else batch.mask[i], acs)
            share = (batch.mask[i] & free).sum() / free.sum().clamp_min(1)
            probability[i] = torch.where(free, share, probability[i].abs())
    return probability


def line_weights(batch: Batch) -> Tensor:
    """``1 / p`` where acquired, 0 elsewhere, shaped like the masks."""
    return torch.where(batch.mask, 1 / acquisition_probability(batch).clamp_min(1e-6), 0.0)


def level_error(batch: Batch, sigma: Tensor, sigma_data: float) -> Tensor:
    """`expected_error` for the part of k-space that the pattern misses on average.

    The part that this mask misses would give masks with many lines another weight, and lines then no longer `1 / p`.
    """
    return expected_error(sigma, 1 - acquisition_probability(batch).mean((-2, -1)), sigma_data)


def log_between(low: Tensor, high: Tensor, generator: torch.Generator) -> Tensor:
    """One number an item (batch,), log-uniform between that item's bounds."""
    share = torch.rand(len(low), generator=generator).to(low.device)
    return low * (high / low) ** share


def subset(batch: Batch, items: slice) -> Batch:
    """Some examples of a batch; its patches, which belong to none of them, are left out."""
    return Batch(**{name: value[items] for name, value in vars(batch).items() if name != "patches"})


def never_acquired(probability: Tensor) -> Tensor:
    """Which lines (x,) between the outermost acquired ones are not, or not fully, covered by a pattern.

    Parameters
    ----------
    probability : Tensor (1 or y, x)
        As in `Batch`: 0 where the pattern acquires nothing. Zeros at the left and right edge are zero padding.
    """
    inside = torch.nonzero((probability != 0).any(dim=-2))[:, 0].tolist()
    if not inside:
        return torch.zeros(0, dtype=torch.bool)
    return (probability[:, inside[0] : inside[-1] + 1] == 0).any(dim=-2)


def require_coverage(probability: Tensor, method: str = "gsure", acs: int = 0) -> None:
    """Refuse data in which some line between acquired ones is never acquired.

    Parameters
    ----------
    probability : Tensor (1 or y, x)
        As in `Batch`, see `never_acquired`.
    method : str
        Name for the message.
    acs : int
        Lines of the fully sampled centre, for the message.

    Raises
    ------
    InputError
        If so, with methods that work.
    """
    never = never_acquired(probability)
    if not len(never):
        raise InputError(f"No line is ever acquired, so that {method} has nothing to learn from.")
    if bool(never.any()):
        fixed = bool(((probability == 0) | (probability == 1)).all())
        why = "all scans acquired the same lines" if fixed else "no scan acquired them"
        raise InputError(
            f"{int(never.sum())} of {len(never)} lines are never seen ({why}), so that --method {method} cannot learn "
            "them: add scans with other masks (shifted offsets), start --method em from a prior that knows such images "
            f"(--init), or learn the fully sampled centre alone (--method bootstrap --view centre:{acs or 'LINES'})."
        )


def require_known_noise(noise_std: Tensor, method: str = "gsure") -> None:
    """Refuse data without a noise level.

    Parameters
    ----------
    noise_std : Tensor
        Of the scans, per real component.
    method : str
        Name for the message.

    Raises
    ------
    InputError
        If a level is not a positive number.
    """
    if not bool((torch.isfinite(noise_std) & (noise_std > 0)).all()):
        raise InputError(
            f"The method {method} needs the noise level of every scan: give it with --noise, or use --method ambient "
            "--variant published, which takes the data as free of noise."
        )
