"""Runs one job of the suite in a process group with a time limit. This file does not import torch."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .record import ROOT
from .suite_jobs import Job

__all__ = ["planned", "run_job"]

_TAIL_CHARACTERS = 4000
_TICK_SECONDS = 10.0


def run_job(job: Job, limit: float, tick: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Run a job and return a row with its status.

    Shortly before its limit the process gets SIGINT, so that it can write its results so far. At the limit its whole
    group gets SIGKILL, with the compiler workers.

    Args:
        job: Job to run.
        limit: Time limit in seconds.
        tick: Function that is called about every ten seconds while the job runs.
    """
    paths = [str(ROOT / "kernels"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    log = job.rows.with_suffix(".log")
    start = time.monotonic()
    with log.open("w") as file, _interruptible():
        process = subprocess.Popen(
            job.arguments(limit),
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        stopped = not _ends(process, start + max(limit - job.grace, limit / 2), tick)
        if stopped:
            os.kill(process.pid, signal.SIGINT)
            _ends(process, start + limit, tick)
    finally:
        _kill_group(process)
    code = process.returncode
    status = f"killed at its limit of {limit:.0f} s" if stopped else "ok" if code == 0 else f"failed, exit code {code}"
    tail = "" if status == "ok" else log.read_text(errors="replace")[-_TAIL_CHARACTERS:]
    return planned(job, limit) | {"status": status, "seconds": round(time.monotonic() - start, 1), "output_tail": tail}


def planned(job: Job, limit: float, status: str = "dry run") -> dict[str, Any]:
    """The row of a job that has not run."""
    row = {"name": job.name, "part": job.part, "status": status, "seconds": 0.0, "limit": round(limit)}
    return row | {"command": job.shown(limit), "output_tail": ""}


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let processes that start here take SIGINT. A shell makes its background commands, and theirs, ignore it."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _ends(process: subprocess.Popen, deadline: float, tick: Callable[[], None]) -> bool:
    """Wait for the process to end. Returns False if the deadline comes first."""
    while (left := deadline - time.monotonic()) > 0:
        try:
            process.wait(min(left, _TICK_SECONDS))
            return True
        except subprocess.TimeoutExpired:
            tick()
    return process.poll() is not None


def _kill_group(process: subprocess.Popen) -> None:
    """Kill the process and its children, which may live longer. It is no error if all have ended."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
