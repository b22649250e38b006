r"""Reconstructions without a learned prior: the yardsticks.

With :math:`A` the multi-coil forward model (`mri_ambient.operators.Sense`) and :math:`y` the masked k-space of a slice,

===========  ===============================================================================================
zero_filled  :math:`A^H y`
cg_sense     :math:`\arg\min_x \tfrac12\|Ax - y\|^2 + \tfrac{\lambda}{2}\|x\|^2`
l1_wavelet   :math:`\arg\min_x \tfrac12\|Ax - y\|^2 + \lambda\|\Psi x\|_1`, orthogonal wavelets (Daubechies 4)
tv           :math:`\arg\min_x \tfrac12\|Ax - y\|^2 + \lambda\|\nabla x\|_1`, periodic differences of both axes
===========  ===============================================================================================

The 1-norm of a complex array sums moduli. The last two run SigPy's solvers. Left alone, these choose their step sizes
by a power iteration from NumPy's global random state, so that two runs differ. Here maps are first divided by the root
of :math:`\max_r \sum_c |S_c(r)|^2` (summed over sets of maps), so that :math:`\|A\| \le 1`, and the steps come from
this bound and :math:`\|\nabla\|^2 \le 8`: fixed, and small enough for convergence.

*Regularisation.* Defaults follow the noise :math:`\sigma`. With *q* the 99th percentile of :math:`|A^H y|`,

- `cg_sense`: :math:`\lambda = (\sigma / (0.25\,q))^2`, the Wiener weight of a white image of standard deviation
  :math:`0.25\,q`; it has no unit.
- `l1_wavelet`: :math:`\lambda = 0.5\,\sigma`, and `tv`: :math:`\lambda = 0.35\,\sigma`, in the unit of k-space.

Noise counts as at least :math:`0.002\,q`: undersampling errors remain to be removed where there is no noise. So k-space
and noise times *a* give the image times *a*, in any unit. The factors were chosen by PSNR on slices of
patients that train the shipped prior, with simulated coils, for 2 to 8-fold random lines: the sparse ones on eight
slices, noise from 0.5 to 5 % of *q*, `cg_sense` on four slices, 0.5 to 10 %. They are within about 1 dB of the best for
each setting. With several sets of maps (`SoftSense`) the image is those of all sets side by side, each with
wavelets or differences of its own; *q* is that of their root sum of squares.

*What SigPy's wavelet solver minimises.* Its transform is zero-padded at the border, so that :math:`\Psi^H \Psi = I`
but not :math:`\Psi\Psi^H`. Its iteration :math:`x \leftarrow \Psi^H\,\mathrm{soft}(\Psi(x - \nabla f(x)))` is then
the proximal gradient method of the *balanced* problem in coefficients *w* with :math:`x = \Psi^H w`,

.. math:: \tfrac12\|A\Psi^H w - y\|^2 + \tfrac12\|(I - \Psi\Psi^H) w\|^2 + \lambda\|w\|_1 ,

which is the problem above where no wavelet reaches over the border.

References
----------
K. P. Pruessmann et al., SENSE: sensitivity encoding for fast MRI, Magn. Reson. Med. 42 (1999) 952-962.
M. Lustig et al., Sparse MRI, Magn. Reson. Med. 58 (2007) 1182-1195.
K. T. Block et al., Undersampled radial MRI with multiple coils, Magn. Reson. Med. 57 (2007) 1086-1098.
J.-F. Cai et al., Split Bregman methods and frame based image restoration, Multiscale Model. Simul. 8 (2009) 337-369.
F. Ong and M. Lustig, SigPy: a Python package for high performance iterative reconstruction, Proc. ISMRM 27 (2019) 4819.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .arrays import as_complex
from .sense import Sense, SoftSense, side_by_side
from .solve import conjugate_gradient

TIKHONOV = 0.01  # cg_sense where the noise is not known
SIGNAL_PER_LEVEL = 0.25  # cg_sense: standard deviation of the assumed image over q
WAVELET_PER_NOISE = 0.5
TV_PER_NOISE = 0.35
LEAST_NOISE = 0.002  # over q
DUAL_STEP = 0.1  # primal-dual solver: needs a fraction of the iterations of SigPy's default, 1


def zero_filled(kspace: Any, operator: Sense) -> Tensor:
    """The adjoint ``A^H y``: missing samples count as zero.

    Parameters
    ----------
    kspace : array (..., coil, y, x)
    operator : Sense

    Returns
    -------
    Tensor (..., y, x), complex64

    Raises
    ------
    ValueError
        If shapes do not fit.
    """
    return operator.adjoint(kspace).to(torch.complex64)


def cg_sense(
    kspace: Any,
    operator: Sense,
    noise_std: float | None = None,
    *,
    regularisation: float | None = None,
    iterations: int = 50,
) -> Tensor:
    """Tikhonov-regularised SENSE, solved by conjugate gradients.

    Parameters
    ----------
    kspace : array (..., coil, y, x)
    operator : Sense
    noise_std : float, optional
        Noise per real and per imaginary component, in the unit of `kspace`; decides the default of `regularisation`.
    regularisation : float, optional
        Relative to the largest eigenvalue (1) of the normal operator of normalised maps. Default: from the noise, see
        the module; 0.01 where the noise is not given.
    iterations : int
        Upper bound; stops earlier at a relative residual of 1e-5.

    Returns
    -------
    Tensor (..., y, x), complex64

    Raises
    ------
    ValueError
        If shapes do not fit, or noise or regularisation is negative.
    """
    rhs = operator.adjoint(kspace)
    weight: float | Tensor = TIKHONOV if regularisation is None else regularisation
    if regularisation is None and noise_std is not None:
        level = _level(operator.combine(rhs))
        weight = (_noise(noise_std, level) / (SIGNAL_PER_LEVEL * level).clamp_min(torch.finfo(level.dtype).tiny)) ** 2
        weight = weight.clamp_max(1e6)  # an empty slice has level zero
    return conjugate_gradient(operator.normal, rhs, regularisation=weight, iterations=iterations).solution.to(
        torch.complex64
    )


def l1_wavelet(
    kspace: Any,
    operator: Sense,
    noise_std: float | None = None,
    *,
    regularisation: float | None = None,
    iterations: int = 100,
) -> Tensor:
    """Sparse reconstruction in a wavelet basis (compressed sensing), by accelerated proximal gradients in SigPy.

    Parameters
    ----------
    kspace : array (coil, y, x)
        One slice.
    operator : Sense
        With the maps and the mask of that slice.
    noise_std : float, optional
        Noise per real and per imaginary component, in the unit of `kspace`; decides the default of `regularisation`.
    regularisation : float, optional
        Weight of the 1-norm, in the unit of `kspace`. Default: from the noise, see the module.
    iterations : int

    Returns
    -------
    Tensor (y, x), complex64
        Zero where all maps are; computed on the CPU, returned on the operator's device.

    Raises
    ------
    ValueError
        If shapes do not fit, neither a noise level nor a regularisation is given, or one is negative.
    """
    from sigpy.linop import Wavelet
    from sigpy.prox import L1Reg, UnitaryTransform

    weight = _weight(kspace, operator, noise_std, regularisation, WAVELET_PER_NOISE)
    data, model, norm = _slice(kspace, operator)
    transform = Wavelet(model.ishape, axes=(-2, -1))
    proximal = UnitaryTransform(L1Reg(transform.oshape, weight / norm), transform)
    return _solved(operator, data, model, norm, proxg=proximal, alpha=1.0, max_iter=iterations)


def tv(
    kspace: Any,
    operator: Sense,
    noise_std: float | None = None,
    *,
    regularisation: float | None = None,
    iterations: int = 200,
) -> Tensor:
    """Total-variation reconstruction (anisotropic, periodic), by primal-dual hybrid gradients in SigPy.

    Parameters, result and exceptions are those of `l1_wavelet`.
    """
    from sigpy.linop import FiniteDifference
    from sigpy.prox import L1Reg

    weight = _weight(kspace, operator, noise_std, regularisation, TV_PER_NOISE)
    data, model, norm = _slice(kspace, operator)
    gradient = FiniteDifference(model.ishape, axes=(-2, -1))
    proximal = L1Reg(gradient.oshape, weight / norm)
    steps = {"sigma": DUAL_STEP, "tau": 1 / (9 * DUAL_STEP)}
    return _solved(operator, data, model, norm, proxg=proximal, G=gradient, **steps, max_iter=iterations)


def _solved(operator: Sense, data: np.ndarray, model: Any, norm: float, **options: Any) -> Tensor:
    """Run SigPy's solver; zero where no coil sees anything, so that the penalty alone would decide."""
    from sigpy.app import LinearLeastSquares

    found = LinearLeastSquares(model, data, **options, show_pbar=False).run() / norm
    image = torch.from_numpy(found).to(operator.device)
    if operator.sets > 1:
        image = side_by_side(image)
    return image * operator.sensitivity_maps.any(0)


