"""Timing of one case in a fresh process, where no other model has prepared the memory allocator.

Run as a module, this file reads the request of `measure_alone` and writes the timing, both as JSON.
"""

import dataclasses
import json
import subprocess
import sys

import torch

from .models import BackboneCase, prepare
from .timing import Contender, TimeLimits, Timing, measure

__all__ = ["measure_alone"]


def measure_alone(case: BackboneCase, flops: int, limits: TimeLimits) -> Timing | str:
    """Time a case on the CPU in a fresh process with as many threads as this one.

    Args:
        case: the case to time.
        flops: FLOPs of its forward pass, so that the process need not count them.
        limits: limits on runs and seconds.

    Returns:
        The timing, or the last line that the process wrote before it failed.
    """
    request = {"case": dataclasses.asdict(case), "flops": flops, "threads": torch.get_num_threads()}
    request["limits"] = dataclasses.asdict(limits)
    command = [sys.executable, "-m", "veca.bench.alone"]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True)
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1][:300]
    answer = json.loads(done.stdout.splitlines()[-1])
    return answer if isinstance(answer, str) else Timing(**answer)


def main() -> None:
    request = json.load(sys.stdin)
    torch.set_num_threads(request["threads"])
    case = BackboneCase(**request["case"])
    counts = {(case.model, case.num_cores, case.size): request["flops"]}
    prepared = prepare(case, torch.device("cpu"), counts)
    contender = Contender(lambda: prepared.calls, prepared.context, kept=True)
    (timing,) = measure({case: contender}, "cpu", TimeLimits(**request["limits"])).values()
    print(json.dumps(dataclasses.asdict(timing) if isinstance(timing, Timing) else timing))


if __name__ == "__main__":
    main()
