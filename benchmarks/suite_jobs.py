"""The jobs of the GPU suite in three parts. This file does not import torch.

Each job is a process with a share of its part's time. A part can be called alone and takes at most nine minutes. The
most important jobs of a part come first.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ALWAYS", "GPU_TESTS", "PARTS", "Job", "jobs_of", "names_of"]

# Seconds of each job in a part of 510 s. The environment is measured once in a call, at its start.
PARTS = {
    "numerics": {"environment": 60, "warm": 70, "tests": 190, "tiles": 120, "angles": 70},
    "kernels": {
        "environment": 60, "warm": 50, "rotated": 115, "rotated-fp16": 35, "acceptance": 110, "full-attention": 30,
        "eager": 50, "host": 30, "launches": 30,
    },
    "backbone": {
        "environment": 60, "judged": 80, "models": 210, "compiled-peers": 80, "compiled-models": 40, "grid": 40,
    },
}  # fmt: skip
ALWAYS = ("environment", "warm")  # jobs that prepare others and measure nothing; a later call may repeat them
GPU_TESTS = (
    "tests/kernels/test_gpu.py",
    "tests/kernels/test_layer_gpu.py",
    "tests/veca/test_distributed.py",
    "tests/veca/test_streaming.py",
)
_WORKERS = 8
_LIMITS = {
    "warm": {"reserve": 15.0},
    "tests": {"grace": 15.0},  # xdist waits 10 s for its workers
    "models": {"reserve": 25.0},
}
_MORE = {("kernels", "warm"): ("--shapes-only",)}  # the tests are in another part
_START_SECONDS = 15.0  # seconds in which every job imports torch and starts CUDA


@dataclass(frozen=True)
class Job:
    """One job, which is a process.

    Attributes:
        part: part of the suite.
        name: name of the job.
        command: the words after `python`.
        share: seconds in a part of 510 s.
        rows: file of its rows.
        reserve: seconds before its limit in which it starts nothing new.
        grace: seconds before its limit at which it is asked to stop.
    """

    part: str
    name: str
    command: tuple[str, ...]
    share: float
    rows: Path
    reserve: float = 5.0
    grace: float = 5.0

    def arguments(self, limit: float) -> list[str]:
        """The whole command. {seconds} is replaced by the time for measurements: limit minus start and reserve."""
        seconds = f"{max(5.0, limit - _START_SECONDS - self.reserve):.0f}"
        return [sys.executable, *(word.replace("{seconds}", seconds) for word in self.command)]

    def shown(self, limit: float) -> str:
        """The command as it is shown in a result, without paths of this machine."""
        words = ["python", *self.arguments(limit)[1:]]
        return " ".join(words).replace(str(self.rows.parent), "rows")


def names_of(wanted: Sequence[str]) -> dict[str, list[str]]:
    """Names of the jobs to run, by part.

    Args:
        wanted: Names of parts, their numbers 1 to 3, or names of jobs. None at all means all parts.

    Raises:
        ValueError: An unknown name.
    """
    chosen: dict[str, list[str]] = {}
    for word in wanted or PARTS:
        part = list(PARTS)[int(word) - 1] if word in ("1", "2", "3") else word
        if part in PARTS:
            chosen[part] = list(PARTS[part])
            continue
        homes = [name for name, jobs in PARTS.items() if word in jobs]
        if not homes:
            known = ", ".join((*PARTS, *dict.fromkeys(job for jobs in PARTS.values() for job in jobs)))
            raise ValueError(f"expected parts or jobs of: {known}; got {word!r}")
        chosen.setdefault(homes[0], []).append(word)
    return {
        part: [job for job in PARTS[part] if job in chosen[part] or job == "environment"]
        for part in PARTS
        if part in chosen
    }


def jobs_of(work: Path, wanted: Sequence[str] = (), prefix: Sequence[str] = ("-m",)) -> dict[str, list[Job]]:
    """The jobs of the parts that are wanted, in order.

    Args:
        work: Folder of their rows and logs.
        wanted: Names as in `names_of`.
        prefix: Words between `python` and the name of a module.
    """
    commands = _commands(work)

    def job(part: str, name: str) -> Job:
        words = (*prefix, *commands[name], *_MORE.get((part, name), ()))
        return Job(part, name, words, PARTS[part][name], _rows(work, name), **_LIMITS.get(name, {}))

    return {part: [job(part, name) for name in names] for part, names in names_of(wanted).items()}


def _rows(work: Path, name: str) -> Path:
    return work / f"{name}.jsonl"


def _commands(work: Path) -> dict[str, tuple[str, ...]]:
    """Module and arguments of every job."""

    def module(name: str, file: str, *options: str) -> tuple[str, ...]:
        return (f"benchmarks.{file}", "--out", str(_rows(work, name)), *options)

    workers = str(min(_WORKERS, os.cpu_count() or 1))
    tests = ("pytest", *GPU_TESTS, "-m", "gpu", "-q", "-n", workers, "-p", "no:cacheprovider")
    tests += ("--continue-on-collection-errors", "-p", "benchmarks.pytest_rows", "--rows", str(_rows(work, "tests")))
    cuda, seconds = ("--device", "cuda"), ("--seconds", "{seconds}")
    return {
        "environment": module("environment", "environment", *cuda),
        "warm": module("warm", "warm", *seconds),
        "tests": tests,
        "tiles": module("tiles", "tiles", "--tables", "none", "float32", "--tiles", "64x4x3", "64x8x3", *seconds),
        "angles": module("angles", "tiles", "--tables", "float32", "float16", "--tiles", "chosen", *seconds),
        "host": module("host", "host_times", *seconds),
        "launches": module("launches", "launches"),
        **{name: module(name, "kernels", *cuda, *seconds, *options) for name, options in _kernel_options().items()},
        **{name: module(name, "backbone", *cuda, *seconds, *options) for name, options in _model_options().items()},
    }


def _kernel_options() -> dict[str, tuple[str, ...]]:
    accepted, rotated = ("--preset", "acceptance"), ("--preset", "rotated")
    some = ("--peers", "veca", "sdpa", "chain", "xformers")
    compiled = ("--peers", "veca", "flex", "chain-compiled")
    halves, timed = ("--ops", "read", "write", "whole"), ("--passes", "fwd+bwd", "fwd")
    graph, short, one = ("--modes", "graph"), ("--max-seconds", "0.3"), ("--layouts", "token-major")
    every = ("--passes", "fwd+bwd", "fwd", "bwd")
    return {
        "rotated": (
            *rotated, "--tables", "float32", "--peers", "veca", "sdpa", "xformers", *halves, *every, *graph, *short,
        ),
        "rotated-fp16": (*rotated, "--tables", "float16", "--peers", "veca", "--ops", "whole", *every, *graph, *short),
        "acceptance": (*accepted, *some, *halves, *every, *graph, *short),
        "full-attention": (*accepted, "--ops", "full", "--longest-run", "0.1", *one, *graph, *timed, *short),
        "eager": (
            "--preset", "rotated", "--tables", "none", "float32", "--peers", "veca", "sdpa",
            *halves, *timed, *one, "--modes", "eager", "--max-seconds", "0.2",
        ),
        "compiled-peers": (
            "--preset", "rotated", "--tables", "none", "float32", *compiled, *one, *halves, *graph, *timed, *short,
        ),
        "grid": ("--preset", "rest", "--longest-run", "0.1", *some, *halves, *timed, *one, *graph, *short),
    }  # fmt: skip


def _model_options() -> dict[str, tuple[str, ...]]:
    limits = ("--max-seconds", "0.5", "--longest-run", "2")
    return {name: ("--preset", name, *limits) for name in ("judged", "models", "compiled-models")}
