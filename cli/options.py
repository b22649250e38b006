"""Options that several commands share."""

from typing import Annotated

import typer

from mri_ambient.errors import InputError, SettingError

from .completion import one_of, prior_names

# Names are repeated here, because asking the library for them would make --help load torch; a test compares.
MASKS = ("random", "bernoulli", "equispaced", "gaussian", "poisson")
TRAINING_METHODS = ("ambient", "supervised", "gsure", "tweedie", "bootstrap", "ssdu", "unet", "varnet", "em")
RECON_METHODS = (
    *("posterior", "mmse", "zero-filled", "sense", "l1-wavelet", "tv"),
    *("dps", "adps", "dds", "diffpir", "daps", "pnpdm", "mmps"),
)
PRESETS = ("tiny", "small", "base")
FORMATS = ("h5", "nifti", "dicom", "cfl", "png")
DEFAULT_MASK = "random"

ACCEL = Annotated[
    float | None, typer.Option(help="Undersample fully sampled data this many times.", show_default="as acquired")
]
MASK = Annotated[
    str | None,
    typer.Option(
        help=f"Pattern of --accel: {', '.join(MASKS)}.", show_default=DEFAULT_MASK, autocompletion=one_of(MASKS)
    ),
]


def _storable(seed: int) -> int:
    """A seed that fits into an attribute of HDF5; a range of the type would fill half of the help."""
    if not 0 <= seed < 2**63:
        raise SettingError("seed", f"must lie between 0 and {2**63 - 1}, but is {seed}.")
    return seed


_PRIOR_HELP = "Shipped name, file, or folder of a training run."
PRIOR = Annotated[str, typer.Option(help=_PRIOR_HELP, autocompletion=prior_names)]
PRIOR_ARGUMENT = Annotated[str, typer.Argument(help=_PRIOR_HELP, show_default=False, autocompletion=prior_names)]
SEED = Annotated[int, typer.Option(help="Decides everything random.", callback=_storable)]
DEVICE = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", autocompletion=one_of(("auto", "cpu", "cuda")))]
PRECISION = Annotated[
    str, typer.Option(help="Of the network: auto, bf16, fp32.", autocompletion=one_of(("auto", "bf16", "fp32")))
]
JSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]
QUIET = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]


def chosen_mask(accel: float | None, mask: str | None) -> str:
    """The pattern to use; a pattern without an acceleration is a mistake."""
    if mask is not None and accel is None:
        raise InputError("The option --mask says how --accel undersamples: give --accel as well.")
    return mask or DEFAULT_MASK
