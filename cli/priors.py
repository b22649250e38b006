"""``mri-ambient priors``: which priors there are, with their cards."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mri_ambient.errors import InputError

from .common import print_json, print_table

_COLUMNS = {
    "prior": "name",
    "method": "method",
    "R": "acceleration",
    "mask": "mask",
    "preset": "preset",
    "parameters": "parameters",
    "images": "images",
    "patients": "patients",
    "hash": "hash",
}


def priors(as_json: Annotated[bool, typer.Option("--json", help="Print the cards as JSON.")] = False) -> None:
    """List the priors that --prior takes: those of the package, and those trained in the folder runs."""
    found = _cards()
    if as_json:
        print_json(found)
        return
    readable = [card for card in found if "error" not in card]
    if readable:
        print_table(list(_COLUMNS), [[_cell(card, key) for key in _COLUMNS.values()] for card in readable])
    for card in found:
        if "error" in card:
            print(f"{card['name']}: {card['error']}")
    if not found:
        print("There is no prior here: make one with mri-ambient train.")


def _cards() -> list[dict[str, Any]]:
    from mri_ambient.prior import RUN_FILE, read_card, shipped_priors

    places = {**shipped_priors(), **{str(path.parent): path for path in sorted(Path("runs").glob(f"*/{RUN_FILE}"))}}
    cards = []
    for name, path in places.items():
        try:
            cards.append({"name": name, "file": str(path), **read_card(path)})
        except InputError as error:
            cards.append({"name": name, "file": str(path), "error": str(error)})
    return cards


def _cell(card: dict[str, Any], key: str) -> str:
    value = card.get(key)
    if value is None or (key in ("acceleration", "mask") and card.get("method") == "supervised"):
        return "-"  # a supervised prior learned from fully sampled scans
    values = value if isinstance(value, list) else [value]
    return ",".join(f"{item:g}" if isinstance(item, float) else str(item) for item in values)
