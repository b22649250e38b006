r"""Is a prior memorising? Its samples, and its denoising of training images, against unseen images.

A network that stores its training images gives them away in two ways.

**It draws them.** The similarity of two images is the normalised cross-correlation :math:`s` of their magnitudes at a
resolution of `SIDE` x `SIDE` pixels (outer k-space cut off; field of view cropped or padded with zeros to that of the
samples), maximised over the flips of both axes that training uses as augmentation. As a distance it is
:math:`d = \sqrt{2 - 2 s}`. That a sample is close to a training slice says little, because heads are alike, and what is
blurred is close to everything. A copy is close to *one patient only*. So the measure is the ratio

.. math:: r = \frac{d(\text{nearest training slice})}{d(\text{nearest slice of all other training patients})} ,

near 1 for a new head, 0 for a copy. Held-out slices show what values unseen anatomy takes with the same training set. A
sample is *singled out* if its ratio is below that of every held-out slice. If samples are like held-out slices, *k* of
the smallest values among *n* samples and *m* held-out slices all belong to samples with probability

.. math:: \binom{n}{k} \Big/ \binom{n + m}{k} ,

where slices of one patient, which are alike, count as at most `INDEPENDENT`. With phantoms this keeps false alarms at
about 1 %, where counting all slices gives up to 10 %. Below `CHANCE`, samples are copies. With one held-out patient
that takes 13 of 16 samples, with ten patients 4.

**It restores them.** Images are buried in noise of a level at which only knowledge of the image can help, and denoised.
The median error of training slices over that of held-out slices is 1 if both are alike to the prior, and 0 if training
slices are known by heart. The interval of the ratio resamples patients of both sets. A ratio below `KNOWN` whose
interval (where there is one) does not contain 1 counts as memorising; less is the ordinary gap of a network that has
seen few patients.

Images are what the prior's units, scale and phases make of the sources. Fully sampled scans are combined with their own
coil maps, volumes are measured without noise first, exactly as training simulates them; scans that were acquired
undersampled are reconstructed by CG-SENSE, not by a prior, and the report says so: it then compares images with
artefacts.

What this cannot find: shifted copies, pieces of training images in new combinations, and anything where held-out
patients differ from training patients for other reasons (another scanner, contrast, matrix).

References
----------
G. Daras, A. Dimakis, C. Daskalakis, Consistent diffusion meets Tweedie, ICML 2024 (both questions: similarity of
samples, and recovery of heavily corrupted training images). C. Meehan, K. Chaudhuri, S. Dasgupta, A non-parametric test
to detect data-copying in generative models, AISTATS 2020 (held-out images as the yardstick). N. Carlini et al.,
Extracting training data from diffusion models, USENIX Security 2023 (distance relative to other neighbours).
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mri_ambient.allocator import keep_freed_memory
from mri_ambient.calibration import calibrate, prepare_slice
from mri_ambient.dataset import reverse
from mri_ambient.errors import InputError
from mri_ambient.objectives.base import complex_normal
from mri_ambient.operators import center_crop, center_pad, fft2c, ifft2c
from mri_ambient.operators.classical import cg_sense
from mri_ambient.preparation import EMPTY, Simulation, find_sources, is_volume, own_names
from mri_ambient.prior import RUN_FILE, Prior, find_prior
from mri_ambient.recon.generation import check_request, generate
from mri_ambient.recon.meter import counted
from mri_ambient.recon.pipeline import open_prior
from mri_ambient.reporter import Reporter, Silent
from mri_ambient.run_state import choose_device
from mri_ambient.scan import Scan, load_scan
from mri_ambient.simulate import simulate_scan
from mri_ambient.streams import stream
from mri_ambient.training_data import held_out_patients
from mri_ambient.volumes import load_volume

SIDE = 32
SIGMAS = (0.5, 1.0)  # noise of the recovery test, in prior units
RECOVERED = 128  # about so many slices of a set, evenly spread, are denoised
INDEPENDENT = 4
CHANCE = 0.01
KNOWN = 2 / 3
EXACT = 1e-6  # smaller errors are rounding
IMPLAUSIBLE = 1.5  # samples so many times as far from training slices as held-out slices are no heads
REPEATS = 2000


@dataclass(frozen=True, eq=False)
class Slices:
    """What is kept of a set of images.

    Attributes
    ----------
    features : Tensor (slice, SIDE, SIDE)
        See `feature`.
    patients : tuple of str
        Of each slice.
    errors : Tensor (slice, len(SIGMAS))
        Relative root mean square error of denoising; NaN where it was not tried.
    undersampled : int
        How many were reconstructed from undersampled data.
    """

    features: Tensor
    patients: tuple[str, ...]
    errors: Tensor
    undersampled: int

    def of(self, patients: set[str]) -> "Slices":
        """The slices of some patients."""
        keep = torch.tensor([patient in patients for patient in self.patients])
        names = tuple(patient for patient in self.patients if patient in patients)
        return Slices(self.features[keep], names, self.errors[keep], self.undersampled)


@dataclass(frozen=True)
class Similarity:
    """Medians of the similarity to the nearest slice, and what was found about copies.

    Attributes
    ----------
    samples_to_training, heldout_to_training, samples_to_heldout : float
        The first two have the same slices to choose from and can be compared; the third has others.
    singled_out : int
        Samples that are closer to one training patient, relative to all others, than any held-out slice.
    probability : float
        Of at least so many, if samples are like held-out slices.
    plausible : bool
        Whether samples resemble real slices at all; if not, they cannot show copies.
    """

    samples_to_training: float
    heldout_to_training: float
    samples_to_heldout: float
    singled_out: int
    probability: float
    plausible: bool

    @property
    def copies(self) -> bool:
        """Whether samples are copies of training slices."""
        return self.probability < CHANCE


@dataclass(frozen=True)
class Recovery:
    """Median relative errors of denoised slices at one noise level, and training over held-out with its 95 % interval.

    The ends of the interval are None where a set has one patient only.
    """

    sigma: float
    training: float
    heldout: float
    ratio: float
    low: float | None
    high: float | None

    @property
    def known(self) -> bool:
        """Whether training images are restored from memory."""
        return self.ratio < KNOWN and (self.high is None or self.high < 1)


@dataclass(frozen=True)
class Audit:
    """The finding; ``notes`` are sentences about what limits it."""

    prior: str
    prior_hash: str
    samples: int
    matrix: tuple[int, int]
    training_slices: int
    training_patients: int
    heldout_slices: int
    heldout_patients: int
    similarity: Similarity
    recovery: tuple[Recovery, ...]
    seed: int
    notes: tuple[str, ...] = field(default=())

    @property
    def memorises(self) -> bool:
        """Whether either test says so."""
        return self.similarity.copies or any(level.known for level in self.recovery)

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionaries and lists, for JSON."""
        return {**asdict(self), "memorises": self.memorises}


