"""What ``mri-ambient train --dry-run`` shows: the resolved settings, the data, and a time measured on two steps."""

import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from mri_ambient import training
from mri_ambient.config import TrainConfig
from mri_ambient.dataset import PreparedSlices
from mri_ambient.denoiser import count_parameters
from mri_ambient.phantoms import phantom_volume
from mri_ambient.preparation import Simulation, find_sources, is_volume, prepare
from mri_ambient.recon.meter import counted, duration
from mri_ambient.recon.places import check_folder
from mri_ambient.streams import stream

_TIMED = 2  # steps, after one that warms up
_MATRIX = 160


def dry_run(
    data: Sequence[str],
    validation: Sequence[str],
    folder: Path,
    settings: dict[str, Any],
    device: str,
    precision: str,
) -> None:
    """Check settings, data and output folder, time two steps, print all; nothing stays written."""
    config = TrainConfig(**settings)
    place, number_type = training.choose_device(device, precision)
    check_folder(folder)
    resumes = (folder / "config.json").exists()
    if resumes:
        training.check_resumable(folder, config)  # with the file there, it only compares
    sources = find_sources(data) if data else []
    held_out = find_sources(validation) if validation else []
    state = training.new_state(config, place, number_type)
    seconds = _seconds_per_step(config, state)
    print(config.to_json())
    print(f"run         {folder}{' (continues)' if resumes else ''}")
    print(f"data        {_described(sources) if data else 'built-in phantoms'}")
    if held_out:
        print(f"validation  {_described(held_out)}")
    network = f"{count_parameters(state.denoiser):,} parameters"
    print(f"network     {network}, {place}, {str(number_type).removeprefix('torch.')}")
    print(
        f"time        {config.steps} steps of {config.batch} images, about {duration(seconds * config.steps)} at "
        f"{seconds:.2g} s a step ({_MATRIX} columns), and the preparation of the data"
    )
    if config.method == "em":
        print(f"            in each of {counted(config.laps or 1, 'lap')}, after one posterior draw of every slice")


def _described(sources: Sequence[Path]) -> str:
    volumes = sum(is_volume(source) for source in sources)
    files = counted(len(sources) - volumes, "k-space file")
    return f"{counted(len(sources), 'source')}: {files}, {counted(volumes, 'volume')} to simulate scans from"


def _seconds_per_step(config: TrainConfig, state: training.State) -> float:
    """Time of a real training step, on a phantom."""
    with TemporaryDirectory() as folder:
        prepared = _phantom(config, Path(folder))
        objective = training.objective_of(config)
        for number in range(1 + _TIMED):
            if number == 1:
                began = time.monotonic()
            batch = training.examples(prepared, config, stream(config.seed, "dry run", number))
            training.train_step(config, state, objective, batch.to(state.denoiser.device))
            if state.denoiser.device.type == "cuda":
                torch.cuda.synchronize()
        return (time.monotonic() - began) / _TIMED


def _phantom(config: TrainConfig, folder: Path) -> PreparedSlices:
    return prepare(
        [phantom_volume(1, (_MATRIX, _MATRIX), config.seed)],
        folder,
        mask=config.mask,
        accel=config.accel,
        simulation=Simulation(config.coils, matrices=config.matrices[:1]),
        seed=config.seed,
        reconstruct=None if training.needs_references(config) else lambda item: item.operator.adjoint(item.kspace),
    )
