"""The tables of docs/results.md: all methods on the validation patient, in one run.

    python benchmarks/results.py --data ../shared/data/open_ms --prior brain-r4 --prior brain-mix --prior brain-full \
        --out docs/results.json --table table.md

Scans are simulated from the magnitude volumes of patient 04 (FLAIR, T1, T2; 8 coils with a random array, random smooth
phase, noise 0.02 of the 99th percentile). Each method gets the same k-space and sensitivity maps estimated from that
scan's own centre. The weights of CG-SENSE, L1-wavelet and TV are tuned per acceleration on patient 01, random masks.
PSNR, SSIM and NMSE are volume-wise, means over the three volumes; intervals are bootstrapped over volumes. They are
volumes of one patient: the figures say little about other patients.

`--jobs` scans are worked on at a time, one thread each. Finished scans are kept in a file beside `--out`, so that the
same command continues a run that was stopped.
"""

import argparse
import json
import platform
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mri_ambient.allocator import keep_freed_memory
from mri_ambient.calibration import calibrate, prepare_slice
from mri_ambient.metrics import bootstrap_interval, nmse, psnr, ssim
from mri_ambient.operators import MaskPattern
from mri_ambient.operators.classical import cg_sense, l1_wavelet, tv, zero_filled
from mri_ambient.prior import load_prior
from mri_ambient.recon.pipeline import Reconstructor, Settings, open_prior
from mri_ambient.simulate import simulate_scan
from mri_ambient.training import choose_device
from mri_ambient.volumes import load_volume

CONTRASTS = ("FLAIR", "T1W", "T2W")
FAMILIES = ("random", "equispaced")
WEIGHTS = {  # candidates
    "l1-wavelet": (0.1, 0.2, 0.4, 0.8),  # in noise standard deviations
    "tv": (0.1, 0.2, 0.4, 0.8),
    "sense": (0.005, 0.01, 0.02, 0.04, 0.08),  # of the largest eigenvalue
}
METRICS = {"psnr": psnr, "ssim": ssim, "nmse": nmse}


@dataclass(frozen=True)
class Task:
    """One scan to be reconstructed by every method, or (family None) the tuning at one acceleration."""

    args: argparse.Namespace
    accel: float
    family: str | None = None
    contrast: str = ""
    weights: tuple = ()

    @property
    def name(self) -> str:
        return f"{self.accel:g} {self.family} {self.contrast}" if self.family else f"{self.accel:g} tuning"


def simulated(data, patient, contrast, pattern, matrix, slices, seed):
    """A simulated scan, slices evenly spread over the middle of the head."""
    volume = load_volume(data / patient / f"study1_{contrast}.nii.gz")
    count = volume.shape[0]
    chosen = np.linspace(0.25 * count, 0.8 * count, slices).round().astype(int).tolist()
    name = f"{patient}_{contrast}"
    return simulate_scan(volume, matrix=matrix, pattern=pattern, slices=chosen, seed=seed, name=name)


def classical(scan, method, weight):
    """Magnitudes (slice, y, x) in input units."""
    calibration = calibrate(scan)
    images = []
    for i in range(scan.shape[0]):
        item = prepare_slice(scan, i, calibration)
        if method == "zero-filled":
            image = zero_filled(item.kspace, item.operator)
        elif method == "sense":
            image = cg_sense(item.kspace, item.operator, regularisation=weight)
        else:
            solve = {"l1-wavelet": l1_wavelet, "tv": tv}[method]
            image = solve(item.kspace, item.operator, regularisation=weight * item.noise_std)
        images.append(image.abs() * calibration.scale)
    return torch.stack(images).numpy()


def tune(task):
    """Weights with the best mean PSNR on patient 01, random masks."""
    args, pattern = task.args, MaskPattern("random", task.accel)
    scans = [simulated(args.data, "patient01", c, pattern, args.matrix, 2, args.seed) for c in CONTRASTS]
    best = {}
    for method, candidates in WEIGHTS.items():
        quality = {w: np.mean([psnr(s.target.numpy(), classical(s, method, w)) for s in scans]) for w in candidates}
        best[method] = max(quality, key=quality.get)
    return best


def compare(task):
    """A row for every method on one scan."""
    args, pattern = task.args, MaskPattern(task.family, task.accel)
    scan = simulated(args.data, "patient04", task.contrast, pattern, args.matrix, args.slices, args.seed)
    truth, weights = scan.target.numpy(), dict(task.weights)
    rows = []

    def add(method, reconstruct):
        began = time.perf_counter()
        image = reconstruct()
        seconds = (time.perf_counter() - began) / len(truth)
        row = {"accel": task.accel, "mask": task.family, "volume": scan.name, "method": method}
        row |= {name: metric(truth, image) for name, metric in METRICS.items()} | {"seconds": round(seconds, 3)}
        rows.append(row | ({"weight": weights[method]} if method in weights else {}))

    for method in ("zero-filled", *WEIGHTS):
        add(method, lambda method=method: classical(scan, method, weights.get(method)))
    for name in args.prior:
        prior = open_prior(load_prior(name), *choose_device("cpu", "auto"))
        for method in ("mmse", "posterior"):
            reconstructor = Reconstructor(scan, prior, Settings(method, args.samples, args.steps))
            add(
                f"{method} {prior.name}",
                lambda r=reconstructor: torch.stack([s.mean.abs() for s in r.slices()]).numpy(),
            )
    return rows


