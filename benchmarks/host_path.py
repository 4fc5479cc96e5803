"""The time of a call on the host: Python and torch up to the launches, with a Triton driver that runs nothing.

    python -m benchmarks.host_path                    # a table, beside two SDPA calls in the same process
    python -m benchmarks.host_path --out rows.jsonl

It needs no GPU. CPU tensors stand for CUDA tensors, stand-ins replace the binaries, and nothing is computed. The two
SDPA calls are on tensors of one token, where computing takes no time. Times are CPU times of the calling thread in
microseconds, because other programs disturb wall clocks more. Contenders take turns, and each run is the mean of
several calls. The times do not include the driver call itself and the switch to another device.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from veca_kernels import checks, core_periphery_attention_qkvpacked
from veca_kernels.triton import launch, ops, plan

from .fake_driver import fake_driver
from .record import JsonLines, environment, markdown_table

__all__ = ["contenders", "measure"]

B, P, C, H, D = 1, 4096, 64, 12, 64
_FORWARD, _BOTH = "two SDPA calls, forward", "two SDPA calls, forward + backward"
TARGETS = {"forward": 70.0, "forward + backward": 300.0}  # microseconds where two SDPA calls take 12 and 111

Call = Callable[[], object]


def contenders() -> dict[str, tuple[Call, str]]:
    """The calls to time, and what they are compared with. They must run inside `fake_driver(compiles=False)`.

    Returns:
        name -> (call, name of the SDPA call it is compared with).
    """
    qkv = torch.randn(B, C + P, 3, H, D, dtype=torch.bfloat16)
    leaf, grad = qkv.clone().requires_grad_(), torch.randn(B, C + P, H, D, dtype=torch.bfloat16)
    rope = (torch.rand(P, D // 2), torch.rand(P, D // 2))
    token = torch.randn(1, 1, 1, D, dtype=torch.bfloat16)
    token_leaf, token_grads = token.clone().requires_grad_(), (torch.ones_like(token),) * 2
    attend = lambda x: core_periphery_attention_qkvpacked(x, C, patch_rope=rope, impl="triton")  # noqa: E731
    no_grad = torch.no_grad()  # as a decorator
    given = (C, None, None, rope, None, True, False)
    arguments = (qkv, None, None, checks.filled_in(given, D**-0.5))

    def sdpa(x: Tensor) -> tuple[Tensor, Tensor]:
        return F.scaled_dot_product_attention(x, x, x), F.scaled_dot_product_attention(x, x, x)

    return {
        _FORWARD: (no_grad(lambda: sdpa(token)), _FORWARD),
        "forward": (no_grad(lambda: attend(qkv)), _FORWARD),
        "  of it checks, once a kind": (lambda: checks.recall("triton", (qkv,), given), _FORWARD),
        "  of it the plan": (no_grad(lambda: plan.run(ops.core_periphery_output, launch.JOINT, *arguments)), _FORWARD),
        "  the same without a plan": (no_grad(lambda: ops.core_periphery_output(*arguments)), _FORWARD),
        _BOTH: (lambda: torch.autograd.grad(sdpa(token_leaf), token_leaf, token_grads), _BOTH),
        "forward + backward": (lambda: torch.autograd.grad(attend(leaf), leaf, grad), _BOTH),
        "  of it forward": (lambda: attend(leaf), _BOTH),
    }


def measure(calls: dict[str, Call], runs: int, calls_per_run: int) -> dict[str, list[float]]:
    """Microseconds per call in each of `runs` runs of every contender. Contenders take turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for run in range(-2, runs):  # two rounds warm up and make the plans
        for name, call in calls.items():
            start = time.thread_time()
            for _ in range(calls_per_run):
                call()
            if run >= 0:
                times[name].append((time.thread_time() - start) / calls_per_run * 1e6)
    return times


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, help="number of runs")
    parser.add_argument("--calls", type=int, default=20, help="number of calls per run")
    parser.add_argument("--out", type=Path, help="JSON lines file, appended to")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    torch.set_num_threads(1)
    sink, machine = JsonLines(args.out), environment("cpu")
    with fake_driver(compiles=False, record=False, check=False):
        pairs = contenders()
        times = measure({name: call for name, (call, _) in pairs.items()}, args.runs, args.calls)
    table = []
    for name, samples in times.items():
        peer = times[pairs[name][1]]
        least, median = min(samples), statistics.median(samples)
        row = {"part": name, "min us": least, "median us": median, "min / SDPA": least / min(peer)}
        table.append(row)
        sink.append({"kind": "host", **row, "target us": TARGETS.get(name), "runs": args.runs, **machine})
    print(f"{machine['device']}, torch {machine['torch']}, Triton {machine['triton']}, {machine['date']}")
    print(f"(B, P, C, H, D) = {(B, P, C, H, D)}, bf16, rotated, one thread\n")
    print(markdown_table(table, ["part", "min us", "median us", "min / SDPA"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
