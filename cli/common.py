"""What all commands share: exit codes, errors in one sentence, progress.

======  ======================================================================================
code    meaning
======  ======================================================================================
0       done
1       the work failed: memory ran out, or a defect of this program
2       bad input or usage: the sentence on standard error says what to do
130     stopped by the user (Ctrl-C) or the batch system (SIGTERM)
======  ======================================================================================

No traceback is shown, unless the environment variable MRI_AMBIENT_DEBUG is 1.

This module is imported for ``--help``: nothing in it may load torch.
"""

import errno
import json
import math
import os
import signal
import sys
import traceback
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from mri_ambient.errors import InputError, SettingError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

FAILED, BAD_INPUT, STOPPED = 1, 2, 130
_USAGE_ERROR: Any = typer.BadParameter.__base__  # typer does not export it, and where it lives differs by version
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_USERS = (*_FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)


class Stopped(Exception):
    """Stopped by the user; the message says what was kept."""


class Commands(TyperGroup):
    """The group of commands: every exception leaves as an exit code and one line on standard error."""

    def main(self, *args: Any, **settings: Any) -> Any:
        """Run a command line and exit."""
        settings["standalone_mode"] = False
        try:
            code = super().main(*args, **settings)
            if code == STOPPED:
                complain("Stopped.")
        except typer.Abort:
            complain("Stopped.")
            code = STOPPED
        except Exception as error:
            code = report(error)
        sys.exit(code if isinstance(code, int) else 0)


def stop_on_termination() -> None:
    """Treat SIGTERM, by which batch systems end a job, like Ctrl-C: states are saved and temporary files removed."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def complain(sentence: str) -> None:
    """Print one line on standard error."""
    print(" ".join(sentence.split()), file=sys.stderr, flush=True)


def report(error: BaseException, subject: str = "") -> int:
    """Print an exception as one line on standard error.

    Parameters
    ----------
    error : BaseException
    subject : str
        What it is about, where the message does not say so itself.

    Returns
    -------
    int
        The exit code it stands for.
    """
    if os.environ.get("MRI_AMBIENT_DEBUG") == "1":
        traceback.print_exception(error)
    code, sentence = describe(error)
    named = "" if not subject or subject in sentence else f"{subject}: "
    complain(f"{'' if code == STOPPED else 'Error: '}{named}{sentence}")
    return code


def describe(error: BaseException) -> tuple[int, str]:
    """Exit code and sentence for an exception."""
    if isinstance(error, SettingError):
        return BAD_INPUT, f"--{error.name} {error.complaint}"
    if isinstance(error, InputError):
        return BAD_INPUT, str(error)
    if isinstance(error, Stopped):
        return STOPPED, str(error)
    if isinstance(error, _USAGE_ERROR):
        command = getattr(getattr(error, "ctx", None), "command_path", "mri-ambient")
        return BAD_INPUT, f"{error.format_message().rstrip('.')}: see {command} --help."
    if isinstance(error, OSError) and error.errno in _USERS:
        advice = "free some space" if error.errno in _FULL else "check the name and the permissions"
        return BAD_INPUT, f"{error.filename or 'A file'} cannot be used ({error.strerror}): {advice}."
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "enough memory" in str(error):
        return FAILED, "The memory is full: use fewer --samples, a smaller network, or --device cpu instead of a GPU."
    first = (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")
    return FAILED, (
        f"Unexpected {type(error).__name__} ({first}): please report it with what MRI_AMBIENT_DEBUG=1 adds to this."
    )


def print_json(value: Any) -> None:
    """Print indented JSON on standard output; numbers that are not finite become null."""
    print(json.dumps(_finite(value), indent=2, default=str, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(titles: list[str], rows: list[list[str]]) -> None:
    """Print aligned columns on standard output, never cut to the width of the terminal; the first one to the left."""
    widths = [max(len(line[column]) for line in [titles, *rows]) for column in range(len(titles))]
    for first, *others in [titles, *rows]:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *cells]).rstrip())


class Terminal:
    """Shows what a long job reports: a bar with the time left while standard error is a terminal, and lines.

    Implements `mri_ambient.reporter.Reporter`; a context manager.

    Parameters
    ----------
    quiet : bool
        Show nothing.
    lines : bool
        Print lines on standard output; switched off where it is reserved for JSON.
    """

    def __init__(self, *, quiet: bool = False, lines: bool = True) -> None:
        self._lines = lines and not quiet
        self._draw = not quiet and sys.stderr.isatty()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._text = ""

    def __enter__(self) -> "Terminal":
        if self._draw:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
                redirect_stdout=False,
                refresh_per_second=2,
                speed_estimate_period=300,  # seconds; a step may take many
            )
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def stage(self, text: str, done: int, total: int) -> None:
        """Progress of the current stage, with its name."""
        if self._bar is None:
            return
        if text != self._text or self._task is None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task, self._text = self._bar.add_task(text, completed=done, total=total), text
        self._bar.update(self._task, completed=done, total=total)

    def say(self, text: str) -> None:
        """A line for the log."""
        if not self._lines:
            return
        if self._bar is not None and sys.stdout.isatty():  # above the bar, which lives on the same screen
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, flush=True)
