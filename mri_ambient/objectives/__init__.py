"""Training methods, one file each."""

from mri_ambient.objectives.ambient import Ambient
from mri_ambient.objectives.base import Batch, Objective
from mri_ambient.objectives.supervised import Supervised

__all__ = ["Ambient", "Batch", "Objective", "Supervised"]
