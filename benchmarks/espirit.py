"""Time and accuracy of ESPIRiT: this package, SigPy and BART on one simulated scan.

    python benchmarks/espirit.py --coils 16 --size 320 320 --runs 5

The programs take turns, so that a busy machine slows all of them alike; the minimum is the figure to compare. BART is
timed as it is used, as a process that reads and writes files. Accuracy, as the modulus of the inner product of two unit
vectors of sensitivities (1 is perfect; the phase of each pixel is free): against SigPy on the common support, and
against the true maps inside the object. BART's threshold applies to squared singular values and is squared accordingly.
"""

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

THRESHOLD, CROP, KERNEL = 0.02, 0.95, 6


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coils", type=int, default=16)
    parser.add_argument("--size", type=int, nargs=2, default=(320, 320), metavar=("Y", "X"))
    parser.add_argument("--acs", type=int, default=24)
    parser.add_argument(
        "--noise", type=float, default=0.01, help="standard deviation per component; the image peaks at 1"
    )
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, help="for all programs; by default each decides")
    parser.add_argument("--device", default="cpu", help="for the torch backend")
    return parser.parse_args()


def simulate(coils: int, ny: int, nx: int, noise_std: float) -> "tuple[Tensor, Tensor, Tensor]":
    """k-space of a head phantom with smooth phase in a birdcage coil, the true maps, and where the object is."""
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
    noise = torch.randn(kspace.shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    return kspace + noise_std * 2**0.5 * noise, maps, image.abs() > 0.05


def bart_ecalib(kspace: "Tensor", acs: int) -> "tuple[float, Tensor]":
    """Seconds and maps of one run of ``bart ecalib``."""
    import numpy as np
    import torch

    coils, ny, nx = kspace.shape
    options = ["-m1", f"-r{acs}", f"-k{KERNEL}", f"-t{THRESHOLD**2}", f"-c{CROP}"]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "kspace.hdr").write_text(f"# Dimensions\n{nx} {ny} 1 {coils}\n")
        kspace.numpy().tofile(Path(folder, "kspace.cfl"))
        start = time.perf_counter()
        subprocess.run(["bart", "ecalib", *options, "kspace", "maps"], cwd=folder, check=True, capture_output=True)
        seconds = time.perf_counter() - start
        maps = np.fromfile(Path(folder, "maps.cfl"), np.complex64).reshape(kspace.shape)
    return seconds, torch.as_tensor(maps)


def package_espirit(kspace: "Tensor", acs: int, backend: str, device: str) -> "tuple[float, Tensor]":
    """Seconds and maps of one run of this package's function."""
    from mri_ambient.operators import espirit

    kspace = kspace.to(device)
    start = time.perf_counter()
    maps = espirit(kspace, acs, backend, kernel=KERNEL, threshold=THRESHOLD, crop=CROP).cpu()  # waits for the device
    return time.perf_counter() - start, maps


def accuracy(maps: "Tensor", reference: "Tensor", truth: "Tensor", inside: "Tensor") -> str:
    def quantiles(a: "Tensor", b: "Tensor", where: "Tensor") -> str:
        overlap = (a.conj() * b).sum(0).abs()[where].double()
        return f"{overlap.median():.6f} {overlap.quantile(0.01):.6f}"

    support, reference_support = (x.abs().square().sum(0) > 0.5 for x in (maps, reference))
    same = (support == reference_support).double().mean()
    versus = quantiles(maps, reference, support & reference_support)
    return f"{100 * same:8.3f}  {versus}  {quantiles(maps, truth, inside)}"


def main() -> None:
    options = parse()
    if options.threads:  # before the libraries start their thread pools
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[name] = str(options.threads)
    ny, nx = options.size
    kspace, truth, inside = simulate(options.coils, ny, nx, options.noise)
    programs: dict[str, Callable[[], tuple[float, Tensor]]] = {
        "torch": lambda: package_espirit(kspace, options.acs, "torch", options.device),
        "sigpy": lambda: package_espirit(kspace, options.acs, "sigpy", "cpu"),
    }
    if shutil.which("bart"):
        programs["bart"] = lambda: bart_ecalib(kspace, options.acs)
    else:
        print("bart is not on PATH and is left out")
    maps = {name: program()[1] for name, program in programs.items()}  # also the warm-up
    seconds = {name: sorted(times) for name, times in time_in_turns(programs, options.runs).items()}

    print(
        f"\n{options.coils} coils, {ny} x {nx}, {options.acs} ACS, {options.runs} runs: seconds; overlaps (median, 1 %)"
    )
    print(f"{'':8}{'min':>8}{'median':>8}{'max':>8}{'ratio':>8}  {'support %':>8}  {'with sigpy':17}  with the truth")
    for name, times in seconds.items():
        ratio = times[0] / seconds["torch"][0]
        figures = f"{times[0]:8.3f}{times[len(times) // 2]:8.3f}{times[-1]:8.3f}{ratio:8.2f}"
        print(f"{name:8}{figures}  {accuracy(maps[name], maps['sigpy'], truth, inside)}")
    print("ratio: of the minimum to that of the torch backend")


def time_in_turns(programs: "dict[str, Callable[[], tuple[float, Tensor]]]", runs: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in programs}
    for run in range(runs):
        for name, program in programs.items():
            times[name].append(program()[0])
            print(f"run {run + 1}: {name} {times[name][-1]:.3f} s", flush=True)
    return times


if __name__ == "__main__":
    main()
