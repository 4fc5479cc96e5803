"""Compile every variant of the attention kernels for GPUs that are not here, and report what it needs.

    python -m veca_kernels.aot --arch sm_90          # a table of all variants
    python -m veca_kernels.aot --check               # the same for all targets

The exit status is 1 when a limit is broken.

Registers, spills, shared memory and loops come from the binaries that the launch table would run. Launches of the real
ops are recorded on meta tensors and compiled with the signature that the launcher would derive. `EXCEPTIONS` lists the
limits that a variant cannot keep, with the reasons.
"""

import argparse
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from .options import Options

SHARED_LIMITS = {  # bytes of shared memory that a block may use
    "sm_80": 163 << 10,
    "sm_90": 227 << 10,
    "sm_100": 227 << 10,
    "sm_120": 99 << 10,
    "gfx942": 64 << 10,
}
CALLS = ("forward", "backward", "read", "read_backward", "write", "write_backward")
JOINS = ("combine_reads", "sum_partials")  # they join partial results, without matrix products
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
CORES = (16, 32, 64, 128)
HEAD_DIMS = (32, 64, 80, 96, 128)
H200_BYTES_PER_CYCLE = 4.3e12 / 132 / 1.98e9  # measured copy rate, of one of 132 multiprocessors at 1.98 GHz
FLOOR_TENSORS = {  # patch-sized tensors that a kernel must move; for a joint kernel, in the half that moves fewer
    "read_forward": 2,
    "write_forward": 2,
    "joint_forward": 2,
    "read_backward": 4,
    "write_backward": 3,
    "joint_backward": 3,
}


@dataclass(frozen=True)
class Variant:
    """One compilation: a kernel that a call of the op or of a half launches, and all that the launch depends on."""

    arch: str
    call: str
    kernel: str
    dtype: str
    cores: int
    head_dim: int
    rope: bool = False
    patch_self: bool = False


_FEW = "products of fewer than 64 cores are too small for four warps, fewer warps hold too few patches"
_NARROW = "32 channels are half the bytes for the same scores, so that instructions count more than memory"
_MANY = "128 cores keep two sums of 128 rows; eight warps would spill less and repeat each other"
_WIDE = "registers: the sums of 128 channels leave none to overlap products"
_SMALL = "tiles of 32 patches: with two warps they spill 568 bytes, with 64 patches 376, so 80"
_OWN = "the own key needs registers: with 64 patches or four warps a tile spills, and more cycles are lost"

# (what, which variants, why): limits that the launch table breaks on purpose
EXCEPTIONS: tuple[tuple[str, Callable[[Variant], bool], str], ...] = (
    ("duplicated", lambda v: v.cores < 64, _FEW),
    ("duplicated", lambda v: v.arch == "sm_120", _SMALL),
    ("issue", lambda v: v.cores < 64 and v.head_dim != 64, _FEW),
    ("issue", lambda v: v.head_dim == 32, _NARROW),
    ("issue", lambda v: v.cores == 128, _MANY),
    ("serialised", lambda v: v.cores == 128, _MANY),
    ("duplicated", lambda v: v.cores == 128 and v.head_dim > 64, _MANY),
    ("serialised", lambda v: v.head_dim == 128 and v.call == "backward", _WIDE),
    ("issue", lambda v: v.patch_self and v.kernel == "write_backward", _OWN),
    ("serialised", lambda v: v.patch_self and v.kernel == "write_backward", _OWN),
)


