"""A pytest plugin that writes the outcome of every test to disk as soon as it is known, also under pytest-xdist.

    python -m pytest tests -p benchmarks.pytest_rows --rows out/tests.jsonl

A run that is killed keeps its rows so far. A JUnit report would only be written at the end.
"""

from pathlib import Path
from typing import Any

import pytest

from .record import JsonLines

_MESSAGE_CHARACTERS = 300


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rows", type=Path, help="JSON lines file of outcomes, appended to")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("rows", None) and not hasattr(config, "workerinput"):  # workers report to their controller
        config.pluginmanager.register(_Rows(config.getoption("rows")))


class _Rows:
    def __init__(self, path: Path) -> None:
        self.sink = JsonLines(path)
        self.collected = 0

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._count(len(session.items))

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: list[str]) -> None:
        self._count(len(ids))

    def _count(self, items: int) -> None:
        if items > self.collected:  # all workers collect the same tests
            self.collected = items
            self.sink.append({"kind": "collected", "tests": items})

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._append(report.nodeid, "error", 0.0, report.longreprtext)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write one row for each test: for its call, or for the set-up or tear-down that failed or skipped it."""
        if report.when == "call" or not report.passed:
            outcome = "error" if report.failed and report.when != "call" else report.outcome
            self._append(report.nodeid, outcome, report.duration, report.longreprtext if report.failed else "")

    def _append(self, test: str, outcome: str, seconds: float, message: str) -> None:
        told = next((line for line in message.splitlines() if line.startswith("E ")), message.strip()[-300:])
        row = {"kind": "test", "test": test, "outcome": outcome, "seconds": round(seconds, 3)}
        self.sink.append(row | {"message": told[:_MESSAGE_CHARACTERS]})
