"""Long jobs of many pieces: several processes do them, and a file keeps what is finished.

The same job continues from that file. Its first line holds what decides the results, every further line the name and
the result of a finished piece, both as JSON. A line that was cut off when the job was killed is dropped.
"""

import json
import math
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from mri_ambient.allocator import keep_freed_memory
from mri_ambient.dataset import write_atomically
from mri_ambient.errors import InputError
from mri_ambient.reporter import Reporter


class Task(Protocol):
    """A piece of a job; can be sent to another process."""

    @property
    def key(self) -> str:
        """Names it within the job."""
        ...


T = TypeVar("T", bound=Task)


class Ledger:
    """The file of one job; written from the first `add` on.

    Parameters
    ----------
    path : Path
    settings : dict
        What decides the results; JSON values.

    Attributes
    ----------
    results : dict
        By the name of the piece.

    Raises
    ------
    InputError
        If the file belongs to a job with other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, plain(settings)
        self.results: dict[str, Any] = {}
        lines = _complete_lines(path.read_text()) if path.exists() else []
        if lines:
            require_same(lines[0], self.settings, path.parent)
            self.results = dict(lines[1:])
        self._clean = False  # whether the file ends with a whole line

    def add(self, name: str, result: Any) -> None:
        """Keep a result, at once."""
        if not self._clean:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lines = [self.settings, *([key, value] for key, value in self.results.items())]
            write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in lines).encode())
            self._clean = True
        self.results[name] = plain(result)
        with open(self.path, "a") as file:
            file.write(json.dumps([name, self.results[name]]) + "\n")


def _complete_lines(text: str) -> list[Any]:
    lines = []
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def require_same(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """Refuse to continue a job in a folder that holds another one.

    Raises
    ------
    InputError
        With the settings that differ.
    """
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if changed:
        what = ", ".join(_difference(key, before.get(key), now.get(key)) for key in changed)
        raise InputError(f"{folder} holds a run with other settings: {what}. Choose another --out.")


def plain(value: Any) -> Any:
    """JSON values: tuples become lists, numbers that are not finite None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _difference(key: str, before: Any, now: Any) -> str:
    if isinstance(before, dict) or isinstance(now, dict):
        return f"{key} (different)"
    return f"{key} {_shown(before)} (now {_shown(now)})"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in value) or "none"
    return "none" if value is None else str(value)


def run(
    do: Callable[[T], dict[str, Any]], tasks: Sequence[T], jobs: int, ledger: Ledger, stage: str, reporter: Reporter
) -> list[dict[str, Any]]:
    """Results of all tasks, in their order; what the ledger holds is not done again.

    Parameters
    ----------
    do : callable
        Of a module, so that other processes find it.
    tasks : sequence of Task
    jobs : int
        Number of processes; 1 does everything in this one.
    ledger : Ledger
    stage : str
        What the reporter calls it.
    reporter : Reporter
    """
    todo = [task for task in tasks if task.key not in ledger.results]
    number = len(tasks) - len(todo)
    reporter.stage(stage, number, len(tasks))
    for task, result in _shared(do, todo, jobs) if jobs > 1 and todo else ((task, do(task)) for task in todo):
        ledger.add(task.key, result)
        number += 1
        reporter.stage(stage, number, len(tasks))
    return [ledger.results[task.key] for task in tasks]


def _shared(do: Callable[[T], dict[str, Any]], tasks: Sequence[T], jobs: int) -> Iterator[tuple[T, dict[str, Any]]]:
    """Tasks with their results, as they are finished; the processes end with the loop, however it ends."""
    others = set(multiprocessing.active_children())
    threads = max(1, (os.cpu_count() or 1) // jobs)
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    with ProcessPoolExecutor(min(jobs, len(tasks)), context, _start_worker, (threads,)) as pool:
        try:
            futures = {pool.submit(do, task): task for task in tasks}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()
            raise


def _start_worker(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its children
    torch.set_num_threads(threads)
    keep_freed_memory()
