r"""The forward model in the terms of other libraries, and back.

All use the centred, orthonormal FFT of `mri_ambient.operators`, so that operators are equal number by number; what
differs is how complex numbers are laid out:

======== ============================================ =====================================================
library  image, k-space                               from and to the tensors used here
======== ============================================ =====================================================
NumPy    complex ``(y, x)``, ``(coil, y, x)``         arrays are taken wherever tensors are; ``tensor.numpy()``
SigPy    the same, as NumPy arrays                    the same
fastMRI  real ``(..., y, x, 2)``                      `torch.view_as_real`, `torch.view_as_complex`
deepinv  real ``(batch, 2, y, x)``,                   `to_channels`, `from_channels`
         ``(batch, 2, coil, y, x)``
======== ============================================ =====================================================

Noise: ``sigma`` of deepinv's `GaussianNoise` is the standard deviation of every real number, which is the `noise_std`
per real component used here.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from mri_ambient.errors import InputError
from mri_ambient.operators import Sense, as_complex


def to_channels(x: Any) -> Tensor:
    """Complex numbers as two channels, as deepinv and convolutional networks have them.

    Parameters
    ----------
    x : array (batch, ...)
        Complex.

    Returns
    -------
    Tensor (batch, 2, ...)
        Real part, imaginary part.
    """
    return torch.view_as_real(as_complex(x).resolve_conj()).movedim(-1, 1)


def from_channels(x: Any) -> Tensor:
    """Inverse of `to_channels`.

    Raises
    ------
    InputError
        If the second axis does not have length 2.
    """
    x = torch.as_tensor(x)
    if x.ndim < 2 or x.shape[1] != 2:
        raise InputError(f"The second axis of {tuple(x.shape)} must be that of real and imaginary part, of length 2.")
    return torch.view_as_complex(x.movedim(1, -1).contiguous())


def to_deepinv(operator: Sense, noise_std: float | None = None) -> Any:
    """The operator as physics of deepinv.

    Parameters
    ----------
    operator : Sense
    noise_std : float, optional
        Standard deviation per real component of the noise that the physics adds to measurements; none by default.

    Returns
    -------
    deepinv.physics.MultiCoilMRI
        From ``(batch, 2, y, x)`` to ``(batch, 2, coil, y, x)``; without a batch axis the batch is 1.

    Raises
    ------
    InputError
        If deepinv is not installed, or the operator has several sets of maps.
    """
    _require_one_set(operator)
    if find_spec("deepinv") is None:
        raise InputError("The function to_deepinv needs the package deepinv: pip install mri-ambient[deepinv].")
    physics = import_module("deepinv.physics")
    maps, mask = operator.sensitivity_maps, operator.mask
    mask = mask[None] if mask.ndim == 2 else mask
    channels = mask[:, None].to(maps.real.dtype).expand(-1, 2, *operator.image_shape[-2:])
    noise = {} if noise_std is None else {"noise_model": physics.GaussianNoise(sigma=noise_std)}
    return physics.MultiCoilMRI(
        mask=channels.contiguous(),
        coil_maps=maps[None] if maps.ndim == 3 else maps,
        device=operator.device,
        **noise,
    )


def from_deepinv(physics: Any) -> Sense:
    """The operator of a multi-coil physics of deepinv; the inverse of `to_deepinv`, with a batch axis.

    Parameters
    ----------
    physics : deepinv.physics.MultiCoilMRI

    Raises
    ------
    InputError
        If it is another physics, is 3-D, or treats real and imaginary part differently.
    """
    maps, mask = getattr(physics, "coil_maps", None), getattr(physics, "mask", None)
    if maps is None or mask is None or maps.ndim != 4 or mask.ndim != 4:
        raise InputError(f"{type(physics).__name__} is not a 2-D MultiCoilMRI: it has no maps (batch, coil, y, x).")
    if not torch.equal(mask[:, 0], mask[:, -1]):
        raise InputError("The mask differs between real and imaginary part, which no scan does.")
    rows = mask[:, 0]
    same = bool((rows == rows[:, :1]).all())  # in all rows: a line mask, for which the operator is faster
    return Sense(maps, rows[:, :1] if same else rows)


def to_sigpy(operator: Sense) -> Any:
    """The operator as a linear operator of SigPy, for NumPy arrays.

    Parameters
    ----------
    operator : Sense
        Of one slice.

    Returns
    -------
    sigpy.linop.Linop
        From ``(y, x)`` to ``(coil, y, x)``.

    Raises
    ------
    InputError
        If the operator has a batch axis or several sets of maps.
    """
    _require_one_set(operator)
    if len(operator.image_shape) > 2:
        raise InputError(f"{operator!r} has a batch axis, which SigPy's operator has not: convert slice by slice.")
    linop = import_module("sigpy.mri.linop")
    maps = operator.sensitivity_maps.detach().cpu().numpy()
    mask = operator.mask.cpu().expand(operator.image_shape).numpy().astype(maps.real.dtype)
    return linop.Sense(maps, weights=mask)


def _require_one_set(operator: Sense) -> None:
    if operator.sets > 1:
        raise InputError(f"{operator!r} has {operator.sets} sets of maps, which this library has no operator for.")
