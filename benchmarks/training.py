"""Training images and posterior samples a second, how long training waits for data, and how far all is from the floor.

    python benchmarks/training.py                                   # presets tiny and small
    python benchmarks/training.py --presets base --runs 7

Variants take turns in one run. A round is the real training loop (method ambient: its fetching, loss, optimiser and
averaging) for some steps on phantoms of 160 x 160 with 8 coils, and one set of posterior samples of a slice of each
size. All of the sampling but the network (the data step with its eigendecomposition, noise) is given as a share of the
network's time, which is measured in the same turn. The floor is the FLOPs of the network (counted by PyTorch; a
training step forwards and backwards) over the rate of this machine, which is measured in the same turns: the faster of
a large matrix product and of a 3 x 3 convolution of 64 channels in the precision of the variant. The gap is the time
over the floor. Waiting is the share of the loop's time in which no batch was ready.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import mri_ambient as ma
from mri_ambient import training
from mri_ambient.allocator import keep_freed_memory
from mri_ambient.calibration import calibrate, prepare_slice
from mri_ambient.config import TrainConfig
from mri_ambient.dataset import PreparedSlices
from mri_ambient.methods import objective_of
from mri_ambient.operators import MaskPattern
from mri_ambient.phantoms import phantom_volume
from mri_ambient.preparation import Simulation, prepare
from mri_ambient.prior import Prior
from mri_ambient.recon.posterior import sample_posterior
from mri_ambient.reporter import Silent
from mri_ambient.run_state import choose_device, new_state
from mri_ambient.streams import stream

SIZE = 160
VARIANTS = {  # device, precision, how torch.compile is asked to
    "cpu float32": ("cpu", "fp32", None),
    "cpu bf16": ("cpu", "bf16", None),
    "cuda float32": ("cuda", "fp32", None),
    "cuda bf16": ("cuda", "bf16", None),
    "cuda bf16, compiled": ("cuda", "bf16", {"dynamic": True}),
    "cuda bf16, compiled, CUDA graphs": ("cuda", "bf16", {"mode": "reduce-overhead"}),
}
SLICES = [(8, 160, 160), (16, 320, 320)]  # sampled: coils and pixels
SAMPLES, STEPS = 8, 25


def wait(device):
    """Until the device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work, device):
    """Of a call, on the device."""
    wait(device)
    began = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - began


def rate(device, precision):
    """FLOP/s of the faster of a matrix product and a convolution: the best of three."""
    side, batch = (8192, 64) if device.type == "cuda" else (1536, 4)
    a = torch.randn(side, side, device=device, dtype=precision)
    image = torch.randn(batch, 64, 80, 80, device=device, dtype=precision).to(memory_format=torch.channels_last)
    kernel = torch.randn(64, 64, 3, 3, device=device, dtype=precision).to(memory_format=torch.channels_last)
    with torch.no_grad():
        product = min(seconds(lambda: a @ a, device) for _ in range(4))
        convolution = min(seconds(lambda: torch.conv2d(image, kernel, padding=1), device) for _ in range(4))
    return max(2 * side**3 / product, 2 * 9 * 64 * image.numel() / convolution)


class Clock(Silent):
    """When every training step was done."""

    def __init__(self):
        self.steps = []

    def stage(self, text, done, total):
        self.steps.append(time.perf_counter())


