"""From tensors to launches: buffers, split counts, strides. Only this module launches the attention kernels.

Tensors are (B, T, H, D) with any strides but a contiguous last dimension. A pass over the patches is cut into splits
when its images and heads alone would not fill the device. Partial results of the splits are fp32. A second small
kernel joins them in split order, so every run gives the same bits.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from ..devices import device_facts
from ..options import Options
from . import joint, read, write
from .plan import empty, launch
from .strides import alignment, encode_stride, kernel_rows
from .tables import Tile, choose_tile, split_head_dim

_MAX_SPLITS = 64
_MIN_TILES_PER_SPLIT = 4
_PARTIAL_BYTES = 24 << 20  # of all partials of a pass, which must stay in L2 between their two kernels
_COMBINE_ROWS = 4
_SUM_BLOCK = 1024
JOINT = True  # read and write share a launch where their tiles agree; benchmarks compare with two launches


def same_launch(one: Tile, other: Tile) -> bool:
    """Whether two tiles may share a launch. They may differ in patches only."""
    return (one.block_c, one.num_warps, one.num_stages) == (other.block_c, other.num_warps, other.num_stages)


def split_count(programs: int, tiles: int, bytes_per_split: int, num_sms: int) -> int:
    """The number of splits with the least estimated cost: waves of two blocks a multiprocessor, times tiles of a block.

    Loading what a program keeps and writing its partial count as two tiles. There are at least 4 tiles a split and at
    most 64 splits, and all partials together take at most 24 MB. Among equals the fewest splits are chosen.

    Args:
        programs: Number of programs of one split, B H.
        tiles: Number of tiles of the whole walk.
        bytes_per_split: Bytes of the partials of one split.
        num_sms: Number of multiprocessors of the device.
    """
    most = min(_MAX_SPLITS, tiles // _MIN_TILES_PER_SPLIT, _PARTIAL_BYTES // max(bytes_per_split, 1))

    def cost(splits: int) -> int:
        return math.ceil(programs * splits / (2 * num_sms)) * (math.ceil(tiles / splits) + 2)

    return min(range(1, max(most, 1) + 1), key=cost)


@dataclass(frozen=True)
class Call:
    """What all launches of one call share.

    In a joint tensor patches start at row C. The halves have cores and patches in separate tensors, both from row 0.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    patches: int
    first_patch: int
    options: Options

    @property
    def batch(self) -> int:
        return self.q.shape[0]

    @property
    def heads(self) -> int:
        return self.q.shape[2]

    @property
    def head_dim(self) -> int:
        return self.q.shape[3]

    @property
    def cores(self) -> int:
        return self.options.num_cores

    @property
    def num_sms(self) -> int:
        return device_facts(self.q.device)[0]

    def tile(self, kernel: str) -> Tile:
        shared = device_facts(self.q.device)[1]
        return choose_tile(kernel, self.cores, self.head_dim, self.q.element_size(), self.options.patch_self, shared)

    def tiles(self, tile: Tile) -> int:
        """Tiles of a walk over the patches, and over the cores where they read each other."""
        return self.core_tiles(tile) + triton.cdiv(self.patches, tile.block_p)

    def core_tiles(self, tile: Tile) -> int:
        return triton.cdiv(self.cores, tile.block_p) if self.options.core_self else 0

    def launch(self, kernel: Any, tile: Tile, programs: int, rows: Mapping[str, Tensor | None], **own: Any) -> None:
        """Launches one program per (image, split, head). `rows` are tensors (B, T, H, D) that the kernel addresses."""
        rows = dict(q=self.q, k=self.k, v=self.v, **rows)
        align = alignment(*(x for x in rows.values() if x is not None))
        d1, d2 = split_head_dim(self.head_dim)
        launch(
            kernel,
            self.batch * self.heads * programs,
            self.q.device,
            **{name: kernel_rows(x, align) for name, x in rows.items()},
            rope=self._rope(),
            active=self.options.active_cores,
            lengths=self.options.patch_lengths,
            scale=self.options.scale,
            B=self.batch,
            H=self.heads,
            C=self.cores,
            P=self.patches,
            first_patch=self.first_patch,
            **own,
            D=self.head_dim,
            D1=d1,
            D2=d2,
            BC=tile.block_c,
            NEGATE=self.options.scale < 0,
            ALIGN=align,
            PRECISION=fp32_precision(self.q.device, self.q.dtype, kernel, tile),
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
            enable_fp_fusion=True,
        )

    def _rope(self) -> tuple[Any, ...] | None:
        if self.options.patch_rope is None:
            return None
        cos, sin = (x.contiguous() for x in self.options.patch_rope)
        return cos, sin, encode_stride(cos.stride(0) // 4 if cos.ndim == 3 else 0)


def fp32_precision(device: torch.device, dtype: torch.dtype, kernel: Any, tile: Tile) -> str:
    """tf32 for fp32 tensors where the user asked torch for it.

    Backward kernels with 64 or more rows of cores stay exact. For sm_90, Triton 3.6 and 3.9 do not compile their
    transposed tf32 products. The pass TritonGPUOptimizeDotOperands fails (2026-11-22).
    """
    if device.type != "cuda" or dtype != torch.float32 or torch.backends.cuda.matmul.fp32_precision != "tf32":
        return "ieee"
    backward = kernel in (read.read_backward, write.write_backward, joint.joint_backward)
    return "ieee" if backward and tile.block_c >= 64 else "tf32"


@dataclass(frozen=True)
class Reads:
    """Where the read leaves its results, (B, C, H, D) and (B, H, C): the final tensors, or partials of its splits."""

    splits: int
    tiles: int
    out: Tensor
    lse: Tensor


def plan_reads(call: Call, tile: Tile, out: Tensor, lse: Tensor) -> Reads:
    """The splits of a read, with room for their partials."""
    B, H, C, D = call.batch, call.heads, call.cores, call.head_dim
    tiles = call.tiles(tile)
    splits = split_count(B * H, tiles, 4 * B * H * C * (D + 1), call.num_sms)
    if splits > 1:
        out = empty(out, (splits * B, C, H, D), torch.float32)  # (splits B, C, H, D)
        lse = empty(lse, (splits, B, H, C))  # (splits, B, H, C)
    return Reads(splits, triton.cdiv(tiles, splits), out, lse)


def plan_writes(call: Call, tile: Tile) -> tuple[int, int]:
    """(shares of the patches, tiles of a share): about four programs a multiprocessor, each with at least one tile."""
    tiles = triton.cdiv(call.patches, tile.block_p)
    if tiles == 0:
        return 0, 0
    wanted = max(1, 4 * call.num_sms // max(call.batch * call.heads, 1))
    share = triton.cdiv(tiles, min(tiles, wanted))
    return triton.cdiv(tiles, share), share


def run_forward(call: Call, out: Tensor, core_rows: Tensor) -> Tensor:
    """Write `out` and a copy of its core rows. Returns the log-sum-exp of the cores (B, H, C)."""
    tile, write_tile = call.tile("read_forward"), call.tile("write_forward")
    writes, share = plan_writes(call, write_tile)
    if not (JOINT and call.cores and writes and same_launch(tile, write_tile)):
        lse = run_read_forward(call, out, core_rows)
        run_write_forward(call, out)
        return lse
    lse = empty(out, (call.batch, call.heads, call.cores), torch.float32)
    reads = plan_reads(call, tile, out, lse)
    rows = dict(core_out=reads.out, core_rows=None if reads.splits > 1 else core_rows, out=out)
    call.launch(
        joint.joint_forward,
        tile,
        reads.splits + writes,
        rows,
        lse=reads.lse,
        core_tiles=call.core_tiles(tile),
        read_splits=reads.splits,
        read_tiles=reads.tiles,
        write_splits=writes,
        write_tiles=share,
        BP_READ=tile.block_p,
        BP_WRITE=write_tile.block_p,
        PATCH_SELF=call.options.patch_self,
    )
    combine_reads(call, reads, out, core_rows, lse)
    return lse


def run_read_forward(call: Call, out: Tensor, core_rows: Tensor | None = None) -> Tensor:
    """Write the core rows of `out`, and a copy of them. Returns their log-sum-exp (B, H, C)."""
    tile = call.tile("read_forward")
    lse = empty(out, (call.batch, call.heads, call.cores), torch.float32)
    if call.cores == 0:
        return lse
    reads = plan_reads(call, tile, out, lse)
    call.launch(
        read.read_forward,
        tile,
        reads.splits,
        dict(out=reads.out, core_rows=None if reads.splits > 1 else core_rows),
        lse=reads.lse,
        core_tiles=call.core_tiles(tile),
        num_splits=reads.splits,
        tiles_per_split=reads.tiles,
        first_program=0,
        BP=tile.block_p,
    )
    combine_reads(call, reads, out, core_rows, lse)
    return lse


def combine_reads(call: Call, reads: Reads, out: Tensor, core_rows: Tensor | None, lse: Tensor) -> None:
    """Join the partials of a read, if it has any."""
    if reads.splits == 1:
        return
    align = alignment(out)
    launch(
        read.combine_reads,
        call.batch * call.heads * triton.cdiv(call.cores, _COMBINE_ROWS),
        out.device,
        part=reads.out,
        part_lse=reads.lse,
        out=kernel_rows(out, align),
        core_rows=kernel_rows(core_rows, align),
        lse=lse,
        B=call.batch,
        H=call.heads,
        C=call.cores,
        num_splits=reads.splits,
        D=call.head_dim,
        BD=triton.next_power_of_2(call.head_dim),
        ROWS=_COMBINE_ROWS,
        ALIGN=align,
        enable_fp_fusion=True,
    )


def run_write_forward(call: Call, out: Tensor) -> None:
    """Write the patch rows of `out`."""
    tile = call.tile("write_forward")
    shares, share = plan_writes(call, tile)
    call.launch(
        write.write_forward,
        tile,
        shares,
        dict(out=out),
        num_splits=shares,
        tiles_per_split=share,
        first_program=0,
        BP=tile.block_p,
        PATCH_SELF=call.options.patch_self,
    )


def partial_sums(call: Call, kinds: int) -> tuple[int, Tensor | None]:
    """The number of splits of a backward pass, and room for `kinds` partial sums of each.

    The room is (kinds, splits B, C, H, D), or None for one split.
    """
    B, H, C, D = call.batch, call.heads, call.cores, call.head_dim
    rows = max(call.tile(name).block_p for name in ("read_backward", "write_backward"))
    splits = split_count(B * H, triton.cdiv(call.patches, rows), 4 * kinds * B * H * C * D, call.num_sms)
    if splits == 1:
        return 1, None
    return splits, empty(call.q, (kinds, splits * B, C, H, D), torch.float32)


def run_backward(
    call: Call,
    core_rows: Tensor,
    lse: Tensor,
    dout: Tensor,
    grads: tuple[Tensor, ...],
    core_grads: tuple[Tensor, ...],
    splits: int,
) -> None:
    """Write the gradients of patches into `grads`, those of cores (or their partial sums) into `core_grads`.

    Both are (dq, dk, dv).
    """
    tile = call.tile("read_backward")
    (dq, dk, dv), (dq_core, dk_core, dv_core) = grads, core_grads
    if not JOINT or call.options.patch_self or tile != call.tile("write_backward"):
        run_read_backward(call, core_rows, lse, dout, None, (dq_core, dk, dv), splits)
        known = (core_rows, lse) if call.options.core_self else None
        run_write_backward(call, dout, (dq, dk_core, dv_core), splits, known, (dk, dv))
        return
    rows = dict(out=core_rows, dout=dout, dq_core=dq_core, dk_core=dk_core, dv_core=dv_core, dq=dq, dk=dk, dv=dv)
    call.launch(
        joint.joint_backward,
        tile,
        2 * splits,
        rows,
        lse=lse,
        core_tiles=call.core_tiles(tile),
        num_splits=splits,
        tiles_per_split=triton.cdiv(call.tiles(tile), splits),
        BP=tile.block_p,
    )


def run_read_backward(
    call: Call,
    core_rows: Tensor,
    lse: Tensor,
    dout: Tensor,
    dlse: Tensor | None,
    grads: tuple[Tensor, ...],
    splits: int,
) -> None:
    """Write dk, dv of the patches and dq of the cores (or its partial sums)."""
    tile = call.tile("read_backward")
    dq, dk, dv = grads
    call.launch(
        read.read_backward,
        tile,
        splits,
        dict(out=core_rows, dout=dout, dq=dq, dk=dk, dv=dv),
        lse=lse,
        dlse=dlse,
        core_tiles=call.core_tiles(tile),
        num_splits=splits,
        tiles_per_split=triton.cdiv(call.tiles(tile), splits),
        first_program=0,
        BP=tile.block_p,
    )


def run_write_backward(
    call: Call,
    dout: Tensor,
    grads: tuple[Tensor, ...],
    splits: int,
    known: tuple[Tensor, Tensor] | None = None,
    own: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Write dq of the patches, dk and dv of the cores (or their partial sums).

    Args:
        call: What all launches share.
        dout: Gradient of the output, (B, T, H, D).
        grads: dq of the patches, dk and dv of the cores.
        splits: Number of splits of the pass.
        known: Output rows and log-sum-exp of the cores. With them the cores join as query rows.
        own: dk and dv of the patches, to which the own keys add with `patch_self`.
    """
    tile = call.tile("write_backward")
    dq, dk, dv = grads
    dk_own, dv_own = own if own is not None and call.options.patch_self else (dq, dq)
    core_rows, lse = known or (None, None)
    call.launch(
        write.write_backward,
        tile,
        splits,
        dict(out=core_rows, dout=dout, dq=dq, dk=dk, dv=dv, dk_own=dk_own, dv_own=dv_own),
        lse=lse,
        core_tiles=call.core_tiles(tile),
        num_splits=splits,
        tiles_per_split=triton.cdiv(call.tiles(tile), splits),
        first_program=0,
        BP=tile.block_p,
        PATCH_SELF=call.options.patch_self,
    )


def sum_partials(call: Call, part: Tensor, out: Tensor, splits: int) -> None:
    """Core rows of out (kinds, B, T, H, D) = sums over splits of part (kinds, splits B, C, H, D)."""
    align = alignment(out)
    launch(
        write.sum_partials,
        triton.cdiv(call.cores * call.heads * call.head_dim, _SUM_BLOCK) * call.batch * part.shape[0],
        out.device,
        part=part,
        out=kernel_rows(out, align),
        B=call.batch,
        H=call.heads,
        C=call.cores,
        num_splits=splits,
        D=call.head_dim,
        ALIGN=align,
        BLOCK=_SUM_BLOCK,
        enable_fp_fusion=True,
    )
