"""Coil calibration: time, memory and error of this package, SigPy and BART on simulated scans.

    python benchmarks/espirit.py --case 16 320 320 --runs 5

With a CUDA device the package is timed there, too, with both transfers. BART is timed as it is used, as a process that
reads and writes files; its threshold applies to squared singular values and is squared accordingly. A program whose
first run takes longer than `--patience` is run only once.

Error: against the maps that follow from the definition (`mri_ambient.operators.espirit`) at 1,000 random pixels in
double precision, without any of the rearrangements that make a program fast. Between unit vectors of sensitivities a
and b it is ``|a - b (b^H a)|``, which leaves the free phase of each pixel out. "Support" is the share of those pixels
that are in the support of both or of none.

Memory: resident memory that a call adds at most, the result included; BART's is not measured.
"""

import argparse
import math
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import measure

if TYPE_CHECKING:
    from torch import Tensor

THRESHOLD, CROP, KERNEL, PIXELS = 0.02, 0.95, 6, 1000
OURS = "mri-ambient"
CASES = ((8, 256, 256), (16, 256, 256), (32, 256, 256), (16, 320, 320), (8, 640, 368), (16, 640, 368), (32, 640, 368))
VOLUME = (32, 8, 256, 256)  # slices, coils, y, x
DEEP = (32, 256, 256, 192)  # coils and matrix of a 3-D scan


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--case", type=int, nargs=3, action="append", metavar=("COILS", "Y", "X"), help="repeatable; default: a series"
    )
    parser.add_argument("--volume", type=int, nargs=4, metavar=("SLICES", "COILS", "Y", "X"), default=VOLUME)
    parser.add_argument("--acs", type=int, default=24)
    parser.add_argument(
        "--noise", type=float, default=0.01, help="standard deviation per component; the image peaks at 1"
    )
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--patience", type=float, default=12, help="seconds beyond which a program runs only once")
    parser.add_argument("--threads", type=int, help="for all programs; by default each decides")
    return parser.parse_args()


def simulate(coils: int, ny: int, nx: int, noise_std: float, seed: int = 0) -> "Tensor":
    """k-space (coil, y, x) of a head phantom with smooth phase in a birdcage coil."""
    import numpy as np
    import sigpy
    import torch
    from sigpy.mri import birdcage_maps

    from mri_ambient.operators import fft2c

    image = torch.as_tensor(sigpy.shepp_logan((ny, nx), dtype=np.complex64))
    y, x = torch.meshgrid(torch.linspace(-1, 1, ny), torch.linspace(-1, 1, nx), indexing="ij")
    maps = torch.as_tensor(birdcage_maps((coils, ny, nx), r=1.3)).to(torch.complex64)
    maps = maps / torch.linalg.vector_norm(maps, dim=0)
    kspace = fft2c(maps * image * torch.exp(1j * (1.5 * x + 2 * y**2)))
    noise = torch.randn(kspace.shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))
    return kspace + noise_std * 2**0.5 * noise


def bart_maps(kspace: "Tensor", acs: int) -> "Tensor":
    """Maps of one run of ``bart ecalib``."""
    import numpy as np
    import torch

    coils, ny, nx = kspace.shape
    options = ["-m1", f"-r{acs}", f"-k{KERNEL}", f"-t{THRESHOLD**2}", f"-c{CROP}"]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "kspace.hdr").write_text(f"# Dimensions\n{nx} {ny} 1 {coils}\n")
        kspace.numpy().tofile(Path(folder, "kspace.cfl"))
        subprocess.run(["bart", "ecalib", *options, "kspace", "maps"], cwd=folder, check=True, capture_output=True)
        maps = np.fromfile(Path(folder, "maps.cfl"), np.complex64).reshape(kspace.shape)
    return torch.as_tensor(maps)


def package_maps(kspace: "Tensor", acs: int, backend: str, device: str = "cpu") -> "Tensor":
    """Maps by this package's function."""
    from mri_ambient.operators import espirit

    maps = espirit(kspace.to(device), acs, backend, kernel=KERNEL, threshold=THRESHOLD, crop=CROP)
    return maps.cpu()  # waits for the device


