"""The documentation: ``python -m sphinx -W --keep-going docs docs/_build/html``.

Pages are MyST Markdown. Three things are made at build time and written to the folder ``generated``: the command line
reference (by Typer), the cards of the shipped priors, and the pages of the Python reference, one a module. Notebooks
are executed. Formulas become MathML, and nothing is loaded from elsewhere: pages work from disk, without a network.
"""

import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util import logging

import mri_ambient
from mri_ambient.prior import DEFAULT_IS, DEFAULT_PRIOR, read_card, shipped_priors

project = "mri-ambient"
version = release = mri_ambient.__version__
author = "The mri-ambient developers"
copyright = author

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
default_role = "code"
smartquotes = False  # they would turn the two hyphens of an option into a dash

html_theme = "furo"
html_title = f"mri-ambient {version}"
html_copy_source = False
html_math_renderer = "mathml"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# Notebooks run at every build, in a folder of their own; an exception in one is an error of the build.
nb_execution_mode = "force"
nb_execution_timeout = 900
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_merge_streams = True
nb_output_stderr = "remove"  # progress bars that miss a package for notebooks say so there

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
suppress_warnings = ["ref.python"]  # napoleon makes links of all words in the place of a type

REFERENCE = {  # package: title
    "mri_ambient": "Scans, training, priors",
    "mri_ambient.formats": "File formats",
    "mri_ambient.objectives": "Training methods",
    "mri_ambient.operators": "Operators",
    "mri_ambient.recon": "Reconstruction",
    "mri_ambient.recon.samplers": "Samplers",
}


OTHER_COMMANDS = {r"\dots": r"\ldots", r"\setminus": r"\backslash"}  # unknown here, not in usual fonts
EXTERNAL = re.compile(r"""<(?:script|img|iframe|link[^>]*stylesheet)[^>]*(?:src|href)=["']?(?:https?:)?//[^>]*""")


def modules(package: str) -> list[str]:
    """A package and the modules in it, those without a public part left out."""
    folder = Path(str(import_module(package).__file__)).parent
    names = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))
    return [package, *(f"{package}.{name}" for name in names)]


def reference(package: str, title: str) -> dict[str, str]:
    """The page of a package, and one of each of its modules."""
    others = modules(package)[1:]
    pages = {f"api/{module}.md": f"# `{module}`\n\n{automodule(module)}" for module in others}
    contents = "\n".join(["```{toctree}", ":maxdepth: 1", *others, "```"])
    pages[f"api/{package}.md"] = f"# {title}: `{package}`\n\n{automodule(package, ':no-members:')}\n{contents}\n"
    return pages


def automodule(module: str, option: str = "") -> str:
    """The docstrings of a module."""
    return f"```{{eval-rst}}\n.. automodule:: {module}\n   {option}\n```\n"


def model_cards() -> str:
    """What is known of every shipped prior, from its file."""
    lines = [
        "# Model cards",
        "",
        f"Of the priors in the package, read from their files when this page was made. `{DEFAULT_PRIOR}` stands for "
        f"`{DEFAULT_IS}`. `mri-ambient priors --json` prints the same, of your own priors too: their files hold it. "
        "What these priors reach is in [Results](../results.md), what they are not for in [Limits](../limits.md).",
        "",
    ]
    for name in shipped_priors():
        if name != DEFAULT_PRIOR:
            rows = [(key, value) for key, value in read_card(name).items() if key != "denoiser_error"]
            lines += [
                f"## {name}",
                "",
                "| | |",
                "|---|---|",
                *(f"| {key} | {shown(value)} |" for key, value in rows),
                "",
            ]
    return "\n".join(lines)


def shown(value: Any) -> str:
    """A value of a card in a cell of a table."""
    text = value if isinstance(value, str) else json.dumps(value)
    return " ".join(text.split()).replace("|", "\\|")


def commands() -> str:
    """The reference of the command line."""
    words = ["-m", "typer", "mri_ambient.cli.main", "utils", "docs", "--name", "mri-ambient", "--title", "Command line"]
    return subprocess.run([sys.executable, *words], check=True, capture_output=True, text=True).stdout


def generate(app: Sphinx) -> None:
    """Write the pages that are made from the package; unchanged ones are left alone."""
    pages = {"commands.md": commands(), "model-cards.md": model_cards()}
    for package, title in REFERENCE.items():
        pages |= reference(package, title)
    folder = Path(app.srcdir) / "generated"
    (folder / "api").mkdir(parents=True, exist_ok=True)
    for path in folder.rglob("*.md"):
        if str(path.relative_to(folder)) not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def mathml(node: nodes.Element, as_block: bool = False) -> str:
    """A formula as MathML, whose brackets stretch by themselves: LaTeX's sizes are left out."""
    formula = re.sub(r"\\[bB]ig+[lrm]?(?![a-zA-Z])", "", node.astext())
    for command, other in OTHER_COMMANDS.items():
        formula = formula.replace(command, other)
    try:
        return str(tex2mathml(formula, as_block=as_block))
    except MathError as error:
        logging.getLogger(__name__).warning("%s in the formula %s", error, formula, location=node)
        return ""


def math_inline(self: Any, node: nodes.math) -> None:
    """A formula in a line."""
    self.body.append(mathml(node))
    raise nodes.SkipNode


def math_display(self: Any, node: nodes.math_block) -> None:
    """A formula on lines of its own."""
    self.body.append(f'<div class="math">{mathml(node, as_block=True)}</div>')
    raise nodes.SkipNode


def require_offline(app: Sphinx, exception: Exception | None) -> None:
    """Refuse pages that load anything from elsewhere."""
    for path in [] if exception else Path(app.outdir).rglob("*.html"):
        if found := EXTERNAL.search(path.read_text()):
            raise ExtensionError(f"{path.name} loads something from another place: {found.group()}")


def setup(app: Sphinx) -> None:
    """Register what this file adds."""
    os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "MRI_AMBIENT_CACHE_GB": "0"}  # of the notebooks
    app.connect("build-finished", require_offline)
    app.add_html_math_renderer("mathml", (math_inline, None), (math_display, None))
    app.connect("builder-inited", generate)
