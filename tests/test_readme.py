"""Every Python block of the READMEs runs as pasted, blocks of one file one after the other."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("brainmodels/systems/neuroflow/README.md", "brainmodels/systems/synbrain/README.md")
FILES = ("README.md", "kernels/README.md", *(pytest.param(room, marks=pytest.mark.slow) for room in ROOMS))


def _blocks(name: str, distributed: bool) -> list[str]:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)
    return [block for block in blocks if ("init_process_group" in block) == distributed]


@pytest.mark.parametrize("name", FILES)
def test_python_blocks(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = _blocks(name, distributed=False)
    assert blocks
    namespace: dict = {}
    for block in blocks:
        exec(compile(block, name, "exec"), namespace)


def test_the_block_for_torchrun(tmp_path):
    (block,) = _blocks("README.md", distributed=True)
    (tmp_path / "gigapixel.py").write_text(block)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    subprocess.run([*torchrun, "gigapixel.py"], cwd=tmp_path, check=True, capture_output=True, timeout=120)


def test_commands_of_the_readme_exist():
    targets = re.findall(r"make ([a-z-]+)", (ROOT / "README.md").read_text())
    makefile = (ROOT / "Makefile").read_text()
    assert {"demo", "test"} <= set(targets)
    assert [t for t in targets if f"\n{t}:" not in makefile] == []
