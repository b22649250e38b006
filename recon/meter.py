"""How far a reconstruction is: counted in network calls, and how long it will take, said early."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from mri_ambient.recon.pipeline import REFINEMENT, Reconstructor, SliceResult
from mri_ambient.training import Reporter

WORTH_SAYING = 20  # seconds


@dataclass
class Meter:
    """Counts network calls (or slices) of one scan, reports them, and says early how long all will take."""

    reporter: Reporter
    reconstructor: Reconstructor
    evaluations: int = 0
    calls: int = 0
    began: float = field(default_factory=lambda: time.monotonic())
    second_call: float = 0.0
    announced: bool = False

    @property
    def calls_per_slice(self) -> int:
        settings = self.reconstructor.settings
        return 1 + settings.steps + REFINEMENT if settings.method == "posterior" else 1  # samples share their calls

    @property
    def total(self) -> int:
        return self.calls_per_slice * self.reconstructor.scan.shape[0]

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Count the calls of the network inside the block: progress within a slice, which may take minutes."""
        prior = self.reconstructor.prior
        if prior is None or self.calls_per_slice == 1:
            yield
            return
        handle = prior.denoiser.register_forward_hook(lambda *_: self._call())
        try:
            yield
        finally:
            handle.remove()

    def _call(self) -> None:
        self.calls += 1
        if self.calls == 2:  # the first call was for a single image, and this one may include warming up
            self.second_call = time.monotonic()
        if self.calls == 4:
            step = (time.monotonic() - self.second_call) / 2
            a_slice = self.second_call - self.began + step * (self.calls_per_slice - 2)
            self._announce(a_slice * self.reconstructor.scan.shape[0])
        self.reporter.stage(self.reconstructor.scan.name, min(self.calls, self.total), self.total)

    def finished(self, result: SliceResult, number: int) -> None:
        """A slice is done."""
        self.evaluations += result.evaluations
        self.calls = (number + 1) * self.calls_per_slice
        if number == 0:
            self._announce(self.seconds * self.reconstructor.scan.shape[0])
        self.reporter.stage(self.reconstructor.scan.name, self.calls, self.total)

    def _announce(self, seconds: float) -> None:
        if not self.announced and seconds > WORTH_SAYING:
            self.reporter.say(f"  this will take about {duration(seconds)}")
        self.announced = True


def counted(number: int, noun: str) -> str:
    """A number with its noun."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Seconds as a person would say them."""
    if seconds < 99:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99 * 60 else f"{seconds / 3600:.1f} h"
