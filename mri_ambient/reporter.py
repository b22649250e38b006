"""What long work tells the outside."""

from typing import Protocol


class Reporter(Protocol):
    """What the loop tells the outside; the command line draws it."""

    def stage(self, text: str, done: int, total: int) -> None:
        """Progress of the current stage, with its name."""
        ...

    def say(self, text: str) -> None:
        """A line for the log."""
        ...


class Silent:
    """A reporter that says nothing."""

    def stage(self, text: str, done: int, total: int) -> None:
        """Ignore."""

    def say(self, text: str) -> None:
        """Ignore."""