class Variant:
    """A preset on a device in a precision: its network, its FLOPs, and what was measured."""

    def __init__(self, name, preset, data, steps):
        device, precision, self.compiled = VARIANTS[name]
        self.name, self.preset, self.data = name, preset, data
        self.config = TrainConfig(preset=preset, images=steps * TrainConfig.batch, refreshes=())
        self.device, self.precision = choose_device(device, precision)
        self.state = new_state(self.config, self.device, self.precision)
        self.training_flops = self._training_flops()
        if self.compiled is not None:
            self.state.denoiser.network.compile(**self.compiled)
        self.measured = {"train": [], "waiting": [], "rate": []}

    def _training_flops(self):
        batch = training.examples(self.data, self.config, stream(0, "batch", 0)).to(self.device)
        with FlopCounterMode(display=False) as counter:
            objective_of(self.config).loss(self.state.denoiser, batch, stream(0, "loss")).backward()
        return counter.get_total_flops()

    def evaluation_flops(self, shape):
        """Of the network for an image."""
        image = torch.zeros(1, *shape, dtype=torch.complex64, device=self.device)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.state.average(image, 0.1)
        return counter.get_total_flops()

    def round(self, folder, items):
        """Train for some steps from the same start of the schedule, draw samples, measure the machine."""
        self.state.step = 0
        self.state.seconds = 0.0
        (folder / "metrics.jsonl").unlink(missing_ok=True)
        nobody, clock = PreparedSlices(folder, []), Clock()
        training.loop(self.config, self.state, self.data, nobody, folder, clock)
        waited = [json.loads(line)["waited"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        skip = len(waited) // 3  # the first steps fill caches and, compiled, wait for the compiler
        took = clock.steps[-1] - clock.steps[skip]
        self.measured["train"].append(took / len(waited[skip + 1 :]))
        self.measured["waiting"].append(sum(waited[skip + 1 :]) / took)
        for item in items:
            for name, value in zip(("sample", "network"), self._sampling(item), strict=True):
                self.measured.setdefault((name, item.kspace.shape), []).append(value / SAMPLES)
        self.measured["rate"].append(rate(self.device, self.precision))

    def _sampling(self, item):
        """Seconds of a set of samples, and of the network in that."""
        prior = Prior(self.state.average, {"denoiser_error": [(0.005, 0.004), (2.0, 0.1)]}, "untrained", "")
        kspace, operator = item.kspace.to(self.device), item.operator.to(self.device)
        images = operator.adjoint(kspace).expand(SAMPLES, -1, -1)

        def draw(steps):
            with torch.no_grad():
                sample_posterior(prior.posterior(kspace, operator, item.noise_std), samples=SAMPLES, steps=steps)

        def evaluate():
            with torch.no_grad():
                for _ in range(STEPS):
                    self.state.average(images, 0.1)

        draw(1)
        return seconds(lambda: draw(STEPS), self.device), seconds(evaluate, self.device)

    def training_row(self, base):
        """Of the table of training; ratios to another variant, run by run."""
        took, waiting = np.array(self.measured["train"][1:]), np.array(self.measured["waiting"][1:])
        best, floor = self.best_rate(), self.training_flops / self.best_rate()
        return (
            f"| {self.preset} | {self.name} | {self.config.batch / np.median(took):.3g} "
            f"| {spread(np.array(base.measured['train'][1:]) / took)} | {100 * np.median(waiting):.1f} % "
            f"| {self.training_flops / 1e9:.3g} | {best / 1e12:.3g} | {np.median(took) / floor:.1f} |"
        )

    def sampling_row(self, base, item):
        """Of the table of sampling."""
        shape = item.kspace.shape
        took, network = (np.array(self.measured[name, shape][1:]) for name in ("sample", "network"))
        flops = STEPS * self.evaluation_flops(shape[1:])
        return (
            f"| {self.preset} | {self.name} | {' x '.join(map(str, shape))} | {np.median(took):.3g} "
            f"| {spread(np.array(base.measured['sample', shape][1:]) / took)} | {spread(took / network - 1)} "
            f"| {flops / 1e9:.3g} | {np.median(took) / (flops / self.best_rate()):.1f} |"
        )

    def best_rate(self):
        """FLOP/s of this machine."""
        return max(self.measured["rate"][1:])


def spread(ratios):
    """Median with the range."""
    return f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["tiny", "small"])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS)
    parser.add_argument("--slice", nargs=3, type=int, action="append", metavar=("COILS", "Y", "X"), help="to sample")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30, help="training steps of a round; ten times as many on a GPU")
    args = parser.parse_args()
    keep_freed_memory()
    training.LOG_EVERY = 1
    there = [name for name in VARIANTS if torch.cuda.is_available() or not name.startswith("cuda")]
    volumes = [phantom_volume(4, (SIZE, SIZE), seed=seed) for seed in range(3)]
    items = []
    for coils, *shape in args.slice or SLICES:
        scan = ma.simulate_scan(phantom_volume(1, shape, seed=0), coils=coils, pattern=MaskPattern("random", 4))
        items.append(prepare_slice(scan, 0, calibrate(scan)))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = prepare(
            volumes, folder, mask="random", accel=(4,), simulation=Simulation(), seed=0,
            reconstruct=lambda item: item.operator.adjoint(item.kspace),
        )  # fmt: skip
        variants = [
            Variant(name, preset, data, args.steps * (10 if name.startswith("cuda") else 1))
            for preset in args.presets
            for name in args.variants or there
        ]
        for _ in range(args.runs + 1):  # the first one warms up
            for variant in variants:
                variant.round(folder, items)
    threads = f"{torch.get_num_threads()} threads"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"PyTorch {torch.__version__}, {threads}, {device}; {args.runs} runs; ratios: median (range)\n")
    print("| preset | variant | images/s | speed over the first | waiting | GFLOP a step | TFLOP/s here | gap |")
    print("|---|---|---|---|---|---|---|---|")
    print(*(variant.training_row(first_of(variant, variants)) for variant in variants), sep="\n")
    print(
        f"\n| preset | variant | coils x pixels | s a slice and sample ({STEPS} steps) | speed over the first "
        "| all but the network, over it | GFLOP a sample | gap |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for item in items:
        print(*(variant.sampling_row(first_of(variant, variants), item) for variant in variants), sep="\n")


def first_of(variant, variants):
    """The variant of the same preset that the others are compared with."""
    return next(other for other in variants if other.preset == variant.preset)


if __name__ == "__main__":
    main()
