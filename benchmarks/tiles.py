"""Microseconds and share of the floor of each of the four kernels, in the tiles that the command line names.

    python -m benchmarks.tiles                                           # 4 against 8 warps, plain and rotated
    python -m benchmarks.tiles --tiles chosen --tables float32 float16   # what the angle tables cost
    python -m benchmarks.tiles --kernels write_backward --tiles chosen 64x4x2 64x4x3 32x4x3 --head-dim 128

A tile is patches x warps x stages. "chosen" is the tile of the launch table. Forward and backward of the whole op run
under torch's profiler, which gives the time of every kernel. Calls use several buffer sets in turn. Each combination is
first compared with the fp64 definition. All launches are separate here, so that each kernel has a time.
"""

import argparse
import dataclasses
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from veca.bench.timing import num_buffer_sets, short_error

from . import acceptance
from .checks import Buffers, Oracle, verify
from .floors import AttentionCase, Machine, floor
from .launches import profile
from .machine import machine_for
from .peers import Absent, Peer, peers
from .record import JsonLines
from .rotation import refused_tables
from .summary import tile_table

KERNELS = {
    "read_forward": ("read", "fwd"),
    "write_forward": ("write", "fwd"),
    "read_backward": ("read", "bwd"),
    "write_backward": ("write", "bwd"),
}
_WARMUP_CALLS = 5


@contextmanager
def tiles_of(tile: str, kernels: Sequence[str] = tuple(KERNELS)) -> Iterator[None]:
    """A context in which these kernels are launched in one tile, and all launches are separate.

    Args:
        tile: Tile such as "64x4x3"; "chosen" keeps the tile of the launch table.
        kernels: Names of the kernels that get the tile.

    Raises:
        ValueError: The tile is not three positive numbers.
    """
    from veca_kernels.triton import launch

    original, joint = launch.choose_tile, launch.JOINT

    def choose(kernel: str, *case: Any) -> Any:
        chosen = original(kernel, *case)
        if tile == "chosen" or kernel not in kernels:
            return chosen
        patches, warps, stages = _numbers(tile)
        return dataclasses.replace(chosen, block_p=patches, num_warps=warps, num_stages=stages)

    _numbers(tile)
    launch.choose_tile = choose
    launch.JOINT = False
    forget_plans()
    try:
        yield
    finally:
        launch.choose_tile, launch.JOINT = original, joint
        forget_plans()


def forget_plans() -> None:
    """Drop all planned launches. They must be planned again after a setting has changed."""
    from veca_kernels.triton import plan

    plan.clear()


def _numbers(tile: str) -> tuple[int, ...]:
    numbers = tuple(int(word) for word in tile.split("x") if word.isdecimal())
    if tile != "chosen" and (len(numbers) != 3 or 0 in numbers or tile.count("x") != 2):
        raise ValueError(f"expected a tile such as 64x4x3 (patches, warps, stages) or chosen, got {tile!r}")
    return numbers


