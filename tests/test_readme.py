"""Every Python block of the READMEs runs as pasted, blocks of one file one after the other."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = ("README.md", "kernels/README.md")


@pytest.mark.parametrize("name", FILES)
def test_python_blocks(name):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)
    assert blocks
    namespace: dict = {}
    for block in blocks:
        exec(compile(block, name, "exec"), namespace)


def test_commands_of_the_readme_exist():
    targets = re.findall(r"make ([a-z-]+)", (ROOT / "README.md").read_text())
    makefile = (ROOT / "Makefile").read_text()
    assert {"demo", "test"} <= set(targets)
    assert [t for t in targets if f"\n{t}:" not in makefile] == []
