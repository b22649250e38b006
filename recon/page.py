"""Pages of one HTML file that need nothing else.

The templates, the style sheet and the script lie in ``templates/`` and are written into the page. A content security
policy allows the page's own script (by its hash), its own style and ``data:`` pictures, and nothing else: a page cannot
load anything, nor can a name in it become a program. All values are escaped.
"""

import base64
import hashlib
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mri_ambient.recon.writing import NOTICE, replacing

if TYPE_CHECKING:
    from jinja2 import Environment


def write_page(path: Path, template: str, *, script: str = "", **values: Any) -> None:
    """Render a template into a file that appears when it is complete.

    Parameters
    ----------
    path : Path
    template, script : str
        Names of files in ``templates/``.
    **values
        For the template; iterators are consumed while the file is written, so that what they yield is never held
        together.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    from mri_ambient import __version__

    code, style = _text(script) if script else "", _text("style.css")
    page = environment().get_template(template).stream(
        code=code, code_hash=_hash(code), style=style, style_hash=_hash(style),
        notice=NOTICE, version=__version__, **values,
    )  # fmt: skip
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(page)


def environment() -> "Environment":
    """Of the templates; all values are escaped."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    return Environment(
        autoescape=True, loader=FunctionLoader(_text), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def _text(name: str) -> str:
    return (resources.files("mri_ambient.recon") / "templates" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
