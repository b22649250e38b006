"""Training methods, one file each."""

from mri_ambient.objectives.ambient import Ambient
from mri_ambient.objectives.base import Batch, Objective
from mri_ambient.objectives.bootstrap import Bootstrap, ViewObjective
from mri_ambient.objectives.end_to_end import EndToEnd
from mri_ambient.objectives.gsure import GSURE
from mri_ambient.objectives.published_ambient import PublishedAmbient
from mri_ambient.objectives.ssdu import SSDU
from mri_ambient.objectives.supervised import Supervised
from mri_ambient.objectives.tweedie import Tweedie

__all__ = [
    "GSURE",
    "SSDU",
    "Ambient",
    "Batch",
    "Bootstrap",
    "EndToEnd",
    "Objective",
    "PublishedAmbient",
    "Supervised",
    "Tweedie",
    "ViewObjective",
]
