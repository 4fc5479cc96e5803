"""Rates of the machine at hand: known ones by device name, measured ones otherwise.

python -m benchmarks.machine --device cuda --out environment.json
"""

import argparse
import dataclasses
import json
import math
from pathlib import Path

import torch

from .floors import H200, Machine
from .record import environment
from .timing import Budget, Contender, Timing, measure

__all__ = ["machine_for", "measured_machine"]

KNOWN = {machine.name: machine for machine in (H200,)}
_CUDA_LAUNCH = 2.5e-6  # a dependent kernel inside a CUDA graph; marks floors that launches hide


def machine_for(device: torch.device, dtype: torch.dtype) -> Machine:
    """The rates behind the floors. Known rates are those of bf16; other dtypes are always measured."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        known = KNOWN.get(torch.cuda.get_device_name(device))
        if known is not None:
            return known
    return measured_machine(device, dtype)


def measured_machine(device: torch.device, dtype: torch.dtype) -> Machine:
    """Copy bandwidth (bytes read plus written) and matmul rate on random data: the 20 % quantile of the times,
    since a ceiling is what the machine can do, not what its other programs leave."""
    cuda = device.type == "cuda"
    elements, side = (2**30, 8192) if cuda else (2**24, 1024)
    source = torch.randn(elements, device=device).to(dtype)
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    contenders = {
        "copy": Contender(lambda: [lambda: target.copy_(source)], torch.no_grad, kept=True),
        "matmul": Contender(lambda: [lambda: a @ b], torch.no_grad, kept=True),
    }
    timings = measure(contenders, "eager" if cuda else "cpu", Budget(runs=20, screening=5, max_seconds=1.0))
    for name, timing in timings.items():
        if not isinstance(timing, Timing):
            raise RuntimeError(f"the {name} that fixes the rates of {device} failed: {timing}")
    size = f"{source.nbytes / 1e6:.0f} MB"
    return Machine(
        name=torch.cuda.get_device_name(device) if cuda else "cpu",
        bandwidth=2 * source.nbytes / timings["copy"].low,
        matmul=2 * side**3 / timings["matmul"].low,
        exps=math.inf,
        launch=_CUDA_LAUNCH if cuda else 0.0,
        source=f"copy of {size} and {dtype} matmul of side {side}, measured in this run",
    )


def as_row(machine: Machine) -> dict[str, object]:
    """The rates as JSON; an unknown (infinite) rate is null."""
    row = dataclasses.asdict(machine)
    return {key: None if value == math.inf else value for key, value in row.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write device, versions and measured rates as one JSON object.")
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    device = torch.device(args.device)
    record = environment(args.device)
    args.out.write_text(json.dumps(record))  # before measuring: a failure there must not lose the device's name
    record["measured_rates"] = as_row(measured_machine(device, torch.bfloat16))
    known = KNOWN.get(record["device"])
    record["floor_rates"] = as_row(known) if known else record["measured_rates"]
    args.out.write_text(json.dumps(record))


if __name__ == "__main__":
    main()