def audit(
    prior: Prior | str,
    data: Sequence[str | Path],
    heldout: Sequence[str | Path] = (),
    *,
    count: int = 16,
    matrices: Sequence[int] = (),
    noise: float | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    reporter: Reporter | None = None,
) -> Audit:
    """Compare what a prior does with its training images to what it does with unseen ones.

    Parameters
    ----------
    prior : Prior or str
        A loaded prior, or what `load_prior` takes. A run folder also tells how volumes were simulated.
    data : sequence of paths
        What the prior was trained on, as given to `train`.
    heldout : sequence of paths
        The same of patients that training never saw. Default: the patients of `data` that training put aside.
    count : int
        Samples to draw, of the most frequent size in training.
    matrices : sequence of int
        Matrices of volumes, in turn, as in training. Default: those of the run, or the volume's own.
    noise : float, optional
        Noise of k-space files per real component in their own unit; default: in the file, or estimated.
    seed : int
    device, precision : str
        As in `mri_ambient.train`.
    reporter : Reporter, optional

    Returns
    -------
    Audit

    Raises
    ------
    InputError
        If something cannot be used, or it is not clear which patients training never saw.
    """
    reporter = reporter or Silent()
    keep_freed_memory()
    sources, others = find_sources(data), find_sources(heldout) if heldout else []
    both = {p.resolve() for p in sources} & {p.resolve() for p in others}
    if both:
        raise InputError(f"{min(both)} is both among the training data and held out: name it once.")
    check_request(count, (SIDE, SIDE))
    loaded = open_prior(prior, *choose_device(device, precision))
    simulation = _simulation(prior, matrices)
    shape = _common_shape(sources, simulation)
    look = _Look(loaded, simulation, shape, noise, seed, reporter)
    training, notes = look.at(sources), []
    if others:
        unseen = look.at(others)
        notes = _doubts(training, unseen, loaded.card)
    else:
        training, unseen = _split(training, loaded.card)
    if training.undersampled or unseen.undersampled:
        notes.append("Undersampled scans were reconstructed by CG-SENSE; their artefacts are part of what is compared.")
    samples = generate(loaded, count, shape, seed=seed, device=device, precision=precision, reporter=reporter)
    similarity = compare(torch.stack([feature(image, shape) for image in samples]), training, unseen)
    if not similarity.plausible:
        notes.append("The samples resemble no real slice, so that they cannot show copies; only the recovery can.")
    recovery = tuple(recover(training, unseen, level) for level in range(len(SIGMAS)))
    if recovery[0].low is None:
        notes.append("One patient in a set gives no interval: the difference may be that patient's.")
    sizes = [(len(s.patients), len(set(s.patients))) for s in (training, unseen)]
    return Audit(loaded.name, loaded.hash, count, shape, *sizes[0], *sizes[1], similarity, recovery, seed, tuple(notes))


