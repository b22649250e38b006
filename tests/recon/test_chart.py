"""Charts: where points lie, and what is left out."""

import math
from xml.etree import ElementTree

import pytest

from mri_ambient.recon.chart import Series, chart

TEXT = {"title": "<title>", "x_label": "slice", "y_label": "value"}


def parsed(text: str) -> ElementTree.Element:
    """The SVG element."""
    return ElementTree.fromstring(text[: text.index("</svg>") + 6])


def ticks(svg: ElementTree.Element, anchor: str, attribute: str) -> list[tuple[float, float]]:
    """Values of the numbers along an axis, and where they stand."""
    texts = [e for e in svg.iter("text") if e.get("text-anchor") == anchor and e.text not in TEXT.values()]
    return [(float(e.text.replace(",", "")), float(e.get(attribute))) for e in texts]


@pytest.mark.parametrize("logarithmic", [False, True])
def test_points_lie_where_the_tick_marks_say(logarithmic):
    values = [1.0, 4.0, 30.0]
    svg = parsed(chart([Series("a", [0, 1, 3], values)], **TEXT, logarithmic=logarithmic))
    scale = math.log if logarithmic else float
    (low, low_at), *_, (high, high_at) = [(value, at - 4) for value, at in ticks(svg, "end", "y")]
    places = [float(circle.get("cy")) for circle in svg.iter("circle")]
    expected = [low_at + (scale(v) - scale(low)) / (scale(high) - scale(low)) * (high_at - low_at) for v in values]
    assert places == pytest.approx(expected, abs=0.1)
    across = dict(ticks(svg, "middle", "x"))
    assert [float(circle.get("cx")) for circle in svg.iter("circle")] == pytest.approx(
        [across[0], across[1], across[3]]
    )


def test_what_is_not_a_number_is_left_out():
    values = [1.0, None, math.nan, math.inf, 2.0]
    svg = parsed(chart([Series("a", range(5), values)], **TEXT))
    assert len(list(svg.iter("circle"))) == 2
    assert "nan" not in ElementTree.tostring(svg, "unicode")
    assert chart([Series("a", [0, 1], [None, math.nan])], **TEXT) == ""
    assert chart([Series("a", [0], [-1.0])], **TEXT, logarithmic=True) == ""


@pytest.mark.parametrize(
    ("values", "logarithmic"),
    [(values, False) for values in ([1.0], [0.0, 0.0], [1e-9, 2e-9], [-3.0, 2.0], [7.0, 7.2])]
    + [(values, True) for values in ([1.0], [5.0, 5.0], [1e-9, 2e-9], [7.0, 7.2], [1e-3, 1e6])],
)
def test_any_range_has_tick_marks(values, logarithmic):
    svg = parsed(chart([Series("a", range(len(values)), values)], **TEXT, logarithmic=logarithmic))
    assert 2 <= len(ticks(svg, "end", "y")) <= 30
    places = [float(circle.get("cy")) for circle in svg.iter("circle")]
    assert all(12 <= at <= 200 for at in places)


def test_bands_are_drawn_where_they_are():
    svg = parsed(chart([Series("a", [0, 1], [0.2, 3.0], "square")], **TEXT, bands=[(0.5, 1.5)]))
    (band,) = [rect for rect in svg.iter("rect") if rect.get("class") == "band"]
    at = {value: at - 4 for value, at in ticks(svg, "end", "y")}
    assert float(band.get("y")) == pytest.approx(at[1.5], abs=0.1)
    assert float(band.get("height")) == pytest.approx(at[0.5] - at[1.5], abs=0.1)


def test_labels_are_escaped():
    text = chart([Series("a<b>", [0], [1.0])], **TEXT)
    assert "&lt;title&gt;" in text
    assert "<b>" not in text
