"""What ``mri-ambient train --dry-run`` shows: the resolved settings, the data, and time and memory that were measured.

Scans are assumed to be like the first one. One slice of a phantom of its size is prepared as it would be, and two
training steps are made on it; both are timed. Memory is the largest amount that this took.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from mri_ambient import training, training_data
from mri_ambient.config import TrainConfig
from mri_ambient.dataset import PreparedSlices
from mri_ambient.denoiser import count_parameters
from mri_ambient.methods import needs_references, objective_of
from mri_ambient.phantoms import phantom_volume
from mri_ambient.preparation import Simulation, find_sources, is_volume, prepare
from mri_ambient.recon.meter import counted, duration
from mri_ambient.recon.places import check_folder
from mri_ambient.run_state import State, choose_device, new_state
from mri_ambient.scan import load_scan
from mri_ambient.streams import stream
from mri_ambient.training_data import check_resumable
from mri_ambient.volumes import load_volume

_TIMED = 2  # steps, after one that warms up
_MATRIX = 160  # least matrix of the phantom: a smaller one may be too small for the acceleration


class Costs(NamedTuple):
    """What was measured: seconds a slice and a step, bytes of memory, bytes on disk a slice."""

    slice_seconds: float
    step_seconds: float
    memory: int
    slice_bytes: int


def make_plan(
    data: Sequence[str],
    validation: Sequence[str],
    folder: Path,
    settings: dict[str, Any],
    device: str,
    precision: str,
) -> dict[str, Any]:
    """Check settings, data and output folder, and measure; nothing stays written.

    Returns
    -------
    dict
        Ready for JSON; times in seconds, sizes in bytes.

    Raises
    ------
    InputError
        If settings, first scan or folder are unusable.
    """
    config = TrainConfig(**settings)
    place, number_type = choose_device(device, precision)
    check_folder(folder)
    resumes = (folder / "config.json").exists()
    if resumes:
        check_resumable(folder, config)  # with the file there, it only compares
    sources = find_sources(data) if data else []
    held_out = find_sources(validation) if validation else []
    first = _first(sources, config)
    state = new_state(config, place, number_type)
    costs = _measure(config, state, first["coils"], first["matrix"])
    slices = first["slices"] * (len(sources) + len(held_out) if data else training_data.PHANTOMS)
    return {
        "settings": asdict(config),
        "run": str(folder),
        "continues": resumes,
        "data": _counts(sources) if data else None,
        "validation": _counts(held_out) if held_out else None,
        "first": first,
        "network": {
            "parameters": count_parameters(state.denoiser),
            "device": str(place),
            "precision": str(number_type).removeprefix("torch."),
        },
        "steps": config.steps,
        "laps": config.laps,
        "step_seconds": costs.step_seconds,
        "training_seconds": costs.step_seconds * config.steps,
        "preparation_seconds": costs.slice_seconds * slices,
        "memory_bytes": costs.memory,
        "disk_bytes": costs.slice_bytes * slices,
    }


def print_plan(plan: dict[str, Any]) -> None:
    """Print a plan as text: the settings as JSON, then a line for each part."""
    config, first, network = TrainConfig(**plan["settings"]), plan["first"], plan["network"]
    print(config.to_json())
    print(f"run         {plan['run']}{' (continues)' if plan['continues'] else ''}")
    print(f"data        {_described(plan['data']) if plan['data'] else 'built-in phantoms'}")
    if plan["validation"]:
        print(f"validation  {_described(plan['validation'])}")
    size = f"{counted(first['slices'], 'slice')}, {counted(first['coils'], 'coil')}, {_size(first['matrix'])}"
    print(f"first       {first['name']}: {size}, {_sampling(first, config)}, noise {_noise(first)}")
    print(f"network     {network['parameters']:,} parameters, {network['device']}, {network['precision']}")
    print(
        f"time        {plan['steps']} steps of {config.batch} images, about {duration(plan['training_seconds'])} at "
        f"{plan['step_seconds']:.2g} s a step; before them about {duration(plan['preparation_seconds'])} for the data"
    )
    if config.method == "em":
        print(f"            in each of {counted(config.laps or 1, 'lap')}, after one posterior draw of every slice")
    where = "of the GPU" if network["device"].startswith("cuda") else "in all"
    print(f"memory      {_gigabytes(plan['memory_bytes'])} {where}; on disk {_gigabytes(plan['disk_bytes'])}")
    print("            measured just now on one slice and two steps, as if all scans were like the first")


def _first(sources: Sequence[Path], config: TrainConfig) -> dict[str, Any]:
    """What is known of the first source without reading all of it."""
    if sources and not is_volume(sources[0]):
        scan = load_scan(sources[0])
        slices, coils, *matrix = scan.shape
        noise = config.noise if config.noise is not None else scan.noise_std
        found = {"name": scan.name, "slices": slices, "coils": coils, "matrix": matrix, "noise_std": noise}
        return {**found, "acceleration": None if scan.is_fully_sampled else scan.acceleration}
    name, (slices, *matrix) = "phantom", (training_data.PHANTOM_SLICES, *training_data.PHANTOM_SHAPE)
    if sources:
        volume = load_volume(sources[0])
        name, (slices, *matrix) = volume.name, volume.shape
    if config.matrices:
        matrix = [config.matrices[0]] * 2
    noise = Simulation().noise_std if config.noise is None else config.noise
    found = {"name": name, "slices": slices, "coils": config.coils, "matrix": matrix, "noise_std": noise}
    return {**found, "acceleration": None}


def _sampling(first: dict[str, Any], config: TrainConfig) -> str:
    if first["acceleration"] is not None:
        return f"R = {first['acceleration']:.3g} as acquired"
    accelerations = ", ".join(f"{accel:g}" for accel in config.accel)
    return f"fully sampled, to be undersampled at R = {accelerations} ({config.mask})"


def _noise(first: dict[str, Any]) -> str:
    return "to be estimated" if first["noise_std"] is None else f"{first['noise_std']:.3g}"


def _counts(sources: Sequence[Path]) -> dict[str, int]:
    volumes = sum(is_volume(source) for source in sources)
    return {"sources": len(sources), "kspace_files": len(sources) - volumes, "volumes": volumes}


def _described(counts: dict[str, int]) -> str:
    files, volumes = counted(counts["kspace_files"], "k-space file"), counted(counts["volumes"], "volume")
    return f"{counted(counts['sources'], 'source')}: {files}, {volumes} to simulate scans from"


def _size(matrix: Sequence[int]) -> str:
    return f"{matrix[0]} x {matrix[1]}"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2g} GB"


def _measure(config: TrainConfig, state: State, coils: int, matrix: Sequence[int]) -> Costs:
    """Prepare a slice of a phantom and make real training steps on it."""
    device = state.denoiser.device
    shape = max(matrix[0], _MATRIX), max(matrix[1], _MATRIX)
    with TemporaryDirectory() as name:
        folder = Path(name) / "slice"
        _phantom(config, coils, (_MATRIX, _MATRIX), Path(name) / "first")  # loads what preparation needs
        began = time.monotonic()
        prepared = _phantom(config, coils, shape, folder)
        slice_seconds = time.monotonic() - began
        slice_bytes = sum(path.stat().st_size for path in folder.iterdir())
        objective = objective_of(config)
        for number in range(1 + _TIMED):
            if number == 1:
                began = time.monotonic()
            batch = training.examples(prepared, config, stream(config.seed, "dry run", number))
            training.train_step(config, state, objective, batch.to(device))
            if device.type == "cuda":
                torch.cuda.synchronize()
        return Costs(slice_seconds, (time.monotonic() - began) / _TIMED, _peak_memory(device), slice_bytes)


def _phantom(config: TrainConfig, coils: int, shape: tuple[int, int], folder: Path) -> PreparedSlices:
    return prepare(
        [phantom_volume(1, shape, config.seed)],
        folder,
        mask=config.mask,
        accel=config.accel,
        simulation=Simulation(coils),
        seed=config.seed,
        reconstruct=None if needs_references(config) else training_data.first_reconstruction,
    )


def _peak_memory(device: torch.device) -> int:
    """The most that was in use, in bytes: of the GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    from resource import RUSAGE_SELF, getrusage

    return getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
