"""Pictures of reconstructions: comparison panels and curves as PNG.

In a panel all images share one scale (black is 0, white the 99.9th percentile of the reference or, without one, of all
images together), all error maps show ``error_scale * |image - reference|`` on that same scale, and standard deviations
are magnified by the same factor. So a standard deviation and the error it predicts can be compared by eye.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .writing import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def panel(
    images: Mapping[str, Any],
    path: str | Path,
    *,
    reference: Any = None,
    std: Mapping[str, Any] | None = None,
    error_scale: float = 5.0,
) -> Path:
    """Draw images side by side, errors below them, standard deviations below those.

    Parameters
    ----------
    images : mapping of str to array (y, x)
        Titles and images, real or complex (magnitudes are shown), in one unit.
    path : str or Path
        The PNG file.
    reference : array (y, x), optional
        What the images are compared with; drawn first. Without it there is no row of errors.
    std : mapping of str to array (y, x), optional
        Standard deviations, under the titles of their images.
    error_scale : float
        Magnification of errors and standard deviations.

    Returns
    -------
    Path

    Raises
    ------
    ValueError
        If there is nothing to draw, shapes differ, or a standard deviation belongs to no image.
    InputError
        If the file cannot be written.
    """
    from matplotlib.figure import Figure

    shown = {title: np.abs(np.asarray(image)) for title, image in images.items()}
    truth = None if reference is None else np.abs(np.asarray(reference))
    spread = {title: np.asarray(image) for title, image in (std or {}).items()}
    everything = [*shown.values(), *spread.values(), *([] if truth is None else [truth])]
    if not shown or not set(spread) <= set(shown):
        raise ValueError(f"images {list(shown)} and standard deviations {list(spread)} do not make a panel")
    if any(image.ndim != 2 or image.shape != everything[0].shape for image in everything):
        raise ValueError(f"images of the shapes {[image.shape for image in everything]} do not make a panel")
    white = _white(np.stack(list(shown.values())) if truth is None else truth)
    rows: list[tuple[str, dict[str, np.ndarray]]] = [("", shown)]
    if truth is not None:
        rows[0] = ("", {"reference": truth, **shown})
        rows.append((f"error x {error_scale:g}", {t: error_scale * np.abs(i - truth) for t, i in shown.items()}))
    if spread:
        rows.append((f"std x {error_scale:g}", {t: error_scale * i for t, i in spread.items()}))
    titles = list(rows[0][1])
    height, width = everything[0].shape
    figure = Figure(figsize=(2.2 * len(titles), 2.2 * height / width * len(rows) + 0.3), layout="constrained")
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for (label, row), line in zip(rows, axes, strict=True):
        for title, place in zip(titles, line, strict=True):
            _draw(place, row.get(title), white, "gray" if not label else "inferno")
        line[titles.index(next(iter(row)))].set_ylabel(label)
    for title, place in zip(titles, axes[0], strict=True):
        place.set_title(title, fontsize=9)
    with replacing(Path(path)) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    return Path(path)


def _draw(place: "Axes", image: np.ndarray | None, white: float, colours: str) -> None:
    place.set(xticks=[], yticks=[])
    for edge in place.spines.values():
        edge.set_visible(False)
    if image is not None:
        place.imshow(image, cmap=colours, vmin=0, vmax=white, interpolation="nearest")


def _white(image: np.ndarray) -> float:
    return float(np.percentile(image, 99.9)) or 1.0


@dataclass(frozen=True)
class Curve:
    """A line with its name; `band` holds lower and upper ends of an interval. Dashed ones are not named in legends."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    band: tuple[Sequence[float], Sequence[float]] | None = None
    dashed: bool = False


def curves(
    grid: Mapping[tuple[str, str], Sequence[Curve]],
    path: str | Path,
    *,
    x_label: str,
    ticks: Sequence[float],
    diagonal: bool = False,
) -> Path:
    """Draw panels of curves, one scale for a row; the same label has the same colour everywhere.

    Parameters
    ----------
    grid : mapping of (row title, column title) to curves
        All rows must have the same columns.
    path : str or Path
        The PNG file.
    x_label : str
    ticks : sequence of float
        Marks of the horizontal axis, which is logarithmic.
    diagonal : bool
        Draw the line of equality, on linear axes.

    Returns
    -------
    Path

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    from matplotlib.figure import Figure

    rows, columns = (list(dict.fromkeys(key[i] for key in grid)) for i in (0, 1))
    labels = list(dict.fromkeys(curve.label for drawn in grid.values() for curve in drawn))
    figure = Figure(figsize=(3.2 * len(columns) + 1.8, 2.8 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey="row")
    for (row, column), drawn in grid.items():
        place = axes[rows.index(row), columns.index(column)]
        for curve in drawn:
            again, number = divmod(labels.index(curve.label), 10)
            colour, marker = f"C{number}", "o^s"[again % 3]
            marks = {"linestyle": "--"} if curve.dashed else {"marker": marker, "label": curve.label}
            place.plot(curve.x, curve.y, color=colour, markersize=4 if again else 3, linewidth=1.2, **marks)
            if curve.band is not None:
                place.fill_between(curve.x, *curve.band, color=colour, alpha=0.15, linewidth=0)
        if diagonal:
            place.plot([min(ticks), max(ticks)], [min(ticks), max(ticks)], color="0.6", linewidth=0.8)
        else:
            place.set_xscale("log")
        place.set_xticks(list(ticks), [f"{tick:g}" for tick in ticks])
        place.minorticks_off()
        place.grid(alpha=0.3)
        if row == rows[0]:
            place.set_title(column, fontsize=10)
        if row == rows[-1]:
            place.set_xlabel(x_label)
        if column == columns[0]:
            place.set_ylabel(row)
    handles = {
        label: line for place in axes.flat for line, label in zip(*place.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=8)
    with replacing(Path(path)) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    return Path(path)
