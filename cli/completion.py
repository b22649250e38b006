"""What the shell offers when a value is completed. Nothing here may load torch: a key press has to be answered."""

from collections.abc import Callable, Iterable
from importlib import resources
from pathlib import Path

DEFAULT_PRIOR = "brain"
RUN_FILE = "prior.safetensors"


def one_of(values: Iterable[str]) -> Callable[[str], list[str]]:
    """Completion of an option that takes one of some values."""

    def complete(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return complete


def prior_names(incomplete: str) -> list[str]:
    """Shipped priors and finished runs below the folder runs; for other files the shell's own completion remains."""
    shipped = sorted(path.name for path in resources.files("mri_ambient.weights").iterdir())
    names = [DEFAULT_PRIOR, *(name.removesuffix(".safetensors") for name in shipped if name.endswith(".safetensors"))]
    runs = [str(path.parent) for path in sorted(Path("runs").glob(f"*/{RUN_FILE}"))]
    return [name for name in (*names, *runs) if name.startswith(incomplete)]
