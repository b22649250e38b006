"""The package as a whole: what is in the wheel, who may import whom, and what an import costs."""

import ast
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "mri_ambient": "mri_ambient",
    **{name: f"mri_ambient.{name}" for name in ("operators", "recon", "cli", "data_specs")},
}


def package_files(*endings: str) -> list[tuple[str, Path]]:
    """(path inside the installed package, file) of every source file with such an ending."""
    found = []
    for folder, package in FOLDERS.items():
        for path in sorted((PROJECT / folder).rglob("*")):
            if path.name.endswith(endings) and "__pycache__" not in path.parts:
                found.append((f"{package.replace('.', '/')}/{path.relative_to(PROJECT / folder)}", path))
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Iterator[zipfile.ZipFile]:
    """Built from a copy, so that no build folder is left in the project or leaks into the wheel."""
    pytest.importorskip("setuptools", reason="building a wheel needs setuptools")
    copy = tmp_path_factory.mktemp("source")
    for name in [*FOLDERS, "pyproject.toml", "README.md", "LICENSE"]:
        source = PROJECT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    code = "from setuptools.build_meta import build_wheel; print(build_wheel('dist'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(copy / "dist" / done.stdout.splitlines()[-1]) as opened:
        yield opened


class TestWheel:
    def test_holds_the_package_and_nothing_else(self, wheel):
        files = {name for name in wheel.namelist() if ".dist-info/" not in name}
        endings = (".py", "py.typed", ".yaml", ".safetensors", ".html", ".css", ".js", ".svg")
        expected = {name for name, _ in package_files(*endings)}
        assert files == expected | {"mri_ambient/data_specs/README.md"}

    def test_every_folder_with_modules_is_a_package(self):
        folders = {str(Path(name).parent) for name, _ in package_files(".py")}
        assert {f"{folder}/__init__.py" for folder in folders} <= {name for name, _ in package_files(".py")}

    def test_metadata(self, wheel):
        (folder,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
        entry_points = wheel.read(f"{folder}/entry_points.txt").decode()
        assert "mri-ambient = mri_ambient.cli.main:run" in entry_points
        metadata = wheel.read(f"{folder}/METADATA").decode()
        assert "License-Expression: MIT" in metadata
        assert any(name.endswith("LICENSE") for name in wheel.namelist())


LAYERS = ["operators", "mri_ambient", "recon", "cli"]  # each may import those before it
FACADE = PROJECT / "mri_ambient" / "__init__.py"  # its lazy names reach into recon, and nothing else may


def imports(path: Path, module: str) -> Iterator[str]:
    """Absolute names of everything a file imports, and of modules it names in text."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("mri_ambient."):
            yield node.value


def layer(name: str) -> str | None:
    """The folder an imported name belongs to; None for other projects."""
    parts = name.split(".")
    if parts[0] != "mri_ambient":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in FOLDERS else "mri_ambient"


def module_name(inside: str) -> str:
    return inside.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def test_dependencies_point_one_way():
    wrong = []
    for inside, path in package_files(".py"):
        own = layer(module_name(inside))
        if own == "data_specs" or path == FACADE:
            continue
        allowed = {*LAYERS[: LAYERS.index(own) + 1], "data_specs", None}
        wrong += [f"{inside}: {name}" for name in imports(path, module_name(inside)) if layer(name) not in allowed]
    assert wrong == []


def test_the_facade_reaches_into_recon_only_lazily():
    tree = ast.parse(FACADE.read_text())
    eager = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [alias.name for node in eager for alias in node.names]
    assert sorted(names) == ["Any", "TYPE_CHECKING", "import_module"]
    assert not any(layer(name) == "cli" for name in imports(FACADE, "mri_ambient"))


def test_operators_know_no_files():
    known = set(sys.stdlib_module_names) | {
        "torch",
        "numpy",
        "scipy",
        "sigpy",
        "fastmri",
        "threadpoolctl",
        "mri_ambient",
    }
    for inside, path in package_files(".py"):
        if layer(module_name(inside)) == "operators":
            assert {name.split(".")[0] for name in imports(path, module_name(inside))} <= known, inside


def test_nothing_is_imported_by_its_folder_at_the_top_level():
    for inside, path in package_files(".py"):
        tops = {name.split(".")[0] for name in imports(path, module_name(inside))}
        assert not tops & {"operators", "recon", "cli", "data_specs"}, inside


def loaded_after(code: str, *modules: str) -> list[str]:
    """Which of some modules a fresh interpreter has loaded after running code."""
    code = f"{code}\nimport sys\nprint([name for name in {modules!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return ast.literal_eval(done.stdout.splitlines()[-1])


HEAVY = ("torch", "matplotlib", "fastmri", "sigpy", "pydicom", "nibabel", "skimage", "h5py", "jinja2", "rich", "typer")


def test_importing_the_package_is_light():
    assert loaded_after("import mri_ambient", *HEAVY) == []


def test_using_operators_and_scans_stays_light():
    code = "import mri_ambient as ma, mri_ambient.operators; ma.load_scan, ma.load_prior, ma.reconstruct, ma.train"
    assert loaded_after(code, *HEAVY[1:]) == []


def test_every_public_name_exists_and_unknown_ones_do_not():
    import mri_ambient

    for name in mri_ambient.__all__:
        assert getattr(mri_ambient, name) is not None
    with pytest.raises(AttributeError, match="nonesuch"):
        _ = mri_ambient.nonesuch


def test_dependencies_are_declared():
    declared = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["dependencies"]
    distributions = {line.split(">")[0].split("[")[0].strip().lower() for line in declared}
    names = {"pyyaml": "yaml", "scikit-image": "skimage"}
    known = {names.get(name, name) for name in distributions} | set(sys.stdlib_module_names) | {"mri_ambient"}
    used = {name.split(".")[0] for inside, path in package_files(".py") for name in imports(path, module_name(inside))}
    assert used <= known
