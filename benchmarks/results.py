"""The table of docs/results.md: all methods on the validation patient, in one run.

    python benchmarks/results.py --data ../shared/data/open_ms --out docs/results.json --table table.md

Scans are simulated from the magnitude volumes of patient 04 (FLAIR, T1, T2; 8 coils with a random array, random smooth
phase, noise 0.02 of the 99th percentile). Each method gets the same k-space and sensitivity maps estimated from that
scan's own centre. The weights of CG-SENSE and L1-wavelet are tuned per acceleration on patient 01, random masks.
Figures are volume-wise and averaged over the three volumes of this one patient: they say little about other patients.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch

from mri_ambient.allocator import keep_freed_memory
from mri_ambient.calibration import calibrate, prepare_slice
from mri_ambient.metrics import nmse, psnr, ssim
from mri_ambient.operators import MaskPattern
from mri_ambient.operators.classical import cg_sense, l1_wavelet, zero_filled
from mri_ambient.prior import load_prior
from mri_ambient.recon.pipeline import Reconstructor, Settings, open_prior
from mri_ambient.simulate import simulate_scan
from mri_ambient.training import choose_device
from mri_ambient.volumes import load_volume

CONTRASTS = ("FLAIR", "T1W", "T2W")
WEIGHTS = {  # candidates
    "l1-wavelet": (0.05, 0.1, 0.2, 0.4, 0.8),  # in noise standard deviations
    "sense": (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02),  # of the largest eigenvalue
}


def scans(data, patient, pattern, matrix, slices, seed):
    """One simulated scan per contrast, slices evenly spread over the middle of the head."""
    for contrast in CONTRASTS:
        volume = load_volume(data / patient / f"study1_{contrast}.nii.gz")
        count = volume.shape[0]
        chosen = np.linspace(0.25 * count, 0.8 * count, slices).round().astype(int).tolist()
        yield simulate_scan(
            volume, matrix=matrix, pattern=pattern, slices=chosen, seed=seed, name=f"{patient}_{contrast}"
        )


def reconstruct(scan, method, prior, weight=None, samples=8, steps=25):
    """Magnitudes (slice, y, x) in input units, and seconds a slice without calibration of the volume."""
    began = time.perf_counter()
    if method in ("mmse", "posterior"):
        settings = Settings(method, samples, steps)
        reconstructor = Reconstructor(scan, prior, settings)
        images = [r.mean.abs() for r in reconstructor.slices()]
    else:
        calibration = calibrate(scan)
        images = []
        for i in range(scan.shape[0]):
            item = prepare_slice(scan, i, calibration)
            if method == "zero-filled":
                image = zero_filled(item.kspace, item.operator)
            elif method == "sense":
                image = cg_sense(item.kspace, item.operator, regularisation=weight)
            else:
                image = l1_wavelet(item.kspace, item.operator, regularisation=weight * item.noise_std)
            images.append(image.abs() * calibration.scale)
    return torch.stack(images).numpy(), (time.perf_counter() - began) / scan.shape[0]


def tune(method, data, accel, matrix, seed):
    """Weight with the best mean PSNR on patient 01, random masks."""
    training = list(scans(data, "patient01", MaskPattern("random", accel), matrix, 2, seed))
    quality = {
        w: np.mean([psnr(s.target.numpy(), reconstruct(s, method, None, w)[0]) for s in training])
        for w in WEIGHTS[method]
    }
    return max(quality, key=quality.get)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--prior", default="brain")
    parser.add_argument("--accel", type=float, nargs="+", default=[2, 4, 6, 8])
    parser.add_argument("--matrix", type=int, default=160)
    parser.add_argument("--slices", type=int, default=4)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", type=Path, required=True)
    args = parser.parse_args()
    keep_freed_memory()
    prior = open_prior(load_prior(args.prior), *choose_device("cpu", "auto"))
    rows = []
    for accel in args.accel:
        weights = {m: tune(m, args.data, accel, args.matrix, args.seed) for m in WEIGHTS}
        for family in ("random", "equispaced"):
            for scan in scans(args.data, "patient04", MaskPattern(family, accel), args.matrix, args.slices, args.seed):
                truth = scan.target.numpy()
                for method in ("zero-filled", "sense", "l1-wavelet", "mmse", "posterior"):
                    image, seconds = reconstruct(scan, method, prior, weights.get(method), args.samples, args.steps)
                    row = {"accel": accel, "mask": family, "volume": scan.name, "method": method, "seconds": seconds}
                    row |= {"psnr": psnr(truth, image), "ssim": ssim(truth, image), "nmse": nmse(truth, image)}
                    row |= {"weight": weights[method]} if method in weights else {}
                    rows.append(row)
            print(accel, family, summary(rows, accel, family), flush=True)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    args.out.write_text(
        json.dumps({"settings": settings, "prior_hash": prior.hash, "machine": machine, "rows": rows}, indent=1)
    )
    args.table.write_text(table(rows, args.accel))


def summary(rows, accel, family):
    """Mean PSNR by method."""
    chosen = [r for r in rows if r["accel"] == accel and r["mask"] == family]
    methods = dict.fromkeys(r["method"] for r in chosen)
    return {m: round(float(np.mean([r["psnr"] for r in chosen if r["method"] == m])), 2) for m in methods}


def table(rows, accels):
    """Markdown: mean over volumes of PSNR / SSIM / NMSE."""
    methods = list(dict.fromkeys(r["method"] for r in rows))
    lines = ["| mask | R | " + " | ".join(methods) + " |", "|---|---|" + "---|" * len(methods)]
    for family in ("random", "equispaced"):
        for accel in accels:
            cells = []
            for method in methods:
                chosen = [r for r in rows if (r["accel"], r["mask"], r["method"]) == (accel, family, method)]
                p, s, n = (np.mean([r[k] for r in chosen]) for k in ("psnr", "ssim", "nmse"))
                cells.append(f"{p:.2f} / {s:.3f} / {n:.4f}")
            lines.append(f"| {family} | {accel:g} | " + " | ".join(cells) + " |")
    seconds = [np.median([r["seconds"] for r in rows if r["method"] == m]) for m in methods]
    lines.append("| seconds a slice | | " + " | ".join(f"{s:.2f}" for s in seconds) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
