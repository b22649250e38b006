"""GRAPPA, by the optional package pygrappa: missing lines as linear combinations of their neighbours over all coils.

The weights are fitted to the fully sampled centre of the same scan, one set for every arrangement of neighbours that
occurs, with kernels of `KERNEL` (y, x) samples. A line with no acquired neighbour in its kernel stays empty, so that
GRAPPA is a method for about R = 2 to 4 with regular lines. Coil images are combined with the maps that all methods get.
The default ridge was chosen between 0.01, which is pygrappa's, and 0.1 on a slice of a patient that trains the shipped
priors.

References
----------
M. A. Griswold et al., Generalized autocalibrating partially parallel acquisitions (GRAPPA), Magn. Reson. Med. 47 (2002)
1202-1210.
"""

from importlib import import_module
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from mri_ambient.calibration import PreparedSlice
from mri_ambient.errors import InputError
from mri_ambient.operators import acs_width

KERNEL = (5, 5)
RIDGE = 0.1


def require_pygrappa() -> None:
    """Refuse to go on without the package.

    Raises
    ------
    InputError
        If it is not installed, with the name of the extra.
    """
    if find_spec("pygrappa") is None:
        raise InputError("The method grappa needs the package pygrappa: pip install mri-ambient[grappa].")


def grappa(item: PreparedSlice, ridge: float = RIDGE) -> Tensor:
    """Reconstruct a slice with a line mask.

    Parameters
    ----------
    item : PreparedSlice
    ridge : float
        Tikhonov weight of the fit, relative to the energy of the neighbours.

    Returns
    -------
    Tensor (y, x), complex64

    Raises
    ------
    ValueError
        If the mask is no line mask.
    InputError
        If pygrappa is not installed.
    """
    if not item.operator.is_line_mask:
        raise ValueError("GRAPPA with fixed kernels needs a line mask")
    require_pygrappa()
    mask = item.operator.mask[0]
    width, lines = len(mask), acs_width(mask)
    first = width // 2 - lines // 2
    kspace = item.kspace.cpu().numpy().astype(np.complex128)
    centre = np.ascontiguousarray(kspace[..., first : first + lines])
    filled = import_module("pygrappa").cgrappa(kspace, centre, kernel_size=KERNEL, coil_axis=0, lamda=ridge)
    everything = item.operator.with_mask(torch.ones(width, dtype=torch.bool))
    return everything.adjoint(torch.from_numpy(np.ascontiguousarray(filled)).to(item.kspace))
