"""The page of a training run: how loss and held-out error went, what the network does, what it took.

Everything is read from the files of the run's folder, so that the page of a run that was stopped, or still goes on, can
be made like that of a finished one.
"""

import json
import math
from pathlib import Path
from typing import Any

from mri_ambient.errors import InputError
from mri_ambient.prior import RUN_FILE, read_card
from mri_ambient.recon.chart import Series, chart
from mri_ambient.recon.page import write_page
from mri_ambient.recon.pictures import data_uri
from mri_ambient.reporter import Reporter

PAGE = "report.html"
SMOOTHED = 15  # entries of the log that a point of the smooth curve averages
_LISTED = ("parameters", "device", "patients", "slices", "noise_std", "skipped_steps", "hash", "version")  # of the card


def training_report(folder: str | Path) -> Path:
    """Write ``report.html`` into the folder of a training run.

    Parameters
    ----------
    folder : str or Path
        With ``config.json`` and, as far as the run has come, ``metrics.jsonl``, ``panel.png`` and the prior.

    Returns
    -------
    Path

    Raises
    ------
    InputError
        If it is not the folder of a run, or the page cannot be written.
    """
    folder = Path(folder)
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder} is not the folder of a training run (config.json is missing or damaged)."
        ) from error
    parts = sorted(folder.glob("lap-*"), key=lambda path: (len(path.name), path.name)) or [folder]
    entries = [entry for number, part in enumerate(parts) for entry in read_metrics(part, number * config["images"])]
    finished = (folder / RUN_FILE).exists()
    panels = [part / "panel.png" for part in parts if (part / "panel.png").exists()]
    write_page(
        folder / PAGE, "training.html",
        name=folder.resolve().name, finished=finished, config=config,
        images=max((entry["images"] for entry in entries), default=0),
        total=(config.get("laps") or 1) * config["images"],
        loss=_loss_chart(entries), error=_error_chart(entries),
        panel=data_uri(panels[-1].read_bytes()) if panels else "",
        settings={key: _text(value) for key, value in config.items()},
        cost={key: _text(value) for key, value in _cost(folder, finished, parts).items()},
    )  # fmt: skip
    return folder / PAGE


def read_metrics(folder: Path, before: int = 0) -> list[dict[str, float]]:
    """The entries of ``metrics.jsonl``, each with its ``images``, to which those of laps `before` are added.

    A run that was killed and resumed has logged some steps twice: the later entry counts. Lines that are not complete
    are left out.
    """
    path, found = folder / "metrics.jsonl", {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
            found[entry["images"], "loss" in entry] = {**entry, "images": entry["images"] + before}
        except (ValueError, KeyError, TypeError):
            continue
    return sorted(found.values(), key=lambda entry: entry["images"])


class Paging:
    """Passes reports on and keeps the page of a run up to date: training says a line at every validation.

    Parameters
    ----------
    folder : Path
        Of the run.
    reporter : Reporter
    """

    def __init__(self, folder: Path, reporter: Reporter) -> None:
        self._folder, self._reporter = folder, reporter

    def stage(self, text: str, done: int, total: int) -> None:
        """Pass it on."""
        self._reporter.stage(text, done, total)

    def say(self, text: str) -> None:
        """Pass it on and write the page."""
        self._reporter.say(text)
        self.update()

    def update(self) -> None:
        """Write the page once there is a run; where that fails, say so: training is worth more."""
        if not (self._folder / "config.json").exists():
            return
        try:
            training_report(self._folder)
        except InputError as error:
            self._reporter.say(f"No report: {error}")


def _loss_chart(entries: list[dict[str, float]]) -> str:
    steps = [entry for entry in entries if math.isfinite(entry.get("loss", math.nan))]
    images, losses = [entry["images"] for entry in steps], [entry["loss"] for entry in steps]
    reach = SMOOTHED // 2
    around = [losses[max(0, i - reach) : i + reach + 1] for i in range(len(losses))]
    smooth = [sum(some) / len(some) for some in around]
    lines = [Series("loss of one step", images, losses, "faint"), Series("average", images, smooth, "line")]
    positive = all(loss > 0 for loss in losses)
    return chart(lines, title="Training loss", x_label="images", y_label="loss", logarithmic=positive)


def _error_chart(entries: list[dict[str, float]]) -> str:
    checks = [entry for entry in entries if "heldout_error" in entry]
    images, errors = [entry["images"] for entry in checks], [entry["heldout_error"] for entry in checks]
    lines = [Series("error on held-out lines", images, errors, "line"), Series("validation", images, errors)]
    positive = all(error > 0 for error in errors)
    return chart(lines, title="Held-out error", x_label="images", y_label="held-out error", logarithmic=positive)


def _cost(folder: Path, finished: bool, parts: list[Path]) -> dict[str, Any]:
    """What training took, from the log, and what the card adds at the end."""
    last = [entries[-1] for part in parts if (entries := [e for e in read_metrics(part) if "seconds" in e])]
    seconds, images = sum(entry["seconds"] for entry in last), sum(entry["images"] for entry in last)
    cost: dict[str, Any] = {"time": f"{seconds / 3600:.2f} hours ({seconds:.0f} s)"} if last else {}
    if seconds:
        cost["speed"] = f"{images / seconds:.3g} images a second"
    if finished:
        card = read_card(folder)
        cost |= {key.replace("_", " "): card[key] for key in _LISTED if key in card}
    return cost


def _text(value: Any) -> str:
    """A setting as the user gave it."""
    if value is None or value == "" or value == []:
        return "none"
    if isinstance(value, list):
        return ", ".join(_text(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