@dataclass(frozen=True)
class Row:
    """A variant, the launch that the table chose for it, and its binary (see `triton.binary`)."""

    variant: Variant
    tile: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    wgmma: int
    mma: int
    loops: tuple[int, ...] = ()
    serialised: int = 0
    duplicated: tuple[str, ...] = ()
    error: str = ""

    @property
    def issue_cycles(self) -> float:
        """Cycles that an sm_90 multiprocessor needs to issue the longest loop for 64 patches of a head."""
        rows, warps, _ = (int(x.rstrip("ws")) for x in self.tile.split(" x ")) if self.loops else (64, 0, 0)
        return max(self.loops, default=0) * warps / 4 * 64 / rows

    @property
    def floor_cycles(self) -> float:
        """Cycles that an H200 needs to move what the kernel must move for 64 patches of a head."""
        v = self.variant
        return FLOOR_TENSORS[v.kernel] * 64 * v.head_dim * DTYPES[v.dtype].itemsize / H200_BYTES_PER_CYCLE

    @property
    def breaches(self) -> dict[str, str]:
        """Limits that this variant does not keep, with or without a reason."""
        v = self.variant
        if self.error:
            return {"compiles": f"does not compile: {self.error}"}
        found = {}
        if self.shared_bytes > SHARED_LIMITS[v.arch]:
            found["shared"] = f"shared memory {self.shared_bytes} > {SHARED_LIMITS[v.arch]} bytes"
        if v.dtype == "fp32":
            return found
        if self.duplicated:
            found["duplicated"] = f"warps repeat each other in {', '.join(self.duplicated)}"
        if v.arch != "sm_90" or v.kernel in JOINS:
            return found
        if v.cores <= 64 and v.head_dim == 64 and self.spill_bytes:
            found["spills"] = f"{self.spill_bytes} bytes spilled, expected none"
        if v.cores >= 64 and not self.wgmma:
            found["wgmma"] = "no wgmma"
        if self.serialised:
            found["serialised"] = f"{self.serialised} wgmma instructions wait for each other"
        if v.dtype == "bf16" and self.issue_cycles > self.floor_cycles:
            found["issue"] = f"{self.issue_cycles:.0f} issue cycles > {self.floor_cycles:.0f} of the memory floor"
        return found

    @property
    def excused(self) -> dict[str, str]:
        """Reasons of the limits that this variant breaks on purpose."""
        return {what: why for what, which, why in EXCEPTIONS if what in self.breaches and which(self.variant)}

    @property
    def broken(self) -> list[str]:
        """Limits that this variant breaks without a reason."""
        return [text for what, text in self.breaches.items() if what not in self.excused]


def variants(arch: str, full: bool) -> list[Variant]:
    """All variants for one target: bf16 with rotation at all sizes, and what only the halves launch.

    `full` adds fp16, fp32, unrotated and patch_self variants at D = 64 and 128.
    """
    from .triton.tables import fits

    choices = [("bf16", True, False, HEAD_DIMS)]
    if full:
        others = [("bf16", False, False), ("fp16", True, False), ("fp32", True, False), ("bf16", True, True)]
        choices += [(*choice, (64, 128)) for choice in others]
    calls = [
        Variant(arch, call, "", dtype, cores, head_dim, rope, patch_self)
        for dtype, rope, patch_self, head_dims in choices
        for cores in CORES
        for head_dim in head_dims
        for call in CALLS[:2]
    ]
    calls += [Variant(arch, call, "", "bf16", cores, 64) for cores in CORES for call in CALLS[2:]]
    found = {}
    for call in calls:
        if not fits(call.cores, call.head_dim, DTYPES[call.dtype].itemsize, SHARED_LIMITS[arch]):
            continue
        for kernel, _ in launches_of(call):
            name = kernel.__name__
            one = replace(call, kernel=name)
            # of all that is varied here, joins depend on the head dim alone
            found.setdefault((name, call.head_dim) if name in JOINS else one, one)
    return list(found.values())


@contextmanager
def recorded_launches(arch: str) -> Iterator[list[tuple[Any, dict[str, Any]]]]:
    """Inside the block, launches are noted instead of run, as if on that GPU."""
    from .triton import launch

    launches: list[tuple[Any, dict[str, Any]]] = []
    saved = launch.launch, launch.device_facts
    launch.launch = lambda kernel, programs, device, **arguments: launches.append((kernel, arguments))
    launch.device_facts = lambda device: (132, SHARED_LIMITS[arch])
    try:
        yield launches
    finally:
        launch.launch, launch.device_facts = saved


