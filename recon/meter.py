"""How far a reconstruction is: counted in network evaluations, and how long it will take, said early."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from mri_ambient.recon.pipeline import Reconstructor
from mri_ambient.recon.settings import SAMPLED
from mri_ambient.reporter import Reporter

WORTH_SAYING = 20  # seconds
WARM_UP, TIMED = 2, 4  # calls of the network: the speed is measured from the end of one to the end of the other


@dataclass
class Meter:
    """Counts network evaluations (or slices) of one scan, reports them, and says early how long all will take."""

    reporter: Reporter
    reconstructor: Reconstructor
    done: int = 0
    calls: int = 0
    began: float = field(default_factory=lambda: time.monotonic())
    warm: tuple[float, int] = (0.0, 0)
    announced: bool = False

    @property
    def _sampling(self) -> bool:
        return self.reconstructor.settings.method in SAMPLED

    @property
    def total(self) -> int:
        """Evaluations, if all slices have signal; slices, for methods that need one evaluation a slice or none."""
        slices: int = self.reconstructor.scan.shape[0]
        if not self._sampling:
            return slices
        return self.reconstructor.evaluations_of_check + slices * self.reconstructor.evaluations_per_slice

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Count the images that the network sees inside the block: progress within a slice, which may take minutes."""
        prior = self.reconstructor.prior
        if prior is None or not self._sampling:
            yield
            return
        handle = prior.denoiser.register_forward_hook(lambda module, inputs, output: self._call(len(inputs[0])))
        try:
            yield
        finally:
            handle.remove()

    def _call(self, images: int) -> None:
        self.calls += 1
        self.done = min(self.done + images, self.total)  # more than planned where a batch had to be made again
        if self.calls == WARM_UP:
            self.warm = time.monotonic(), self.done
        if self.calls == TIMED:
            moment, done = self.warm
            rate = (time.monotonic() - moment) / max(self.done - done, 1)
            self._announce(moment - self.began + rate * (self.total - done))
        self.reporter.stage(self.reconstructor.scan.name, self.done, self.total)

    def finished(self, slices: int) -> None:
        """So many slices are done (0: the check before them)."""
        left = self.reconstructor.scan.shape[0] - slices
        self.done = self.total - left * (self.reconstructor.evaluations_per_slice if self._sampling else 1)
        if slices == 1:
            self._announce(self.seconds * self.reconstructor.scan.shape[0])
        if self.done:
            self.reporter.stage(self.reconstructor.scan.name, self.done, self.total)

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
