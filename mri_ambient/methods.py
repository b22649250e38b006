"""Training methods by name: the objective of each, and what it needs of the data."""

import torch

from mri_ambient.config import END_TO_END, TrainConfig
from mri_ambient.dataset import PreparedSlices
from mri_ambient.objectives import (
    GSURE,
    SSDU,
    Ambient,
    Bootstrap,
    EndToEnd,
    Objective,
    PublishedAmbient,
    Supervised,
    Tweedie,
    ViewObjective,
)
from mri_ambient.objectives.bootstrap import parse_view, require_centre
from mri_ambient.objectives.gsure import never_acquired, require_coverage, require_known_noise


def needs_references(config: TrainConfig) -> bool:
    """Whether the method learns from fully sampled scans."""
    return config.method in ("supervised", *END_TO_END) or config.form == "clean"


def objective_of(config: TrainConfig) -> Objective:
    """The training method."""
    if config.view:
        return ViewObjective(parse_view(config.view))
    table: dict[tuple[str, str], Objective] = {
        ("ambient", "weighted"): Ambient(),
        ("ambient", "published"): PublishedAmbient(),
        ("supervised", ""): Supervised(),
        ("gsure", ""): GSURE(),
        ("tweedie", ""): Tweedie(),
        ("bootstrap", "undersampled"): Bootstrap(Ambient()),
        ("bootstrap", "clean"): Bootstrap(Supervised()),
        ("ssdu", "weighted"): SSDU(weighted=True),
        ("ssdu", "published"): SSDU(weighted=False),
        ("unet", ""): EndToEnd(),
        ("varnet", ""): EndToEnd(),
        ("em", ""): Supervised(),
    }
    return table[config.method, config.form]


def check_data(config: TrainConfig, data: PreparedSlices) -> None:
    """Refuse data on which a method's assumptions fail.

    Raises
    ------
    InputError
        If so, with the name of a method that would work.
    """
    if config.method in ("gsure", "tweedie"):
        require_known_noise(torch.tensor([r.noise_std for r in data.records]), config.method)
    patterns = data.patterns()
    centre = min(acs for _, acs in patterns)
    if config.view and not needs_references(config):
        require_centre(parse_view(config.view), centre)
    elif config.method != "em" and not needs_references(config):  # of several patterns, one that shows all is enough
        best = min((probability for probability, _ in patterns), key=lambda p: int(never_acquired(p).sum()))
        require_coverage(best, config.method, centre)