def measure_tile(case: AttentionCase, tile: str, kernels: Sequence[str], runs: int, machine: Machine) -> Iterator[dict]:
    """Yield a row for each kernel with its times, or with the reason why it has none."""
    device = torch.device("cuda")
    fixed = {"kind": "tile", **dataclasses.asdict(case), "tile": tile}
    if case.tables and (reason := refused_tables(case)):
        yield from (fixed | {"kernel": k, "status": "skipped", "reason": reason} for k in kernels)
        return
    try:
        with tiles_of(tile, kernels):
            times, share = _times(case, device, runs)
    except Exception as error:  # the tile does not fit the GPU, or the profiler is not permitted
        yield from (fixed | {"kernel": k, "status": "error", "reason": short_error(error)} for k in kernels)
        return
    for kernel in kernels:
        found = sorted(times.get(kernel, ()))
        if not found:
            yield fixed | {"kernel": kernel, "status": "error", "reason": "the profile has no kernel of that name"}
            continue
        quantiles = {"low_us": found[len(found) // 5], "high_us": found[len(found) * 4 // 5], "runs": len(found)}
        limit = floor(case, *KERNELS[kernel], machine)
        row = {"kernel": kernel, "median_us": statistics.median(found), **quantiles, "status": "ok", "reason": ""}
        yield fixed | row | {"floor_us": limit.seconds * 1e6, "regime": limit.regime, "check_share": share}


def _times(case: AttentionCase, device: torch.device, runs: int) -> tuple[dict[str, list[float]], float]:
    """Microseconds of every launch by kernel, and the worst error divided by the allowed error."""
    count = num_buffer_sets(3 * (case.patch_bytes + case.core_bytes), device)
    buffers = Buffers(case, "whole", device, count)
    peer = next(peers("whole", case, device, ("veca",)))
    if isinstance(peer, Absent):
        raise RuntimeError(peer.reason)
    check = verify(peer, Oracle(case, "whole", buffers), buffers)
    if check.status != "ok":
        raise RuntimeError(f"{check.status}: {check.message}")
    calls = _calls(peer, buffers)

    def in_turn(count: int) -> None:
        for index in range(count):
            calls[index % len(calls)]()  # outputs are freed at once

    in_turn(_WARMUP_CALLS)
    times: dict[str, list[float]] = {}
    for launched in profile(lambda: in_turn(runs)):
        times.setdefault(launched["kernel"], []).append(launched["us"])
    return times, check.share


def _calls(peer: Peer, buffers: Buffers) -> list[Callable[[], object]]:
    sets = buffers.get(peer.layout)
    return [lambda s=s: torch.autograd.grad(peer.call(*s.inputs), s.inputs, s.grad) for s in sets]


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        for tile in args.tiles:
            _numbers(tile)
    except ValueError as error:
        parser.error(str(error))
    if not torch.cuda.is_available():
        print("expected a CUDA device, found none", file=sys.stderr)
        return 2
    deadline = time.monotonic() + args.seconds
    sink = JsonLines(args.out)
    batch, patches, cores = args.batch, args.patches, args.cores
    longest = acceptance.LONG
    shape = (batch or longest[0], patches or longest[1], cores or longest[2], args.heads, args.head_dim)
    machine = machine_for(torch.device("cuda"), getattr(torch, args.dtype))
    for tables, tile in itertools.product(args.tables, args.tiles):
        case = AttentionCase(*shape, dtype=args.dtype, tables=None if tables == "none" else tables)
        if time.monotonic() > deadline:
            row = {"kind": "tile", **dataclasses.asdict(case), "tile": tile, "status": "skipped"}
            reason = f"the {args.seconds:.0f} s for this run were used up"
            rows = [row | {"kernel": kernel, "reason": reason} for kernel in args.kernels]
        else:
            rows = measure_tile(case, tile, args.kernels, args.runs, machine)
        for row in rows:
            sink.append(row)
    print(tile_table(sink.rows))
    return 1 if any(row["status"] == "error" for row in sink.rows) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--tiles", nargs="+", default=["64x4x3", "64x8x3"], help="patches x warps x stages, or chosen")
    add("--kernels", nargs="+", choices=tuple(KERNELS), default=tuple(KERNELS), help="kernels that get the tile")
    add("--tables", nargs="+", choices=("none", "float32", "float16"), default=["none", "float32"])
    add("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    add("--batch", type=int, help="number of images; default 1")
    add("--patches", type=int, help="number of patches; default 65,536")
    add("--cores", type=int, help="number of cores; default 64")
    add("--heads", type=int, default=12, help="number of heads")
    add("--head-dim", type=int, default=64, help="number of channels of a head")
    add("--runs", type=int, default=50, help="number of runs")
    add("--seconds", type=float, default=600.0, help="seconds for the whole run, then skip the rest")
    add("--out", type=Path, help="JSON lines file, appended to")
    return parser


if __name__ == "__main__":
    sys.exit(main())