def _level(image: Tensor) -> Tensor:
    """99th percentile of the magnitude of every image (..., y, x)."""
    magnitude = image.abs().flatten(-2)
    return magnitude.kthvalue(max(1, round(0.99 * magnitude.shape[-1])), dim=-1).values


def _noise(noise_std: float, level: Tensor) -> Tensor:
    if not noise_std >= 0:
        raise ValueError(f"the noise must not be negative, but is {noise_std}")
    return (LEAST_NOISE * level).clamp_min(noise_std)


def _weight(
    kspace: Any, operator: Sense, noise_std: float | None, regularisation: float | None, per_noise: float
) -> float:
    if regularisation is None:
        if noise_std is None:
            raise ValueError("a sparse reconstruction needs the noise level or an explicit regularisation")
        regularisation = per_noise * float(_noise(noise_std, _level(operator.combine(operator.adjoint(kspace)))).max())
    if not regularisation >= 0:
        raise ValueError(f"the regularisation must not be negative, but is {regularisation}")
    return regularisation


def _slice(kspace: Any, operator: Sense) -> tuple[np.ndarray, Any, float]:
    """Data and forward model of one slice for SigPy, and what the maps were divided by.

    The model takes an image (y, x), or (set, y, x) with several sets of maps.
    """
    import sigpy.mri

    data = as_complex(kspace)
    if len(operator.kspace_shape) != 3 or tuple(data.shape) != operator.kspace_shape:
        raise ValueError(f"one slice (coil, y, x) is needed: {operator!r} does not fit k-space {tuple(data.shape)}")
    maps = operator.each.sensitivity_maps if isinstance(operator, SoftSense) else operator.sensitivity_maps[None]
    maps = maps.to("cpu", torch.complex64)
    norm = float((maps.abs() ** 2).sum((0, 1)).max()) ** 0.5 or 1.0
    mask = operator.mask.expand(operator.kspace_shape[-2:]).to("cpu", torch.float32).numpy()
    models = [sigpy.mri.linop.Sense(one, weights=mask) for one in (maps / norm).numpy()]
    masked = data.to("cpu", torch.complex64).numpy() * mask
    if len(models) == 1:
        return masked, models[0], norm
    shape = (1, *models[0].ishape)
    return masked, sigpy.linop.Hstack([m * sigpy.linop.Reshape(shape[1:], shape) for m in models], axis=0), norm
