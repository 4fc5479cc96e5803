"""The arrows of the house: veca_kernels <- veca <- brainmodels; tests and benchmarks are imported by none."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {"veca_kernels": ROOT / "kernels/veca_kernels", "veca": ROOT / "veca", "brainmodels": ROOT / "brainmodels"}
ALLOWED = {"veca_kernels": set(), "veca": {"veca_kernels"}, "brainmodels": {"veca", "veca_kernels"}}
OURS = {*ROOMS, "benchmarks", "tests"}
IMPLEMENTATIONS = {"reference", "sdpa", "composed", "layer_torch", "triton"}  # of veca_kernels: never import each other


def imports_of(source: str, package: str) -> list[str]:
    """Absolute names of everything a module imports, at any depth of nesting; `package` resolves relative imports."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            base = ".".join(x for x in (base, node.module) if x)
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return names


def modules(room: str) -> list[tuple[Path, str]]:
    """(file, dotted package it lives in) of a room."""
    base = ROOMS[room]
    return [(f, ".".join([room, *f.parent.relative_to(base).parts])) for f in sorted(base.rglob("*.py"))]


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_between_rooms(room):
    for file, package in modules(room):
        heads = {name.split(".")[0] for name in imports_of(file.read_text(), package)} & OURS - {room}
        assert heads <= ALLOWED[room], f"{file.relative_to(ROOT)} imports {heads - ALLOWED[room]}"


def test_kernels_import_torch_only():
    """Nothing but torch and the standard library; triton inside triton/ alone."""
    foreign = {"numpy", "timm", "einops", "safetensors", "xformers", "matplotlib"}
    for file, package in modules("veca_kernels"):
        heads = {name.split(".")[0] for name in imports_of(file.read_text(), package)}
        assert not heads & foreign, f"{file.name} imports {heads & foreign}"
        if "triton" not in package.split("."):
            assert "triton" not in heads, f"{file.name} imports triton"


def test_implementations_do_not_import_each_other():
    for file, package in modules("veca_kernels"):
        own = "triton" if "triton" in package.split(".") else file.stem
        if own not in IMPLEMENTATIONS:
            continue
        others = {f"veca_kernels.{name}" for name in IMPLEMENTATIONS - {own}}
        hit = [n for n in imports_of(file.read_text(), package) if any(n == o or n.startswith(o + ".") for o in others)]
        assert not hit, f"{file.relative_to(ROOT)} imports {hit}"


def test_the_walker_sees_every_form_of_import():
    """The test above can fail: relative, nested and aliased imports are all resolved."""
    source = "def f():\n    from ..sdpa import x\nimport veca.model.rope as r\nfrom . import reference\n"
    names = imports_of(source, "veca_kernels.triton")
    assert {"veca_kernels.sdpa", "veca.model.rope", "veca_kernels.triton.reference"} <= set(names)


def test_kernels_folder_is_no_package():
    """A package index project is called `kernels`; ours must not shadow it."""
    assert not (ROOT / "kernels/__init__.py").exists()
