"""Compile every shipped kernel variant for GPUs that are not here, and report what it needs.

    python -m veca_kernels.aot --arch sm_90          # a table of all variants
    python -m veca_kernels.aot --check               # the same for all targets

The exit status is 1 when a limit is broken.

Registers, spills and shared memory come from the binaries that the launch table would run: launches of the real ops
are recorded on meta tensors and compiled with the signature that the launcher would derive.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

SHARED_LIMITS = {  # bytes a block may use
    "sm_80": 163 << 10,
    "sm_90": 227 << 10,
    "sm_100": 227 << 10,
    "sm_120": 99 << 10,
    "gfx942": 64 << 10,
}
KERNELS = ("read_forward", "read_backward", "write_forward", "write_backward")
JOINS = ("combine_reads", "sum_partials")  # of partial results: no matrix products
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
CORES = (16, 32, 64, 128)
HEAD_DIMS = (32, 64, 80, 96, 128)


@dataclass(frozen=True)
class Variant:
    """One compilation: what the launch depends on."""

    arch: str
    kernel: str
    dtype: str
    cores: int
    head_dim: int
    rope: bool
    patch_self: bool = False
    half: bool = False  # launched by a half of the op alone, which differs in the backward


@dataclass(frozen=True)
class Row:
    """A variant, the launch that the table chose for it, and what the compiler made of it."""

    variant: Variant
    tile: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    wgmma: int
    mma: int
    error: str = ""

    @property
    def broken(self) -> list[str]:
        """Limits that this variant breaks."""
        v, broken = self.variant, []
        if self.error:
            return [f"does not compile: {self.error}"]
        if self.shared_bytes > SHARED_LIMITS[v.arch]:
            broken.append(f"shared memory {self.shared_bytes} > {SHARED_LIMITS[v.arch]} bytes")
        if v.arch != "sm_90" or v.dtype == "fp32":
            return broken
        if v.cores <= 64 and v.head_dim == 64 and self.spill_bytes:
            broken.append(f"{self.spill_bytes} bytes spilled, expected none")
        if v.cores >= 64 and v.kernel not in JOINS and not self.wgmma:
            broken.append("no wgmma")
        return broken


def variants(arch: str, full: bool) -> list[Variant]:
    """bf16 with rotation at all sizes, and what only the halves launch; `full` adds fp16, fp32, unrotated and
    patch_self at D = 64 and 128.
    """
    from .triton.tables import fits

    choices = [("bf16", True, False, HEAD_DIMS)]
    if full:
        others = [("bf16", False, False), ("fp16", True, False), ("fp32", True, False), ("bf16", True, True)]
        choices += [(*choice, (64, 128)) for choice in others]
    packed = [
        Variant(arch, kernel, dtype, cores, head_dim, rope, patch_self)
        for dtype, rope, patch_self, head_dims in choices
        for cores in CORES
        for head_dim in head_dims
        for kernel in KERNELS
        if fits(cores, head_dim, DTYPES[dtype].itemsize, SHARED_LIMITS[arch])
        and (kernel.startswith("write") or not patch_self)
    ]
    joins = [Variant(arch, kernel, "bf16", 64, head_dim, False) for head_dim in HEAD_DIMS for kernel in JOINS]
    halves = [
        Variant(arch, kernel, "bf16", cores, 64, False, half=True)
        for cores in CORES
        for kernel in ("read_backward", "write_backward")
        if fits(cores, 64, 2, SHARED_LIMITS[arch])
    ]
    return packed + [v for v in joins if fits(64, v.head_dim, 2, SHARED_LIMITS[arch])] + halves


@contextmanager
def recorded_launches(arch: str) -> Iterator[list[tuple[Any, dict[str, Any]]]]:
    """Launches inside the block are noted instead of run, as if on that GPU."""
    from .triton import launch

    launches: list[tuple[Any, dict[str, Any]]] = []
    saved = launch.launch, launch.device_facts, launch.JOINT
    launch.launch = lambda kernel, programs, device, **arguments: launches.append((kernel, arguments))
    launch.device_facts = lambda device: (132, SHARED_LIMITS[arch])
    launch.JOINT = False  # each half by itself
    try:
        yield launches
    finally:
        launch.launch, launch.device_facts, launch.JOINT = saved


def record(variant: Variant) -> tuple[Any, dict[str, Any]]:
    """The kernel and the arguments that a call of the op, packed or a half of it, would launch for this variant."""
    from .triton import ops

    dtype, C, D, H, P = DTYPES[variant.dtype], variant.cores, variant.head_dim, 12, 4096
    meta = dict(device="meta")
    qkv = torch.empty(1, C + P, 3, H, D, dtype=dtype, **meta).unbind(2)
    rope = (torch.empty(P, D // 2, **meta), torch.empty(P, D // 2, **meta)) if variant.rope else None
    joint = (C, C, None, rope, D**-0.5, True, variant.patch_self)
    core_out, lse = torch.empty(1, C, H, D, dtype=dtype, **meta), torch.empty(1, H, C, **meta)
    cores, patches = [x[:, :C] for x in qkv], [x[:, C:] for x in qkv]
    with recorded_launches(variant.arch) as launches:
        if variant.half and variant.kernel == "read_backward":
            ops.read_backward(core_out, lse, cores[0], *patches[1:], core_out, lse, None, D**-0.5)
        elif variant.half:
            ops.write_backward(patches[0], patches[0], *cores[1:], C, D**-0.5)
        elif variant.kernel in ("read_forward", "write_forward", "combine_reads"):
            ops.core_periphery_forward(*qkv, *joint)
        else:
            ops.core_periphery_backward(qkv[0], *qkv, core_out, lse, *joint, True)
    return next((kernel, a) for kernel, a in launches if kernel.__name__ == variant.kernel)


def build(variant: Variant) -> Row:
    """Compile one variant. A compiler failure becomes a row that breaks its limits."""
    from .triton.adapter import compile_ahead

    kernel, arguments = record(variant)
    joins = variant.kernel in JOINS  # launched with Triton's own numbers of warps and stages
    tile = "-" if joins else f"{arguments['BP']} x {arguments['num_warps']}w x {arguments['num_stages']}s"
    try:
        return Row(variant, tile, **asdict(compile_ahead(kernel, arguments, variant.arch)))
    except Exception as error:  # whatever the compiler raises, the report must name the variant
        return Row(variant, tile, 0, 0, 0, 0, 0, error=f"{type(error).__name__}: {error}"[:200])


def build_all(todo: list[Variant], workers: int) -> list[Row]:
    """All variants, in order, on `workers` processes; progress on stderr."""
    rows, start = [], time.monotonic()
    with ProcessPoolExecutor(workers) as pool:
        for row in pool.map(build, todo, chunksize=4):
            rows.append(row)
            if sys.stderr.isatty():
                print(f"\r{len(rows)}/{len(todo)}  {time.monotonic() - start:.0f} s", end="", file=sys.stderr)
    return rows


def table(rows: list[Row]) -> str:
    """Markdown: one line a variant."""
    columns = "arch, kernel, dtype, C, D, options, tile, registers, spill bytes, shared KB, wgmma, mma, limits".split(
        ", "
    )
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for row in rows:
        v = row.variant
        options = " ".join(["rope"] * v.rope + ["patch_self"] * v.patch_self + ["half"] * v.half) or "plain"
        cells = [v.arch, v.kernel, v.dtype, v.cores, v.head_dim, options, row.tile, row.registers, row.spill_bytes]
        cells += [round(row.shared_bytes / 1024), row.wgmma, row.mma, "; ".join(row.broken) or "kept"]
        lines.append(f"| {' | '.join(str(x) for x in cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m veca_kernels.aot", description=__doc__.split("\n")[0])
    parser.add_argument("--arch", nargs="+", choices=SHARED_LIMITS, help="targets; all with --check, else sm_90")
    parser.add_argument("--check", action="store_true", help="all targets unless --arch names some")
    parser.add_argument(
        "--full", action="store_true", help="also fp16, fp32, unrotated and patch_self variants at D = 64 and 128"
    )
    parser.add_argument("--cores", type=int, nargs="+", choices=CORES, default=CORES)
    parser.add_argument("--head-dims", type=int, nargs="+", choices=HEAD_DIMS, default=HEAD_DIMS)
    parser.add_argument("--json", action="store_true", help="rows as JSON instead of a table")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args(argv)

    archs = options.arch or (list(SHARED_LIMITS) if options.check else ["sm_90"])
    todo = [v for arch in archs for v in variants(arch, options.full)]
    todo = [v for v in todo if v.cores in options.cores and v.head_dim in options.head_dims]
    rows = build_all(todo, options.workers)
    broken = [row for row in rows if row.broken]
    print(json.dumps([asdict(r) | {"broken": r.broken} for r in rows], indent=1) if options.json else table(rows))
    print(f"{len(rows)} variants compiled for {', '.join(archs)}: {len(broken)} break a limit", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
