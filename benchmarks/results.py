"""The tables of docs/results.md: all methods on the validation patient, in one run.

    python benchmarks/results.py --data ../shared/data/open_ms --prior brain-r4 --prior brain-mix --prior brain-full \
        --out runs/results --table table.md

`mri-ambient benchmark` on scans that are simulated from the magnitude volumes of patient 04 (FLAIR, T1, T2; 8 coils
with a random array, random smooth phase, noise 0.02 of the 99th percentile). The weights of CG-SENSE, L1-wavelet and
TV are tuned per acceleration and mask on patient 01. PSNR, SSIM and NMSE are volume-wise, means over the three volumes;
intervals are bootstrapped over volumes. They are volumes of one patient: the figures say little about other patients.

The same command continues a run that was stopped.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from mri_ambient.metrics import bootstrap_interval
from mri_ambient.recon.benchmark import METHODS, Conditions, benchmark


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--prior", action="append", required=True, help="may be repeated")
    parser.add_argument("--method", action="append", help="may be repeated")
    parser.add_argument("--accel", type=float, nargs="+", default=[2, 3, 4, 6, 8, 12])
    parser.add_argument("--mask", nargs="+", default=["random", "equispaced"])
    parser.add_argument("--matrix", type=int, default=160)
    parser.add_argument("--slices", type=int, default=3)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--coverage", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True, help="folder")
    parser.add_argument("--table", type=Path, required=True)
    args = parser.parse_args()
    volumes, others = (sorted(args.data.glob(f"patient{n}/study1_*.nii.gz")) for n in ("04", "01"))
    conditions = Conditions(args.slices, matrix=args.matrix, samples=args.samples, coverage=args.coverage)
    result = benchmark(
        volumes, args.out, methods=args.method or METHODS, priors=args.prior, accels=args.accel, masks=args.mask,
        tune=others, conditions=conditions, jobs=args.jobs,
    )  # fmt: skip
    args.table.write_text(report(result))


def report(result):
    """Markdown: PSNR, SSIM, NMSE, the gain over L1-wavelet with intervals, tuned weights, and seconds."""
    cells = {(r["mask"], r["accel"], r["method"], r["volume"]): r for r in result.rows}
    patterns = list(dict.fromkeys((mask, accel) for mask, accel, *_ in cells))
    methods, volumes = result.settings["methods"], list(result.settings["scans"])
    learned = [m for m in methods if result.settings["priors"] and m not in METHODS]

    def values(mask, accel, method, metric):
        return np.array([cells[mask, accel, method, v][metric] for v in volumes])

    def gain(*cell):
        difference = values(*cell, "psnr") - values(*cell[:2], "l1-wavelet", "psnr")
        low, high = bootstrap_interval(difference, volumes)
        return f"{difference.mean():+.2f} [{low:+.2f}, {high:+.2f}]"

    parts = [
        ("PSNR (dB)", methods, lambda *cell: f"{values(*cell, 'psnr').mean():.2f}"),
        ("SSIM", methods, lambda *cell: f"{values(*cell, 'ssim').mean():.3f}"),
        ("NMSE", methods, lambda *cell: f"{values(*cell, 'nmse').mean():.4f}"),
        ("PSNR above L1-wavelet (dB), 95 % interval over volumes", learned, gain),
    ]
    if result.settings["coverage"]:
        sampled = [m for m in learned if m.startswith("posterior")]

        def covered(*cell):
            rows = [cells[(*cell, v)]["coverage"] for v in volumes]
            return f"{np.mean([r['student'][r['levels'].index(0.9)] for r in rows]):.2f}"

        def factor(*cell):
            return f"{np.mean([cells[(*cell, v)]['coverage']['std_factor'] for v in volumes]):.2f}"

        parts.append(("Share of brain pixels within the 90 % interval", sampled, covered))
        parts.append(("Factor of the error bars from held-out lines", sampled, factor))
    text = []
    for title, columns, cell in parts:
        text += [f"**{title}**\n", f"| mask | R | {' | '.join(columns)} |", "|---|---|" + "---|" * len(columns)]
        for mask, accel in patterns:
            text.append(f"| {mask} | {accel:g} | {' | '.join(cell(mask, accel, m) for m in columns)} |")
        text.append("")
    seconds = [f"{m} {np.median([r['seconds'] for r in result.rows if r['method'] == m]):.2f}" for m in methods]
    text.append(f"Seconds a slice: {', '.join(seconds)}.\n")
    text.append("Tuned weights: " + "; ".join(f"R = {k} {json.dumps(w)}" for k, w in result.weights.items()) + ".")
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    main()
