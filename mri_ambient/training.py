"""The training loop: progress in images, one state that is saved and resumed, validation on held-out lines.

Every random number is addressed by (seed, what it is for, step), never by what came before. A run that is killed and
started again with the same command therefore continues as if nothing had happened: weights, optimiser and averaged
weights come from the state file, data order and noise from the step number.
"""

import json
import math
import shutil
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mri_ambient.allocator import keep_freed_memory
from mri_ambient.config import END_TO_END, RECONSTRUCTIONS, TrainConfig
from mri_ambient.dataset import WHOLE, PreparedSlices, Record, save_array
from mri_ambient.denoiser import Denoiser, count_parameters
from mri_ambient.errors import InputError
from mri_ambient.methods import check_data, objective_of
from mri_ambient.objectives import Batch, Objective
from mri_ambient.objectives.bootstrap import parse_view, view_to_dict
from mri_ambient.operators import CgSolver
from mri_ambient.posterior import MIN_NOISE, refine
from mri_ambient.prior import RUN_FILE, Prior, save_prior
from mri_ambient.reporter import Reporter, Silent
from mri_ambient.run_state import State, choose_device, new_state, restore, save
from mri_ambient.streams import stream
from mri_ambient.training_data import begin
from mri_ambient.validation import denoiser_error, panel, validate

SAVE_SECONDS = 60.0
LOG_EVERY = 50  # steps
VALIDATE_PARTS = 20  # validations in a run
WARM_UP = 200  # steps
CLIP = 1.0
AHEAD = 2  # batches that are fetched while a step is computed


@dataclass(frozen=True)
class Run:
    """A finished training run.

    Attributes
    ----------
    folder : Path
    prior : Path
        The trained prior.
    card : dict
    """

    folder: Path
    prior: Path
    card: dict[str, Any]


def train(
    data: Sequence[str | Path] = (),
    *,
    out: str | Path,
    validation: Sequence[str | Path] = (),
    device: str = "auto",
    precision: str = "auto",
    compile: bool = False,
    notes: dict[str, Any] | None = None,
    reporter: Reporter | None = None,
    **settings: Any,
) -> Run:
    """Learn a prior from scans; the same call resumes an interrupted run.

    Parameters
    ----------
    data : sequence of paths
        k-space files, NIfTI volumes, DICOM folders, folders of these, or glob patterns. Empty: embedded phantoms.
    out : path
        Folder of the run.
    validation : sequence of paths
        Scans for the held-out-line error. Default: one patient in ten of `data`, if there are at least four.
    device : str
        "auto", "cpu", "cuda".
    precision : str
        "auto" (bfloat16 where the processor has it), "bf16", "fp32".
    compile : bool
        Compile the network with torch.compile (needs a C++ compiler on the CPU); pays off in long runs.
    notes : dict, optional
        Further entries for the card (data attribution).
    reporter : Reporter, optional
    **settings
        Fields of `TrainConfig`.

    Raises
    ------
    InputError
        If data or settings are unusable, `out` holds another run, or another process trains in it.
    """
    config = TrainConfig(**settings)
    reporter = reporter or Silent()
    keep_freed_memory()
    if config.method == "em":
        raise InputError("The method em draws posterior samples, which this module cannot: use mri_ambient.train.")
    folder = Path(out)
    state = new_state(config, *choose_device(device, precision))
    fresh = not folder.exists()
    with ExitStack() as held:
        training, held_out = begin(data, validation, config, folder, reporter, held)
        try:
            check_data(config, training)
        except InputError:
            if fresh:  # nothing could continue from it
                shutil.rmtree(folder)
            raise
        learn(config, state, training, held_out, folder, reporter, compile)
        card = make_card(config, state, training, notes or {})
        if config.view:
            card["view"] = view_to_dict(parse_view(config.view))
        elif config.method not in RECONSTRUCTIONS:
            card["denoiser_error"] = denoiser_error(state.average, training, config)
        save_prior(folder / RUN_FILE, state.average, card)
    return Run(folder, folder / RUN_FILE, card)


def learn(
    config: TrainConfig,
    state: State,
    training: PreparedSlices,
    held_out: PreparedSlices,
    folder: Path,
    reporter: Reporter,
    compile: bool = False,
) -> None:
    """Train to the end, from where the folder's state file is, if there is one."""
    restore(folder, state)
    if compile:
        state.denoiser.network.compile(dynamic=True)
    loop(config, state, training, held_out, folder, reporter)


