"""The stopwatch of the demo and of `veca bench`. It measures the wall-clock time of one call."""

import time
from collections.abc import Callable

import torch

__all__ = ["wall_seconds"]


def wall_seconds(call: Callable[[], object], device: torch.device | None = None) -> float:
    """Seconds that a call takes.

    Args:
        call: Function to run once.
        device: Device of the work. A CUDA device is synchronised before and after the call. Default: a CPU.
    """
    _synchronize(device)
    started = time.perf_counter()
    call()
    _synchronize(device)
    return time.perf_counter() - started


def _synchronize(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
