"""The most valuable work for a lent GPU, in pieces that continue one another: CUDA tests, priors, timings.

    python benchmarks/gpu_run.py --data DATA/open_ms --out $OUT --seconds 540

Run the same command again until it prints "all done": every stage leaves a mark in `--work` and is not repeated, and
training resumes from its state. Finished priors (half precision) and logs are copied to `--out` after every call.
`--preset tiny --images 64 --device cpu` rehearses the same path without a GPU.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import mri_ambient as ma
from mri_ambient.operators import MaskPattern
from mri_ambient.phantoms import phantom_volume
from mri_ambient.reporter import Silent

PROJECT = Path(__file__).resolve().parents[1]
TRAINING = ("patient01", "patient03", "patient12")
PRIORS = {
    "brain-r4": {"method": "ambient", "accel": 4},
    "brain-mix": {"method": "ambient", "accel": (2, 3, 4, 6, 8)},
    "brain-full": {"method": "supervised"},
}


class OutOfTime(Exception):
    """The time of this call is used up; the next one continues."""


class Deadline(Silent):
    """Stops training at a moment; the loop saves its state on the way out."""

    def __init__(self, moment):
        self.moment = moment

    def stage(self, text, done, total):
        if time.monotonic() > self.moment:
            raise OutOfTime(f"{text} {done} of {total}")


def cuda_tests(args, deadline):
    """The tests that need a device."""
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-q", "tests"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    (args.out / "cuda_tests.txt").write_text(done.stdout[-20_000:])


def train_prior(name):
    """A stage that trains one of the shipped priors."""

    def stage(args, deadline):
        run = ma.train(
            [args.data / p for p in TRAINING], validation=[args.data / "patient04"], out=args.work / name,
            preset=args.preset, images=args.images, matrices=(128, 160, 192, 256), device=args.device,
            reporter=Deadline(deadline), **PRIORS[name],
        )  # fmt: skip
        shutil.copy(run.prior, args.out / f"{name}.safetensors")

    return stage


def timings(args, deadline):
    """Seconds of a 16 x 320 x 320 slice with the shipped prior, after one call that warms up; training and sampling."""
    volume = phantom_volume(1, (320, 320), seed=1)
    scan = ma.simulate_scan(volume, coils=16, pattern=MaskPattern("random", 4))
    seconds = [ma.reconstruct(scan, "brain", device=args.device).attributes["seconds"] for _ in range(4)][1:]
    (args.out / "timings.json").write_text(json.dumps({"recon 16 x 320 x 320, 8 x 25": sorted(seconds)}))
    command = [sys.executable, "benchmarks/training.py", "--presets", args.preset, "--runs", "3"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    (args.out / "training_and_sampling.txt").write_text(done.stdout + done.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--images", type=int, default=400_000)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    deadline = time.monotonic() + args.seconds
    args.work.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    stages = {"cuda tests": cuda_tests, **{name: train_prior(name) for name in PRIORS}, "timings": timings}
    for name, stage in stages.items():
        mark = args.work / f"{name.replace(' ', '_')}.done"
        if mark.exists():
            continue
        print(f"{name} ...", flush=True)
        try:
            stage(args, deadline)
        except OutOfTime as reached:
            print(f"out of time during {name}: {reached}; run the same command again")
            break
        mark.touch()
    else:
        print("all done")
    for log in args.work.glob("*/metrics.jsonl"):
        shutil.copy(log, args.out / f"{log.parent.name}_metrics.jsonl")


if __name__ == "__main__":
    main()
