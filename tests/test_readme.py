"""The README and the guides are true: Python blocks run as pasted, commands parse, make targets exist."""

import contextlib
import functools
import importlib
import io
import re
import shlex
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import tyro

ROOT = Path(__file__).parents[1]
GUIDES = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").glob("*.md"))]
ROOMS = ("brainmodels/systems/neuroflow/README.md", "brainmodels/systems/synbrain/README.md")
PAGES = ["README.md", "CONTRIBUTING.md", "kernels/README.md", "brainmodels/README.md", *GUIDES, *ROOMS]


def _blocks(name: str, language: str = "python") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)


def _distributed(block: str) -> bool:
    return "init_process_group" in block


SLOW = [pytest.param(room, marks=pytest.mark.slow) for room in ROOMS]
WITH_PYTHON = [name for name in PAGES if name not in ROOMS and not all(map(_distributed, _blocks(name)))]


@pytest.mark.parametrize("name", [*WITH_PYTHON, *SLOW])
def test_python_blocks(name, tmp_path, monkeypatch):
    """Blocks of one file run one after the other; a block of text that follows one is what it prints."""
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    pattern = r"```python\n(.*?)```(?:\s*```text\n(.*?)```)?"
    for block, expected in re.findall(pattern, (ROOT / name).read_text(), re.DOTALL):
        if _distributed(block):
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, name, "exec"), namespace)
        if expected:
            assert printed.getvalue() == expected


def test_the_quick_start_shows_its_output():
    assert "```\n\n```text\n" in (ROOT / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["docs/large_images.md"])
def test_the_block_for_torchrun(name, tmp_path):
    (block,) = filter(_distributed, _blocks(name))
    (tmp_path / "gigapixel.py").write_text(block)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    subprocess.run([*torchrun, "gigapixel.py"], cwd=tmp_path, check=True, capture_output=True, timeout=120)


def _commands(name: str) -> list[str]:
    """Commands in the shell blocks of a page, without comments and without what starts or surrounds them."""
    lines = "\n".join(_blocks(name, "(?:sh|bash)")).replace("\\\n", " ").splitlines()
    parts = [part.strip() for line in lines for part in re.split(r"\s#", line)[0].split(";")]
    return [re.sub(r"^(do |torchrun .*? -m |OMP_NUM_THREADS=\d+ )+|' > .*$", "", part) for part in parts]


COMMANDS = sorted({line for name in PAGES for line in _commands(name)})
VECA = [line for line in COMMANDS if line.startswith("veca ")]
MODULES = [line for line in COMMANDS if line.startswith("python -m benchmarks.")]
SCRIPTS = [line for line in COMMANDS if re.match(r"python \w+/", line)]


@pytest.fixture
def parse_only(monkeypatch):
    """Commands of `veca` are parsed as ever, and do nothing."""
    parse = tyro.extras.subcommand_cli_from_dict

    def without_effect(commands, **options):
        idle = {name: functools.wraps(command)(lambda *_, **__: None) for name, command in commands.items()}
        return parse(idle, **options)

    monkeypatch.setattr(tyro.extras, "subcommand_cli_from_dict", without_effect)


@pytest.mark.parametrize("line", VECA)
def test_commands_parse(line, parse_only):
    from veca.cli import main

    words = shlex.split(line.removesuffix(" &"))[1:]
    group = {entry.name: entry for entry in entry_points(group="veca.commands")}
    assert words[0] != "brain" or "brain" in group
    main(words)


def test_a_wrong_command_does_not_parse(parse_only):
    from veca.cli import main

    with pytest.raises(SystemExit):
        main(["train", "--no-such-option"])


@pytest.mark.parametrize("line", MODULES)
def test_benchmark_commands_parse(line):
    words = shlex.split(line)[2:]
    importlib.import_module(words[0])._parser().parse_args(words[1:])


@pytest.mark.parametrize("line", SCRIPTS)
def test_scripts_exist(line):
    assert (ROOT / shlex.split(line)[1]).is_file()


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_exist(page):
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"(?:^|`)make ([a-z-]+)", (ROOT / page).read_text(), re.MULTILINE)
    assert [target for target in targets if f"\n{target}:" not in makefile] == []


def test_readme_names_its_commands():
    text = (ROOT / "README.md").read_text()
    assert all(f"make {target}" in text for target in ("demo", "test", "docs"))


def test_shipped_weights_are_those_that_the_readme_names():
    """One row of the table of models says "shipped"; it is the one that `veca models` marks."""
    import veca

    rows = re.findall(r"^\| (`veca_\w+`.*?) \|.*\| (\w+)[^|]*\|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    named = {name: kind for cell, kind in rows for name in re.findall(r"`(\w+)`", cell)}
    assert sorted(named) == sorted(veca.list_models())
    assert sorted(name for name, kind in named.items() if kind == "shipped") == veca.list_models(pretrained=True)
