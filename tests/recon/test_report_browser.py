"""The report in a real browser: what is drawn is what was reconstructed, and everything can be reached by keyboard."""

import base64
import re
from pathlib import Path

import numpy as np
import pytest
from browser import Report, browser, screen
from matplotlib import colormaps

from mri_ambient.recon.report import LAYERS, ReportWriter

SLICES, SHAPE, SAMPLES = 4, (24, 20), 3
LEFT, RIGHT, HOME, END, TAB = "\ue012", "\ue014", "\ue011", "\ue010", "\ue004"  # as WebDriver calls keys
AFFINE = np.array([[0, 0, -2, 90], [0, -1, 0, 80], [3, 0, 0, -20], [0, 0, 0, 1.0]])


def volume() -> dict[str, np.ndarray]:
    """Images that differ in every slice and layer, in a unit far from 1, with bright and dark ends."""
    random = np.random.default_rng(0)
    mean = 1e-6 * random.random((SLICES, *SHAPE)).astype(np.float32) * np.arange(1, SLICES + 1)[:, None, None]
    samples = mean[:, None] * random.uniform(0.5, 1.5, (SLICES, SAMPLES, *SHAPE))
    return {"image": mean, "std": 0.1 * mean[:, ::-1], "sample": samples, "zero": mean[:, :, ::-1] ** 2 / mean.max()}


VOLUME = volume()
WHITE = float(np.percentile(VOLUME["image"], 99.9))


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """A report with everything in it."""
    path = tmp_path_factory.mktemp("report") / "a report.html"
    name = "<script>document.title='taken'</script>"
    with ReportWriter(path, SLICES, name=name, voxel_size=(3.0, 1.0, 2.0), affine=AFFINE) as report:
        for i in range(SLICES):
            report.write(i, *(VOLUME[layer][i] for layer in LAYERS))
        mask = np.arange(SHAPE[1]) % 3 == 0
        report.draw_acquisition(2, mask, np.ones((4, *SHAPE)))
        report.attributes |= {
            "method": "posterior",
            "verdict": "Held-out k-space agrees with the reconstruction.",
            "chi_square_acquired": [1.0, 0.9, 1.1, 1.0],
            "chi_square_held_out_slices": {"1": 1.2},
        }
    return path


@pytest.fixture(scope="module")
def driver():
    with browser() as opened:
        yield opened


@pytest.fixture
def report(driver, path) -> Report:
    return Report(driver, path)