def launches_of(variant: Variant) -> list[tuple[Any, dict[str, Any]]]:
    """Every kernel that the call of this variant launches, with its arguments on meta tensors."""
    from .triton import ops

    dtype, C, D, H, P = DTYPES[variant.dtype], variant.cores, variant.head_dim, 12, 4096
    empty, scale = functools.partial(torch.empty, device="meta"), variant.head_dim**-0.5
    q, k, v = empty(1, C + P, 3, H, D, dtype=dtype).unbind(2)
    angles = torch.float32 if variant.dtype == "fp32" else torch.float16
    rope = (empty(P, D // 2, dtype=angles), empty(P, D // 2, dtype=angles)) if variant.rope else None
    options = Options(C, C, None, rope, scale, True, variant.patch_self)
    rows, lse = empty(1, C, H, D, dtype=dtype), empty(1, H, C)
    core_q, core_k, core_v = (x[:, :C] for x in (q, k, v))
    patch_q, patch_k, patch_v = (x[:, C:] for x in (q, k, v))
    with recorded_launches(variant.arch) as launches:
        if variant.call == "forward":
            ops.core_periphery_forward(q, k, v, options)
        elif variant.call == "backward":
            ops.core_periphery_backward(q, q, k, v, rows, lse, options, True)
        elif variant.call == "read":
            ops.read_forward(core_q, patch_k, patch_v, None, scale)
        elif variant.call == "read_backward":
            ops.read_backward(rows, lse, core_q, patch_k, patch_v, rows, lse, None, scale)
        elif variant.call == "write":
            ops.write_forward(patch_q, core_k, core_v, C, scale)
        else:
            ops.write_backward(patch_q, patch_q, core_k, core_v, C, scale)
    return launches


def record(variant: Variant) -> tuple[Any, dict[str, Any]]:
    """The kernel of this variant and the arguments of its launch."""
    return next((kernel, a) for kernel, a in launches_of(variant) if kernel.__name__ == variant.kernel)


def build(variant: Variant) -> Row:
    """Compile one variant. A compiler failure becomes a row that breaks its limits."""
    from .triton.adapter import compile_ahead

    kernel, arguments = record(variant)
    rows = arguments.get("BP", arguments.get("BP_READ"))
    joins = variant.kernel in JOINS  # launched with Triton's own numbers of warps and stages
    tile = "-" if joins else f"{rows} x {arguments['num_warps']}w x {arguments['num_stages']}s"
    try:
        return Row(variant, tile, **asdict(compile_ahead(kernel, arguments, variant.arch)))
    except Exception as error:  # the report must name the variant for any error of the compiler
        return Row(variant, tile, 0, 0, 0, 0, 0, error=f"{type(error).__name__}: {error}"[:200])


def build_all(todo: list[Variant], workers: int) -> list[Row]:
    """Rows of all variants, in order, from `workers` processes. Progress goes to stderr."""
    rows, start = [], time.monotonic()
    with ProcessPoolExecutor(workers) as pool:
        for row in pool.map(build, todo, chunksize=4):
            rows.append(row)
            if sys.stderr.isatty():
                print(f"\r{len(rows)}/{len(todo)}  {time.monotonic() - start:.0f} s", end="", file=sys.stderr)
    return rows


def table(rows: list[Row]) -> str:
    """Formats the rows as a Markdown table, one line a variant."""
    columns = "arch, call, kernel, dtype, C, D, options, tile, registers, spill bytes, shared KB, wgmma, mma"
    columns = [*columns.split(", "), "issue cycles", "limits"]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for row in rows:
        v = row.variant
        options = " ".join(["rope"] * v.rope + ["patch_self"] * v.patch_self) or "plain"
        cells = [v.arch, v.call, v.kernel, v.dtype, v.cores, v.head_dim, options, row.tile, row.registers]
        cells += [row.spill_bytes, round(row.shared_bytes / 1024), row.wgmma, row.mma]
        excuses = [f"{row.breaches[what]}: {why}" for what, why in row.excused.items()]
        cells += [f"{row.issue_cycles:.0f}" if row.loops else "-", "; ".join(row.broken + excuses) or "kept"]
        lines.append(f"| {' | '.join(str(x) for x in cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m veca_kernels.aot", description=(__doc__ or "").split("\n")[0])
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
    judged = [asdict(r) | {"issue_cycles": r.issue_cycles, "broken": r.broken, "excused": r.excused} for r in rows]
    print(json.dumps(judged, indent=1) if options.json else table(rows))
    print(f"{len(rows)} variants compiled for {', '.join(archs)}: {len(broken)} break a limit", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
