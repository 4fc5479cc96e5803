"""Every command of the README is one its module understands."""

import importlib
import re
import shlex

import pytest

from benchmarks.record import ROOT
from benchmarks.suite_jobs import PARTS

README = (ROOT / "benchmarks" / "README.md").read_text()
COMMANDS = re.findall(r"^python -m (benchmarks\.\w+)([^#\n]*)", README, flags=re.MULTILINE)


@pytest.mark.parametrize(("module", "arguments"), COMMANDS)
def test_commands_parse(module, arguments):
    importlib.import_module(module)._parser().parse_args(shlex.split(arguments))


def test_the_jobs_and_their_seconds_are_those_of_the_suite():
    table = dict(re.findall(r"^\| ([a-z0-9-]+) \| (\d+) \|", README, flags=re.MULTILINE))
    seconds = {name: str(share) for jobs in reversed(PARTS.values()) for name, share in jobs.items()}
    assert table == seconds
    assert f"Warming takes {PARTS['kernels']['warm']} s of the part" in README
