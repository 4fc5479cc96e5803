"""What is imported is declared, what is declared is used, and each declared distribution has an exact pin."""

import ast
import functools
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = {"veca_kernels", "veca", "brainmodels", "benchmarks", "tests", "examples"}
SOURCES = {name: ROOT / ("kernels/veca_kernels" if name == "veca_kernels" else name) for name in OURS}
RUNTIME = ("veca_kernels", "veca", "brainmodels")

# Import names whose distribution has another name. Those of installed distributions are looked up.
KNOWN = {"PIL": "pillow", "cv2": "opencv-python", "open_clip": "open_clip_torch", "sklearn": "scikit-learn"}
KNOWN |= {"skimage": "scikit-image", "yaml": "pyyaml"}
# What a package may import when it is imported. Inside a function it may import anything that is declared.
BASE = {"veca_kernels": {"torch", "triton"}}
EXTRAS = {"veca": set(), "brainmodels": {"brain"}, "benchmarks": {"brain", "bench", "dev"}, "examples": {"brain"}}
# Modules that may import more than their package, because they are themselves imported when they are used.
LAZY = dict.fromkeys(("veca/bench/figure.py", "veca/demo/figures.py", "veca/report/curves.py"), "matplotlib")
# The three platforms that the pins must install on from wheels alone, and what only one of them needs.
PLATFORMS = ("x86_64-unknown-linux-gnu", "aarch64-apple-darwin", "x86_64-pc-windows-msvc")
PLATFORM_ONLY = {"colorama"}
# Declared, and imported by none of our files.
UNUSED = {
    "basedpyright": "a command",
    "diffusers": "coming systems take their schedulers, autoencoders and U-Nets from it",
    "jinja2": "the HTML of the reports is moving to it",
    "mkdocs": "a command",
    "mkdocstrings": "a plugin of mkdocs",
    "onnx": "torch.onnx imports it",
    "pytest-xdist": "a plugin of pytest",
    "ruff": "a command",
    "torchmetrics": "coming systems measure pictures with it",
    "transformers": "coming systems take language models from it",
    "uv": "a command",
}
# Imported inside a function and installed by the user alone.
BY_USER = {"mediapipe": "it brings OpenCV and an audio driver"}


def normal(name: str) -> str:
    """A distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> dict[str, set[str]]:
    """Distributions by group: "base", or the name of an extra."""
    groups = {"base": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
    return {group: {normal(re.match(r"[\w.-]+", word)[0]) for word in words} for group, words in groups.items()}


installed = functools.cache(packages_distributions)  # reads the metadata of every distribution


def distribution(module: str) -> str:
    """The distribution that a top-level module comes from, installed or not."""
    names = installed().get(module, [])
    return normal(KNOWN.get(module) or (names[0] if names else module))


@functools.cache
def imports(path: Path) -> list[tuple[str, bool]]:
    """(distribution, whether it is imported with the file) of every absolute import, our own and Python's left out."""
    found = []

    def visit(node: ast.AST, at_import: bool) -> None:
        for child in ast.iter_child_nodes(node):
            names = []
            if isinstance(child, ast.Import):
                names = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom) and child.level == 0:
                names = [child.module]
            elif isinstance(child, ast.Call):
                names = _named_module(child)
            checking = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
            for name in (name.partition(".")[0] for name in names):
                if name not in OURS and name not in sys.stdlib_module_names:
                    found.append((distribution(name), at_import and not checking))
            visit(child, at_import and not checking and not isinstance(child, ast.FunctionDef))

    visit(ast.parse(path.read_text()), True)
    return found


def imported(package: str) -> set[str]:
    """All distributions that the files of a package import."""
    return {name for path in SOURCES[package].rglob("*.py") for name, _ in imports(path)}


def _named_module(call: ast.Call) -> list[str]:
    """The module that `importlib.import_module("name")` or `pytest.importorskip("name")` imports."""
    function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    first = call.args[0] if call.args else None
    known = function in ("import_module", "importorskip") and isinstance(first, ast.Constant)
    return [first.value] if known and not first.value.startswith(".") else []


def undeclared(package: str, path: Path, groups: dict[str, set[str]]) -> list[str]:
    """Imports of a file that its package may not have, in words."""
    at_once = BASE.get(package) or groups["base"].union(*(groups[extra] for extra in EXTRAS[package]))
    at_once = at_once | {LAZY.get(path.relative_to(ROOT).as_posix())}
    anywhere = BASE.get(package) or set().union(BY_USER, *groups.values())
    return [
        f"{path.relative_to(ROOT)}: {name}"
        for name, at_import in imports(path)
        if name not in (at_once if at_import else anywhere)
    ]


@pytest.mark.parametrize("package", ["veca_kernels", "veca", "brainmodels", "benchmarks", "examples"])
def test_what_is_imported_is_declared(package):
    groups = declared()
    files = sorted(SOURCES[package].rglob("*.py"))
    assert files
    assert [line for path in files for line in undeclared(package, path, groups)] == []


def test_what_is_declared_is_used():
    groups = declared()
    used = set().union(*(imported(package) for package in (*RUNTIME, "benchmarks")))
    idle = {group: names - used - set(UNUSED) for group, names in groups.items()}
    idle["dev"] -= imported("tests")
    assert {group: names for group, names in idle.items() if names} == {}


def test_each_reason_is_of_a_declared_distribution():
    assert sorted(set(UNUSED) - set().union(*declared().values())) == []


def test_each_declared_distribution_has_an_exact_pin():
    lines = (ROOT / "constraints.txt").read_text().split()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    pinned = {normal(line.partition("==")[0]) for line in lines}
    assert sorted(set().union(*declared().values()) - pinned) == []


@pytest.mark.slow
@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_pins_resolve_to_wheels(platform):
    """Every extra, with the constraints, has wheels there; nothing is built or installed. This needs the index."""
    words = ["uv", "pip", "compile", "pyproject.toml", "--all-extras", "--constraint", "constraints.txt", "--quiet"]
    words += ["--python-platform", platform, "--python-version", "3.11.9", "--only-binary", ":all:"]
    words += ["--no-header", "--no-annotate", "--no-sources"]
    environment = os.environ | {"MACOSX_DEPLOYMENT_TARGET": "14.0"}  # torch has wheels from macOS 14 on
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    resolved = {normal(line.partition("==")[0]) for line in done.stdout.split("\n") if line}
    pinned = {normal(line.partition("==")[0]) for line in (ROOT / "constraints.txt").read_text().split()}
    assert resolved - pinned <= PLATFORM_ONLY
    assert ("xformers" in resolved) == ("linux" in platform)  # it has no wheel elsewhere


def test_an_undeclared_import_is_found(tmp_path, monkeypatch):
    """Imported with the file, inside a function and by name; an import for type checkers counts as one inside."""
    monkeypatch.setattr("tests.test_dependencies.ROOT", tmp_path)
    path = tmp_path / "new.py"
    path.write_text(
        "import flask, json, torch\nfrom typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import h5py\n"
        "def late():\n    import mne\n    import django\n    importlib.import_module('celery')\n"
    )
    groups = {"base": {"torch"}, "brain": {"mne", "h5py"}}
    assert undeclared("veca", path, groups) == ["new.py: flask", "new.py: django", "new.py: celery"]
    second = tmp_path / "second.py"
    second.write_text("import mne\n")
    assert undeclared("veca", second, groups) == ["second.py: mne"]
    assert undeclared("brainmodels", second, groups) == []
