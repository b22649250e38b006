"""The figures of a benchmark: quality against acceleration, coverage of error bars, and one slice by every method."""

from pathlib import Path
from typing import Any

from mri_ambient.recon.comparison import Cell, estimate, opened
from mri_ambient.recon.figures import Curve, curves, panel

FULL = "full"  # the mask at R = 1, which belongs to every kind
SHOWN_ACCEL = 4  # the panel is drawn at the acceleration nearest to this


def draw(settings: dict[str, Any], summary: list[dict[str, Any]], out: Path) -> None:
    """Draw ``quality.png`` and, where coverage was measured, ``coverage.png`` of a `Benchmark`, a column a mask."""
    masks = [mask for mask in settings["masks"] if any(entry["mask"] == mask for entry in summary)] or [FULL]
    grid: dict[tuple[str, str], list[Curve]] = {}
    for metric, title in (("psnr", "PSNR (dB)"), ("ssim", "SSIM")):
        for mask in masks:
            entries = [entry for entry in summary if entry["mask"] in (mask, FULL)]
            grid[title, mask] = [_quality_curve(entries, method, metric) for method in settings["methods"]]
    curves(grid, out / "quality.png", x_label="acceleration R", ticks=settings["accels"])
    covered = [entry for entry in summary if "coverage" in entry]
    if not covered:
        return
    grid = {}
    for method in dict.fromkeys(entry["method"] for entry in covered):
        for mask in masks:
            entries = [e for e in covered if e["method"] == method and e["mask"] in (mask, FULL)]
            grid[method, mask] = [curve for entry in entries for curve in _coverage_curves(entry)]
    levels = covered[0]["coverage"]["levels"]
    curves(grid, out / "coverage.png", x_label="nominal level", ticks=levels, diagonal=True)


def _quality_curve(entries: list[dict[str, Any]], method: str, metric: str) -> Curve:
    points = sorted((e["accel"], e[metric]) for e in entries if e["method"] == method and e[metric]["mean"] is not None)
    low, high = ([point[1][end] for point in points] for end in ("low", "high"))
    band = (low, high) if points and None not in (*low, *high) else None
    return Curve(method, [accel for accel, _ in points], [value["mean"] for _, value in points], band)


def _coverage_curves(entry: dict[str, Any]) -> list[Curve]:
    """Share of pixels within the error bars (solid), and within the quantiles of the samples (dashed)."""
    found, name = entry["coverage"], f"R = {entry['accel']:g}"
    ranked = [(level, share) for level, share in zip(found["levels"], found["quantile"], strict=True) if share]
    dashed = Curve(name, [level for level, _ in ranked], [share for _, share in ranked], dashed=True)
    return [Curve(name, found["levels"], found["student"]), dashed]


def draw_panel(cells: list[Cell], out: Path) -> None:
    """Draw the middle slice of the first scan, as every method reconstructs it."""
    nearest = min((cell.accel for cell in cells), key=lambda accel: abs(accel - SHOWN_ACCEL))
    first = next(cell for cell in cells if cell.accel == nearest)
    _, indices, truth = opened(first.source, first.conditions)
    middle = len(indices) // 2
    images, std = {}, {}
    for cell in cells:
        if (cell.source, cell.accel, cell.mask) == (first.source, first.accel, first.mask):
            found = estimate(cell, [indices[middle]])
            images[cell.method.label] = found.magnitude[0]
            if found.std is not None:
                std[cell.method.label] = found.std[0]
    panel(images, out / "panel.png", reference=truth[middle], std=std)
