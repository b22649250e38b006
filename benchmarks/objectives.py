"""Seconds of one optimiser step of each training method, as a multiple of a supervised step; one run, ratios.

    OMP_NUM_THREADS=1 python benchmarks/objectives.py --runs 5

All methods train the same network on the same prepared phantoms with the batch sizes of real training, batches and
optimiser included. Methods that take a costly loss in a share of their steps are timed with that loss in every step and
in none; a mean step follows from the shares without the chance of a short block. Candidates take turns in every run,
in another order each time. On the CPU processor time counts, so that other work on the machine disturbs little; on a
GPU the clock does, after synchronisation. Runs give ratios: minimum, median, maximum.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from mri_ambient import training
from mri_ambient.allocator import keep_freed_memory
from mri_ambient.config import TrainConfig
from mri_ambient.denoiser import PRESETS, Denoiser
from mri_ambient.objectives import GSURE, Ambient, Bootstrap, PublishedAmbient, Supervised, Tweedie
from mri_ambient.objectives.bootstrap import CentreView, view_config, view_to_dict
from mri_ambient.phantoms import phantom_volume
from mri_ambient.preparation import Simulation, prepare
from mri_ambient.prior import save_prior
from mri_ambient.run_state import choose_device, new_state
from mri_ambient.streams import stream

GOALS = {"gsure": 3.0, "ambient": 1.15}


def steps_of():
    """Kind of step -> (method whose batches and network it has, objective); method -> {kind: share of its steps}."""
    plain, reconstructing = (Supervised(reconstruction_share=share) for share in (0.0, 1.0))
    kinds = {
        "denoising": ("supervised", plain),
        "denoising + reconstruction": ("supervised", reconstructing),
        "denoising + measured lines": ("ambient", Ambient(measured_share=1.0, on_reconstructions=plain)),
        "gsure": ("gsure", GSURE()),
        "tweedie": ("tweedie", Tweedie()),
        "ambient published": ("published", PublishedAmbient()),
        "composed denoising": ("bootstrap", Bootstrap(Ambient(measured_share=0.0, on_reconstructions=plain))),
        "composed + reconstruction": (
            "bootstrap", Bootstrap(Ambient(measured_share=0.0, on_reconstructions=reconstructing))
        ),
        "composed + measured lines": ("bootstrap", Bootstrap(Ambient(measured_share=1.0, on_reconstructions=plain))),
    }  # fmt: skip
    share = Supervised().reconstruction_share
    ambient = Ambient()
    inner, measured = ambient.on_reconstructions.reconstruction_share, ambient.measured_share
    first, second, third = list(kinds)[:3]
    composed = list(kinds)[6:]
    methods = {
        "supervised": {first: 1 - share, second: share},
        "ambient": {first: 1 - inner - measured, second: inner, third: measured},
        "gsure": {"gsure": 1.0},
        "tweedie": {"tweedie": 1.0},
        "ambient published": {"ambient published": 1.0},
        "bootstrap": dict(zip(composed, (1 - inner - measured, inner, measured), strict=True)),
    }
    return kinds, methods


def configurations(args, folder):
    """Name in `steps_of` -> configuration."""
    base = TrainConfig(method="supervised", preset=args.preset, images=10**6)
    view, path = CentreView(12), str(folder / "view.safetensors")
    denoiser = Denoiser(view_config(PRESETS[args.preset], view, args.matrix))
    save_prior(path, denoiser, {"method": "bootstrap", "view": view_to_dict(view)})
    return {
        "supervised": base,
        "ambient": replace(base, method="ambient"),
        "gsure": replace(base, method="gsure"),
        "tweedie": replace(base, method="tweedie"),
        "published": replace(base, method="ambient", variant="published"),
        "bootstrap": replace(base, method="bootstrap", views=(path,)),
    }


def seconds(config, state, objective, data, first, count, device):
    """Mean seconds of `count` steps from number `first` on."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    state.step = first
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = clock()
    for number in range(first, first + count):
        batch = training.examples(data, config, stream(config.seed, "batch", number))
        training.train_step(config, state, objective, batch.to(device))
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (clock() - began) / count


def measure(args, folder):
    """Kind of step -> seconds of a step in every run."""
    device, precision = choose_device(args.device, args.precision)
    data = prepare(
        [phantom_volume(4, (args.matrix, args.matrix), seed) for seed in range(2)],
        folder / "data",
        mask="random",
        accel=(4.0,),
        simulation=Simulation(args.coils),
        seed=0,
        reconstruct=lambda item: item.operator.adjoint(item.kspace),
    )
    kinds, methods = steps_of()
    wanted = {kind for method in args.method for kind in methods[method]}
    configs = configurations(args, folder)
    names = {configuration for kind, (configuration, _) in kinds.items() if kind in wanted}
    states = {name: new_state(configs[name], device, precision) for name in names}
    times = {kind: [] for kind in kinds if kind in wanted}
    for run in range(-1, args.runs):  # the first one warms up
        order = list(times)
        for kind in order[run % len(order) :] + order[: run % len(order)]:
            name, objective = kinds[kind]
            first, count = (run + 1) * args.steps, args.steps if run >= 0 else 1
            found = seconds(configs[name], states[name], objective, data, first, count, device)
            if run >= 0:
                times[kind].append(found)
    print(f"preset {args.preset}, matrix {args.matrix}, {args.coils} coils, batch {configs['supervised'].batch}, "
          f"{device}, {str(precision).removeprefix('torch.')}, {torch.get_num_threads()} threads; "
          f"{args.runs} runs of {args.steps} steps of each kind\n")  # fmt: skip
    return times, methods


def report(times, methods, wanted):
    """Markdown: seconds a step, and ratios to a supervised step of the same run."""
    print("| step | s: min | median | max |\n|---|---|---|---|")
    for kind, values in times.items():
        print(f"| {kind} | {min(values):.2f} | {statistics.median(values):.2f} | {max(values):.2f} |")
    print("\n| method, mean step | s | of a supervised step: min | median | max | goal |\n|---|---|---|---|---|---|")
    mean = {
        name: [sum(share * value for share, value in zip(methods[name].values(), run, strict=True))
               for run in zip(*(times[kind] for kind in methods[name]), strict=True)]
        for name in wanted
    }  # fmt: skip
    for name, values in mean.items():
        ratios = [a / b for a, b in zip(values, mean["supervised"], strict=True)]
        goal = f"{GOALS[name]:g}" if name in GOALS else ""
        print(f"| {name} | {statistics.median(values):.2f} | {min(ratios):.2f} | {statistics.median(ratios):.2f} | "
              f"{max(ratios):.2f} | {goal} |")  # fmt: skip


def main():
    choices = list(steps_of()[1])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", nargs="+", choices=choices, default=choices)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--matrix", type=int, default=160)
    parser.add_argument("--coils", type=int, default=8)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="of each kind in a run")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto")
    args = parser.parse_args()
    args.method = ["supervised", *[name for name in choices if name in args.method and name != "supervised"]]
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        times, methods = measure(args, Path(folder))
        report(times, methods, args.method)


if __name__ == "__main__":
    main()
