"""Reconstruction: posterior samplers, the scan-to-image pipeline, export, evaluation and reports."""

from mri_ambient.posterior import PosteriorDenoiser, refine
from mri_ambient.recon.pipeline import reconstruct
from mri_ambient.recon.posterior import anneal, sample_posterior
from mri_ambient.recon.result import Reconstruction, load_reconstruction
from mri_ambient.recon.settings import METHODS

__all__ = [
    "METHODS",
    "PosteriorDenoiser",
    "Reconstruction",
    "anneal",
    "load_reconstruction",
    "reconstruct",
    "refine",
    "sample_posterior",
]
