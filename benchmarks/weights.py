r"""When the weights of held-out lines help: signal and noise of the gradient of the loss on measured lines.

    OMP_NUM_THREADS=1 python benchmarks/weights.py --data ../shared/data/open_ms/patient01 --samples 70

The loss on lines that the input lacks can be estimated from those that were measured in several ways with the same
minimiser, or nearly so. For one network with fixed weights, its gradient is computed sample by sample (a strip of a
slice, a further mask, noise; every slice has one fixed mask and serves once, so that samples are independent) for each
of them and, as the truth is known here, for the supervised error on the same lines. With S the squared length of the
expected gradient and V the trace of its covariance for one sample, the table gives V / S, the batch size at which noise
equals signal; the cosine between the expected gradient and the supervised one; and the efficiency, the supervised V / S
over this one. None depends on the scale of a loss. S and products of expectations are estimated without bias from pairs
of different samples, their standard errors by leaving out tenths of the samples.

Estimates, for held-out lines j with P_j = P(j measured | input), and P their mean:

* ``1/P``: weights 1 / P_j, the supervised loss in expectation; ``P/P``: the same times the sample's P (`Ambient`);
  ``sqrt(P)/P``: times the root of P; ``Hajek``: 1 / P_j scaled so that the weights add up to the number of lines;
* ``unweighted``: 1 for every held-out line;
* ``1/P - wiener``, ``1/P - teacher``: control variates. The error against a prediction r of all missing lines from the
  input alone is added for all of them and subtracted, with 1 / P_j, for the held-out ones; r is the linear estimate, or
  that of a trained prior. Unbiased;
* ``1/P - stored``: the same with the reconstruction of all measured lines; biased, since it has seen those held out;
* ``stored``: the error against that reconstruction alone, the loss on reconstructions.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from mri_ambient import training
from mri_ambient.allocator import keep_freed_memory
from mri_ambient.config import TrainConfig
from mri_ambient.dataset import PreparedSlices
from mri_ambient.denoiser import log_uniform, wiener
from mri_ambient.methods import objective_of
from mri_ambient.objectives import Ambient
from mri_ambient.objectives.ambient import further_undersample
from mri_ambient.objectives.base import complex_normal, expected_error
from mri_ambient.operators import Sense
from mri_ambient.preparation import Simulation, find_sources, prepare
from mri_ambient.recon.pipeline import open_prior
from mri_ambient.run_state import choose_device, new_state
from mri_ambient.streams import stream
from mri_ambient.training_data import first_reconstruction

FORMS = (
    "supervised", "1/P", "P/P", "sqrt(P)/P", "Hajek", "unweighted", "1/P - wiener", "1/P - teacher", "1/P - stored",
    "stored",
)  # fmt: skip
PARTS = 10  # of the samples, for standard errors
COORDINATES = 200_000  # parameters, drawn at random, that stand for all


class Paired(PreparedSlices):
    """Prepared slices whose maps carry the truth as one more coil: strips then are cut and mirrored alike."""

    def __init__(self, data, truth):
        super().__init__(data.folder, data.records, data.mask)
        self.truth = truth

    def array(self, record, kind):
        array = super().array(record, kind)
        if kind != "maps":
            return array
        truth = torch.from_numpy(self.truth.array(record, "image").copy())
        return torch.cat((torch.from_numpy(array.copy()), truth[:, None]), dim=1).numpy()


def prepared(args, family, accel, folder):
    """Slices at one acceleration, without and with their truth."""
    sources = [s for s in find_sources([args.data]) if any(c in s.name for c in args.contrast)]
    settings = {
        "mask": family,
        "accel": (accel,),
        "simulation": Simulation(args.coils, 0.02, (args.matrix,)),
        "seed": 0,
    }
    data = prepare(sources, folder / "scans", reconstruct=first_reconstruction, **settings)
    return data, Paired(data, prepare(sources, folder / "truth", **settings))


def losses(denoiser, teacher, batch, truth, generator):
    """Form -> loss of a batch of one, and P; all on the lines that the input lacks."""
    objective = Ambient()
    low, high = objective.keep_range
    keep = low + (high - low) * torch.rand(1, generator=generator)
    split = further_undersample(batch, keep, generator)
    sigma = batch.noise_std * log_uniform(*objective.noise_factor_range, 1, generator)
    extra = (sigma**2 - batch.noise_std**2).sqrt()
    operator = Sense(batch.sensitivity_maps, split.kept)
    z = operator.adjoint(batch.kspace + extra * complex_normal(batch.kspace.shape, generator, batch.kspace.device))
    every = operator.with_mask(torch.ones_like(batch.mask))
    lines = every.forward(denoiser(z, sigma, operator))
    with torch.no_grad():
        predictions = {
            "wiener": wiener(z, sigma, operator, denoiser.config.sigma_data),
            "teacher": teacher(z, sigma, operator),
            "stored": batch.image,
        }
        predictions = {name: every.forward(image) for name, image in predictions.items()}
        target = every.forward(truth)
    hidden, held_out = ~split.kept[:, None], (batch.mask & ~split.kept)[:, None]
    weight = (split.weights[:, None] * held_out).float()
    hajek = weight * (hidden.sum() / weight.sum().clamp_min(1e-6))
    missing = 1 - split.kept.float().mean((-2, -1))
    scale = truth.numel() * expected_error(sigma, missing, denoiser.config.sigma_data)

    def error(of, to, on):
        return (on * (of - to).abs() ** 2).sum() / scale

    measured = {name: error(lines, batch.kspace, on) for name, on in
                (("1/P", weight), ("Hajek", hajek), ("unweighted", held_out))}  # fmt: skip
    controlled = {
        f"1/P - {name}": measured["1/P"] + error(lines, r, hidden) - error(lines, r, weight)
        for name, r in predictions.items()
    }
    found = {"supervised": error(lines, target, hidden), **measured, **controlled}
    return {**found, "stored": error(lines, predictions["stored"], hidden)}, float(split.probability)


class Moments:
    """Sums over samples of the gradients of two losses, in parts."""

    def __init__(self, size):
        self.count = torch.zeros(PARTS)
        self.sums = torch.zeros(PARTS, size)
        self.squares = torch.zeros(PARTS)
        self.products = torch.zeros(PARTS)  # with the supervised gradient of the same sample

    def add(self, part, gradient, supervised):
        self.count[part] += 1
        self.sums[part] += gradient
        self.squares[part] += gradient.square().sum()
        self.products[part] += gradient @ supervised

    def signal(self, other, products, parts):
        """Product of two expectations from pairs of different samples."""
        n = self.count[parts].sum()
        return (self.sums[parts].sum(0) @ other.sums[parts].sum(0) - products[parts].sum()) / (n * (n - 1))

    def statistics(self, supervised, parts):
        """V / S and the cosine with the supervised expectation."""
        own = self.signal(self, self.squares, parts)
        reference = supervised.signal(supervised, supervised.squares, parts)
        mixed = self.signal(supervised, self.products, parts)
        variance = self.squares[parts].sum() / self.count[parts].sum() - own
        return torch.stack((variance / own, mixed / (own * reference).clamp_min(0).sqrt()))


def study(args, denoiser, teacher, data):
    """Form -> (V / S, cosine) and their jackknife errors."""
    parameters = list(denoiser.parameters())
    size = sum(p.numel() for p in parameters)
    chosen = torch.randperm(size, generator=stream(args.seed, "parameters"))[:COORDINATES]
    moments = {form: Moments(len(chosen)) for form in FORMS}
    order = torch.randperm(len(data), generator=stream(args.seed, "order")).tolist()
    if args.samples > len(order):
        raise SystemExit(f"There are {len(order)} slices only, and each serves once: use fewer --samples.")
    for number in range(args.samples):
        generator = stream(args.seed, "weights", number)
        slices = PreparedSlices(data.folder, [data.records[order[number]]], data.mask)
        batch = Paired(slices, data.truth).batch(1, 64, generator, augment=False)
        maps, truth = batch.sensitivity_maps[:, :-1], batch.sensitivity_maps[:, -1]
        values, probability = losses(denoiser, teacher, replace(batch, sensitivity_maps=maps), truth, generator)
        gradients = {}
        for form, value in values.items():
            pieces = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
            gradient = [(p * 0 if g is None else g).flatten() for p, g in zip(parameters, pieces, strict=True)]
            gradients[form] = torch.cat(gradient).detach()[chosen]
        gradients["P/P"] = probability * gradients["1/P"]
        gradients["sqrt(P)/P"] = probability**0.5 * gradients["1/P"]
        for form in FORMS:
            moments[form].add(number % PARTS, gradients[form], gradients["supervised"])
    supervised, everything = moments["supervised"], torch.arange(PARTS)
    table = {}
    for form in FORMS:
        without = torch.stack([moments[form].statistics(supervised, everything[everything != k]) for k in range(PARTS)])
        error = ((PARTS - 1) / PARTS * (without - without.mean(0)).square().sum(0)).sqrt()
        table[form] = (moments[form].statistics(supervised, everything), error)
    return table


def network(args, data):
    """The prior named, or a network after a few steps of ambient training."""
    device, precision = choose_device("cpu", args.precision)
    if args.prior is not None:
        return open_prior(args.prior, device, precision).denoiser.requires_grad_(True)
    config = TrainConfig(preset=args.preset, images=6 * args.warm_up, seed=args.seed)
    state = new_state(config, device, precision)
    objective = objective_of(config)
    for step in range(config.steps):
        batch = training.examples(data, config, stream(config.seed, "batch", step))
        training.train_step(config, state, objective, batch)
    return state.denoiser


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--contrast", nargs="+", default=["study1_FLAIR", "study1_T1W"])
    parser.add_argument("--prior", help="network whose gradient is studied; default: one trained for --warm-up steps")
    parser.add_argument("--warm-up", type=int, default=150)
    parser.add_argument("--teacher", default="brain-full")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--pattern", nargs="+", default=["random:2", "random:4", "random:8", "gaussian:4"])
    parser.add_argument("--samples", type=int, default=70)
    parser.add_argument("--matrix", type=int, default=160)
    parser.add_argument("--coils", type=int, default=8)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    keep_freed_memory()
    teacher = open_prior(args.teacher, *choose_device("cpu", args.precision)).denoiser
    source = args.prior or f"{args.preset} after {args.warm_up} steps"
    print(f"network {source}, {args.samples} samples, strips of 64 x {args.matrix}, {args.coils} coils\n")
    print("| mask | estimate | V / S | cosine with supervised | efficiency |\n|---|---|---|---|---|")
    for pattern in args.pattern:
        family, accel = pattern.split(":")
        with tempfile.TemporaryDirectory() as folder:
            data, paired = prepared(args, family, float(accel), Path(folder))
            table = study(args, network(args, data), teacher, paired)
        best = float(table["supervised"][0][0])
        for form, (value, error) in table.items():
            noise, cosine = (f"{v:.{d}f} ± {e:.{d}f}" for v, e, d in zip(value, error, (1, 2), strict=True))
            print(f"| {family} R = {accel} | {form} | {noise} | {cosine} | {best / float(value[0]):.2f} |", flush=True)


if __name__ == "__main__":
    main()
