"""Diffusion priors for MRI learned from undersampled, noisy k-space, and reconstruction with error bars.

The names below load on first use, so that importing the package costs little more than importing torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_LAZY = {
    "Prior": "mri_ambient.prior",
    "Reconstruction": "mri_ambient.recon.result",
    "Scan": "mri_ambient.scan",
    "from_deepinv": "mri_ambient.interop",
    "load_prior": "mri_ambient.prior",
    "load_scan": "mri_ambient.scan",
    "load_scans": "mri_ambient.scan",
    "load_volume": "mri_ambient.volumes",
    "reconstruct": "mri_ambient.recon.pipeline",
    "simulate_scan": "mri_ambient.simulate",
    "to_deepinv": "mri_ambient.interop",
    "to_sigpy": "mri_ambient.interop",
    "train": "mri_ambient.recon.em",
    "write_scan": "mri_ambient.scan",
}
__all__ = [
    "Prior",
    "Reconstruction",
    "Scan",
    "__version__",
    "from_deepinv",
    "load_prior",
    "load_scan",
    "load_scans",
    "load_volume",
    "reconstruct",
    "simulate_scan",
    "to_deepinv",
    "to_sigpy",
    "train",
    "write_scan",
]

if TYPE_CHECKING:
    from mri_ambient.interop import from_deepinv, to_deepinv, to_sigpy
    from mri_ambient.prior import Prior, load_prior
    from mri_ambient.recon.em import train
    from mri_ambient.recon.pipeline import reconstruct
    from mri_ambient.recon.result import Reconstruction
    from mri_ambient.scan import Scan, load_scan, load_scans, write_scan
    from mri_ambient.simulate import simulate_scan
    from mri_ambient.volumes import load_volume


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
