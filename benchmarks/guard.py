"""Fails (exit 1) when a ratio that is stable from machine to machine leaves its wide margin.

    python benchmarks/guard.py

Processor time, not wall-clock time, of one thread; programs take turns and minima are compared, so that a busy machine
does not matter; a ratio that is out of bounds is measured once more before it counts.
"""

import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import measure

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Check:
    """A figure, what it is, and the bounds it must keep."""

    what: str
    figure: Callable[[], float]
    lowest: float
    highest: float

    def holds(self) -> bool:
        """Measure, once more if need be, and print."""
        for _ in range(2):
            value = self.figure()
            if self.lowest <= value <= self.highest:
                break
        good = self.lowest <= value <= self.highest
        print(f"{self.what}: {value:.3g} (allowed: {self.lowest:g} to {self.highest:g}){'' if good else '  VIOLATED'}")
        return good


def ratio(numerator: Callable[[], Any], denominator: Callable[[], Any], runs: int) -> float:
    """Of the least processor times, after a warm-up each."""
    least = [float("inf"), float("inf")]
    for run in range(runs + 1):
        for i, program in enumerate((numerator, denominator)):
            began = time.process_time()
            program()
            if run:
                least[i] = min(least[i], time.process_time() - began)
    return least[0] / least[1]


def scan(coils: int, size: int) -> "tuple[Tensor, Tensor]":
    """Smooth random maps (coil, y, x), and k-space of an ellipse with noise."""
    import torch

    from mri_ambient.operators import fft2c

    generator = torch.Generator().manual_seed(0)
    axis = torch.linspace(-1, 1, size)
    centres = torch.exp(2j * torch.pi * torch.arange(coils) / coils)[:, None, None]
    position = axis[:, None] * 1j + axis
    maps = torch.exp(-((position - centres).abs() ** 2) + 1j * (position * centres.conj()).imag)
    maps = (maps / torch.linalg.vector_norm(maps, dim=0)).to(torch.complex64)
    noise = torch.view_as_complex(torch.randn(coils, size, size, 2, generator=generator))
    return maps, fft2c(maps * (position.abs() < 0.8)) + 0.01 * noise


def normal_over_ffts() -> float:
    """The normal operator of a line mask over the transforms in it."""
    import torch

    from mri_ambient.operators import Sense

    maps, _ = scan(16, 320)
    operator = Sense(maps, torch.arange(320) % 4 == 0)
    image = maps[0].contiguous()
    stack = maps * image
    return ratio(
        lambda: operator.normal(image), lambda: torch.fft.ifft(torch.fft.fft(stack, norm="ortho"), norm="ortho"), 15
    )


def sigpy_over_espirit() -> float:
    """SigPy's time for a calibration over the package's."""
    from mri_ambient.operators import espirit

    _, kspace = scan(8, 160)
    return ratio(lambda: espirit(kspace, backend="sigpy"), lambda: espirit(kspace), 3)


def evaluations_per_sample() -> float:
    """Images that the network is given for one posterior sample with the default settings."""
    import torch

    from mri_ambient.operators import Sense
    from mri_ambient.posterior import PosteriorDenoiser
    from mri_ambient.recon import sample_posterior

    maps, kspace = scan(4, 32)
    given = 0

    def denoiser(noisy: "Tensor", sigma: "float | Tensor") -> "Tensor":
        nonlocal given
        given += len(noisy)
        return noisy

    posterior = PosteriorDenoiser(denoiser, kspace, Sense(maps, torch.arange(32) % 2 == 0), 0.01, lambda sigma: sigma)
    samples = sample_posterior(posterior, samples=2)
    return given / len(samples)


CHECKS = (
    Check("normal operator over the bare FFTs", normal_over_ffts, 0.3, 2.5),
    Check("SigPy's ESPIRiT over this package's", sigpy_over_espirit, 4, float("inf")),
    Check("network evaluations a posterior sample", evaluations_per_sample, 25, 25),
)


def main() -> None:
    measure.set_threads(1)
    warnings.simplefilter("ignore")
    from mri_ambient.allocator import keep_freed_memory

    keep_freed_memory()
    held = [check.holds() for check in CHECKS]
    sys.exit(0 if all(held) else 1)


if __name__ == "__main__":
    main()
