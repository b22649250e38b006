"""Charts as inline SVG; their colours come from the page's style sheet."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mri_ambient.recon.page import environment


@dataclass(frozen=True)
class Series:
    """Points of a chart; those that are None or not finite are left out.

    Attributes
    ----------
    label : str
    x, y : sequence of float
    mark : str
        "dot", "square", "line" or "faint" (a line in the background).
    """

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    mark: str = "dot"

    @property
    def points(self) -> list[tuple[float, float]]:
        """What can be drawn."""
        return [(float(x), float(y)) for x, y in zip(self.x, self.y, strict=True) if y is not None and math.isfinite(y)]


WIDTH, HEIGHT = 720, 240
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 40


def chart(
    series: Iterable[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    bands: Sequence[tuple[float, float]] = (),
    logarithmic: bool = False,
) -> str:
    """Draw series over one another as inline SVG.

    Parameters
    ----------
    series : iterable of Series
    title : str
        Said by screen readers.
    x_label, y_label : str
    bands : sequence of (float, float)
        Ranges of y to shade.
    logarithmic : bool
        Of the vertical axis; points that are not positive are left out. Otherwise 0 is on it.

    Returns
    -------
    str
        Empty if there is no point to draw.
    """
    drawn = [(s, [p for p in s.points if p[1] > 0 or not logarithmic]) for s in series]
    points = [point for _, some in drawn for point in some]
    if not points:
        return ""
    x = _Axis([0.0, *(x for x, _ in points)], LEFT, WIDTH - RIGHT, least_step=1)
    edges = [] if logarithmic else [0.0, *(edge for band in bands for edge in band)]
    y = _Axis([y for _, y in points] + edges, HEIGHT - BOTTOM, TOP, logarithmic=logarithmic)
    places = [(s, [(x.place(at), y.place(value)) for at, value in some]) for s, some in drawn]
    template = environment().get_template("chart.svg")
    return template.render(
        title=title, x_label=x_label, y_label=y_label, x=x, y=y, bands=bands, series=places,
        width=WIDTH, height=HEIGHT, left=LEFT, right=WIDTH - RIGHT, top=TOP, bottom=HEIGHT - BOTTOM,
    )  # fmt: skip


class _Axis:
    """Places values between two coordinates, and knows its tick marks."""

    def __init__(
        self,
        values: Sequence[float],
        first: float,
        last: float,
        *,
        logarithmic: bool = False,
        least_step: float = 0,
    ) -> None:
        self._log, self._least_step = logarithmic, least_step
        low, high = min(values), max(values)
        if low == high:
            low, high = (low / 2, high * 2) if logarithmic else (low - 0.5, high + 0.5)
        if logarithmic:
            low, high = math.log10(low), math.log10(high)
        self._low, self._high, self._first, self._last = low, high, first, last

    def place(self, value: float) -> float:
        """Coordinate of a value."""
        position = math.log10(value) if self._log else value
        share = (position - self._low) / (self._high - self._low)
        return round(self._first + share * (self._last - self._first), 2)

    @property
    def per_unit(self) -> float:
        """Coordinates per unit of a linear axis."""
        return (self._last - self._first) / (self._high - self._low)

    @property
    def ticks(self) -> list[tuple[str, float]]:
        """Labels of round values, and their coordinates."""
        low, high = self._low, self._high
        if self._log:
            found = [m * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for m in (1, 2, 5)]
            values = [v for v in found if low - 1e-9 <= math.log10(v) <= high + 1e-9]
            if len(values) < 3:
                values = _round_values(10**low, 10**high)
        else:
            values = _round_values(low, high, self._least_step)
        return [(f"{value:,.10g}", self.place(value)) for value in values]


def _round_values(low: float, high: float, least_step: float = 0) -> list[float]:
    """About six multiples of 1, 2 or 5 times a power of ten."""
    rough = max((high - low) / 6, least_step)
    decade = 10.0 ** math.floor(math.log10(rough))
    step = next(m * decade for m in (1, 2, 5, 10) if m * decade >= rough * (1 - 1e-9))
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
