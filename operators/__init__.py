"""Operators of multi-coil Cartesian MRI: Fourier transforms, sampling masks, coils, noise, forward model, solvers."""

from .arrays import as_complex, as_mask
from .coils import compress_coils, espirit, rss
from .fourier import center_crop, center_pad, fft1c, fft2c, ifft1c, ifft2c
from .masks import (
    MaskPattern,
    equispaced_mask,
    fastmri_mask,
    gaussian_mask,
    poisson_mask,
    random_mask,
)
from .noise import estimate_noise, noise_covariance, prewhiten
from .sense import Sense, SoftSense
from .solve import CgSolver, RowSolver, Solution, conjugate_gradient, normal_solver
from .splitting import acs_mask, acs_width, heldout_weights, split_mask

__all__ = [
    "CgSolver",
    "MaskPattern",
    "RowSolver",
    "Sense",
    "SoftSense",
    "Solution",
    "acs_mask",
    "acs_width",
    "as_complex",
    "as_mask",
    "center_crop",
    "center_pad",
    "compress_coils",
    "conjugate_gradient",
    "equispaced_mask",
    "espirit",
    "estimate_noise",
    "fastmri_mask",
    "fft1c",
    "fft2c",
    "gaussian_mask",
    "heldout_weights",
    "ifft1c",
    "ifft2c",
    "noise_covariance",
    "normal_solver",
    "poisson_mask",
    "prewhiten",
    "random_mask",
    "rss",
    "split_mask",
]