def expected(layer: str, i: int, k: int = 0, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """A slice (y, x, RGB) as it is to be seen; the window in shares of white."""
    image = VOLUME[layer][i, k] if layer == "sample" else VOLUME[layer][i]
    shown = 255 * np.clip((image / WHITE - low) / (high - low), 0, 1)
    if layer != "std":
        return np.repeat(shown[..., None], 3, -1)
    return 255 * np.array(colormaps["inferno"](shown.round().astype(int)))[..., :3]


def assert_shows(found: np.ndarray, wanted: np.ndarray, levels: int = 2) -> None:
    """Within a few of 256 levels: those of the screen and of the stored picture."""
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= levels


def test_the_middle_slice_is_shown_first(report):
    assert_shows(report.pixels(), expected("image", SLICES // 2))
    assert report.run("document.getElementById('broken').hidden")


def test_the_slider_by_keyboard(report):
    report.run("document.getElementById('slice').focus()")
    for keys, wanted in (((RIGHT,), 3), ((LEFT, LEFT), 1), ((HOME,), 0), ((LEFT,), 0), ((END,), SLICES - 1)):
        report.press(*keys)
        report.shown(f"image-{wanted}-0")
        assert_shows(report.pixels(), expected("image", wanted))
        said = report.run("document.getElementById('slice').getAttribute('aria-valuetext')")
        assert said == f"{wanted} ({wanted + 1} of {SLICES})"
        assert f"slice {said}" in report.run("document.getElementById('view').getAttribute('aria-label')")


def test_keys_need_no_focus(report):
    report.press(RIGHT, "2")
    report.shown("std-3-0")
    report.press("4", LEFT)
    report.shown("zero-2-0")
    report.press("9", "x")  # nothing is there
    assert report.run("document.documentElement.dataset.shown") == "zero-2-0"


def test_every_layer(report):
    middle = SLICES // 2
    high = float(np.percentile(VOLUME["std"], 99.9)) / WHITE
    for number, layer in enumerate(LAYERS, start=1):
        report.press(str(number))
        report.shown(f"{layer}-{middle}-0")
        window = {"high": high} if layer == "std" else {}
        # the error bar has 63 steps, of which the dark ones are small
        assert_shows(report.pixels(), expected(layer, middle, **window), 16 if layer == "std" else 2)
        assert report.run("document.querySelector('#layers input:checked').value") == layer
        report.wait(f"document.documentElement.dataset.grid === '{layer}'")
        assert report.run("document.getElementById('sample-control').hidden") == (layer != "sample")
    assert report.run("document.getElementById('no-samples').hidden")


def test_a_late_picture_does_not_replace_a_newer_one(report):
    report.driver.execute_script("""
        const read = Response.prototype.arrayBuffer;
        window.late = 0;
        Response.prototype.arrayBuffer = async function () {
            await new Promise((resolve) => setTimeout(resolve, 300));
            const found = await read.call(this);
            setTimeout(() => window.late++, 50);
            return found;
        };""")
    report.press("3", "1")  # samples have not been decoded yet
    report.wait("window.late > 0")
    assert report.run("document.documentElement.dataset.shown") == "image-2-0"
    assert_shows(report.pixels(), expected("image", 2))


def test_single_samples(report):
    report.press("3")
    report.shown("sample-2-0")
    report.run("document.getElementById('sample').focus()")
    report.press(RIGHT, RIGHT, RIGHT)
    report.shown("sample-2-2")
    assert_shows(report.pixels(), expected("sample", 2, 2))


def drag(report: Report, right: int, down: int) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    view = report.driver.find_element("id", "view")
    ActionChains(report.driver, duration=0).click_and_hold(view).move_by_offset(right, down).release().perform()


def test_dragging_changes_window_and_level(report):
    side = report.run("document.getElementById('view').clientWidth")
    drag(report, -100, 50)
    size, level = 1 - 2 * 100 / side, 0.5 + 50 / side
    report.wait("document.getElementById('width-text').textContent !== '100.0 %'")
    assert report.run("document.getElementById('width-text').textContent") == f"{100 * size:.1f} %"
    assert report.run("document.getElementById('level-text').textContent") == f"{100 * level:.1f} %"
    window = {"low": level - size / 2, "high": level + size / 2}
    assert_shows(report.pixels(), expected("image", 2, **window), 3)
    report.press("4")  # images share a window
    report.shown("zero-2-0")
    assert_shows(report.pixels(), expected("zero", 2, **window), 3)
    report.press("1", "r")
    report.shown("image-2-0")
    report.wait("document.getElementById('width-text').textContent === '100.0 %'")
    assert_shows(report.pixels(), expected("image", 2))


def test_window_by_keyboard(report):
    before = report.pixels().astype(float).mean()
    report.run("document.getElementById('level').focus()")
    report.press(LEFT, LEFT, LEFT)
    report.wait("document.getElementById('level-text').textContent !== '50.0 %'")
    assert report.pixels().astype(float).mean() > before  # a lower level is brighter
    report.run("document.getElementById('reset').focus()")
    report.press(" ")
    report.wait("document.getElementById('level-text').textContent === '50.0 %'")


def test_tab_reaches_everything(report):
    report.run("document.activeElement.blur()")
    reached = []
    for _ in range(8):
        report.press(TAB)
        reached.append(report.run("document.activeElement.id || document.activeElement.name"))
    assert reached[:6] == ["view", "layer", "slice", "width", "level", "reset"]
    unnamed = "Array.from(document.querySelectorAll('input')).filter(i => !i.labels.length || !i.labels[0].textContent)"
    assert report.run(f"{unnamed}.length") == 0


def test_the_values_under_the_pointer(report):
    from selenium.webdriver.common.action_chains import ActionChains

    view = report.driver.find_element("id", "view")
    size, y, x = view.size, 5, 3
    across = round(size["width"] * ((x + 0.5) / SHAPE[1] - 0.5))
    down = round(size["height"] * ((y + 0.5) / SHAPE[0] - 0.5))
    ActionChains(report.driver, duration=0).move_to_element_with_offset(view, across, down).perform()
    report.wait("document.getElementById('readout').textContent.length > 5")
    text = report.run("document.getElementById('readout').textContent")
    row, column, value, std = (float(number) for number in re.findall(r"[\d.]+", text))
    assert (row, column) == (y, x)
    assert value == pytest.approx(100 * VOLUME["image"][2, y, x] / WHITE, abs=0.3)
    assert std == pytest.approx(100 * VOLUME["std"][2, y, x] / WHITE, abs=0.3)


def test_a_click_in_the_grid_chooses_the_slice(report):
    report.driver.find_elements("css selector", "#grid figure")[0].click()
    report.shown("image-0-0")
    grid = [report.pixels(f"#grid figure:nth-child({i + 1}) canvas") for i in range(SLICES)]
    for i, found in enumerate(grid):
        assert_shows(found, expected("image", i))
    assert report.run("document.querySelectorAll('#grid .current').length") == 1
    cursor, first = (
        report.run(f"Number(document.querySelector('{which}'))")
        for which in (".chart .cursor').getAttribute('x1", ".chart circle').getAttribute('cx")
    )
    assert cursor == pytest.approx(first, abs=0.1)


def test_pixels_have_the_shape_of_voxels_and_the_patient_a_left(report):
    box = report.run("(({width, height}) => [width, height])(document.getElementById('view').getBoundingClientRect())")
    assert box[0] / box[1] == pytest.approx(SHAPE[1] * 2 / SHAPE[0], rel=0.01)
    letters = report.run("Array.from(document.querySelectorAll('.edge')).map(e => e.className + ' ' + e.textContent)")
    assert sorted(letters) == ["edge bottom P", "edge left R", "edge right L", "edge top A"]


def test_nothing_is_asked_from_anywhere_and_nothing_complains(report, path):
    for key in ("2", "3", "4", "1", LEFT):
        report.press(key)
    report.shown("image-1-0")
    assert {address for address in report.requests() if not address.startswith("data:")} == {path.as_uri()}
    assert report.driver.get_log("browser") == []
    assert report.run("document.title") == report.run("document.querySelector('h1').textContent")
    assert report.run("document.title") == "<script>document.title='taken'</script>"


def test_the_policy_stops_what_might_be_slipped_in(report):
    code = "const s = document.createElement('script'); s.textContent = 'window.taken = 1'; document.body.append(s)"
    report.driver.execute_script(code)
    assert report.run("window.taken === undefined")
    assert "Content Security Policy" in report.driver.get_log("browser")[0]["message"]


def test_print(report):
    """All slices are on paper, the controls are not."""
    screen(report.driver, 800, 1000, medium="print")
    assert report.run("getComputedStyle(document.getElementById('viewer')).display") == "none"
    sizes = report.run(
        "Array.from(document.querySelectorAll('#grid canvas')).map(c => [c.clientWidth, c.clientHeight])"
    )
    assert len(sizes) == SLICES
    assert np.min(sizes) > 50
    pdf = base64.b64decode(report.driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})["data"])
    assert len(re.findall(rb"/Subtype\s*/Image", pdf)) >= SLICES + 2  # and mask and coils
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) >= 1


