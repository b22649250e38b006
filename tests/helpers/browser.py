"""A real browser without a window, for tests of pages; Debian's packages chromium and chromium-driver."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@contextmanager
def browser() -> Iterator[Any]:
    """A Chromium driven by selenium; the test is skipped where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service

    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("no chromium and chromedriver (Debian: apt install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    opened.set_script_timeout(20)
    try:
        yield opened
    finally:
        opened.quit()


class Report:
    """A page of `recon.report` in a browser."""

    def __init__(self, driver: Any, path: Path) -> None:
        self.driver, self.path = driver, path
        screen(driver, 1200, 900)
        driver.get_log("performance")
        driver.get_log("browser")
        driver.get(path.as_uri())
        self.wait("document.documentElement.dataset.grid && document.documentElement.dataset.shown")

    def wait(self, condition: str) -> None:
        """Until a JavaScript expression is true."""
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, 15, poll_frequency=0.02).until(lambda d: d.execute_script(f"return {condition}"))

    def run(self, code: str) -> Any:
        """The value of a JavaScript expression."""
        return self.driver.execute_script(f"return {code}")

    def shown(self, picture: str) -> None:
        """Wait until a picture, named layer-slice-sample, is drawn."""
        self.wait(f"document.documentElement.dataset.shown === '{picture}'")

    def pixels(self, canvas: str = "#view") -> np.ndarray:
        """What a canvas shows (y, x, RGB)."""
        code = """const c = document.querySelector(arguments[0]);
        return [c.height, c.width, Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)]"""
        height, width, values = self.driver.execute_script(code, canvas)
        return np.array(values, np.uint8).reshape(height, width, 4)[..., :3]

    def press(self, *keys: str) -> None:
        """Type, wherever the focus is."""
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver, duration=0).send_keys(*keys).perform()

    def requests(self) -> list[str]:
        """Addresses that were asked for since the page was opened."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


def screen(driver: Any, width: int, height: int, **media: str) -> None:
    """Set the size of the window, and media features such as ``prefers_color_scheme="dark"``."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items() if name != "medium"]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media.get("medium", ""), "features": features})
