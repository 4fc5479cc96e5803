"""Time of a PointTransformer by number of points, beside the same network with full self-attention over its points.

    python -m benchmarks.points                                    # recipe nano's network, on a CPU
    python -m benchmarks.points --points 65536 --passes inference --without-full

Both networks have the same weights, cores, condition and blocks. In "full" every token attends to every token, by
torch's scaled_dot_product_attention. Both are measured in turns, in one process. The exponent is the slope of log time
over log points between two neighbouring sizes: 1 is linear, 2 is quadratic.
"""

import argparse
import math
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brainmodels.nn.points import PointTransformer
from veca.bench.timing import Contender, TimeLimits, Timing, measure
from veca.model.attention import CoreAttention

from .record import JsonLines, Row, environment, markdown_table

__all__ = ["FullAttention", "main", "rows_of"]

PASSES = ("inference", "train")
_COND_WIDTH = 24
COLUMNS = ("pass", "points", "cores s", "full s", "full / cores", "runs", "exponent, cores", "exponent, full")


class FullAttention(nn.Module):
    """Self-attention among all tokens, with the projections of a `CoreAttention`."""

    def __init__(self, like: CoreAttention):
        super().__init__()
        self.like = like

    def forward(self, x: Tensor, num_cores: int) -> Tensor:
        q, k, v = (part.transpose(1, 2) for part in self.like.project(x, num_cores).unbind(2))  # (B, H, T, D)
        return self.like.output(F.scaled_dot_product_attention(q, k, v).transpose(1, 2))  # (B, T, E)


def with_full_attention(net: PointTransformer) -> PointTransformer:
    """A copy of a network in which all tokens attend to all."""
    copy = deepcopy(net)
    for block in copy.blocks:
        block.attn = FullAttention(block.attn)
    return copy


def awake(net: PointTransformer) -> PointTransformer:
    """The network with open gates, since those of a new one are closed."""
    with torch.no_grad():
        for weight in net.parameters():
            if not weight.any():
                nn.init.normal_(weight, std=0.1)
    return net


def rows_of(args: argparse.Namespace) -> list[Row]:
    """One row for each pass and number of points."""
    device = torch.device(args.device)
    torch.manual_seed(0)
    ours = awake(PointTransformer(args.width, args.depth, args.heads, args.latents, _COND_WIDTH)).to(device)
    nets = {"cores": ours} if args.without_full else {"cores": ours, "full": with_full_attention(ours)}
    limits = TimeLimits(runs=args.runs, screening=args.runs)
    rows: list[Row] = []
    for name in args.passes:
        before: Row = {}
        for points in args.points:
            calls = {
                kind: Contender(partial(calls_of, net, args, points, name), context(name), kept=True)
                for kind, net in nets.items()
            }
            found = measure(calls, "cpu" if device.type == "cpu" else "eager", limits)
            row: Row = {"pass": name, "points": points, "batch": args.batch, "runs": args.runs}
            for kind, timing in found.items():
                row[f"{kind} s"] = timing.median if isinstance(timing, Timing) else timing
                row[f"exponent, {kind}"] = exponent(before, row, f"{kind} s")
            if all(isinstance(row.get(f"{kind} s"), float) for kind in ("cores", "full")):
                row["full / cores"] = row["full s"] / row["cores s"]
            rows.append(row)
            before = row
    return rows


def context(name: str) -> Callable:
    return torch.no_grad if name == "inference" else nullcontext


def calls_of(net: PointTransformer, args: argparse.Namespace, points: int, name: str) -> list[Callable[[], object]]:
    """A forward pass of random clouds, and its backward pass if the pass is "train"."""
    place = {"device": args.device}
    clouds = torch.randn(args.batch, points, 3, **place)
    time, condition = torch.rand(args.batch, **place), torch.randn(args.batch, _COND_WIDTH, **place)

    def call() -> object:
        made = net(clouds, time, condition)
        if name == "inference":
            return made
        net.zero_grad()
        return made.square().mean().backward()

    return [call]


def exponent(before: Row, row: Row, column: str) -> float | None:
    """Slope of log time over log points between two rows; None where one of the times is missing."""
    first, second = before.get(column), row.get(column)
    if not (isinstance(first, float) and isinstance(second, float)):
        return None
    return math.log(second / first) / math.log(row["points"] / before["points"])


def main(words: list[str] | None = None) -> None:
    args = _parser().parse_args(words)
    if args.threads:
        torch.set_num_threads(args.threads)
    rows, log = rows_of(args), JsonLines(args.out)
    sizes = {name: getattr(args, name) for name in ("width", "depth", "heads", "latents")}
    record = environment(torch.device(args.device).type)
    for row in rows:
        log.append(record | {"benchmark": "points"} | sizes | row)
    threads = f"threads {record['threads']}, " if "threads" in record else ""
    print(f"{record['device']}, {threads}torch {record['torch']}, {record['date']}, {sizes}, batch {args.batch}\n")
    print(markdown_table(rows, COLUMNS))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--points", nargs="+", type=int, default=(1024, 4096, 16384), help="numbers of points, in ascending order")
    add("--passes", nargs="+", choices=PASSES, default=PASSES)
    add("--batch", type=int, default=1, help="number of clouds")
    add("--width", type=int, default=64)
    add("--depth", type=int, default=4)
    add("--heads", type=int, default=4)
    add("--latents", type=int, default=16)
    add("--runs", type=int, default=3, help="number of runs of each network at each size, in turns")
    add("--without-full", action="store_true", help="leave full attention out, for more points than it can take")
    add("--device", default="cpu")
    add("--threads", type=int, help="number of torch's threads on a CPU")
    add("--out", type=Path, help="append the rows to this JSON lines file")
    return parser


if __name__ == "__main__":
    main()
