"""The configuration of a training run: validated once, printed, saved beside the run, compared when it is resumed."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from mri_ambient.denoiser import PRESETS
from mri_ambient.errors import InputError, SettingError

VARIANTS = {  # of each method, the default first
    "ambient": ("weighted", "published"),
    "supervised": ("",),
    "gsure": ("",),
    "tweedie": ("",),
    "bootstrap": ("undersampled", "clean"),
    "ssdu": ("weighted", "published"),
    "unet": ("",),
    "varnet": ("",),
    "em": ("",),
}
METHODS = tuple(VARIANTS)
END_TO_END = ("unet", "varnet")  # supervised reconstruction networks
RECONSTRUCTIONS = ("ssdu", *END_TO_END)  # methods that give a reconstruction network, not a prior
MASKS = ("random", "bernoulli", "equispaced", "gaussian", "poisson")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the result of a training run.

    Attributes
    ----------
    method : str
        "supervised", "unet" and "varnet" learn from fully sampled scans, all others from undersampled ones
        (`mri_ambient.objectives`).
    variant : str
        Of the method, see `VARIANTS`; "" is the default.
    view : str
        Bootstrap: train the prior of this view ("centre:24", "whole") instead of composing.
    views : tuple of str
        Bootstrap: priors of views, to be composed.
    accel : tuple of float
        Retrospective undersampling of fully sampled data: accelerations that the scans take in turn (or one number).
    mask : str
        Family of its masks.
    preset : str
        Size of the network: tiny, small, base.
    images : int
        Training length in examples (patches).
    batch : int
        Patches a step; half as many strips of slices with their k-space come with them.
    patch, strip : int
        Side of a patch, rows of a strip (U-Net and VarNet: whole slices).
    learning_rate : float
        Peak of the schedule (warm-up, then cosine to zero).
    ema : float
        Decay of the averaged weights, a step.
    refreshes : tuple of float
        Ambient: parts of the run after which the reconstructions it trains on are made anew by the network itself.
    coils, matrices
        Simulation of volumes: number of coils, and matrix sizes that the volumes take in turn (none: their own).
    noise : float or None
        Noise per real component. None: for k-space what the file says or its outer samples show; for volumes 0.02 of
        the 99th percentile of the image.
    init : str or None
        Prior to start from.
    laps : int or None
        EM: how often the training scans' posterior is drawn from and learned (None: once), `images` examples a lap.
    seed : int
    """

    method: str = "ambient"
    variant: str = ""
    view: str = ""
    views: tuple[str, ...] = ()
    accel: tuple[float, ...] = (4.0,)
    mask: str = "random"
    preset: str = "small"
    images: int = 60_000
    batch: int = 6
    patch: int = 80
    strip: int = 64
    learning_rate: float = 2e-3
    ema: float = 0.999
    refreshes: tuple[float, ...] = (0.5,)
    coils: int = 8
    matrices: tuple[int, ...] = ()
    noise: float | None = None
    init: str | None = None
    laps: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _one_of("method", self.method, METHODS)
        variants = VARIANTS[self.method]
        if self.variant and variants == ("",):
            raise InputError(f"The method {self.method} has no variants: leave {self.variant!r} out.")
        _one_of("variant", self.form, variants, f" of {self.method}")
        if (self.method == "bootstrap") != bool(self.view or self.views) or (self.view and self.views):
            raise InputError(
                "The method bootstrap, and no other, needs either --view (one to train) or --views (priors to compose)."
            )
        if self.init is not None and self.method in ("bootstrap", *RECONSTRUCTIONS):
            raise InputError(f"The method {self.method} does not start from another prior.")
        self._check_laps()
        _one_of("mask", self.mask, MASKS)
        _one_of("preset", self.preset, tuple(PRESETS))
        object.__setattr__(self, "accel", _numbers(self.accel))
        for accel in self.accel:
            _within("accel", accel, 1, 64)
        _within("images", self.images, 1, 10**9)
        _within("batch", self.batch, 1, 4096)
        _within("patch", self.patch, 16, 4096)
        _within("strip", self.strip, 8, 4096)
        _within("learning_rate", self.learning_rate, 1e-7, 1)
        _within("ema", self.ema, 0, 0.999999)
        _within("coils", self.coils, 1, 64)
        for matrix in self.matrices:
            _within("matrix", matrix, 16, 2048)
        if self.noise is not None:
            _within("noise", self.noise, 0, 1e12)

    def _check_laps(self) -> None:
        if self.method != "em":
            if self.laps is not None:
                raise InputError(f"The method {self.method} has no laps: only em, which starts from --init, has.")
            return
        if self.init is None:
            raise InputError("The method em draws from a prior: name one with --init, a shipped one or a run.")
        object.__setattr__(self, "laps", 1 if self.laps is None else self.laps)
        _within("laps", self.laps or 0, 1, 1000)

    @property
    def form(self) -> str:
        """The variant, or the default one of the method."""
        return self.variant or VARIANTS[self.method][0]

    @property
    def steps(self) -> int:
        """Number of optimiser steps."""
        return -(-self.images // self.batch)

    def to_json(self) -> str:
        """Indented JSON."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "TrainConfig":
        """Inverse of `to_json`; unknown keys are errors.

        Raises
        ------
        InputError
            If a key is unknown or a value out of range.
        """
        values: dict[str, Any] = json.loads(text)
        unknown = set(values) - set(cls.__dataclass_fields__)
        if unknown:
            raise InputError(f"Unknown setting {', '.join(sorted(unknown))} in the configuration.")
        for name in ("refreshes", "matrices", "views"):
            values[name] = tuple(values.get(name, getattr(cls, name)))
        return cls(**values)


def _numbers(value: Any) -> tuple[float, ...]:
    """One number or several as a tuple."""
    numbers = tuple(float(v) for v in (value if isinstance(value, list | tuple) else (value,)))
    if not numbers:
        raise InputError("Name at least one acceleration.")
    return numbers


def _one_of(name: str, value: str, allowed: tuple[str, ...], whose: str = "") -> None:
    if value not in allowed:
        raise SettingError(name, f"{value!r}{whose} is not one of {', '.join(allowed)}.")


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise SettingError(name, f"must lie between {low:g} and {high:g}, but is {value:g}.")
