"""The page of a training run: made from the files of its folder, finished or not."""

import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.image import imsave

import mri_ambient as ma
from mri_ambient.config import TrainConfig
from mri_ambient.errors import InputError
from mri_ambient.phantoms import phantom_volume
from mri_ambient.recon.training_report import Paging, read_metrics, training_report
from mri_ambient.reporter import Silent
from mri_ambient.scan import write_scan
from mri_ambient.simulate import simulate_scan


def make_run(folder: Path, entries: list, **settings) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(TrainConfig(**settings).to_json())
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return folder


def step(images: int, loss: float = 1.0, seconds: float = 1.0) -> dict:
    return {"images": images, "loss": loss, "gradient": 1.0, "skipped": 0, "seconds": seconds}


def charts(text: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.S)]


def test_an_unfinished_run(tmp_path):
    entries = [step(300, 2.0, 10), {"images": 300, "heldout_error": 0.5}, step(600, 1.0, 20), step(900, 0.5, 30)]
    folder = make_run(tmp_path / "a<b>", entries, images=3000, accel=(4.0, 8.0))
    imsave(folder / "panel.png", np.eye(4))
    text = training_report(folder).read_text()
    assert "Not finished: 900 of 3,000 images" in text
    assert "a&lt;b&gt;" in text
    assert "<b>" not in text
    assert "30 images a second" in text
    assert "4, 8" in text
    assert text.count("data:image/png;base64,") == 1
    error, loss = charts(text)
    assert len(list(error.iter("circle"))) == 1
    assert [len(line.get("points").split()) for line in loss.iter("polyline")] == [3, 3]
    assert "http:" not in text


def test_the_smooth_curve_is_the_average_of_its_neighbours(tmp_path):
    losses = [1.0] * 20 + [math.nan] + [3.0] * 20
    folder = make_run(tmp_path, [step(10 * i, loss) for i, loss in enumerate(losses)])
    (loss,) = charts(training_report(folder).read_text())
    faint, smooth = ([float(p.split(",")[1]) for p in line.get("points").split()] for line in loss.iter("polyline"))
    assert len(faint) == len(smooth) == 40
    assert smooth[0] == faint[0]
    assert smooth[-1] == faint[-1]
    assert sorted(smooth, reverse=True) == smooth  # the step becomes a slope; y points down
    assert len(set(smooth)) == 16


def test_a_run_without_anything_yet(tmp_path):
    folder = make_run(tmp_path, [])
    text = training_report(folder).read_text()
    assert "Nothing was held out so far" in text
    assert "No step was logged" in text
    assert "<svg" not in text


def test_steps_that_were_repeated_and_lines_that_were_cut_off(tmp_path):
    folder = make_run(tmp_path, [step(100, 5.0), step(200), {"images": 100, "heldout_error": 0.1}, step(100, 7.0)])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('[1]\n{"loss": 3}\n{"images": 300, "lo')
    found = read_metrics(folder)
    assert [(entry["images"], entry.get("loss")) for entry in found] == [(100, 7.0), (100, None), (200, 1.0)]
    training_report(folder)


def test_laps_follow_one_another(tmp_path):
    folder = make_run(tmp_path, [], method="em", init="brain", laps=11, images=1000)
    for lap in range(1, 12):
        make_run(folder / f"lap-{lap}", [step(1000, float(lap))])
    (loss,) = charts(training_report(folder).read_text())
    faint = next(iter(loss.iter("polyline"))).get("points").split()
    heights = [float(point.split(",")[1]) for point in faint]
    assert len(heights) == 11
    assert heights == sorted(heights, reverse=True)
    assert "11,000 of 11,000 images" in (folder / "report.html").read_text()


@pytest.mark.parametrize("content", [None, "{"])
def test_a_folder_that_is_no_run_is_refused(tmp_path, content):
    if content:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match="not the folder of a training run"):
        training_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


class Lines(Silent):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_the_page_follows_the_run_and_never_stops_it(tmp_path):
    folder, lines = tmp_path / "run", Lines()
    page = Paging(folder, lines)
    page.say("zeroth")  # there is no run yet
    make_run(folder, [])
    page.say("first")
    before = (folder / "report.html").read_text()
    make_run(folder, [step(500)])
    page.say("second")
    assert "500 of" in (folder / "report.html").read_text() != before
    (folder / "report.html").unlink()
    (folder / "report.html").mkdir()  # in its place
    (folder / "report.html" / "x").touch()
    page.say("third")
    assert lines.lines[:4] == ["zeroth", "first", "second", "third"]
    assert [line.startswith("No report: ") for line in lines.lines[4:]] == [True]


def small(out: Path, **settings) -> dict:
    shared = {"preset": "tiny", "images": 4, "batch": 2, "patch": 16, "strip": 16, "coils": 2, "device": "cpu"}
    return {"out": out, **shared, **settings}


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> list[Path]:
    """Two fully sampled scans of a slice."""
    folder = tmp_path_factory.mktemp("scans")
    for number in range(2):
        volume = phantom_volume(1, (32, 104), seed=number)
        write_scan(simulate_scan(volume, coils=2, seed=number), folder / f"{number}.h5")
    return sorted(folder.iterdir())


def test_training_writes_its_page(tmp_path, scans):
    run = ma.train(scans, validation=scans[:1], **small(tmp_path / "run", method="supervised"))
    text = (run.folder / "report.html").read_text()
    assert "Finished: 4 images, method supervised" in text
    assert text.count("<svg") == 2
    assert text.count("data:image/png;base64,") == 1
    assert run.card["version"] in text


def test_a_run_that_is_stopped_has_a_page(tmp_path, scans, monkeypatch):
    def stop(*arguments):
        (tmp_path / "run" / "report.html").unlink(missing_ok=True)
        raise KeyboardInterrupt

    monkeypatch.setattr("mri_ambient.training.train_step", stop)
    with pytest.raises(KeyboardInterrupt):
        ma.train(scans, **small(tmp_path / "run", method="supervised"))
    assert "Not finished: 0 of 4 images" in (tmp_path / "run" / "report.html").read_text()


def test_a_run_that_is_refused_leaves_no_page(tmp_path):
    with pytest.raises(InputError):
        ma.train([tmp_path / "none.h5"], **small(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
