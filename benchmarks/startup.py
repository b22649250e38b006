"""Seconds until the program and the package are there, over what they stand on; fresh processes that take turns.

    python benchmarks/startup.py --runs 11

Goals: `mri-ambient --help` at most 0.3 s above a bare Typer program, `import mri_ambient` with all its public names at
most 0.2 s above `import torch`. Differences are between processes of the same turn.
"""

import argparse
import subprocess
import sys
import time

import numpy as np

TYPER = """
import sys, typer
app = typer.Typer(add_completion=False)
app.command()(lambda: None)
app(["--help"])
"""
HELP = "import sys; sys.argv[1:] = {words}; from mri_ambient.cli.main import run; run()"
PROGRAMS = {
    "python": "pass",
    "bare Typer program --help": TYPER,
    "mri-ambient --help": HELP.format(words=["--help"]),
    "mri-ambient recon --help": HELP.format(words=["recon", "--help"]),
    "import torch": "import torch",
    "import mri_ambient": "import mri_ambient",
    "import mri_ambient, all names": "import mri_ambient as ma; [getattr(ma, name) for name in ma.__all__]",
}
COMPARED = (
    ("mri-ambient --help", "bare Typer program --help", 0.3),
    ("mri-ambient recon --help", "bare Typer program --help", 0.3),
    ("import mri_ambient, all names", "import torch", 0.2),
)


def seconds(code):
    """Of a fresh process."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=11)
    args = parser.parse_args()
    times = {name: [] for name in PROGRAMS}
    for _ in range(args.runs + 1):
        for name, code in PROGRAMS.items():
            times[name].append(seconds(code))
    times = {name: np.array(values[1:]) for name, values in times.items()}  # the first turn fills the disk's cache
    print(f"{args.runs} runs, seconds\n\n| program | min | median | max |\n|---|---|---|---|")
    for name, values in times.items():
        print(f"| {name} | {values.min():.2f} | {np.median(values):.2f} | {values.max():.2f} |")
    print("\n| above | | min | median | max | goal |\n|---|---|---|---|---|---|")
    for name, base, goal in COMPARED:
        above = times[name] - times[base]
        print(f"| {name} | {base} | {above.min():.2f} | {np.median(above):.2f} | {above.max():.2f} | {goal} |")


if __name__ == "__main__":
    main()