def work(task):
    """Run a task in a process of its own threads."""
    keep_freed_memory()
    torch.set_num_threads(1)
    return tune(task) if task.family is None else compare(task)


def run(tasks, jobs, done, path):
    """Results by task name; what `done` holds is not repeated, what is new is appended to the file."""
    todo = [t for t in tasks if t.name not in done]
    with ProcessPoolExecutor(jobs) as pool:
        for task, result in zip(todo, pool.map(work, todo), strict=True):
            done[task.name] = result
            with path.open("a") as file:
                file.write(json.dumps([task.name, result]) + "\n")
            print(task.name, flush=True)
    return [done[t.name] for t in tasks]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--prior", action="append", required=True, help="may be repeated")
    parser.add_argument("--accel", type=float, nargs="+", default=[2, 3, 4, 6, 8, 12])
    parser.add_argument("--matrix", type=int, default=160)
    parser.add_argument("--slices", type=int, default=3)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", type=Path, required=True)
    args = parser.parse_args()
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    settings |= {"hashes": {p: load_prior(p).hash for p in args.prior}, "torch": torch.__version__}
    settings |= {"processor": platform.processor() or platform.machine()}
    partial, first = args.out.with_suffix(".partial"), json.dumps(settings)
    lines = partial.read_text().splitlines() if partial.exists() else []
    if lines and lines[0] != first:
        raise SystemExit(f"{partial} holds a run with other settings: remove it first.")
    if not lines:
        partial.write_text(first + "\n")
    done = dict(json.loads(line) for line in lines[1:])
    tuned = run([Task(args, a) for a in args.accel], args.jobs, done, partial)
    tasks = [
        Task(args, accel, family, contrast, tuple(weights.items()))
        for accel, weights in zip(args.accel, tuned, strict=True)
        for family in FAMILIES
        for contrast in CONTRASTS
    ]
    rows = [row for result in run(tasks, args.jobs, done, partial) for row in result]
    args.table.write_text(report(rows, args.accel, dict(zip(args.accel, tuned, strict=True))))
    content = ",\n".join(json.dumps(row) for row in rows)
    args.out.write_text(f'{{"settings": {first},\n"rows": [\n{content}\n]}}\n')
    partial.unlink()


def report(rows, accels, tuned):
    """Markdown: PSNR, SSIM, the gain over L1-wavelet with intervals, tuned weights, and seconds."""
    methods = list(dict.fromkeys(r["method"] for r in rows))
    learned = [m for m in methods if " " in m]
    cells = {(r["mask"], r["accel"], r["method"], r["volume"]): r for r in rows}
    volumes = list(dict.fromkeys(r["volume"] for r in rows))

    def values(family, accel, method, metric):
        return np.array([cells[family, accel, method, v][metric] for v in volumes])

    def gain(family, accel, method):
        difference = values(family, accel, method, "psnr") - values(family, accel, "l1-wavelet", "psnr")
        low, high = bootstrap_interval(difference, volumes)
        return f"{difference.mean():+.2f} [{low:+.2f}, {high:+.2f}]"

    parts = [
        ("PSNR (dB)", methods, lambda *cell: f"{values(*cell, 'psnr').mean():.2f}"),
        ("SSIM", methods, lambda *cell: f"{values(*cell, 'ssim').mean():.3f}"),
        ("NMSE", methods, lambda *cell: f"{values(*cell, 'nmse').mean():.4f}"),
        ("PSNR above L1-wavelet (dB), 95 % interval over volumes", learned, gain),
    ]
    text = []
    for title, columns, cell in parts:
        text += [f"{title}\n", f"| mask | R | {' | '.join(columns)} |", "|---|---|" + "---|" * len(columns)]
        for family in FAMILIES:
            for accel in accels:
                text.append(f"| {family} | {accel:g} | {' | '.join(cell(family, accel, m) for m in columns)} |")
        text.append("")
    seconds = [f"{m} {np.median([r['seconds'] for r in rows if r['method'] == m]):.2f}" for m in methods]
    text.append(f"Seconds a slice, one thread: {', '.join(seconds)}.\n")
    text.append("Tuned weights: " + "; ".join(f"R = {a:g} {json.dumps(w)}" for a, w in tuned.items()) + ".")
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    main()