def _simulation(prior: Prior | str, matrices: Sequence[int]) -> Simulation:
    """How the prior's training run made scans of volumes, where that is known; without noise."""
    found: dict[str, Any] = {}
    if not isinstance(prior, Prior):
        path = find_prior(prior)
        config = path.with_name("config.json")
        if path.name == RUN_FILE and config.exists():
            found = json.loads(config.read_text())
    return Simulation(found.get("coils", Simulation.coils), 0.0, tuple(matrices) or tuple(found.get("matrices", ())))


def _matrix(simulation: Simulation, number: int) -> int | None:
    """Matrix of the volume that is source `number`; None: its own."""
    return simulation.matrices[number % len(simulation.matrices)] if simulation.matrices else None


def _common_shape(sources: Sequence[Path], simulation: Simulation) -> tuple[int, int]:
    """The most frequent image size (y, x), of equally frequent ones the largest."""
    shapes: Counter[tuple[int, int]] = Counter()
    for number, source in enumerate(sources):
        matrix = _matrix(simulation, number)
        if not is_volume(source):
            shapes[load_scan(source).shape[2:]] += 1
        elif matrix is not None:
            shapes[matrix, matrix] += 1
        else:
            shapes[load_volume(source).shape[1:]] += 1
    return max(shapes, key=lambda shape: (shapes[shape], shape))


