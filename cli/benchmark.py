"""``mri-ambient benchmark``: methods compared on scans with known truth."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import Stopped, Terminal, print_json
from .completion import one_of, prior_names
from .options import DEVICE, JSON, MASKS, PRECISION, QUIET, RECON_METHODS, SEED

if TYPE_CHECKING:
    from mri_ambient.recon.benchmark import Benchmark

_METHODS = ("zero-filled", "sense", "l1-wavelet", "tv", "mmse", "posterior")
_MASKS = ("random", "equispaced", "poisson", "gaussian")
_ACCELERATIONS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)


def benchmark(
    scans: Annotated[
        list[str],
        typer.Argument(
            metavar="SCANS",
            help="Fully sampled k-space files, or volumes (NIfTI, DICOM) to simulate scans of; folders, patterns.",
            show_default=False,
        ),
    ],
    prior: Annotated[
        list[str] | None,
        typer.Option(
            help="Shipped name, file, or folder of a training run; may be repeated.",
            show_default="brain",
            autocompletion=prior_names,
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help=f"{', '.join(RECON_METHODS)}, grappa; may be repeated.",
            show_default=", ".join(_METHODS),
            autocompletion=one_of((*RECON_METHODS, "grappa")),
        ),
    ] = None,
    accel: Annotated[
        list[float] | None,
        typer.Option(
            help="Acceleration; may be repeated.", show_default=", ".join(f"{accel:g}" for accel in _ACCELERATIONS)
        ),
    ] = None,
    mask: Annotated[
        list[str] | None,
        typer.Option(
            help=f"{', '.join(MASKS)}; may be repeated.", show_default=", ".join(_MASKS), autocompletion=one_of(MASKS)
        ),
    ] = None,
    slices: Annotated[int, typer.Option(help="Of each scan, evenly spread.")] = 3,
    samples: Annotated[int, typer.Option(help="Posterior samples.")] = 8,
    steps: Annotated[int, typer.Option(help="Network evaluations of each sample.")] = 25,
    tune: Annotated[
        list[str] | None,
        typer.Option(
            help="Scans of other patients, to tune the weights of classical methods on; may be repeated.",
            show_default="the weights of recon",
        ),
    ] = None,
    coverage: Annotated[bool, typer.Option("--coverage", help="Compare error bars with errors.")] = False,
    coils: Annotated[int, typer.Option(help="Coils of simulated scans.")] = 8,
    matrix: Annotated[
        int | None, typer.Option(help="Matrix of simulated scans.", show_default="the volume's own")
    ] = None,
    noise: Annotated[
        float | None,
        typer.Option(
            help="Noise per real component.", show_default="in the files, or estimated; 0.02 for simulated scans"
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(help="Processes that share the work.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("benchmark"),
    as_json: JSON = False,
    seed: SEED = 0,
    device: DEVICE = "auto",
    precision: PRECISION = "auto",
    quiet: QUIET = False,
) -> None:
    """Compare methods at many accelerations and masks. The same command continues a benchmark that was stopped."""
    from mri_ambient.recon.benchmark import RESULT, Conditions
    from mri_ambient.recon.benchmark import benchmark as run_benchmark

    conditions = Conditions(slices, seed, coils, matrix, noise, samples, steps, coverage, device, precision)
    try:
        with Terminal(quiet=quiet, lines=not as_json) as terminal:
            result = run_benchmark(
                scans, out, methods=method or _METHODS, priors=prior or ("brain",), accels=accel or _ACCELERATIONS,
                masks=mask or _MASKS, tune=tune or (), conditions=conditions, jobs=jobs, reporter=terminal,
            )  # fmt: skip
    except KeyboardInterrupt as interruption:
        raise Stopped(f"Stopped; the same command continues the benchmark in {out}.") from interruption
    if as_json:
        print_json(result.as_dict())
    elif not quiet:
        _show(result)
        print(f"{out / RESULT}, and figures beside it")


def _show(result: "Benchmark") -> None:
    from mri_ambient.recon.meter import counted

    methods = result.settings["methods"]
    cells = {(entry["mask"], entry["accel"], entry["method"]): entry for entry in result.summary}
    patterns = list(dict.fromkeys((mask, accel) for mask, accel, _ in cells))
    tables = [("PSNR (dB)", _psnr, methods), ("SSIM", _ssim, methods)]
    if covered := list(dict.fromkeys(entry["method"] for entry in result.summary if "coverage" in entry)):
        tables.append(("pixels within their 90 % error bar (error / standard deviation)", _covered, covered))
    for title, text, columns in tables:
        rows = [
            [mask, f"{accel:g}", *(text(cells[mask, accel, m]) if (mask, accel, m) in cells else "-" for m in columns)]
            for mask, accel in patterns
        ]
        _print_table(title, ["mask", "R", *columns], rows)
    volumes, patients = (len({row[name] for row in result.rows}) for name in ("volume", "patient"))
    interval = "95 % intervals over patients" if patients > 1 else "no intervals"
    print(f"means of {counted(volumes, 'volume')} of {counted(patients, 'patient')}; {interval}")
    for reason in dict.fromkeys(row["skipped"] for row in result.skipped):
        print(f"left out: {reason}")


def _psnr(entry: dict[str, Any]) -> str:
    value = entry["psnr"]
    if value["mean"] is None:
        return "exact"
    interval = "" if value["low"] is None or value["high"] is None else f" [{value['low']:.1f}, {value['high']:.1f}]"
    return f"{value['mean']:.2f}{interval}"


def _ssim(entry: dict[str, Any]) -> str:
    return f"{entry['ssim']['mean']:.3f}"


def _covered(entry: dict[str, Any]) -> str:
    found = entry["coverage"]
    return f"{found['student'][found['levels'].index(0.9)]:.0%} ({found['error_over_std']:.2f})"


def _print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table as wide as it needs to be where the output is no terminal."""
    from rich import box
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table

    print(title)
    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify="left" if column == "mask" else "right")
    for number, row in enumerate(rows):
        table.add_row(*row, end_section=number + 1 < len(rows) and rows[number + 1][0] != row[0])
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    console.print(table)
