"""What the benchmarks of speed share: timing in turns, peak memory, and tables in Markdown.

Programs that are compared take turns, so that a busy machine slows all of them alike, and ratios are formed within one
turn. The table gives the minimum, the median and the maximum of both.
"""

import ctypes
import datetime
import importlib.metadata
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

PACKAGES = ("mri-ambient", "torch", "numpy", "sigpy", "deepinv", "mrpro")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass
class Measured:
    """Seconds of every run of a program, and what the warm-up returned and added to the memory (megabytes)."""

    seconds: list[float]
    memory: float
    result: Any


def in_turns(
    programs: Mapping[str, Callable[[], Any]], runs: int, patience: float = float("inf")
) -> dict[str, Measured]:
    """Runs all programs in turns after one warm-up each; where that took longer than `patience`, it is the only run."""
    found = {}
    for name, program in programs.items():
        progress(f"  {name}")
        found[name] = warm_up(program)
    repeated = [name for name, of in found.items() if of.seconds[0] <= patience]
    for name in repeated:
        found[name].seconds.clear()
    for _ in range(runs):
        for name in repeated:
            began = time.perf_counter()
            programs[name]()
            found[name].seconds.append(time.perf_counter() - began)
    return found


def warm_up(program: Callable[[], Any]) -> Measured:
    """One run, with the resident memory that it adds at most (not a number where Linux does not tell)."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        ctypes.CDLL(None).malloc_trim(0)
        clear.write_text("5")  # resets the high-water mark
    before = resident_megabytes("VmRSS")
    began = time.perf_counter()
    result = program()
    seconds = time.perf_counter() - began
    return Measured([seconds], resident_megabytes("VmHWM") - before, result)


def resident_megabytes(field: str) -> float:
    """Of this process: now (VmRSS) or at most (VmHWM)."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(field)), float("nan"))


def ratios(times: list[float], reference: list[float]) -> list[float]:
    """Turn by turn; the only run of a slow program is divided by the median of the reference."""
    if len(times) != len(reference):
        reference = [statistics.median(reference)] * len(times)
    return [a / b for a, b in zip(times, reference, strict=True)]


def three(values: list[float], digits: int = 3) -> str:
    """Minimum, median and maximum, or the only value there is."""
    chosen = values if len(values) == 1 else [min(values), statistics.median(values), max(values)]
    return " / ".join(f"{v:#.{digits}g}".rstrip(".") if v < 10**digits else f"{v:.0f}" for v in chosen)


def table(
    measured: Mapping[str, Measured],
    reference: str,
    columns: Mapping[str, Mapping[str, str]] | None = None,
    milliseconds: bool = False,
) -> str:
    """One line a program: time, ratio to the reference program, further columns (header -> program -> text), runs."""
    columns = columns or {}
    unit, scale = ("ms", 1e3) if milliseconds else ("s", 1.0)
    header = ["program", f"{unit}: min / median / max", f"times {reference}", *columns, "runs"]
    lines = [header, ["---"] * len(header)]
    for name, of in measured.items():
        ratio = "1" if name == reference else three(ratios(of.seconds, measured[reference].seconds))
        more = [column.get(name, "") for column in columns.values()]
        lines.append([name, three([scale * s for s in of.seconds]), ratio, *more, str(len(of.seconds))])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def relative_error(found: "Tensor", exact: "Tensor") -> str:
    """Norm of the difference to a double-precision reference, over its norm."""
    difference = found.to(exact.dtype) - exact
    return f"{float(difference.norm() / exact.norm()):.1e}"


def set_threads(threads: int | None) -> None:
    """For all libraries; must come before they are imported."""
    if threads:
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))


def progress(text: str) -> None:
    """On stderr: the results alone go to stdout."""
    print(text, file=sys.stderr, flush=True)


def machine(threads: int | None) -> str:
    """Processor, cores, threads, system, date and versions."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{name} not installed")
    bart = "not installed"
    if shutil.which("bart"):
        bart = subprocess.run(["bart", "version"], check=True, capture_output=True, text=True).stdout.strip()
    used = f"{threads} threads" if threads else "threads as each program chooses"
    today = datetime.date.today().isoformat()
    return (
        f"{model}, {os.cpu_count()} cores, {used}; {platform.system()}, Python {platform.python_version()}; {today}. "
        f"{', '.join(versions)}, BART {bart}."
    )
