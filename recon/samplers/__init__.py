"""Published posterior samplers behind one interface: a denoiser, a `Problem`, and a class with one `step`.

`SAMPLERS` holds those that work with any denoiser, as published. `ADPS` needs a denoiser that is told its mask.
"""

from .base import NoiseRange, Problem, Sampler, sample
from .daps import DAPS
from .dds import DDS, DiffPIR
from .dps import ADPS, DPS, further_mask, through_mask
from .mmps import MMPS
from .pnpdm import PnPDM

SAMPLERS: dict[str, Sampler] = {
    "dps": DPS(),
    "dds": DDS(),
    "diffpir": DiffPIR(),
    "daps": DAPS(),
    "pnpdm": PnPDM(),
    "mmps": MMPS(),
}

__all__ = [
    "ADPS",
    "DAPS",
    "DDS",
    "DPS",
    "MMPS",
    "SAMPLERS",
    "DiffPIR",
    "NoiseRange",
    "PnPDM",
    "Problem",
    "Sampler",
    "further_mask",
    "sample",
    "through_mask",
]
