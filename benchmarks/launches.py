"""Names, grids and times of all kernels that run, by peer and pass, from a profiler trace.

    python -m benchmarks.launches --batch 1 --patches 65536 --cores 64

The trace shows which attention backend torch picks by default. It also shows whether a kernel splits the keys. A read
that does not split them has a grid of images x heads x query tiles, and no more blocks.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from veca.bench.timing import short_error

from . import acceptance
from .checks import Buffers
from .floors import AttentionCase
from .peers import Absent, Peer, peers
from .record import JsonLines
from .summary import launches_table

__all__ = ["kernels_of_trace", "profile"]


def kernels_of_trace(trace: dict[str, Any]) -> list[dict[str, Any]]:
    """The kernel launches of a Chrome trace, in order: name, grid, block and microseconds."""
    events = [event for event in trace["traceEvents"] if event.get("cat") == "kernel"]
    return [
        {
            "kernel": event["name"],
            "grid": event.get("args", {}).get("grid"),
            "block": event.get("args", {}).get("block"),
            "us": event["dur"],
        }
        for event in sorted(events, key=lambda event: event["ts"])
    ]


def profile(call: Callable[[], object]) -> list[dict[str, Any]]:
    """The launches of one call."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return kernels_of_trace(json.loads(path.read_text()))


def trace(call: Callable[[], object]) -> list[dict[str, Any]]:
    """The launches of one call, after two calls that warm up."""
    for _ in range(2):
        call()
    return profile(call)


def record_launches(case: AttentionCase, op: str, device: torch.device, sink: JsonLines) -> None:
    """One row per peer and pass of an op."""
    buffers = Buffers(case, op, device, 1)
    inputs, grad = buffers.get("token-major")[0].inputs, buffers.get("token-major")[0].grad
    plain = Peer("sdpa-default", "sdpa", op, "token-major", F.scaled_dot_product_attention)
    found = [plain, *peers(op, case, device, ("veca", "sdpa"), ("token-major",))]
    for peer in found if op != "whole" else found[1:]:
        if isinstance(peer, Absent) or peer.layout != "token-major":
            continue
        for pass_ in ("fwd", "bwd"):
            names = {"label": peer.name, "op": op, "pass": pass_, "B": case.B, "P": case.P, "C": case.C}
            names |= {"tables": case.tables}
            launches, reason = [], ""
            try:
                with peer.context():
                    if pass_ == "fwd":
                        with torch.no_grad():
                            launches = trace(lambda call=peer.call: call(*inputs))
                    else:
                        out = peer.call(*inputs)
                        launches = trace(lambda out=out: torch.autograd.grad(out, inputs, grad, retain_graph=True))
            except Exception as error:  # the peer refuses the shape, or the profiler is not permitted
                reason = short_error(error)
            sink.append({"kind": "launches", **names, "launches": launches, "reason": reason})


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if not torch.cuda.is_available():
        print("expected a CUDA device, found none", file=sys.stderr)
        return 2
    sink = JsonLines(args.out)
    batch, patches, cores = acceptance.LONG
    shape = args.batch or batch, args.patches or patches, args.cores or cores
    for tables, op in ((None, "whole"), ("float32", "whole"), (None, "read"), (None, "write")):
        record_launches(AttentionCase(*shape, tables=tables), op, torch.device("cuda"), sink)
    print(launches_table(sink.rows))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, help="number of images; default 1")
    parser.add_argument("--patches", type=int, help="number of patches; default 65,536")
    parser.add_argument("--cores", type=int, help="number of cores; default 64")
    parser.add_argument("--out", type=Path, help="JSON lines file, appended to")
    return parser


if __name__ == "__main__":
    sys.exit(main())
