"""The data of a training run: its folder, its prepared slices, and those that are held out."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mri_ambient.cache import default_cache
from mri_ambient.calibration import PreparedSlice
from mri_ambient.config import TrainConfig
from mri_ambient.dataset import UNFINISHED, PreparedSlices, write_atomically
from mri_ambient.errors import InputError
from mri_ambient.methods import needs_references
from mri_ambient.preparation import Simulation, find_sources, is_volume, prepare, require_full_sampling
from mri_ambient.reporter import Reporter
from mri_ambient.scan import Scan, load_scan
from mri_ambient.streams import stream

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

PHANTOMS = 40  # volumes of the embedded population
PHANTOM_SLICES, PHANTOM_SHAPE = 12, (160, 160)
LOCK = ".lock"  # in the folder of a run
LIGHT, NOISY = 0.25, 25.0  # weight of the first reconstructions' 1-norm, over the noise; docs/research-log.md


def begin(
    data: Sequence[str | Path],
    validation: Sequence[str | Path],
    config: TrainConfig,
    folder: Path,
    reporter: Reporter,
    held: ExitStack | None = None,
) -> tuple[PreparedSlices, PreparedSlices]:
    """Open or create a run's folder; returns its prepared training and validation slices.

    Parameters
    ----------
    data, validation, config, folder, reporter
        As in `mri_ambient.training.train`.
    held : ExitStack, optional
        Until it is closed, no other process can train in the folder.

    Raises
    ------
    InputError
        If data are unusable, the folder holds another run, or another process trains in it.
    """
    sources = find_sources([*data, *validation]) if data or validation else []  # a wrong name must not leave a folder
    scans: dict[Path, Scan] = {}
    if needs_references(config) and not (folder / "config.json").exists():
        for source in sources:
            if not is_volume(source):
                scans[source] = load_scan(source)
                require_full_sampling(scans[source])
    fresh = not folder.exists()
    if held is not None:
        held.enter_context(locked(folder))
        fresh = fresh and not (folder / "config.json").exists()  # which another process made meanwhile
    check_resumable(folder, config)
    try:
        return load_data(data, validation, config, folder, reporter, scans)
    except InputError:
        if fresh and not any(folder.glob("data/*.json")):  # else it continues with the source that is to be mended
            shutil.rmtree(folder)
        raise


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder, which is made when needed, and clear what a killed process left; others are refused.

    Where files cannot be locked, nothing is done. The system lets go of the lock when the process ends.

    Raises
    ------
    InputError
        If another process holds the folder, or it cannot be written.
    """
    if not fcntl:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("ab")
    except OSError as error:
        raise _unwritable(folder, error) from error
    with file:
        with suppress(OSError):  # of file systems without locks
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(
                    f"Another process is training in {folder}: wait until it ends or choose another --out."
                ) from error
            for path in folder.rglob(f".*{UNFINISHED}"):
                path.unlink(missing_ok=True)
        yield


def _unwritable(folder: Path, error: OSError) -> InputError:
    return InputError(f"Cannot write to {folder}: {error.strerror or error}.")


def check_resumable(folder: Path, config: TrainConfig) -> None:
    """Create the run's folder with its configuration, or check that it holds the same one.

    Raises
    ------
    InputError
        If the folder holds a run with other settings, or cannot be written.
    """
    path = folder / "config.json"
    if path.exists():
        before, now = asdict(TrainConfig.from_json(path.read_text())), asdict(config)
        changed = [f"{k} {_shown(before[k])} (now {_shown(now[k])})" for k in now if before[k] != now[k]]
        if changed:
            raise InputError(f"{folder} holds a run with other settings: {', '.join(changed)}. Choose another --out.")
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, config.to_json().encode())
    except OSError as error:
        raise _unwritable(folder, error) from error


def _shown(value: Any) -> str:
    """A setting as the user gave it."""
    if isinstance(value, tuple):
        return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in value) or "none"
    return str(value)


def load_data(
    data: Sequence[str | Path],
    validation: Sequence[str | Path],
    config: TrainConfig,
    folder: Path,
    reporter: Reporter,
    scans: Mapping[Path, Scan] | None = None,
) -> tuple[PreparedSlices, PreparedSlices]:
    """Prepared training and validation slices, from disk where they were prepared before; `scans` are open already."""
    training = _prepared(data, config, folder / "data", reporter, scans)
    if validation:
        return training, _prepared(validation, config, folder / "validation", reporter, scans)
    chosen = held_out_patients({r.patient for r in training.records}, config.seed)
    if not chosen:
        reporter.say("fewer than four patients and no --validation: nothing is held out")
    return training.split(chosen)


def held_out_patients(patients: set[str], seed: int) -> set[str]:
    """One patient in ten, if there are at least four: those that training leaves out where no validation is given."""
    names = sorted(patients)
    count = max(1, len(names) // 10) if len(names) >= 4 else 0
    order = torch.randperm(len(names), generator=stream(seed, "validation")).tolist()
    return {names[i] for i in order[:count]}


def _prepared(
    data: Sequence[str | Path],
    config: TrainConfig,
    folder: Path,
    reporter: Reporter,
    scans: Mapping[Path, Scan] | None,
) -> PreparedSlices:
    sources: list[Any]
    if data:
        sources = find_sources(data)
    else:
        from mri_ambient.phantoms import phantom_volume

        sources = [phantom_volume(PHANTOM_SLICES, PHANTOM_SHAPE, seed=1000 * config.seed + i) for i in range(PHANTOMS)]
    simulated = not data or all(is_volume(s) for s in sources)
    simulation = Simulation(config.coils, 0.02 if config.noise is None else config.noise, config.matrices)
    cache = default_cache()
    prepared = prepare(
        sources,
        folder,
        mask=config.mask,
        accel=config.accel,
        simulation=simulation,
        seed=config.seed,
        reconstruct=None if needs_references(config) else first_reconstruction,
        noise_std=None if simulated else config.noise,
        scans=scans,
        cache=cache,
        progress=lambda done, total: reporter.stage("preparing scans", done, total),
    )
    if cache and cache.hits:
        reporter.say(f"{cache.hits} of {len(sources)} scans were prepared by an earlier run, kept in {cache.folder}")
    return prepared


def first_reconstruction(item: PreparedSlice) -> Tensor:
    """The classical reconstruction that ambient training starts from: L1-wavelet.

    Lightly regularised, as blur is harder to unlearn than undersampling; but with noise of more than a tenth of the
    tissue's intensity the weight grows faster than the noise: what is left of it would be learned as anatomy.
    """
    from mri_ambient.operators.classical import l1_wavelet

    weight = max(LIGHT, NOISY * item.noise_std**2) * item.noise_std
    return l1_wavelet(item.kspace, item.operator, regularisation=weight, iterations=20)
