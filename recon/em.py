r"""EM distillation: a proper unconditional prior from undersampled scans and a prior to start from.

The images behind measurements ``y = A x + n`` are hidden variables, the prior :math:`q_\theta(x)` their distribution. A
lap of expectation maximisation is

* *E-step*: one draw :math:`x_i \sim q_\theta(x \mid y_i, A_i)` for every training slice (`sample_posterior`),
* *M-step*: denoising score matching on these draws as if they were references (`Supervised`), from the weights so far.

Why it works. If the draws are exact, their distribution over all scans is
:math:`\pi(x) = E_y[q_\theta(x \mid y)]`. The true distribution of images is a fixed point: exact draws under it are
distributed like the images themselves. Elsewhere the Kullback-Leibler divergence between the true distribution of the
measurements and the prior's falls with every lap. Posterior *means* in place of draws would not do: what the data leave
open is missing from them, and the prior would shrink lap by lap. Neither can a lap find what no scan shows: in
directions that are never measured, the prior stays what it was.

What a lap gains. An ambient prior is one network for all masks that was taught on measured lines and on its own
estimates. After a lap it is a denoiser of whole images by construction. Errors of the draws, which rest on a Gaussian
approximation of ``x | x_t``, are learned too and accumulate over laps.

Every draw has its own random stream and file, so that a run that was stopped continues with the slice it was at.

References
----------
F. Rozet, G. Andry, F. Lanusse, G. Louppe, Learning diffusion priors from observations by expectation maximization,
NeurIPS 2024.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mri_ambient import training
from mri_ambient.allocator import keep_freed_memory
from mri_ambient.config import TrainConfig
from mri_ambient.dataset import PreparedSlices, Record, save_array, write_atomically
from mri_ambient.errors import InputError
from mri_ambient.posterior import MIN_NOISE
from mri_ambient.prior import RUN_FILE, Prior, load_prior, save_prior
from mri_ambient.recon.pipeline import open_prior
from mri_ambient.recon.posterior import sample_posterior
from mri_ambient.recon.training_report import Paging
from mri_ambient.reporter import Reporter, Silent
from mri_ambient.run_state import choose_device, new_network, new_state, require_same_network
from mri_ambient.streams import stream
from mri_ambient.training import Run
from mri_ambient.training_data import begin
from mri_ambient.validation import denoiser_error


class Draws(PreparedSlices):
    """Prepared slices whose images are posterior draws, in a folder of their own.

    Parameters
    ----------
    data : PreparedSlices
        k-space, maps and masks.
    images : Path
        Folder of the draws.
    """

    def __init__(self, data: PreparedSlices, images: Path) -> None:
        super().__init__(data.folder, data.records, data.mask)
        self.images = images

    def image_file(self, record: Record) -> Path:
        """Where the draw of a slice is."""
        return self.images / f"{record.name}.npy"

    def array(self, record: Record, kind: str) -> np.ndarray:
        """One array of a slice, mapped from disk; the image is the draw."""
        if kind != "image":
            return super().array(record, kind)
        array: np.ndarray = np.load(self.image_file(record), mmap_mode="r")
        return array


@dataclass(frozen=True)
class _Job:
    """What all laps of a run share."""

    config: TrainConfig
    folder: Path
    data: PreparedSlices
    held_out: PreparedSlices
    device: torch.device
    precision: torch.dtype
    compile: bool
    notes: dict[str, Any]
    reporter: Reporter

    def lap_folder(self, lap: int) -> Path:
        return self.folder / f"lap-{lap}"

    def start(self, lap: int) -> str:
        """The prior that a lap draws from and continues."""
        return str(self.config.init) if lap == 1 else str(self.lap_folder(lap - 1))


@wraps(training.train)
def train(*arguments: Any, **settings: Any) -> Run:
    """Learn a prior by any method (see `mri_ambient.training.train`), with a page ``report.html`` in `out`."""
    page = Paging(Path(settings.get("out", "")), settings.pop("reporter", None) or Silent())
    try:
        run = (train_em if settings.get("method") == "em" else training.train)(*arguments, **settings, reporter=page)
    except KeyboardInterrupt:
        page.update()
        raise
    page.update()
    return run


def train_em(
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
    """Learn a prior from posterior draws of undersampled scans; the same call resumes an interrupted run.

    Parameters
    ----------
    data, out, validation, device, precision, compile, notes, reporter
        As in `mri_ambient.train`. Lap n has its draws, state and prior in ``out/lap-n``.
    **settings
        Fields of `TrainConfig`; `init` is needed, `laps` is 1 unless given, `images` is the length of one lap.

    Raises
    ------
    InputError
        If the prior, data or settings are unusable, `out` holds another run, or another process trains in it.
    """
    config = TrainConfig(**{**settings, "method": "em"})
    reporter = reporter or Silent()
    keep_freed_memory()
    place, number_type = choose_device(device, precision)
    initial = load_prior(str(config.init))
    require_same_network(initial, new_network(config), config)
    folder = Path(out)
    with ExitStack() as held:
        slices, held_out = begin(data, validation, config, folder, reporter, held)
        job = _Job(config, folder, slices, held_out, place, number_type, compile, notes or {}, reporter)
        laps = config.laps or 1
        for lap in range(1, laps + 1):
            if not (job.lap_folder(lap) / RUN_FILE).exists():
                run_lap(job, lap, initial.hash)
        write_atomically(folder / RUN_FILE, (job.lap_folder(laps) / RUN_FILE).read_bytes())
    return Run(folder, folder / RUN_FILE, load_prior(folder).card)


def run_lap(job: _Job, lap: int, init_hash: str) -> None:
    """Draw from the posterior of every slice, learn the draws, write the lap's prior."""
    folder, config = job.lap_folder(lap), job.config
    draws = Draws(job.data, folder / "draws")
    title = f"drawing from the posterior, lap {lap} of {config.laps}"
    draw_all(open_prior(job.start(lap), job.device, job.precision), draws, config.seed, lap, title, job.reporter)
    seed = int(torch.randint(2**31, (), generator=stream(config.seed, "em", lap)))  # other batches in every lap
    learning = replace(config, init=job.start(lap), seed=seed)
    state = new_state(learning, job.device, job.precision)
    training.learn(learning, state, draws, job.held_out, folder, job.reporter, job.compile)
    card = training.make_card(config, state, draws, job.notes)
    card |= {"laps": lap, "init_hash": init_hash, "denoiser_error": denoiser_error(state.average, draws, config)}
    save_prior(folder / RUN_FILE, state.average, card)


def draw_all(prior: Prior, draws: Draws, seed: int, lap: int, title: str, reporter: Reporter) -> None:
    """Write a draw of every slice that has none yet.

    Raises
    ------
    InputError
        If the prior draws values that are not finite.
    """
    draws.images.mkdir(parents=True, exist_ok=True)
    for number, record in enumerate(draws.records):
        reporter.stage(title, number, len(draws))
        if draws.image_file(record).exists():
            continue
        image = draw(prior, draws, record, stream(seed, "em", lap, record.name))
        if not bool(torch.isfinite(torch.view_as_real(image)).all()):
            raise InputError(f"The prior {prior.name} draws values that are not finite: its training did not succeed.")
        save_array(draws.image_file(record), image)


@torch.no_grad()
def draw(prior: Prior, data: PreparedSlices, record: Record, generator: torch.Generator) -> Tensor:
    """One posterior draw (y, x) of a prepared slice, complex64, in prior units."""
    kspace, operator = data.slice(record)
    operator = operator.to(prior.denoiser.device)
    posterior = prior.posterior(kspace, operator, max(record.noise_std, MIN_NOISE))
    return sample_posterior(posterior, samples=1, generators=[generator])[0].cpu()
