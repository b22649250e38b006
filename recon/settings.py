"""How to reconstruct: the methods by name, and what decides a result."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from mri_ambient.calibration import PreparedSlice
from mri_ambient.config import RECONSTRUCTIONS
from mri_ambient.errors import InputError
from mri_ambient.operators.classical import cg_sense, l1_wavelet, tv, zero_filled
from mri_ambient.prior import Prior
from mri_ambient.recon.samplers import SAMPLERS

CLASSICAL: dict[str, Callable[[PreparedSlice], Tensor]] = {
    "zero-filled": lambda item: zero_filled(item.kspace, item.operator),
    "sense": lambda item: cg_sense(item.kspace, item.operator, item.noise_std),
    "l1-wavelet": lambda item: l1_wavelet(item.kspace, item.operator, item.noise_std),
    "tv": lambda item: tv(item.kspace, item.operator, item.noise_std),
}
SAMPLED = ("posterior", *SAMPLERS)
LEARNED = (*SAMPLED, "mmse")
METHODS = ("posterior", "mmse", *CLASSICAL, *SAMPLERS)


@dataclass(frozen=True)
class Settings:
    """How to reconstruct.

    Attributes
    ----------
    method : str
        One of `METHODS`.
    samples, steps : int
        Posterior samples, and noise levels of each (for "posterior" as many network evaluations).
    seed : int
    keep_samples, keep_maps : bool
        Hand on the samples and the sensitivity maps too.
    calibrate : bool
        Scale the standard deviations on held-out k-space, which takes a few more samples of a few slices; only with the
        method "posterior", as samples of the published samplers need not be posterior samples.
    """

    method: str = "posterior"
    samples: int = 8
    steps: int = 25
    seed: int = 0
    keep_samples: bool = False
    keep_maps: bool = False
    calibrate: bool = True

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"The method {self.method!r} is not one of {', '.join(METHODS)}.")
        if not 1 <= self.samples <= 4096 or not 1 <= self.steps <= 10_000:
            raise InputError("A posterior needs between 1 and 4096 samples and between 1 and 10000 steps.")


def check_use(prior: Prior, method: str) -> None:
    """Refuse what a prior was not trained for."""
    if "view" in prior.card:
        raise InputError(f"{prior.name} is the prior of a view, not of images: compose it by training with --views.")
    trained = prior.card.get("method")
    if trained in RECONSTRUCTIONS and method != "mmse":
        raise InputError(f"{prior.name} is a reconstruction network ({trained}), not a prior: use --method mmse.")
