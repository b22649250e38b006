"""The report as a file: what is in it, that it needs nothing else, and that nothing in it can become a program."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from mri_ambient.errors import InputError
from mri_ambient.recon.report import LAYERS, ReportWriter, html_report
from mri_ambient.recon.result import Reconstruction

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """Elements with their attributes, text, and contents of scripts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.scripts, self._open = "", [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open = tag
        if tag == "script":
            self.scripts.append([dict(attrs), ""])

    def handle_endtag(self, tag):
        self._open = ""

    def handle_data(self, data):
        if self._open == "script":
            self.scripts[-1][1] += data
        else:
            self.text += data

    def data(self) -> dict:
        """What the script is told."""
        return json.loads(next(text for attributes, text in self.scripts if attributes.get("id") == "viewer-data"))

    def pictures(self) -> list[str]:
        return [attributes["id"] for attributes, _ in self.scripts if attributes.get("type") == "text/plain"]


def reconstruction(slices: int = 2, **settings) -> Reconstruction:
    mean = torch.rand(slices, 8, 6, generator=torch.Generator().manual_seed(0)) + 0.5
    return Reconstruction(mean, std=0.1 * mean, **settings)


def write(path: Path, *images) -> None:
    with ReportWriter(path, len(images)) as report:
        for index, image in enumerate(images):
            if image is not None:
                report.write(index, image)


def test_all_slices_and_layers_are_there(tmp_path):
    volume = reconstruction(samples=torch.ones(2, 3, 8, 6))
    page = Page(html_report(tmp_path / "x.html", volume, 0.5 * volume.magnitude))
    expected = {f"{layer}-{i}-0" for layer in ("image", "std", "zero") for i in range(2)}
    assert set(page.pictures()) == expected | {f"sample-{i}-{k}" for i in range(2) for k in range(3)}
    data = page.data()
    assert [layer["key"] for layer in data["layers"]] == list(LAYERS)
    assert (data["slices"], data["height"], data["width"]) == (2, 8, 6)
    image, std, _, zero = (np.array(layer["peaks"]) for layer in data["layers"])
    np.testing.assert_allclose(std / image, 0.1, rtol=1e-5)
    np.testing.assert_allclose(zero / image, 0.5, rtol=1e-5)
    white = np.percentile(volume.magnitude, 99.9)
    np.testing.assert_allclose(image[:, 0], volume.magnitude.amax((1, 2)) / white, rtol=1e-5)


def test_voxels_need_not_be_square(tmp_path):
    page = Page(html_report(tmp_path / "x.html", reconstruction(voxel_size=(3.0, 1.0, 2.0))))
    assert page.data()["aspect"] == pytest.approx(6 * 2 / 8)


@pytest.mark.parametrize("voxel", [(1.0, 0.0, 1.0), (1.0, float("nan"), 1.0)])
def test_voxel_sizes_that_are_none_do_no_harm(tmp_path, voxel):
    assert Page(html_report(tmp_path / "x.html", reconstruction(voxel_size=voxel))).data()["aspect"] == 6 / 8


def test_settings_verdict_and_fit(tmp_path):
    fit = {
        "verdict": "DOES NOT FIT: noise",
        "chi_square_acquired": [1.0, None],
        "chi_square_held_out_slices": {"1": 2.0},
    }
    attributes = {"method": "posterior", "prior": "p", "scale": 1.25, "mine": True, "absent": None, **fit}
    page = Page(html_report(tmp_path / "x.html", reconstruction(attributes=attributes)))
    assert "DOES NOT FIT: noise" in page.text
    assert ("p", {"class": "verdict bad"}) in page.elements
    for shown in ("Method", "posterior", "Prior", "1.25", "mine", "yes"):
        assert shown in page.text
    assert "absent" not in page.text
    drawn = [tag for tag, attributes in page.elements if tag == "circle" or attributes.get("width") == "9"]
    assert sorted(drawn) == ["circle", "rect"]


def test_without_a_check_nothing_is_claimed(tmp_path):
    page = Page(html_report(tmp_path / "x.html", reconstruction()))
    assert ("p", {"class": "verdict open"}) in page.elements
    assert not any(tag == "svg" for tag, _ in page.elements)


def test_nothing_is_loaded_from_anywhere(tmp_path):
    with ReportWriter(tmp_path / "x.html", 1) as report:
        report.write(0, np.ones((8, 6)))
        report.draw_acquisition(0, np.ones(6, bool), np.ones((2, 8, 6)))
    page = Page(tmp_path / "x.html")
    for tag, attributes in page.elements:
        for key in ("src", "href", "action", "data", "srcset", "poster"):
            assert attributes.get(key, "data:").startswith("data:"), (tag, attributes)
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert "style" not in attributes  # the policy would refuse it
    text = (tmp_path / "x.html").read_text()
    assert not re.search(r"https?:|//[a-z]+\.|url\(|@import|\bfetch\(|XMLHttpRequest|import\(", text)
    assert [tag for tag, _ in page.elements].count("img") == 2


def test_the_policy_allows_this_script_and_style_alone(tmp_path):
    page = Page(html_report(tmp_path / "x.html", reconstruction()))
    (policy,) = [a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    ((_, code),) = [script for script in page.scripts if "type" not in script[0]]
    style = re.search(r"<style>(.*?)</style>", (tmp_path / "x.html").read_text(), re.S).group(1)
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, code)]
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'"
    )


