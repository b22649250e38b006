"""Published posterior samplers behind one interface: a denoiser, a `Problem`, and a class with one `step`.

`SAMPLERS` holds all, with their published settings. A-DPS needs a denoiser that sees through a mask (`through_mask`).
"""

from .base import NoiseRange, Problem, Sampler, sample
from .daps import DAPS
from .dds import DDS, DiffPIR
from .dps import ADPS, DPS, further_mask, through_mask
from .mmps import MMPS
from .pnpdm import PnPDM

SAMPLERS: dict[str, Sampler] = {
    "dps": DPS(),
    "adps": ADPS(),
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
