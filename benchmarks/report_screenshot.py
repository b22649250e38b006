"""The picture of a report in the documentation: a simulated scan is reconstructed, and its report opened in Chromium.

python benchmarks/report_screenshot.py --data ../shared/data/open_ms --out docs/report.png

Needs Debian's chromium and chromium-driver, and selenium (`pip install -e ".[test]"`). `--page` takes a report that is
there already.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

from mri_ambient.operators import MaskPattern
from mri_ambient.recon.files import FileSettings, reconstruct_files
from mri_ambient.recon.settings import Settings
from mri_ambient.scan import write_scan
from mri_ambient.simulate import simulate_scan
from mri_ambient.volumes import load_volume

SLICES, MATRIX = 12, 256
WIDTH, HEIGHT = 1120, 850


def make_report(data: Path, prior: str, folder: Path) -> Path:
    """Slices of patient 12 at R = 4."""
    volume = load_volume(data / "patient12" / "study1_FLAIR.nii.gz")
    slices = np.linspace(0.3 * volume.shape[0], 0.75 * volume.shape[0], SLICES).astype(int).tolist()
    pattern = MaskPattern("random", 4)
    scan = simulate_scan(volume, matrix=MATRIX, pattern=pattern, slices=slices, seed=3, name="patient12_FLAIR")
    write_scan(scan, folder / "patient12_FLAIR.h5")
    settings = Settings(samples=4, steps=12, keep_samples=True)
    scans, files = [folder / "patient12_FLAIR.h5"], FileSettings(report=True)
    (summary,) = reconstruct_files(scans, folder, prior=prior, settings=settings, files=files)
    return Path(summary["files"][-1])


def photograph(page: Path, out: Path) -> None:
    """The top of the page, as a browser shows it."""
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for argument in ("--headless=new", "--no-sandbox", "--hide-scrollbars"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    try:
        size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.get(page.resolve().as_uri())
        WebDriverWait(driver, 60).until(lambda d: d.execute_script("return document.documentElement.dataset.grid"))
        driver.save_screenshot(str(out))
    finally:
        driver.quit()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="folder of open_ms")
    source.add_argument("--page", type=Path, help="a report")
    parser.add_argument("--prior", default="brain-r4")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        photograph(args.page or make_report(args.data, args.prior, Path(folder)), args.out)


if __name__ == "__main__":
    main()