class _Look:
    """Goes through images once and keeps what `Slices` holds, features in the field of view of `shape`."""

    def __init__(
        self,
        prior: Prior,
        simulation: Simulation,
        shape: tuple[int, int],
        noise: float | None,
        seed: int,
        reporter: Reporter,
    ) -> None:
        self.denoiser = prior.denoiser
        self.simulation = simulation
        self.simulation_seed = prior.card.get("seed", 0)  # so that phases are those of training
        self.noise = noise
        self.seed = seed
        self.reporter = reporter
        self.shape = shape

    def at(self, sources: Sequence[Path]) -> Slices:
        """All slices of the sources that show anatomy."""
        features, patients, errors, undersampled = [], [], [], 0
        share = max(2, RECOVERED // len(sources))
        for number, (source, (own, distinct)) in enumerate(zip(sources, own_names(sources), strict=True)):
            self.reporter.stage("reading images", number, len(sources))
            scan = self._open(source, number)
            patient = scan.patient or scan.name
            every = max(1, scan.shape[0] // share)
            for place, (index, image) in enumerate(self._images(scan)):
                features.append(feature(image, self.shape))
                patients.append(distinct if patient == own else patient)  # as in training
                wanted = place % every == 0
                generator = stream(self.seed, "audit", scan.patient or "", scan.name, index)
                errors.append(self._error(image, generator) if wanted else torch.full((len(SIGMAS),), torch.nan))
                undersampled += not scan.is_fully_sampled
        if not features:
            raise InputError(f"None of the slices of {sources[0]} and others shows any anatomy.")
        return Slices(torch.stack(features), tuple(patients), torch.stack(errors), undersampled)

    def _open(self, source: Path, number: int) -> Scan:
        if not is_volume(source):
            return load_scan(source)
        volume, coils, seed = load_volume(source), self.simulation.coils, self.simulation_seed
        return simulate_scan(volume, coils=coils, noise_std=0, seed=seed, matrix=_matrix(self.simulation, number))

    def _images(self, scan: Scan) -> Iterator[tuple[int, Tensor]]:
        """Slice numbers and complex images (y, x) in prior units."""
        calibration = calibrate(scan, None if scan.noise_std == 0 else self.noise)
        for index in range(scan.shape[0]):
            item = prepare_slice(scan, index, calibration, self.denoiser.device)
            if (item.operator.sensitivity_maps.abs().amax(0) > 0).float().mean() < EMPTY:
                continue
            if scan.is_fully_sampled:
                yield index, item.operator.adjoint(item.kspace)
            else:
                yield index, cg_sense(item.kspace, item.operator, item.noise_std)

    @torch.no_grad()
    def _error(self, image: Tensor, generator: torch.Generator) -> Tensor:
        sigma = torch.tensor(SIGMAS, device=image.device)
        noise = complex_normal((len(SIGMAS), *image.shape), generator, image.device)
        error = self.denoiser(image + sigma[:, None, None] * noise, sigma) - image
        return (error.abs().square().sum((-2, -1)) / image.abs().square().sum()).sqrt().cpu()


def feature(image: Tensor, shape: tuple[int, int]) -> Tensor:
    """Magnitude of an image (y, x) in a field of view of `shape` pixels, at low resolution; mean 0, energy 1.

    Returns
    -------
    Tensor (SIDE, SIDE), float32, on the CPU
    """
    magnitude = image.abs().cpu()
    magnitude = center_crop(magnitude, (min(shape[0], image.shape[0]), min(shape[1], image.shape[1])))
    kspace = fft2c(center_pad(magnitude, shape))
    side = min(SIDE, shape[0]), min(SIDE, shape[1])
    small = ifft2c(center_pad(center_crop(kspace, side), (SIDE, SIDE))).real
    small = small - small.mean()
    return small / small.norm().clamp_min(1e-12)


def similarities(queries: Tensor, references: Tensor) -> Tensor:
    """Largest correlation over flips: features (n, SIDE, SIDE) and (m, SIDE, SIDE) to (n, m)."""
    flips = [queries, reverse(queries, -1)]
    flips += [reverse(flipped, -2) for flipped in flips]
    found: Tensor = torch.stack([flipped.flatten(1) @ references.flatten(1).T for flipped in flips]).amax(0)
    return found.clamp_max(1)


def distance(similarity: Tensor) -> Tensor:
    """Euclidean distance of unit vectors from their correlation."""
    return (2 - 2 * similarity).clamp_min(0).sqrt()


def isolation(similarity: Tensor, patients: Sequence[str]) -> Tensor:
    """The ratio r of the module for each row of similarities (n, m) to slices of `patients` (m).

    With a single patient there are no others, and r is the distance to the nearest slice.
    """
    names = sorted(set(patients))
    number = torch.tensor([names.index(patient) for patient in patients])
    best = torch.stack([similarity[:, number == k].amax(1) for k in range(len(names))], dim=1)
    best = best.sort(dim=1, descending=True).values
    nearest = distance(best[:, 0])
    return nearest if len(names) == 1 else nearest / distance(best[:, 1]).clamp_min(1e-6)


def compare(samples: Tensor, training: Slices, heldout: Slices) -> Similarity:
    """Features of samples (n, SIDE, SIDE) against both sets."""
    to_training = similarities(samples, training.features)
    unseen_to_training = similarities(heldout.features, training.features)
    to_heldout = similarities(samples, heldout.features)
    nearest, usual = to_training.amax(1), unseen_to_training.amax(1)
    lowest = isolation(unseen_to_training, training.patients).min()
    singled_out = int((isolation(to_training, training.patients) < lowest).sum())
    return Similarity(
        float(nearest.median()),
        float(usual.median()),
        float(to_heldout.amax(1).median()),
        singled_out,
        chance_of(singled_out, len(samples), independent(heldout.patients)),
        bool(distance(nearest.median()) <= IMPLAUSIBLE * distance(usual.median())),
    )


def independent(patients: Sequence[str]) -> int:
    """Number of slices, each patient's counted as at most `INDEPENDENT`."""
    return sum(min(INDEPENDENT, list(patients).count(patient)) for patient in set(patients))


def chance_of(smallest: int, samples: int, heldout: int) -> float:
    """Probability that the so many smallest values among two exchangeable sets are all in the first."""
    return math.comb(samples, smallest) / math.comb(samples + heldout, smallest)


def recover(training: Slices, heldout: Slices, level: int) -> Recovery:
    """Compare the errors at one of `SIGMAS`."""
    trained, new = _by_patient(training, level), _by_patient(heldout, level)
    known, unseen = _median(trained), _median(new)
    low, high = ratio_interval(trained, new) if len(trained) > 1 and len(new) > 1 else (None, None)
    return Recovery(SIGMAS[level], known, unseen, known / unseen, low, high)


def _by_patient(slices: Slices, level: int) -> list[np.ndarray]:
    errors, patients = slices.errors[:, level].double().numpy(), np.array(slices.patients)
    tried = ~np.isnan(errors)
    return [errors[tried & (patients == name)] for name in sorted(set(patients[tried]))]


def _median(groups: Sequence[np.ndarray]) -> float:
    return max(EXACT, float(np.median(np.concatenate(groups))))


def ratio_interval(training: Sequence[np.ndarray], heldout: Sequence[np.ndarray], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the ratio of medians; one array of errors a patient, patients are resampled."""
    rng = np.random.default_rng(seed)

    def drawn(groups: Sequence[np.ndarray]) -> float:
        return _median([groups[i] for i in rng.integers(len(groups), size=len(groups))])

    ratios = [drawn(training) / drawn(heldout) for _ in range(REPEATS)]
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)


def _split(everything: Slices, card: dict[str, Any]) -> tuple[Slices, Slices]:
    """Trained and unseen patients, by the rule that training follows."""
    patients = set(everything.patients)
    chosen = held_out_patients(patients, card.get("seed", 0))
    if not chosen or card.get("patients") != len(patients - chosen):
        raise InputError(
            f"It is not clear which of the {counted(len(patients), 'patient')} training never saw: "
            "name scans of other patients with --heldout."
        )
    return everything.of(patients - chosen), everything.of(chosen)


def _doubts(training: Slices, heldout: Slices, card: dict[str, Any]) -> list[str]:
    """Signs that the two sets are not what they should be."""
    notes = []
    common = sorted(set(training.patients) & set(heldout.patients))
    if common:
        notes.append(f"{counted(len(common), 'patient')} ({common[0]}) in both sets: held-out scans may not be unseen.")
    count, trained = len(set(training.patients)), card.get("patients")
    if trained is not None and trained != count:
        notes.append(f"The prior was trained on {counted(trained, 'patient')}, but the data hold {count}.")
    return notes
