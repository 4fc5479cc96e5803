"""The arrows of the house: one table of allowed imports between rooms. Imports inside functions count as well."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"veca_kernels": ROOT / "kernels/veca_kernels", "veca": ROOT / "veca", "brainmodels": ROOT / "brainmodels"}
OUTSIDE = {"benchmarks", "tests", "examples"}  # import everything, are imported by nothing

# room -> the rooms that it may import. A room is a folder or a file at the top of its package.
KERNELS = {
    "": "api layer masks",
    "aot": "options triton",
    "api": "checks reference registration sdpa support",
    "checks": "devices options",
    "composed": "masks options",
    "devices": "",
    "layer": "layer_ops support",
    "layer_ops": "devices layer_torch triton",
    "layer_torch": "",
    "masks": "options",
    "options": "",
    "reference": "masks options",
    "registration": "composed devices options rules triton",
    "rules": "",
    "sdpa": "masks options",
    "support": "devices triton",
    "triton": "devices options",
}
VECA = {
    "": "large model zoo",
    "__main__": "cli",
    "cli": "bench data demo inspect model train zoo",
    "demo": "data inspect model report zoo",
    "bench": "inspect model report zoo",
    "train": "data files hashes model zoo",
    "large": "data files hashes model",
    "inspect": "data model",
    "zoo": "data model",
    "model": "",
    "report": "",
    "data": "",
    "files": "hashes",
    "hashes": "",
}
BRAIN = {
    "": "data features heads layouts simulated systems",
    "cli": "commands errors evaluation layouts training",
    "commands": "catalog data drawing errors evaluation features heads layouts report simulated systems training",
    "report": "catalog data errors evaluation metrics",
    "evaluation": "baselines data drawing errors features heads metrics nn records simulated systems training",
    "catalog": "errors metrics records",
    "drawing": "data errors features nn records simulated training",
    "systems": "baselines data drawing errors features heads metrics nn records simulated training versions",
    "training": "baselines data errors features metrics nn records versions",
    "baselines": "data errors metrics",
    "nn": "errors features records",
    "metrics": "data errors features records versions",
    "features": "data errors versions",
    "simulated": "data errors heads layouts",
    "layouts": "data errors features",
    "heads": "errors",
    "data": "errors records versions",
    "records": "errors",
    "errors": "",
    "versions": "",
}
# what each package uses of the one below: rooms of it, "" for its public names
BELOW = {
    "veca": {"veca_kernels": {""}},
    "brainmodels": {"veca": {"", "model", "zoo", "data", "files", "hashes", "train", "report"}, "veca_kernels": {""}},
}
TABLES = {"veca_kernels": KERNELS, "veca": VECA, "brainmodels": BRAIN}
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
            names += [f"{base}.{alias.name}" for alias in node.names]
    return names


def modules(package: str) -> dict[str, tuple[Path, str]]:
    """(file, dotted package it lives in) of the modules of a package, by dotted name."""
    found, base = {}, PACKAGES[package]
    for file in sorted(base.rglob("*.py")):
        parts = [package, *file.relative_to(base).with_suffix("").parts]
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = file, ".".join(parts[:-1])
    return found


MODULES = {name: place for package in PACKAGES for name, place in modules(package).items()}


def target(name: str) -> str | None:
    """The module of the house that an imported name is, or is in."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or None


def room(module: str) -> tuple[str, str]:
    """(package, room) of a module; the package's own `__init__` is the room ""."""
    package, _, rest = module.partition(".")
    return package, rest.partition(".")[0]


EDGES = {
    name: {found for x in imports_of(file.read_text(), package) if (found := target(x)) and found != name}
    for name, (file, package) in MODULES.items()
}


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_import_what_the_table_allows(package):
    table = TABLES[package]
    assert {room(name)[1] for name in MODULES if room(name)[0] == package} == set(table), "a room without a row"
    for name in (x for x in MODULES if room(x)[0] == package):
        here = room(name)[1]
        for other in EDGES[name]:
            owner, there = room(other)
            if owner == package:
                allowed = there == here or there in table[here].split()
            else:
                allowed = there in BELOW.get(package, {}).get(owner, set())
            assert allowed, f"{name} imports {other}: no such edge in the table"


def test_nothing_imports_tests_benchmarks_or_examples():
    for name, (file, package) in MODULES.items():
        heads = {x.split(".")[0] for x in imports_of(file.read_text(), package)}
        assert not heads & OUTSIDE, f"{name} imports {heads & OUTSIDE}"


def test_every_edge_of_the_table_is_used():
    for package, table in TABLES.items():
        used = {(room(a)[1], room(b)[1]) for a in MODULES for b in EDGES[a] if room(a)[0] == room(b)[0] == package}
        promised = {(here, there) for here, row in table.items() for there in row.split()}
        assert promised <= used, f"unused edges of {package}: {sorted(promised - used)}"


def circle(edges: dict[str, set[str]]) -> list[str] | None:
    """Names along one circle of arrows, or None."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str] | None:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return None
        for other in sorted(edges[name]):
            if found := visit(other, [*path, name]):
                return found
        done.add(name)
        return None

    return next((found for name in sorted(edges) if (found := visit(name, []))), None)


def test_no_circle_between_rooms_or_modules():
    rooms: dict[str, set[str]] = {}
    for name, others in EDGES.items():
        here = rooms.setdefault(".".join(room(name)), set())
        here |= {".".join(room(x)) for x in others} - {".".join(room(name))}
    assert circle(rooms) is None
    assert circle(EDGES) is None


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


def test_few_rooms_at_the_top_of_veca():
    assert len([x for x in VECA if x not in ("", "__main__")]) <= 12


def test_kernels_import_torch_only():
    """Nothing but torch and the standard library; triton inside triton/ alone."""
    foreign = {"numpy", "timm", "einops", "safetensors", "xformers", "matplotlib"}
    for file, package in modules("veca_kernels").values():
        heads = {name.split(".")[0] for name in imports_of(file.read_text(), package)}
        assert not heads & foreign, f"{file.name} imports {heads & foreign}"
        if "triton" not in package.split("."):
            assert "triton" not in heads, f"{file.name} imports triton"


def test_implementations_do_not_import_each_other():
    for name in modules("veca_kernels"):
        own = room(name)[1]
        if own in IMPLEMENTATIONS:
            others = {room(x)[1] for x in EDGES[name]} & IMPLEMENTATIONS - {own}
            assert not others, f"{name} imports {others}"


def test_the_walker_sees_every_form_of_import():
    """The tests above can fail: relative, nested and aliased imports are all resolved."""
    source = "def f():\n    from ..sdpa import x\nimport veca.rope as r\nfrom . import reference\n"
    names = imports_of(source, "veca_kernels.triton")
    assert {"veca_kernels.sdpa.x", "veca.rope", "veca_kernels.triton.reference"} <= set(names)


def test_kernels_folder_is_no_package():
    """A package index project is called `kernels`; ours must not shadow it."""
    assert not (ROOT / "kernels/__init__.py").exists()
