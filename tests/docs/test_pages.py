"""The documentation names what exists: commands, options, methods, modules, examples that run, figures of the results.

That pages link to each other correctly, that formulas are understood and that notebooks run is checked by building them
(`.ci/run`), which this does not do.
"""

import importlib.util
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer

from mri_ambient.cli.main import app
from mri_ambient.cli.options import RECON_METHODS, TRAINING_METHODS

PROJECT = Path(__file__).resolve().parents[2]
DOCS = PROJECT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if not {"generated", "_build"} & set(path.parts))
TEXTS = {str(path.relative_to(PROJECT)): path.read_text() for path in [*PAGES, PROJECT / "README.md"]}
WRITTEN_HERE = [name for name in TEXTS if Path(name).name not in ("results.md", "research-log.md")]
COMMANDS = typer.main.get_command(app).commands


def command_lines(text: str) -> list[list[str]]:
    """The words of every line of the program in blocks of code and between backticks."""
    blocks = re.findall(r"```\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`(mri-ambient [^`]*)`", text.replace("\n", " "))
    return [shlex.split(line, comments=True)[1:] for line in lines if line.strip().startswith("mri-ambient ")]


@pytest.mark.parametrize("name", WRITTEN_HERE)
def test_commands_and_options_exist(name):
    for command, *words in command_lines(TEXTS[name]):
        if command.startswith("--") or command.isupper():
            continue
        assert command in COMMANDS, command
        known = {option for parameter in COMMANDS[command].params for option in parameter.opts} | {"--help"}
        assert {word for word in words if word.startswith("-")} <= known, (command, words)


def test_there_are_commands_to_check():
    assert sum(len(command_lines(TEXTS[name])) for name in WRITTEN_HERE) > 20


@pytest.mark.parametrize("name", WRITTEN_HERE)
def test_modules_and_classes_exist(name):
    for module in re.findall(r"\{py:mod\}`([\w.]+)`", TEXTS[name]):
        assert importlib.util.find_spec(module) is not None, module
    for found in re.findall(r"\{py:class\}`([\w.]+)`", TEXTS[name]):
        module, _, attribute = found.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), found


def test_every_extra_is_listed():
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    rows = re.findall(r"^\| (`[^|]*`) \|", TEXTS["docs/start.md"], re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(extras)


def test_every_method_is_described():
    for method in TRAINING_METHODS:
        assert re.search(rf"^## .*`{method}`", TEXTS["docs/methods/training.md"], re.MULTILINE), method
    for method in RECON_METHODS:
        assert f"`{method}`" in TEXTS["docs/methods/sampling.md"] or method == "posterior", method


def test_figures_of_cost_come_from_the_results():
    text = TEXTS["docs/cost.md"]
    marks = re.findall(r':(?:start-after|end-before): "(.*)"', text)
    assert len(marks) == 7
    assert all(TEXTS["docs/results.md"].count(mark) == 1 for mark in marks)
    assert re.findall(r"[\d.]+ (?:s|min|GB|MB|hours?)\b", text) == []


def test_the_python_page_runs(tmp_path, monkeypatch):
    pytest.importorskip("deepinv", reason="needs deepinv (pip install mri-ambient[deepinv])")
    from mri_ambient.operators import MaskPattern
    from mri_ambient.phantoms import phantom_volume
    from mri_ambient.scan import load_scan, write_scan
    from mri_ambient.simulate import simulate_scan

    monkeypatch.chdir(tmp_path)
    volume = phantom_volume(1, (64, 64), seed=0)
    write_scan(simulate_scan(volume, coils=2, pattern=MaskPattern("random", 2), noise_std=0.01), tmp_path / "scan.h5")
    import mri_ambient as ma

    first, *others = re.findall(r"```python\n(.*?)```", TEXTS["docs/python.md"], re.DOTALL)
    names = re.findall(r"ma\.(\w+)", first)
    assert len(names) == 4
    assert all(hasattr(ma, name) for name in names)
    space = {"ma": ma, "scan": load_scan(tmp_path / "scan.h5")}
    for block in others:
        exec(block, space)
    assert space["same"].image_shape == (1, 64, 64)
    assert space["coils"].shape == (2, 64, 64)


NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.md"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_would_be_run(path):
    text = path.read_text()
    assert "format_name: myst" in text
    assert "kernelspec:" in text
    cells = re.findall(r"```\{code-cell\} ipython3\n(.*?)```", text, re.DOTALL)
    assert len(cells) >= 5
    for cell in cells:
        compile(cell, str(path), "exec")


@pytest.fixture(scope="module")
def conf():
    pytest.importorskip("sphinx", reason="needs Sphinx (pip install mri-ambient[docs])")
    spec = importlib.util.spec_from_file_location("docs_conf", DOCS / "conf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_cards_are_those_of_the_files(conf):
    from mri_ambient.prior import read_card, shipped_priors

    text = conf.model_cards()
    for name in set(shipped_priors()) - {"brain"}:
        assert f"## {name}\n" in text
        assert f"| hash | {read_card(name)['hash']} |" in text
    assert "denoiser_error" not in text


def test_command_reference_has_every_command(conf):
    text = conf.commands()
    assert all(f"## `mri-ambient {name}`" in text for name in COMMANDS)


def test_reference_has_every_module(conf):
    pages = {name for package, title in conf.REFERENCE.items() for name in conf.reference(package, title)}
    for module in ("mri_ambient.scan", "mri_ambient.operators.sense", "mri_ambient.objectives.gsure"):
        assert f"api/{module}.md" in pages
    packages = {
        path.parent for folder in ("mri_ambient", "operators", "recon") for path in (PROJECT / folder).rglob("*.py")
    }
    assert len(conf.REFERENCE) == len(packages) - 1  # the weights are no code


@pytest.mark.parametrize(
    ("html", "fine"),
    [
        ('<script src="https://cdn.example/x.js"></script>', False),
        ('<link rel="stylesheet" href="//fonts.example/x.css">', False),
        ("<img src=http://a.example/b.png>", False),
        ('<script src="_static/x.js"></script><a href="https://example.org">elsewhere</a>', True),
    ],
)
def test_pages_that_need_a_network_are_refused(conf, tmp_path, html, fine):
    from types import SimpleNamespace

    from sphinx.errors import ExtensionError

    (tmp_path / "page.html").write_text(html)
    app = SimpleNamespace(outdir=tmp_path)
    if fine:
        conf.require_offline(app, None)
    else:
        with pytest.raises(ExtensionError, match="another place"):
            conf.require_offline(app, None)