def reference(kspace: "Tensor", acs: int) -> "tuple[Tensor, Tensor, Tensor]":
    """Indices (pixel,) into the flattened image, and maps (coil, pixel) and eigenvalues there, by definition."""
    import torch

    coils, ny, nx = kspace.shape
    top, left = ny // 2 - acs // 2, nx // 2 - acs // 2
    block = kspace[:, top : top + acs, left : left + acs].to(torch.complex128)
    windows = block.unfold(1, KERNEL, 1).unfold(2, KERNEL, 1).permute(1, 2, 0, 3, 4).reshape(-1, coils * KERNEL**2)
    _, singular, basis = torch.linalg.svd(windows, full_matrices=False)
    kernels = basis[singular > THRESHOLD * singular[0]].view(-1, coils, KERNEL, KERNEL)
    pixels = torch.randperm(ny * nx, generator=torch.Generator().manual_seed(1))[:PIXELS]
    s = torch.arange(KERNEL, dtype=torch.float64)
    waves = []
    for index, n in ((pixels // nx, ny), (pixels % nx, nx)):
        waves.append(torch.exp(2j * math.pi * (index - n // 2)[:, None] * s / n))
    images = torch.einsum("kcab,pa,pb->pkc", kernels, *waves) / KERNEL
    values, vectors = torch.linalg.eigh(images.mT @ images.conj())
    return pixels, vectors[..., -1].T, values[:, -1]


def errors(maps: "Tensor", exact: "tuple[Tensor, Tensor, Tensor]") -> tuple[str, str]:
    """Median and 99th percentile of the error, and agreement of the supports."""
    import torch

    pixels, vectors, values = exact
    found = maps.flatten(1)[:, pixels].to(torch.complex128)
    norms = torch.linalg.vector_norm(found, dim=0)
    inside, expected = norms > 0.5, values > CROP
    both = inside & expected
    a, b = found[:, both] / norms[both], vectors[:, both]
    error = torch.linalg.vector_norm(a - b * (b.conj() * a).sum(0), dim=0)
    same = (inside == expected).double().mean()
    return f"{error.median():.1e}, {error.quantile(0.99):.1e}", f"{100 * same:.1f} %"


def programs(kspace: "Tensor", options: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """All that are installed, for one slice or a volume; BART takes one slice after another."""
    import torch

    found: dict[str, Callable[[], Any]] = {
        OURS: lambda: package_maps(kspace, options.acs, "torch"),
        "SigPy": lambda: package_maps(kspace, options.acs, "sigpy"),
    }
    if torch.cuda.is_available():
        found[f"{OURS}, {torch.cuda.get_device_name()}"] = lambda: package_maps(kspace, options.acs, "torch", "cuda")
    if shutil.which("bart"):
        slices = kspace.reshape(-1, *kspace.shape[-3:])
        found["BART"] = lambda: torch.stack([bart_maps(data, options.acs) for data in slices]).view(kspace.shape)
    return found


def one_slice(case: tuple[int, int, int], options: argparse.Namespace) -> str:
    """Table of one scan."""
    kspace = simulate(*case, options.noise)
    exact = reference(kspace, options.acs)
    measured = measure.in_turns(programs(kspace, options), options.runs, options.patience)
    judged = {name: errors(of.result, exact) for name, of in measured.items()}
    columns = {
        "error: median, 99 %": {name: error for name, (error, _) in judged.items()},
        "support": {name: support for name, (_, support) in judged.items()},
        "memory, MB": {name: f"{of.memory:.0f}" for name, of in measured.items() if name != "BART"},
    }
    coils, ny, nx = case
    return f"### {coils} coils, {ny} x {nx}, one slice\n\n" + measure.table(measured, OURS, columns)


def volume(shape: tuple[int, int, int, int], options: argparse.Namespace) -> str:
    """Table of a volume."""
    import torch

    slices, coils, ny, nx = shape
    kspace = torch.stack([simulate(coils, ny, nx, options.noise, seed) for seed in range(slices)])
    measured = measure.in_turns(programs(kspace, options), options.runs, options.patience)
    beyond = {OURS: f"{measured[OURS].memory - kspace.nbytes / 2**20:.0f}"}
    title = f"### {coils} coils, {ny} x {nx}, volume of {slices} slices\n\n"
    return title + measure.table(measured, OURS, {"memory beyond the maps, MB": beyond})


def deep(options: argparse.Namespace) -> str:
    """Memory for slices of a 3-D scan: a few of them show that it does not grow with their number."""
    coils, ny, nx, slices = DEEP
    kspace = simulate(coils, ny, nx, options.noise)
    covariance = 8 * coils**2 * ny * nx * slices / 1e9
    lines = [
        f"### {coils} coils, {ny} x {nx} x {slices}: memory\n",
        "The readout is transformed back and the slices are calibrated one after another. Memory beyond the maps "
        f"does not depend on their number; the covariance of the whole volume would be {covariance:.0f} GB, that of "
        f"one slice {1e3 * covariance / slices:.0f} MB.\n",
        "| slices | memory beyond the maps, MB |\n|---|---|",
    ]
    for count in (1, 4):
        data = kspace.expand(count, -1, -1, -1)
        memory = measure.warm_up(partial(package_maps, data, options.acs, "torch")).memory
        lines.append(f"| {count} | {memory - 8 * data.numel() / 2**20:.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    options = parse()
    measure.set_threads(options.threads)
    import mri_ambient.operators  # noqa: F401  (before the first measurement of memory)

    for case in options.case or CASES:
        measure.progress(f"ESPIRiT, {case}")
        print(one_slice(tuple(case), options), flush=True)
    measure.progress("ESPIRiT, volumes")
    print(volume(tuple(options.volume), options), flush=True)
    print(deep(options))


if __name__ == "__main__":
    main()
