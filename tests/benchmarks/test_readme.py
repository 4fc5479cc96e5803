"""Every command of the README is one its module understands."""

import importlib
import re
import shlex

import pytest

from benchmarks.gpu_suite import parts_of
from benchmarks.record import ROOT

README = (ROOT / "benchmarks" / "README.md").read_text()
COMMANDS = re.findall(r"^python -m (benchmarks\.\w+)([^#\n]*)", README, flags=re.MULTILINE)


@pytest.mark.parametrize(("module", "arguments"), COMMANDS)
def test_commands_parse(module, arguments):
    importlib.import_module(module)._parser().parse_args(shlex.split(arguments))


def test_the_parts_and_their_seconds_are_those_of_the_suite(tmp_path):
    table = dict(re.findall(r"^\| ([a-z-]+) \| (\d+) \|", README, flags=re.MULTILINE))
    assert table == {part.name: str(part.share) for part in parts_of("cuda", tmp_path)}
    assert sum(map(int, table.values())) == 480
