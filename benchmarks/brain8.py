"""The picture of the real, prospectively undersampled scan in docs/results.md.

python benchmarks/brain8.py --scan ../shared/data/brain8/brain8.h5 --out docs/brain8.png
"""

import argparse
from pathlib import Path

from mri_ambient.recon import reconstruct
from mri_ambient.recon.figures import panel
from mri_ambient.scan import load_scan


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scan", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    scan = load_scan(args.scan)
    classical = {"zero-filled": "zero-filled", "L1-wavelet": "l1-wavelet"}
    images = {name: reconstruct(scan, method=method) for name, method in classical.items()}
    images |= {name: reconstruct(scan, name) for name in ("brain-r4", "brain-mix", "brain-full")}
    panel({name: result.magnitude[0].numpy() for name, result in images.items()}, args.out)


if __name__ == "__main__":
    main()
