"""Coverage of error bars before and after calibration on held-out lines; chi-squares with right and wrong noise.

    python benchmarks/uncertainty.py --data ../shared/data --prior brain-full --prior brain-r4 --out uncertainty.md

Simulated: FLAIR of patient 12 (which was in training: these figures say whether calibration works, not how good the
priors are), 8 coils, noise 0.02 of the 99th percentile. Coverage is the share of brain pixels (above a tenth of the
brightest tissue) whose true magnitude lies within the 90 % interval, estimate -+ t std, with Student's quantile t for
the K samples behind the standard deviation. Measured: the 8-channel scan brain8, without a reference.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from scipy.stats import t as student

from mri_ambient.allocator import keep_freed_memory
from mri_ambient.operators import MaskPattern
from mri_ambient.prior import load_prior
from mri_ambient.recon.consistency import pooled
from mri_ambient.recon.pipeline import Reconstructor, open_prior
from mri_ambient.recon.settings import Settings
from mri_ambient.run_state import choose_device
from mri_ambient.scan import load_scan
from mri_ambient.simulate import simulate_scan
from mri_ambient.volumes import load_volume

NOISE = (1.0, 0.5, 2.0)  # of the right level


def reconstructor(scan, prior, settings, noise=1.0):
    """With the noise level changed, and nothing else: whitening and scale stay."""
    made = Reconstructor(scan, prior, settings)
    made.calibration = replace(made.calibration, noise_std=noise * made.calibration.noise_std)
    return made


def coverage(scan, made):
    """Share of brain pixels within the 90 % interval before and after scaling, and the factor with hindsight."""
    results = list(made.slices())
    truth, image, std = scan.target, *(torch.stack([getattr(r, n) for r in results]) for n in ("mean", "std"))
    brain = truth > 0.1 * torch.quantile(truth, 0.995)
    error, scaled = (image.abs() - truth).abs()[brain], std[brain]
    plain = scaled / made.check.std_factor
    quantile = float(student.ppf(0.95, made.settings.samples - 1))
    before, after = (float((error < quantile * s).float().mean()) for s in (plain, scaled))
    return f"{before:.0%} | {after:.0%}", f"{float(error.norm() / plain.norm()):.2f}"


def row(scan, prior, settings):
    """A line of the table: chi-squares held out / acquired for each noise level, factor, coverage."""
    made = {noise: reconstructor(scan, prior, settings, noise) for noise in NOISE}
    cells = []
    for noise in NOISE:
        check = made[noise].check
        flag = "" if check.noise_fits and check.prior_fits else " !"
        acquired = sum(check.acquired) / len(check.acquired)
        cells.append(f"{pooled(check.parts).chi_square:.2f} / {acquired:.2f}{flag}")
    covered, ideal = coverage(scan, made[1.0]) if scan.has_target else (" | ", "")
    cells += [f"{made[1.0].check.std_factor:.2f}", ideal, covered]
    return f"| {scan.name} | {scan.acceleration:.1f} | {prior.name} | {' | '.join(cells)} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--prior", action="append", required=True, help="may be repeated")
    parser.add_argument("--accel", type=float, nargs="+", default=[4, 8])
    parser.add_argument("--matrix", type=int, default=160)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    keep_freed_memory()
    settings = Settings(samples=args.samples, steps=args.steps, seed=args.seed)
    volume = load_volume(args.data / "open_ms" / "patient12" / "study1_FLAIR.nii.gz")
    slices = [round(share * volume.shape[0]) for share in (0.4, 0.65)]
    scans = [load_scan(args.data / "brain8" / "brain8.h5")]
    for accel in args.accel:
        pattern = MaskPattern("random", accel)
        scans.append(
            simulate_scan(volume, matrix=args.matrix, pattern=pattern, slices=slices, seed=args.seed, name="patient12")
        )
    levels = " | ".join(f"noise x {noise:g}" for noise in NOISE)
    lines = [
        f"| scan | R | prior | {levels} | factor | with truth | 90 % covers | calibrated |",
        "|---|---|---|" + "---|" * (len(NOISE) + 4),
    ]
    for name in args.prior:
        prior = open_prior(load_prior(name), *choose_device("cpu", "auto"))
        for scan in scans:
            lines.append(row(scan, prior, settings))
            print(lines[-1], flush=True)
            args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
