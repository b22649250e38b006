r"""The fully sampled centre of a mask, and the split of a mask into kept and held-out samples.

Let line j be acquired with probability :math:`p_j`, the mask being :math:`\Omega`. For
training, a random part of the acquired lines, :math:`\Lambda \subset \Omega`, is kept as input: each off-centre line
with probability q, the ACS always. The rest is held out and scores the output. With weights

.. math:: w_j = 1 \;(j \in \Lambda), \qquad w_j = 1 / P(j \in \Omega \mid \Lambda) \;(j \in \Omega \setminus \Lambda),

the error on measured lines equals, in expectation, the error on all lines, for every error that depends on
:math:`\Lambda` only:

.. math:: E\Big[\sum_{j \in \Omega} w_j |e_j|^2 \,\Big|\, \Lambda\Big] = \sum_j |e_j|^2 .

If lines are acquired independently, :math:`P(j \in \Omega \mid \Lambda) = p_j (1 - q) / (1 - p_j q)`. If the number
of lines is fixed and all off-centre sets are equally likely, a kept and b held-out lines among M off-centre ones
leave b lines hidden among M - a places: :math:`P = b / (M - a)`. Both need :math:`p_j > 0` everywhere, which every
pattern here guarantees. The ACS must be the planned one: lines that touch it by chance and were counted in would
never be held out, and the loss would not see the line next to the ACS.

References
----------
C. Millard, M. Chiew, A theoretical framework for self-supervised MR image reconstruction using sub-sampling via
variable density Noisier2Noise, IEEE Trans. Comput. Imaging 9 (2023) 707-720.
"""

from collections.abc import Sequence

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from .arrays import as_mask


def acs_width(mask: ArrayLike | Tensor) -> int:
    """Return the number of lines (2-D: the side) of the largest fully acquired block centred on index N // 2.

    Parameters
    ----------
    mask : array_like
        Boolean, shape (x,) or (y, x).

    Returns
    -------
    int
        0 if the centre was not acquired. Random lines next to the ACS make it larger than planned.
    """
    mask = as_mask(mask)
    missing = shells(tuple(mask.shape)).to(mask.device)[~mask]
    return int(missing.min()) - 1 if len(missing) else min(mask.shape)


def acs_mask(mask: ArrayLike | Tensor, acs: int | None = None) -> Tensor:
    """Return a boolean tensor like the mask, True on its ACS block (of `acs_width`, or of the given size)."""
    mask = as_mask(mask)
    return shells(tuple(mask.shape)).to(mask.device) <= (acs_width(mask) if acs is None else acs)


def split_mask(
    mask: ArrayLike | Tensor, keep: float, *, generator: torch.Generator | None = None, acs: int | None = None
) -> Tensor:
    """Keep a random part of a mask: each off-centre line (2-D: sample) with probability `keep`, the ACS always.

    Parameters
    ----------
    mask : array_like
        Boolean, shape (x,) or (y, x). Give lines as (x,), or they would be split sample by sample.
    keep : float
        Probability, 0 to 1.
    generator : torch.Generator, optional
        Source of randomness.
    acs : int, optional
        ACS size of the pattern (`MaskPattern.acs_size`). Detected with `acs_width` if not given: random lines that
        happen to touch the ACS are then never held out, so that the line next to the ACS is learnt from fewer
        examples.

    Returns
    -------
    Tensor
        Boolean, same shape and device as the mask, a subset of it.

    Raises
    ------
    ValueError
        If keep is not in [0, 1].
    """
    mask = as_mask(mask)
    if not 0 <= keep <= 1:
        raise ValueError(f"keep is a probability between 0 and 1, not {keep:g}.")
    drawn = (uniform(mask.shape, generator) < keep).to(mask.device)
    return mask & (drawn | acs_mask(mask, acs))


def heldout_weights(
    mask: ArrayLike | Tensor,
    kept: ArrayLike | Tensor,
    *,
    probability: ArrayLike | Tensor | None = None,
    keep: float | None = None,
    acs: int | None = None,
    padding: tuple[int, int] = (0, 0),
) -> Tensor:
    """Return the loss weights that make the measured error equal the full error in expectation (module docstring).

    Parameters
    ----------
    mask : array_like
        Acquired lines or samples, boolean, shape (x,) or (y, x).
    kept : array_like
        Subset of it shown to the network, from `split_mask`.
    probability : array_like, optional
        Acquisition probability of each line or sample, same shape (`MaskPattern.probability`). The weights then take
        lines as independent: exact for bernoulli, exact on average over `kept` for every pattern. Without it the
        pattern is taken as uniformly random with a fixed count, and the weights are exact for it given `kept`.
    keep : float, optional
        The probability given to `split_mask`; needed with `probability`, not used without.
    acs : int, optional
        ACS size, as given to `split_mask`; detected if not given.
    padding : (int, int)
        Zero-padded columns on the left and right that the scanner could never acquire; not counted without
        `probability`.

    Returns
    -------
    Tensor
        float32 like the mask: 0 where not acquired, 1 on kept and ACS samples, 1 / P(acquired | kept) on held-out ones.

    Raises
    ------
    ValueError
        If kept is not a subset of the mask, keep or a probability is missing or out of range, or padding was acquired.
    """
    mask, kept = as_mask(mask), as_mask(kept).to(as_mask(mask).device)
    if mask.shape != kept.shape or bool((kept & ~mask).any()):
        raise ValueError("The kept mask must have the shape of the sampling mask and be a subset of it.")
    centre = acs_mask(mask, acs)
    heldout = mask & ~kept & ~centre
    weights = mask.float()
    if probability is not None:
        p = torch.as_tensor(probability, dtype=torch.float32, device=mask.device)
        if keep is None or not 0 <= keep < 1 or p.shape != mask.shape or bool((p[heldout] <= 0).any()):
            raise ValueError("Weights need keep in [0, 1) and a probability above 0 for each held-out line or sample.")
        return torch.where(heldout, (1 - p * keep) / (p * (1 - keep)), weights)
    left, right = padding
    acquirable = torch.ones_like(mask)
    acquirable[..., :left] = False
    acquirable[..., mask.shape[-1] - right :] = False
    if bool((mask & ~acquirable).any()):
        raise ValueError(f"The mask has acquired samples in the zero-padded columns {padding}.")
    hidden_places = int((acquirable & ~centre & ~kept).sum())
    weights[heldout] = hidden_places / max(int(heldout.sum()), 1)
    return weights


def device_of(generator: torch.Generator | None) -> torch.device:
    """Device on which a generator draws."""
    return generator.device if generator is not None else torch.device("cpu")


def uniform(shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
    """Uniform float64 numbers in [0, 1), on the CPU, from a generator of any device."""
    return torch.rand(tuple(shape), generator=generator, dtype=torch.float64, device=device_of(generator)).cpu()


def shells(shape: tuple[int, ...]) -> Tensor:
    """Size of the smallest centred block that contains each index: the block of n lines is ``shells <= n``."""
    sizes = []
    for axis, length in enumerate(shape):
        offset = torch.arange(length) - length // 2
        size = torch.where(offset < 0, -2 * offset, 2 * offset + 1)
        sizes.append(size.reshape([-1 if i == axis else 1 for i in range(len(shape))]).expand(shape))
    return torch.stack(sizes).amax(0)
