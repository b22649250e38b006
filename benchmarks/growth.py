"""How time and memory grow: of `recon` with slices, coils, pixels and samples, of `train` until the first batch.

    python benchmarks/growth.py                          # everything
    python benchmarks/growth.py --parts slices --runs 1

Scans are phantoms at R = 4 with known noise. Every figure is the smallest of some fresh processes, which first warm up
on a small scan; its time is that of `reconstruct_file`, its memory what that adds to the program at its peak. As the
question is growth, not speed, the network is an untrained tiny one, with few steps; the noise level calibration of the
error bars is left out, whose cost depends on no size. The start-up of `train` is measured once, for files of one tiny
slice that is not reconstructed first: find the files, index (examine) them, prepare them, link what was prepared from
the cache into another run, continue that run, and serve a first and a next batch.

The last column is the exponent p of a power law, by least squares of log-log figures over the upper half of the sizes:
1 is linear, and fixed costs make it smaller.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

BASE = {"slices": 4, "coils": 8, "pixels": 160, "samples": 2}
SIZES = {
    "slices": (1, 4, 16, 64),
    "coils": (4, 8, 16, 32, 64),
    "pixels": (128, 256, 384, 512, 640),
    "samples": (1, 4, 16, 64),
    "files": (10, 100, 1000, 10_000),
}
FIXED = {
    "slices": {"pixels": 128},
    "coils": {"slices": 1},
    "pixels": {"slices": 1},
    "samples": {"slices": 1, "pixels": 128},
}
STEPS = 4


def peak():
    """High-water mark of this process in MB."""
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))


def forget_peak():
    """Start the high-water mark anew, at what is in use now."""
    Path("/proc/self/clear_refs").write_text("5")


def make_scan(path, slices, coils, pixels):
    """A phantom, written to a file."""
    import mri_ambient as ma
    from mri_ambient.operators import MaskPattern
    from mri_ambient.phantoms import phantom_volume

    few = phantom_volume(min(slices, 4), (pixels, pixels), seed=3)
    volume = type(few)(np.concatenate([few.magnitude] * -(-slices // 4))[:slices], few.affine, few.patient, few.name)
    ma.write_scan(ma.simulate_scan(volume, coils=coils, pattern=MaskPattern("random", 4), noise_std=0.02), path)


def recon_once(folder, slices, coils, pixels, samples):
    """Seconds and peak MB of one reconstruction from file to file."""
    import torch

    from mri_ambient.denoiser import PRESETS, Denoiser
    from mri_ambient.prior import Prior
    from mri_ambient.recon.files import reconstruct_files
    from mri_ambient.recon.settings import Settings

    torch.manual_seed(0)
    prior = Prior(Denoiser(PRESETS["tiny"]), {"denoiser_error": [(0.005, 0.004), (2.0, 0.1)]}, "untrained", "")
    places = {"warm": folder / "warm.h5", "scan": folder / "scan.h5"}
    sizes = {"warm": (1, 2, 64), "scan": (slices, coils, pixels)}
    make = "; ".join(f"growth.make_scan({str(path)!r}, *{sizes[name]})" for name, path in places.items())
    subprocess.run([sys.executable, "-c", f"import growth; {make}"], check=True, cwd=Path(__file__).parent)
    for name, number in (("warm", 1), ("scan", samples)):
        settings = Settings(samples=number, steps=STEPS, calibrate=False)
        forget_peak()
        before, began = peak(), time.perf_counter()
        reconstruct_files([places[name]], folder, prior=prior, settings=settings, device="cpu")
        result = {"seconds": time.perf_counter() - began, "MB": peak() - before}
    return result


def files_once(folder, count):
    """Seconds of the stages before the first batch of training on so many scans of one slice, and peak MB."""
    import os
    import shutil

    os.environ |= {"MRI_AMBIENT_CACHE": str(folder / "cache"), "MRI_AMBIENT_CACHE_GB": "20"}
    import torch

    from mri_ambient import training_data
    from mri_ambient.config import TrainConfig
    from mri_ambient.preparation import find_sources
    from mri_ambient.reporter import Silent
    from mri_ambient.scan import load_scan

    training_data.first_reconstruction = lambda item: item.operator.adjoint(item.kspace)
    archive = folder / "archive"
    for number in range(count):
        path = archive / f"{number // 100:03d}" / f"{number:05d}.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number < 10:
            make_scan(path, 1, 2, 32)
        else:
            shutil.copy(archive / "000" / f"{number % 10:05d}.h5", path)
    config, seconds = TrainConfig(preset="tiny"), {}
    forget_peak()
    before = peak()

    def timed(name, work):
        began = time.perf_counter()
        done = work()
        seconds[name] = time.perf_counter() - began
        return done

    sources = timed("find", lambda: find_sources([archive]))
    timed("index", lambda: [load_scan(path) for path in sources])
    begin = lambda run: training_data.begin([archive], [], config, folder / run, Silent())  # noqa: E731
    timed("prepare", lambda: begin("first"))
    timed("link", lambda: begin("second"))
    data, _ = timed("continue", lambda: begin("second"))
    for number in range(2):
        name = ("first batch", "next batch")[number]
        timed(name, lambda: data.batch(2, 16, torch.Generator().manual_seed(0)))
    return {**seconds, "MB": peak() - before}


def fresh(work, *sizes):
    """Result of a function in a process and a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        code = f"import growth, json, pathlib; print(json.dumps(growth.{work}(pathlib.Path({folder!r}), *{sizes})))"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=Path(__file__).parent, check=True, stdout=subprocess.PIPE, text=True
        )
        return json.loads(done.stdout.splitlines()[-1])


def exponent(sizes, values):
    """Slope in log-log coordinates over the upper half of the sizes; NaN for one size."""
    if len(sizes) < 2:
        return float("nan")
    start = (len(sizes) - 1) // 2
    return np.polyfit(np.log(sizes[start:]), np.log(np.maximum(values[start:], 1e-9)), 1)[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--largest", type=int, default=10**9, help="leave out larger sizes")
    args = parser.parse_args()
    for part in args.parts:
        sizes = [size for size in SIZES[part] if size <= args.largest]
        rows = {}
        for size in sizes:
            if part == "files":
                results = [fresh("files_once", size)]
            else:
                chosen = {**BASE, **FIXED[part], part: size}
                results = [fresh("recon_once", *chosen.values()) for _ in range(args.runs)]
            for name in results[0]:
                rows.setdefault(name, []).append(min(result[name] for result in results))
        fixed = (
            ""
            if part == "files"
            else f" ({', '.join(f'{v} {k}' for k, v in {**BASE, **FIXED[part]}.items() if k != part)})"
        )
        print(f"\n| {part}{fixed} | {' | '.join(map(str, sizes))} | exponent |\n|---|{'---|' * (len(sizes) + 1)}")
        for name, values in rows.items():
            shown = " | ".join(f"{value:.3g}" for value in values)
            print(f"| {name if name == 'MB' else f'{name}, s'} | {shown} | {exponent(sizes, values):.2f} |", flush=True)


if __name__ == "__main__":
    main()
