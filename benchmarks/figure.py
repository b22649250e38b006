"""The figure at the top of the README: one validation slice at R = 4.

python benchmarks/figure.py --data ../shared/data/open_ms --out docs/figure.png
"""

import argparse
from pathlib import Path

from mri_ambient.operators import MaskPattern
from mri_ambient.recon import reconstruct
from mri_ambient.recon.figures import panel
from mri_ambient.simulate import simulate_scan
from mri_ambient.volumes import load_volume


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--prior", default="brain-r4")
    parser.add_argument("--accel", type=float, default=4)
    parser.add_argument("--matrix", type=int, default=192)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    volume = load_volume(args.data / "patient04" / "study1_FLAIR.nii.gz")
    pattern = MaskPattern("random", args.accel)
    scan = simulate_scan(volume, matrix=args.matrix, pattern=pattern, slices=[volume.shape[0] // 2])
    results = {
        name: reconstruct(scan, args.prior, method=method)
        for name, method in {
            "zero-filled": "zero-filled",
            "L1-wavelet": "l1-wavelet",
            "one-step MMSE": "mmse",
            "posterior estimate": "posterior",
        }.items()
    }
    images = {name: result.magnitude[0].numpy() for name, result in results.items()}
    std = {"posterior estimate": results["posterior estimate"].std[0].numpy()}
    panel(images, args.out, reference=scan.read_target(0).numpy(), std=std)


if __name__ == "__main__":
    main()