def loop(
    config: TrainConfig,
    state: State,
    training: PreparedSlices,
    held_out: PreparedSlices,
    folder: Path,
    reporter: Reporter,
) -> None:
    """Train to the end, saving the state every minute, when interrupted, and at the end."""
    objective = objective_of(config)
    refreshed = config.method == "ambient" and config.form == "weighted"
    refresh_at = [round(part * config.steps) for part in config.refreshes] if refreshed else []
    validate_every = max(1, config.steps // VALIDATE_PARTS)
    began, saved = time.monotonic() - state.seconds, time.monotonic()
    waited = 0.0  # seconds since the last entry of the log, for batches that were not ready
    with ThreadPoolExecutor(AHEAD) as pool:

        def fetch(step: int) -> Future[Batch]:
            return pool.submit(examples, training, config, stream(config.seed, "batch", step))

        upcoming = deque(fetch(state.step + i) for i in range(AHEAD))
        try:
            while state.step < config.steps:
                if state.refreshed < len(refresh_at) and state.step == refresh_at[state.refreshed]:
                    wait(upcoming)  # nobody reads while images are replaced
                    save(folder, state)
                    refresh(state.average, training, config, reporter)
                    state.refreshed += 1
                    upcoming = deque(fetch(state.step + i) for i in range(AHEAD))
                asked = time.monotonic()
                batch = upcoming.popleft().result()
                upcoming.append(fetch(state.step + AHEAD))
                waited += time.monotonic() - asked
                loss, norm = train_step(config, state, objective, batch.to(state.denoiser.device))
                state.seconds = time.monotonic() - began
                if state.step % LOG_EVERY == 0 or state.step == config.steps:
                    log(folder, {"images": state.step * config.batch, "loss": loss, "gradient": norm,
                                 "skipped": state.skipped, "seconds": round(state.seconds, 1),
                                 "waited": round(waited, 6)})  # fmt: skip
                    waited = 0.0
                reporter.stage("training", min(state.step * config.batch, config.images), config.images)
                if (
                    len(held_out)
                    and not config.view
                    and (state.step % validate_every == 0 or state.step == config.steps)
                ):
                    error = validate(state.average, held_out, config)
                    log(folder, {"images": state.step * config.batch, "heldout_error": error})
                    reporter.say(f"{state.step * config.batch} images: held-out error {error:.5f}")
                    panel(folder, state.average, held_out)
                if time.monotonic() - saved > SAVE_SECONDS:
                    save(folder, state)
                    saved = time.monotonic()
        finally:
            save(folder, state)


def examples(data: PreparedSlices, config: TrainConfig, generator: torch.Generator) -> Batch:
    """The batch of a step: strips with their k-space.

    Where the prior learns from images, patches for it come first, and half as many strips with them.
    """
    if config.method in END_TO_END:  # their normalisation looks across the image
        return data.batch(config.batch, WHOLE, generator)
    if config.method not in ("ambient", "supervised", "em") or config.form == "published":
        return data.batch(config.batch, config.strip, generator)
    strips = data.batch(-(-config.batch // 2), config.strip, generator)
    return replace(strips, patches=data.patches(config.batch, config.patch, generator))


def train_step(config: TrainConfig, state: State, objective: Objective, batch: Any) -> tuple[float, float]:
    """One optimiser step; returns loss and gradient norm. Steps that are not finite change nothing and are counted."""
    rate = learning_rate(state.step, config.steps, config.learning_rate)
    for optimiser in state.optimisers:
        for group in optimiser.param_groups:
            group["lr"] = rate
    state.denoiser.zero_grad(set_to_none=True)
    loss = objective.loss(state.denoiser, batch, stream(config.seed, "loss", state.step))
    loss.backward()
    norm = float(torch.nn.utils.clip_grad_norm_(state.denoiser.parameters(), CLIP))
    value = float(loss.detach())
    if math.isfinite(norm) and math.isfinite(value):
        for optimiser in state.optimisers:
            optimiser.step()
        decay = min(config.ema, (1 + state.step) / (10 + state.step))
        with torch.no_grad():
            for slow, fast in zip(state.average.parameters(), state.denoiser.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)
    else:
        state.skipped += 1
    state.step += 1
    return value, norm


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, then a cosine to zero."""
    warm = min(WARM_UP, max(1, steps // 10))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def refresh(denoiser: Denoiser, data: PreparedSlices, config: TrainConfig, reporter: Reporter) -> None:
    """Replace the stored reconstructions by posterior estimates under the network as it is now."""
    table = denoiser_error(denoiser, data, config)
    for number, record in enumerate(data.records):
        reporter.stage("reconstructing the training scans", number, len(data))
        save_array(data.folder / f"{record.name}_image.npy", improved(denoiser, data, record, table))


@torch.no_grad()
def improved(denoiser: Denoiser, data: PreparedSlices, record: Record, table: Sequence[Sequence[Any]]) -> Tensor:
    """Posterior estimate (y, x) of a slice, from its stored reconstruction; `table` is the denoiser's error."""
    kspace, operator = data.slice(record)
    operator = operator.to(denoiser.device)
    prior = Prior(denoiser, {"denoiser_error": table}, "so far", "")
    posterior = prior.posterior(kspace, operator, max(record.noise_std, MIN_NOISE), CgSolver(operator))
    start = torch.from_numpy(data.array(record, "image").copy()).to(denoiser.device)
    return refine(posterior, start, steps=8, high=0.2).cpu()


def log(folder: Path, entry: dict[str, Any]) -> None:
    """Append a line to metrics.jsonl."""
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps(entry) + "\n")


def make_card(config: TrainConfig, state: State, data: PreparedSlices, notes: dict[str, Any]) -> dict[str, Any]:
    """What a user of the prior should know."""
    from mri_ambient import __version__

    found = data.accelerations()
    return {
        "method": config.method,
        **({"variant": config.form} if config.form else {}),
        **({"init": Path(config.init).name, "init_hash": state.init_hash} if config.init else {}),
        "acceleration": found[0] if len(found) == 1 else found,
        "mask": config.mask,
        "preset": config.preset,
        "parameters": count_parameters(state.denoiser),
        "images": config.images,
        "slices": len(data),
        "patients": len({r.patient for r in data.records}),
        "noise_std": sorted({round(r.noise_std, 4) for r in data.records})[:: max(1, len(data) // 5)],
        "training_seconds": round(state.seconds),
        "device": str(state.denoiser.device),
        "skipped_steps": state.skipped,
        "seed": config.seed,
        "version": __version__,
        **notes,
    }
