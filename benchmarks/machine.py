"""Rates of this machine: known ones by the name of the device, measured ones otherwise."""

import dataclasses
import math

import torch

from veca.bench.peak import matmul_peak
from veca.bench.timing import Contender, TimeLimits, Timing, measure

from .floors import H200, Machine

__all__ = ["as_row", "machine_for", "measured_machine"]

KNOWN = {machine.name: machine for machine in (H200,)}
_COPIED = {"cuda": 2**30, "cpu": 2**24}  # number of elements, many times the size of the caches
_CUDA_LAUNCH = 2.5e-6  # seconds of a dependent kernel inside a CUDA graph; launches hide shorter floors


def machine_for(device: torch.device, dtype: torch.dtype) -> Machine:
    """The rates for the floors. Known rates are those of bf16. Other dtypes are always measured."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        known = KNOWN.get(torch.cuda.get_device_name(device))
        if known is not None:
            return known
    return measured_machine(device, dtype)


def measured_machine(device: torch.device, dtype: torch.dtype) -> Machine:
    """Measure copy bandwidth (bytes read plus written) and matmul rate on random data.

    Both come from the 20 % quantile of the times, because other programs slow some of the runs.

    Args:
        device: device to measure.
        dtype: dtype of the data.

    Raises:
        RuntimeError: a measurement failed.
    """
    cuda = device.type == "cuda"
    source = torch.randn(_COPIED[device.type], device=device).to(dtype)
    target = torch.empty_like(source)
    contenders = {"copy": Contender(lambda: [lambda: target.copy_(source)], torch.no_grad, kept=True)}
    limits = TimeLimits(runs=20, screening=5, max_seconds=1.0)
    timing = measure(contenders, "eager" if cuda else "cpu", limits)["copy"]
    if not isinstance(timing, Timing):
        raise RuntimeError(f"the copy that fixes the bandwidth of {device} failed: {timing}")
    size = f"{source.nbytes / 1e6:.0f} MB"
    return Machine(
        name=torch.cuda.get_device_name(device) if cuda else "cpu",
        bandwidth=2 * source.nbytes / timing.low,
        matmul=matmul_peak(device, dtype),
        exps=math.inf,
        launch=_CUDA_LAUNCH if cuda else 0.0,
        source=f"copy of {size} and {dtype} matmul, measured in this run",
    )


def as_row(machine: Machine) -> dict[str, object]:
    """The rates as JSON. An unknown (infinite) rate is null."""
    row = dataclasses.asdict(machine)
    return {key: None if value == math.inf else value for key, value in row.items()}
