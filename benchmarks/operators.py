"""The multi-coil normal operator against the FFTs it contains, a plain fftshift form, and SigPy; one run, ratios.

    python benchmarks/operators.py --coils 16 --size 320 --runs 20

Candidates take turns, so that a busy machine slows all alike. The error is relative to a float64 computation.
"""

import argparse
import statistics
import time
import warnings

import torch

from mri_ambient.allocator import keep_freed_memory
from mri_ambient.operators import Sense, fft2c, ifft2c, random_mask


def candidates(coils, size):
    """Name -> function, and the float64 reference."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(coils, size, size, dtype=torch.complex64, generator=generator)
    maps = maps / maps.abs().square().sum(0).sqrt()
    image = torch.randn(size, size, dtype=torch.complex64, generator=generator)
    line = random_mask(size, 4, generator=generator)
    plane = torch.rand(size, size, generator=generator) < 0.25
    ops = {"line mask": Sense(maps, line), "2-D mask": Sense(maps, plane)}
    stack = maps * image
    functions = {
        "bare FFTs 1-D": lambda: torch.fft.ifft(torch.fft.fft(stack, norm="ortho"), norm="ortho"),
        "bare FFTs 2-D": lambda: torch.fft.ifft2(torch.fft.fft2(stack, norm="ortho"), norm="ortho"),
        "Sense.normal, line mask": lambda: ops["line mask"].normal(image),
        "Sense.normal, 2-D mask": lambda: ops["2-D mask"].normal(image),
        "fftshift form": lambda: (maps.conj() * ifft2c(ops["2-D mask"].mask * fft2c(maps * image))).sum(0),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sigpy.mri.linop import Sense as SigpySense

        for name, op in ops.items():
            weights = op.mask.expand(size, size).numpy().astype("float32")
            normal = SigpySense(maps.numpy(), weights=weights).N
            functions[f"SigPy Sense.N, {name}"] = lambda normal=normal: torch.from_numpy(normal(image.numpy()))
    exact = {
        name: Sense(maps.to(torch.complex128), op.mask).normal(image.to(torch.complex128)) for name, op in ops.items()
    }
    return functions, exact


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coils", type=int, default=16)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--runs", type=int, default=20)
    args = parser.parse_args()
    keep_freed_memory()
    warnings.simplefilter("ignore")
    functions, exact = candidates(args.coils, args.size)
    times = {name: [] for name in functions}
    for _ in range(args.runs + 2):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            times[name].append(1e3 * (time.perf_counter() - began))
    print(f"{args.coils} coils, {args.size} x {args.size}, {torch.get_num_threads()} threads; {args.runs} runs, ms")
    for name, values in times.items():
        values = values[2:]
        kind = "line mask" if "line" in name else "2-D mask"
        error = ""
        if "bare" not in name:
            difference = functions[name]().to(torch.complex128) - exact[kind]
            error = f"  error {float(difference.norm() / exact[kind].norm()):.1e}"
        print(
            f"{name:28s} min {min(values):7.2f}  median {statistics.median(values):7.2f}  max {max(values):7.2f}{error}"
        )
    for kind, bare in (("line mask", "bare FFTs 1-D"), ("2-D mask", "bare FFTs 2-D")):
        ours, sigpy = times[f"Sense.normal, {kind}"][2:], times[f"SigPy Sense.N, {kind}"][2:]
        over = [a / b for a, b in zip(ours, times[bare][2:], strict=True)]
        gain = [b / a for a, b in zip(ours, sigpy, strict=True)]
        print(
            f"{kind}: {statistics.median(over):.2f} times the bare FFTs, "
            f"{statistics.median(gain):.1f} times faster than SigPy"
        )


if __name__ == "__main__":
    main()
