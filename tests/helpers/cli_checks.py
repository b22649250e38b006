"""What tests of the command line ask of its output."""

from pathlib import Path

from typer.testing import Result


def one_line(result: Result) -> str:
    """The only line on standard error, and no traceback."""
    assert "Traceback" not in result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


def files_in(folder: Path) -> list[str]:
    """Everything below a folder that may not exist, hidden files too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.exists() else []