@pytest.mark.parametrize("width", [390, 320])
def test_a_phone_need_not_scroll_sideways(report, width):
    screen(report.driver, width, 800)
    assert report.run("document.documentElement.scrollWidth") <= width
    box = report.run("(({left, right}) => [left, right])(document.getElementById('view').getBoundingClientRect())")
    assert 0 <= box[0] < box[1] <= width


def test_dark_and_light(report):
    brightness = []
    for scheme in ("dark", "light"):
        screen(report.driver, 1200, 900, prefers_color_scheme=scheme)
        colours = report.run("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
        brightness.append([sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours])
    (dark, on_dark), (light, on_light) = brightness
    assert dark < 120 < 600 < on_dark
    assert on_light < 150 < 700 < light


def test_many_slices_without_error_bars(driver, tmp_path):
    count = 80
    with ReportWriter(tmp_path / "x.html", count) as writer:
        for i in range(count):
            writer.write(i, np.full((6, 5), (i + 1) / count, np.float32))
    report = Report(driver, tmp_path / "x.html")
    report.press(*[RIGHT] * 30)  # faster than pictures are decoded: the last one wins
    report.shown("image-70-0")
    assert_shows(report.pixels(), np.full((6, 5, 3), 255 * 71 / count))
    assert_shows(report.pixels(f"#grid figure:nth-child({count}) canvas"), np.full((6, 5, 3), 255))
    assert report.run("document.querySelectorAll('#layers input').length") == 1


def test_how_to_keep_samples_is_said(driver, tmp_path):
    with ReportWriter(tmp_path / "x.html", 1) as writer:
        writer.write(0, np.ones((6, 5)), np.ones((6, 5)))
    report = Report(driver, tmp_path / "x.html")
    assert not report.run("document.getElementById('no-samples').hidden")
    assert "--keep-samples" in report.run("document.getElementById('no-samples').textContent")


def test_an_old_browser_is_told(driver, path):
    code = {"source": "delete window.DecompressionStream"}
    handle = driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", code)
    try:
        driver.get(path.as_uri())
        text = driver.find_element("tag name", "body").text
    finally:
        driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", handle)
    assert "open the file in a current browser" in text
    assert "Reset window" not in text


def test_without_scripts_the_rest_can_be_read(driver, path):
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        driver.get(path.as_uri())
        text = driver.find_element("tag name", "body").text
    finally:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert "open the file in a current browser" in text
    assert "Held-out k-space agrees" in text
