"""Host time and GPU time of a call: our op and two SDPA calls, eager and in a graph.

    python -m benchmarks.host_times                  # (1, 4096), where the time of launches matters most

    host    Time until the call returns, which Python and the driver take.
    eager   CUDA events around each call, which see the larger of host and GPU.
    graph   Time in a CUDA graph, which the GPU takes alone.

Our op runs with joint launches of read and write, and with separate ones.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from veca.bench.timing import Contender, TimeLimits, Timing, measure, num_buffer_sets, short_error

from . import acceptance
from .checks import Buffers, Oracle, verify
from .floors import AttentionCase
from .kernels import contender
from .peers import Absent, Peer, peers
from .record import JsonLines
from .rotation import rotation
from .summary import host_table
from .tiles import forget_plans

_BATCH = 20  # calls between two synchronisations: fewer than fill the queue, so that launches do not wait


@contextmanager
def joint_launches(joint: bool) -> Iterator[None]:
    """A context in which read and write use one launch together, or one each."""
    from veca_kernels.triton import launch

    before = launch.JOINT
    launch.JOINT = joint
    forget_plans()
    try:
        yield
    finally:
        launch.JOINT = before
        forget_plans()


def two_sdpa_calls(case: AttentionCase, device: torch.device) -> Peer:
    """Read and write by SDPA on slices of the joint tensors, with their outputs joined. Rotated cases turn q and k."""
    turn = rotation(case, device, unturned=case.C) if case.tables else (lambda x: x)
    cores = case.C

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = turn(q), turn(k)
        core = F.scaled_dot_product_attention(q[:, :, :cores], k, v)
        patch = F.scaled_dot_product_attention(q[:, :, cores:], k[:, :, :cores], v[:, :, :cores])
        return torch.cat((core, patch), 2)

    return Peer("two sdpa calls", "sdpa", "whole", "token-major", call)


def host_seconds(calls: Sequence[Callable[[], object]], runs: int) -> float:
    """Seconds on the host per call: the median of `runs` batches, divided by the number of calls in a batch."""
    samples = []
    for _ in range(runs):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for index in range(_BATCH):
            calls[index % len(calls)]()
        samples.append((time.perf_counter() - start) / _BATCH)
    torch.cuda.synchronize()
    return statistics.median(samples)


def measure_call(peer: Peer, buffers: Buffers, pass_: str, limits: TimeLimits) -> dict[str, float]:
    """Microseconds of a call on the host, in eager mode and in a graph. The reason of a failure is under "reason"."""
    job: Contender = contender(peer, buffers, pass_)
    found: dict[str, object] = {}
    for mode in ("eager", "graph"):
        timing = measure({"call": job}, mode, limits)["call"]
        if isinstance(timing, Timing):
            found[f"{mode}_us"] = timing.median * 1e6
        else:
            found["reason"] = f"{mode}: {timing}"
    with job.context():
        found["host_us"] = host_seconds(job.make(), limits.runs) * 1e6
    return found


def run(case: AttentionCase, limits: TimeLimits, sink: JsonLines, deadline: float) -> None:
    device = torch.device("cuda")
    buffers = Buffers(case, "whole", device, num_buffer_sets(3 * (case.patch_bytes + case.core_bytes), device))
    oracle = Oracle(case, "whole", buffers)
    ours = [peer for peer in peers("whole", case, device, ("veca",)) if peer.name == "veca-triton"]
    jobs = [(peer, joint) for peer in ours for joint in (True, False)] + [(two_sdpa_calls(case, device), None)]
    for peer, joint in jobs:
        launches = {True: "joint", False: "separate", None: None}[joint]
        row = {"kind": "host", **dataclasses.asdict(case), "label": peer.name, "launches": launches, "reason": ""}
        if isinstance(peer, Absent) or time.monotonic() > deadline:
            reason = peer.reason if isinstance(peer, Absent) else "the time for this run was used up"
            sink.append(row | {"pass": None, "reason": reason, "status": "skipped"})
            continue
        with joint_launches(joint is not False):
            check = verify(peer, oracle, buffers)
            row |= {"label": peer.label, "status": check.status}
            if check.status != "ok":
                sink.append(row | {"pass": None, "reason": check.message})
                continue
            for pass_ in ("fwd", "fwd+bwd"):
                try:
                    sink.append(row | {"pass": pass_} | measure_call(peer, buffers, pass_, limits))
                except Exception as error:
                    sink.append(row | {"pass": pass_, "reason": short_error(error), "status": "error"})


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if not torch.cuda.is_available():
        print("expected a CUDA device, found none", file=sys.stderr)
        return 2
    sink, deadline = JsonLines(args.out), time.monotonic() + args.seconds
    batch, patches, cores = acceptance.SHORT
    shape = args.batch or batch, args.patches or patches, args.cores or cores
    for tables in args.tables:
        case = AttentionCase(*shape, tables=None if tables == "none" else tables)
        run(case, TimeLimits(runs=args.runs, screening=min(11, args.runs), max_seconds=0.3), sink, deadline)
    print(host_table(sink.rows))
    return 1 if any(row["status"] in ("wrong", "error") for row in sink.rows) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--batch", type=int, help="number of images; default 1")
    add("--patches", type=int, help="number of patches; default 4,096")
    add("--cores", type=int, help="number of cores; default 64")
    add("--tables", nargs="+", choices=("none", "float32", "float16"), default=["none", "float32"])
    add("--runs", type=int, default=50, help="number of runs")
    add("--seconds", type=float, default=300.0, help="seconds for the whole run, then skip the rest")
    add("--out", type=Path, help="JSON lines file, appended to")
    return parser


if __name__ == "__main__":
    sys.exit(main())
