"""One thread a worker, one seed a test, and files that share trained models in one worker."""

import os
import random
import signal
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy: its threads spin where workers and programs share the cores

import numpy as np
import pytest
import torch
from xdist.scheduler import LoadScopeScheduling

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell makes background commands ignore it

TOGETHER = (  # what these files fit and evaluate is kept in memory, once a process
    "test_evaluation.py",
    "test_evaluation_models.py",
    "test_report.py",
    "test_recorded.py",
    "test_estimator_files.py",
    "test_estimator_neuroflow.py",
    "test_estimator_synbrain.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """The same draws in every run and in every order of the tests."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


class ByFile(LoadScopeScheduling):
    """A file goes to one worker, and so do the files of `TOGETHER`; the kernels' tests, which share nothing, spread."""

    def _split_scope(self, nodeid: str) -> str:
        path = Path(nodeid.partition("::")[0])
        return nodeid if path.parent.name == "kernels" else "fitted" if path.name in TOGETHER else path.as_posix()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    config.option.loadscopereorder = False
    return ByFile(config, log)
