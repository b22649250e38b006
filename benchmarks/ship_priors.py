"""Put trained priors into the package, with the validation table and the rebuild command on their cards.

python benchmarks/ship_priors.py --results docs/results.json runs/r4=brain-r4 runs/mix=brain-mix runs/full=brain-full
"""

import argparse
import json
from pathlib import Path

import numpy as np

from mri_ambient.prior import load_prior, save_prior

WEIGHTS = Path(__file__).resolve().parents[1] / "mri_ambient" / "weights"
NOTES = {
    "data": "open MS longitudinal database, patients 01, 03, 12 (Lesjak et al., Neuroinformatics 2016), CC BY",
    "coils": 8,
    "simulated": "multi-coil k-space from magnitude volumes, noise 0.02 of the 99th percentile",
    "limits": "brain, FLAIR, T1 and T2 of one scanner; figures are of one validation patient (04), simulated",
}
COMMAND = (
    "mri-ambient train DATA/patient01 DATA/patient03 DATA/patient12 --validation DATA/patient04 "
    "--matrix 128 --matrix 160 --matrix 192 --matrix 256 {method} --images {images}"
)


def validation(results, name):
    """PSNR of the posterior estimate by mask and acceleration."""
    rows = [r for r in results["rows"] if r["method"] == f"posterior {name}"]
    cells = dict.fromkeys((r["mask"], r["accel"]) for r in rows)
    return {f"{m} R={a:g}": round(float(np.mean([r["psnr"] for r in rows if (r["mask"], r["accel"]) == (m, a)])), 2)
            for m, a in cells}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("runs", nargs="+", metavar="RUN=NAME")
    args = parser.parse_args()
    results = json.loads(args.results.read_text())
    for run, name in (entry.split("=") for entry in args.runs):
        prior = load_prior(run)
        if results["settings"]["priors"][name] != prior.hash:
            raise SystemExit(f"{run} is not the prior that {args.results} calls {name}.")
        card, accel = prior.card, prior.card["acceleration"]
        method = "--method supervised" if card["method"] == "supervised" else " ".join(
            f"--accel {a:g}" for a in (accel if isinstance(accel, list) else [accel])
        )  # fmt: skip
        command = COMMAND.format(method=method, images=card["images"])
        card |= NOTES | {"command": command, "validation_psnr": validation(results, name)}
        save_prior(WEIGHTS / f"{name}.safetensors", prior.denoiser, card)


if __name__ == "__main__":
    main()