def test_names_and_settings_are_text(tmp_path):
    attributes = {"method": EVIL, EVIL: EVIL, "verdict": EVIL, "versions": {EVIL: EVIL}}
    volume = reconstruction(name=EVIL, attributes=attributes)
    page = Page(html_report(tmp_path / "x.html", volume))
    harmless = Page(html_report(tmp_path / "y.html", reconstruction()))
    assert len(page.scripts) == len(harmless.scripts)
    assert page.text.count(EVIL) >= 7
    assert not any(tag == "img" or "onerror" in attributes for tag, attributes in page.elements)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_counted(tmp_path, value):
    image = np.ones((8, 6), np.float32)
    image[2, 3:5] = value
    with ReportWriter(tmp_path / "x.html", 1) as report:
        report.write(0, image, std=image)
        report.attributes |= {"chi_square_acquired": [float(value)], "scale": float(value)}
    page = Page(tmp_path / "x.html")
    assert "4 values are not finite" in page.text
    assert [layer["peaks"] for layer in page.data()["layers"]] == [[[1.0]], [[1.0]]]
    assert not re.search(r"NaN|Infinity", next(t for a, t in page.scripts if a.get("id") == "viewer-data"))


def test_a_volume_of_zeros(tmp_path):
    page = Page(html_report(tmp_path / "x.html", Reconstruction(torch.zeros(2, 4, 4), std=torch.zeros(2, 4, 4))))
    assert page.data()["layers"][0]["peaks"] == [[1.0], [1.0]]


def test_slices_may_come_in_any_order_but_all_of_them(tmp_path):
    with ReportWriter(tmp_path / "x.html", 3) as report:
        for index in (2, 0, 1):
            report.write(index, (index + 1) * np.ones((4, 4)))
    peaks = Page(tmp_path / "x.html").data()["layers"][0]["peaks"]
    np.testing.assert_allclose(np.ravel(peaks), [1 / 3, 2 / 3, 1])
    with pytest.raises(ValueError, match="1 of 2 slices"):
        write(tmp_path / "y.html", np.ones((4, 4)), None)
    assert [path.name for path in tmp_path.iterdir()] == ["x.html"]


def test_slices_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="does not fit"):
        write(tmp_path / "x.html", np.ones((4, 4)), np.ones((4, 5)))
    with pytest.raises(ValueError, match="do not fit"):
        html_report(tmp_path / "x.html", reconstruction(), np.ones((1, 8, 6)))
    assert list(tmp_path.iterdir()) == []


def test_a_report_is_whole_or_not_there(tmp_path):
    def interrupted() -> None:
        with ReportWriter(tmp_path / "x.html", 1) as report:
            report.write(0, np.ones((4, 4)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"x\.html cannot be written"):
        html_report(tmp_path / "file" / "x.html", reconstruction())


def test_a_slice_takes_a_tenth_of_a_megabyte(tmp_path):
    """Noise of 1 % in the image, an error bar from 8 samples, and a zero-filled image as noisy as it."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:256j, -1:1:256j]
    inside = y**2 / 0.85 + x**2 / 0.5 < 1
    head = inside * (0.7 + 0.2 * np.sin(9 * x) * np.cos(7 * y))
    image, zero_filled, *samples = np.abs(head + inside * 0.01 * random.standard_normal((10, 256, 256)))
    with ReportWriter(tmp_path / "x.html", 1) as report:
        report.write(0, image, np.std(samples, axis=0), zero_filled=zero_filled)
    assert (tmp_path / "x.html").stat().st_size < 0.125e6  # with 0.025 for the page itself


def test_memory_does_not_grow_with_the_slices(tmp_path, monkeypatch):
    """Between slices, the writer holds no picture, and of all slices together a limited number of pixels."""
    import tracemalloc

    monkeypatch.setattr("mri_ambient.recon.report.SAMPLED_PIXELS", 2**12)
    image = np.random.default_rng(0).random((128, 128)).astype(np.float32)
    held = []
    with ReportWriter(tmp_path / "x.html", 12) as report:
        report.write(0, image, image)
        tracemalloc.start()
        for index in range(1, 12):
            report.write(index, image, image)
            held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
    assert held[-1] - held[0] < 0.7 * image.nbytes  # of 20 images
