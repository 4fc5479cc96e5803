"""Other processes of tests. A server imports the packages once and forks, so that each process starts at once."""

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

PACKAGES = ["pytest", "brainmodels.features", "brainmodels.training", "veca.large.distributed", "veca.train"]


def server() -> ForkServerContext:
    """What starts processes with the packages, and with nothing else of this process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PACKAGES)
    return context


def start(function: Callable, *arguments: Any, log: Path | None = None, **environment: str) -> BaseProcess:
    """Call a function of a module in another process, with these variables; what it prints goes to `log`."""
    process = server().Process(target=_call, args=(function, arguments, log, environment), daemon=True)
    process.start()
    return process


def _call(function: Callable, arguments: tuple, log: Path | None, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    if log is not None:
        file = os.open(log, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, 1)
        os.dup2(file, 2)
    function(*arguments)
