"""Pictures of reconstructions: comparison panels and curves as PNG, and an HTML report in one file.

In a panel all images share one scale (black is 0, white the 99.9th percentile of the reference or, without one, of all
images together), all error maps show ``error_scale * |image - reference|`` on that same scale, and standard deviations
are magnified by the same factor. So a standard deviation and the error it predicts can be compared by eye.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .export import NOTICE, replacing
from .result import Reconstruction

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_SLICES = 24  # in a report, evenly spread, so that a browser can hold it


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
            colour = f"C{labels.index(curve.label) % 10}"
            marks = {"linestyle": "--"} if curve.dashed else {"marker": "o", "label": curve.label}
            place.plot(curve.x, curve.y, color=colour, markersize=3, linewidth=1.2, **marks)
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


def html_report(path: str | Path, reconstruction: Reconstruction, zero_filled: Any = None) -> Path:
    """Write one HTML file with the slices, their error bars, the zero-filled images and the settings.

    The file needs nothing else: pictures are embedded. Of a large volume, `MAX_SLICES` slices are shown.

    Parameters
    ----------
    path : str or Path
        The ``.html`` file.
    reconstruction : Reconstruction
    zero_filled : array (slice, y, x), optional
        For comparison, in the unit of the reconstruction.

    Returns
    -------
    Path

    Raises
    ------
    ValueError
        If the shape of `zero_filled` is not that of the reconstruction.
    InputError
        If the file cannot be written.
    """
    from jinja2 import Environment

    magnitude = reconstruction.magnitude.numpy()
    columns = {"reconstruction": (magnitude, _white(magnitude), "gray")}
    if zero_filled is not None:
        plain = np.abs(np.asarray(zero_filled))
        if plain.shape != magnitude.shape:
            raise ValueError(f"zero-filled images {plain.shape} do not fit the reconstruction {magnitude.shape}")
        columns = {"zero-filled": (plain, _white(magnitude), "gray"), **columns}
    note = ""
    if reconstruction.std is not None:
        std = reconstruction.std.numpy()
        columns["standard deviation"] = (std, _white(std), "inferno")
        share = _white(std) / _white(magnitude)
        note = f"The standard deviation is drawn from 0 to {share:.2%} of white in the images."
    slices = np.unique(np.linspace(0, len(magnitude) - 1, MAX_SLICES).round().astype(int)).tolist()
    rows = [(i, [_embedded(volume[i], white, colours) for volume, white, colours in columns.values()]) for i in slices]
    attributes = {key: value for key, value in reconstruction.attributes.items() if value is not None}
    found = attributes.pop("chi_square_acquired", [])
    fits = {
        i: f"χ² = {value:.2f}" for i, value in enumerate(found) if value is not None and len(found) == len(magnitude)
    }
    template = Environment(autoescape=True).from_string(_TEMPLATE)
    text = template.render(
        name=reconstruction.name, titles=list(columns), rows=rows, total=len(magnitude), note=note, notice=NOTICE,
        width=max(160, min(320, magnitude.shape[-1])),
        verdict=attributes.pop("verdict", ""), fits=fits, settings=attributes,
    )  # fmt: skip
    with replacing(Path(path)) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def _embedded(image: np.ndarray, white: float, colours: str) -> str:
    """An image as the text of a PNG data URI, one pixel a pixel."""
    from matplotlib.image import imsave

    buffer = BytesIO()
    imsave(buffer, image / white, cmap=colours, vmin=0, vmax=1, format="png")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


_TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{{ name }}</title>
<style>
body { font-family: sans-serif; margin: 2em; background: #fff; color: #111; }
td, th { padding: 2px 8px; text-align: left; font-weight: normal; vertical-align: top; }
.settings th { color: #555; }
.verdict { font-weight: bold; }
.slices img { width: {{ width }}px; display: block; }
</style>
</head>
<body>
<h1>{{ name }}</h1>
<p><strong>{{ notice }}</strong></p>
{% if verdict %}<p class="verdict">{{ verdict }}</p>
{% endif -%}
<table class="settings">
{% for key, value in settings.items() %}<tr><th>{{ key }}</th><td>{{ value }}</td></tr>
{% endfor %}</table>
<p>{{ rows | length }} of {{ total }} slices. {{ note }}</p>
<table class="slices">
<tr><th></th>{% for title in titles %}<th>{{ title }}</th>{% endfor %}</tr>
{% for index, pictures in rows %}<tr><th>{{ index }}<br>{{ fits[index] }}</th>{% for picture in pictures -%}
<td><img src="data:image/png;base64,{{ picture }}" alt="{{ titles[loop.index0] }}, slice {{ index }}"></td>
{%- endfor %}</tr>
{% endfor %}</table>
</body>
</html>
"""
